// The closed lists a permission is described with: on what legal basis it rests, and which facts about
// its collection are on record. They stand in consent records, import columns, profiles.yaml and receipts;
// a name is never reused, and the position of each in its list is how it is stored: new ones go last.
// Sources stand beside each; config/profiles.yaml says which jurisdiction accepts which.

export const LEGAL_BASES = [
  'gdpr_6_1_a', // consent: GDPR Art. 6(1)(a)
  'gdpr_6_1_b', // contract: GDPR Art. 6(1)(b)
  'gdpr_6_1_c', // legal obligation: GDPR Art. 6(1)(c)
  'gdpr_6_1_f', // legitimate interest: GDPR Art. 6(1)(f)
  'eprivacy_13_2', // soft opt-in: Directive 2002/58/EC Art. 13(2), C-654/23
  'pecr_charity', // soft opt-in of charities: UK Data (Use and Access) Act 2025
  'casl_express', // CASL s. 6(1)(a); does not expire
  'casl_implied_business', // CASL s. 10(10): two years from purchase, contract or membership
  'casl_implied_inquiry', // CASL s. 10(10)(e): six months from the inquiry
  'can_spam', // 15 USC 7704: mail until opted out
  'au_express', // Spam Act 2003 sch. 2
  'au_inferred', // Spam Act 2003 sch. 2: from an existing relationship
  'dpdp_6', // DPDP Act 2023 s. 6
] as const;
export type LegalBasis = (typeof LEGAL_BASES)[number];

/** What is on record about how a permission was collected; at most eight, for they are stored as one octet. */
export const BASIS_FACTS = [
  'double-opt-in', // the person confirmed by mail
  'obtained-in-sale', // Art. 13(2): in the context of a sale of a product or service
  'own-similar-products', // Art. 13(2): same legal person, similar products
  'opt-out-offered', // Art. 13(2): could object when the address was collected
  'tracking-consent-apart', // the tracking choice was asked for by itself (CNIL 2026-042)
] as const;
export type BasisFact = (typeof BASIS_FACTS)[number];
