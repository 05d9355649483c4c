// Every rule the gate can decide by: a closed list, whose ids stand in replies, events and metrics and
// are never reused. `{}` in a sentence is filled with the purpose, stream, profile or number the rule is about;
// no sentence ever holds an address.

/** Rule id -> what a postmaster reads; one sentence, ASCII. */
export const RULES = {
  'ok-consent': 'an active consent for purpose {} is on record',
  'ok-no-consent-needed': 'stream {} needs no consent and nothing stands against it',
  'ok-sender': 'the credential may use this sender',
  'ok-message': 'the header keeps the rules',
  notice: 'a notice from Postern to its tenant',
  invitation: 'a consent for purpose {} waits to be confirmed',
  'invitation-not-pending': 'no consent for purpose {} waits to be confirmed',
  'ledger-unavailable': 'the consent ledger does not answer',
  'stream-unknown': 'the tenant or stream of this message is not configured now',
  'policy-not-in-force': 'no privacy policy of this tenant is in force now',
  'tenant-suspended': 'this account is suspended',
  'purpose-not-in-policy': 'the privacy policy does not allow purpose {}',
  'suppressed-hard-bounce': 'the address does not exist, says an earlier bounce',
  'suppressed-complaint': 'the recipient has complained',
  'suppressed-unsubscribe': 'the recipient has unsubscribed',
  'suppressed-objection': 'the recipient has objected',
  'suppressed-erasure': 'the recipient has asked to be erased',
  'suppressed-manual': 'the recipient was suppressed by hand',
  'suppressed-restriction': 'the recipient has asked that their data is not used',
  'suppressed-pause': 'the recipient has paused the mail for a while',
  'consent-missing': 'no consent on record for purpose {}',
  'consent-pending': 'the consent for purpose {} was never confirmed',
  'consent-refused': 'the recipient has refused purpose {}',
  'consent-withdrawn': 'the consent for purpose {} was withdrawn',
  'consent-expired': 'the consent for purpose {} has expired',
  'policy-unknown': 'the consent for purpose {} was given under a policy this tenant does not have',
  'profile-basis': 'the rules for this recipient do not let marketing mail rest on {}',
  'profile-double-opt-in': 'no double opt-in is on record, and profile {} asks for it',
  'profile-obtained-in-sale': 'it is not on record that the address was got in a sale, as profile {} asks',
  'profile-own-similar-products': 'it is not on record that the mail is for own similar products, as profile {} asks',
  'profile-opt-out-offered': 'it is not on record that an opt-out was offered at collection, as profile {} asks',
  'profile-tracking-consent-apart': 'it is not on record that tracking was asked for by itself, as profile {} asks',
  'profile-undated': 'this permission ends with time in profile {}, and no record says when it began',
  'profile-expired': 'the permission has become older than profile {} lets it',
  'sender-not-allowed': 'this credential may not use that sender',
  'message-from-malformed': 'the header, its From or its Sender field is not well formed',
  'message-from-count': 'a message needs exactly one From field with exactly one address',
  'message-from-not-allowed': 'this credential may not use that From address',
  'message-from-domain': 'the From address is not in a sending domain of this account',
  'message-sender-not-allowed': 'this credential may not use that Sender address',
  'message-duplicate-field': 'Date and Message-ID may each stand in a message only once',
  'message-visible-recipients': 'marketing mail may show at most one recipient, this shows {}',
  'message-to-mismatch': 'the address in To or Cc is neither the only recipient nor in a sending domain of this account',
  'message-unsubscribe': 'List-Unsubscribe-Post needs one List-Unsubscribe field with an https URI',
  'message-placeholder': 'there is no placeholder postern.{}; there are unsubscribe, preferences and stop_tracking',
  'message-placeholder-unfilled': 'a placeholder stands where nothing is filled in, in part {}',
  'message-third-party-tracker': 'pictures that count opens for others are in the text, and a recipient does not allow individual opens',
  'profile-header': 'the rules for a recipient ask for the header field {}',
  'profile-footer-sender': 'the text does not show contact.name, which profile {} asks for',
  'profile-footer-postal': 'the text does not show contact.postal, which profile {} asks for',
  'profile-footer-contact': 'the text shows neither contact.email nor contact.url, one of which profile {} asks for',
  'profile-footer-unset': '{} asks that the text shows it',
} as const satisfies Record<string, string>;

export type RuleId = keyof typeof RULES;

/** The rule's sentence with its blank filled. */
export function ruleSentence(rule: RuleId, about: string): string {
  return RULES[rule].replace('{}', () => about);
}
