// The decision: rows for each rule, each jurisdiction and each element it asks for, and the properties of
// pinned policies. The ledger with the gate against a model is in model.test.ts.
import * as fc from 'fast-check';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import {
  RULES, admit, clear, judgeAttempt, judgeMessage, judgeText, judgeRecipient, judgeSender, policyInForce, profileOf, profilesNamed, verdictReply, type AttemptQuestion, type MessageQuestion, type RecipientQuestion, type TextQuestion, type RuleId, type Verdict,
} from '../../daemon/gate/index.ts';
import type { ConsentRecord, Facts, Suppression, SuppressionCause } from '../../daemon/ledger/index.ts';
import {
  BASIS_FACTS, CLICK_MODES, LEGAL_BASES, NO_TRACKING, OPEN_MODES, formatReply, indexHeader, messageFacts, shownText,
  type AdmittedRecipient, type BasisFact, type Due, type Envelope, type LegalBasis, type MessageFacts, type Plan, type Submitted, type Tracking,
} from '../../daemon/mail/index.ts';
import { FOOTER_ELEMENTS, SHADOWABLE, formatProblem, loadSettings, type Credential, type FooterElement, type Policy, type Profile, type Settings, type Stream, type Tenant } from '../../daemon/settings/index.ts';
import { REPOSITORY, copyTree } from '../settings/tree.ts';

const NOW = Date.UTC(2026, 5, 1);
const ALL: Tracking = { opens: 'individual', clicks: 'individual' };
const seen = new Set<RuleId>();

const policy = (n: number, over: Partial<Policy> = {}): Policy => ({ version: String(n), hash: `${n}`.repeat(64), text: '', effectiveAt: n, purposes: ['news'], tracking: ALL, ...over });
const tenantOf = (...policies: readonly Policy[]): Tenant => ({
  id: 'acme', contact: { name: '', email: '', postal: '', url: '' }, policies, streams: new Map(), credentials: [], softRefuse: false,
  domains: [{ name: 'acme.example', dkim: [], returnPath: 'b.acme.example', pages: 'https://p.acme.example' }],
});
const newsStream: Stream = { id: 'weekly', purpose: 'news', class: 'marketing', consentRequired: true, retryForMs: 1, priority: 'normal', legalBasis: 'gdpr_6_1_a', textLinks: false, thirdPartyTrackers: 'strip', delayNoticeMs: 14_400_000, bouncesTo: '' };
const softStream: Stream = { ...newsStream, consentRequired: false, legalBasis: 'eprivacy_13_2' };
const receipts: Stream = { ...newsStream, id: 'receipts', class: 'transactional', consentRequired: false };
const credential: Credential = { username: 'app', tenant: 'acme', secretHash: Buffer.alloc(32), stream: 'weekly', from: ['acme.example', 'boss@other.example'], rate: undefined };
const record: ConsentRecord = {
  id: 'E1', purpose: 'news', state: 'given', legalBasis: 'gdpr_6_1_a', policyHash: '1'.repeat(64), givenAt: 1, tracking: ALL, changedAt: 1,
};
const suspension = { id: 'S', cause: 'x', since: 1, by: 't' };
const against = (cause: SuppressionCause, over: Partial<Suppression> = {}): Suppression => ({ id: 'X', scope: 'all', cause, since: 1, by: 't', ...over });
const facts = (consent?: Partial<ConsentRecord>, ...suppressions: readonly Suppression[]): Facts => ({ ...(consent && { consent: { ...record, ...consent } }), suppressions });

function ask(over: Partial<RecipientQuestion>): Verdict {
  const question = { tenant: tenantOf(policy(1)), stream: newsStream, now: NOW, facts: facts({}), ...over };
  const verdict = judgeRecipient(question);
  seen.add(verdict.rule);
  const explained = judgeRecipient({ ...question, explain: true });
  const { steps, ...rest } = explained;
  if (JSON.stringify(rest) !== JSON.stringify(verdict) || steps?.at(-1)?.rule !== verdict.rule || steps.at(-1)?.result !== 'decided') throw new Error('explain says something else');
  return verdict;
}

t.test('T3, T29: recipients, rule by rule', async (t) => {
  const table: readonly (readonly [string, Partial<RecipientQuestion>, Verdict['answer'], RuleId])[] = [
    ['an active consent', {}, 'yes', 'ok-consent'],
    ['T29 no record', { facts: facts() }, 'no', 'consent-missing'],
    ['T3 consent for another purpose', { facts: facts({ purpose: 'offers' }) }, 'no', 'consent-missing'],
    ['T30 store down', { facts: undefined }, 'cannot-tell', 'ledger-unavailable'],
    ['pending', { facts: facts({ state: 'pending' }) }, 'no', 'consent-pending'],
    ['withdrawn', { facts: facts({ state: 'withdrawn' }) }, 'no', 'consent-withdrawn'],
    ['refused', { facts: facts({ state: 'refused' }) }, 'no', 'consent-refused'],
    ['expired by state', { facts: facts({ state: 'expired' }) }, 'no', 'consent-expired'],
    ['expired this moment', { facts: facts({ expiresAt: NOW }) }, 'no', 'consent-expired'],
    ['expires in a moment', { facts: facts({ expiresAt: NOW + 1 }) }, 'yes', 'ok-consent'],
    ['a policy nobody has', { facts: facts({ policyHash: 'f'.repeat(64) }) }, 'no', 'policy-unknown'],
    ['no policy in force yet', { tenant: tenantOf(policy(1, { effectiveAt: NOW + 1 })) }, 'cannot-tell', 'policy-not-in-force'],
    ['the current policy lacks the purpose', { tenant: tenantOf(policy(1), policy(2, { purposes: ['offers'] })) }, 'no', 'purpose-not-in-policy'],
    ['the policy of that day lacked it', { tenant: tenantOf(policy(1, { purposes: [] }), policy(2)) }, 'no', 'purpose-not-in-policy'],
    ['the only policy has no page yet', { facts: { ...facts({}), unpublished: new Set(['1'.repeat(64)]) } }, 'cannot-tell', 'policy-not-in-force'],
    ['nor does one that lacks the purpose', { tenant: tenantOf(policy(1), policy(2, { purposes: [] })), facts: { ...facts({}), unpublished: new Set(['2'.repeat(64)]) } }, 'yes', 'ok-consent'],
    ['suspended', { facts: { ...facts({}), suspension } }, 'no', 'tenant-suspended'],
    ['hard bounce', { facts: facts({}, against('hard-bounce')) }, 'no', 'suppressed-hard-bounce'],
    ['complaint', { facts: facts({}, against('complaint')) }, 'no', 'suppressed-complaint'],
    ['unsubscribe', { facts: facts({}, against('unsubscribe', { scope: 'purpose:news' })) }, 'no', 'suppressed-unsubscribe'],
    ['objection', { facts: facts({}, against('objection', { scope: 'purpose:news' })) }, 'no', 'suppressed-objection'],
    ['erasure', { facts: facts({}, against('erasure')) }, 'no', 'suppressed-erasure'],
    ['restriction', { facts: facts({}, against('restriction')) }, 'no', 'suppressed-restriction'],
    ['pause', { facts: facts({}, against('pause', { scope: 'purpose:news' })) }, 'no', 'suppressed-pause'],
    ['manual, this stream', { facts: facts({}, against('manual', { scope: 'stream:weekly' })) }, 'no', 'suppressed-manual'],
    ['unsubscribe of another purpose', { facts: facts({}, against('unsubscribe', { scope: 'purpose:offers' })) }, 'yes', 'ok-consent'],
    ['manual, another stream', { facts: facts({}, against('manual', { scope: 'stream:receipts' })) }, 'yes', 'ok-consent'],
    ['a suppression that is over', { facts: facts({}, against('manual', { until: NOW })) }, 'yes', 'ok-consent'],
    ['and one that is not', { facts: facts({}, against('manual', { until: NOW + 1 })) }, 'no', 'suppressed-manual'],
    ['a receipt needs no consent', { stream: receipts, facts: facts() }, 'yes', 'ok-no-consent-needed'],
    ['a receipt after a withdrawal', { stream: receipts, facts: facts({ state: 'withdrawn' }) }, 'yes', 'ok-no-consent-needed'],
    ['no receipt to a dead address', { stream: receipts, facts: facts(undefined, against('hard-bounce')) }, 'no', 'suppressed-hard-bounce'],
    ['soft opt-in', { stream: softStream, facts: facts() }, 'yes', 'ok-no-consent-needed'],
    ['soft opt-in, collected when the policy lacked it', { stream: softStream, tenant: tenantOf(policy(1, { purposes: [] }), policy(2)) }, 'no', 'purpose-not-in-policy'],
    ['soft opt-in after a no', { stream: softStream, facts: facts({ state: 'refused' }) }, 'no', 'consent-refused'],
  ];
  for (const [name, over, answer, rule] of table) t.match(ask(over), { answer, rule }, name);
  t.match(ask({}), { evidence: 'E1', policy: '1'.repeat(64), unsubscribable: true }, 'T2 the policy and the evidence relied on');
  t.match(ask({ stream: receipts, facts: facts() }), { evidence: '', policy: '1'.repeat(64), unsubscribable: false, tracking: NO_TRACKING }, 'no consent record, no tracking');
  t.match(ask({ stream: receipts, facts: facts({ state: 'pending' }) }), { tracking: NO_TRACKING }, 'nor with one that is not active');
  t.match(ask({ stream: receipts }), { tracking: ALL, evidence: 'E1' }, 'with an active one as it allows');
});

// ---- jurisdictions -------------------------------------------------------------------------------

const root = copyTree(join(REPOSITORY, 'config'));
t.teardown(() => rmSync(root, { recursive: true }));
function load(): Settings {
  const loaded = loadSettings(root);
  if (!loaded.ok) throw new Error(loaded.problems.map(formatProblem).join('\n'));
  return loaded.settings;
}
const settings = load();
const shipped: readonly Profile[] = [...settings.profiles.values(), settings.strictest];
const asking = (profile: Profile): RecipientQuestion['profiles'] => ({ profiles: new Map(), strictest: profile });
const open: Profile = { id: 'open', tlds: [], bases: LEGAL_BASES, basisFacts: {}, basisExpiresMs: {}, tracking: ALL, trackingApart: ALL, headers: [], footer: [], reaskMs: 0, unsubscribeForMs: 1 };

/** A no by `rule`; and a yes that names it where the tenant only tries it out. */
function refusedBy(t: Test, rule: RuleId, over: Partial<RecipientQuestion>, name: string): void {
  t.match(ask(over), { answer: 'no', rule }, `${name}: ${rule}`);
  const tried = ask({ ...over, tenant: { ...(over.tenant ?? tenantOf(policy(1))), shadow: new Set([rule]) } });
  t.match(tried, { answer: 'yes', shadowed: [rule] }, `${name}: ${rule}, tried out`);
  t.equal(judgeRecipient({ tenant: { ...tenantOf(policy(1)), shadow: new Set([rule]) }, stream: newsStream, now: NOW, facts: facts({}), ...over, explain: true }).steps?.some((step) => step.result !== 'passed'), true);
}

t.test('T33: each profile, each element that is missing: its own rule', async (t) => {
  const DAY = 86_400_000;
  const whole = (basis: LegalBasis, over: Partial<ConsentRecord> = {}): Facts =>
    facts({ legalBasis: basis, facts: BASIS_FACTS, givenAt: NOW - DAY, ...over });
  const apart: Profile = { ...open, id: 'apart', basisFacts: { gdpr_6_1_a: ['tracking-consent-apart'] } };
  for (const profile of [...shipped, apart]) {
    const profiles = asking(profile);
    for (const basis of LEGAL_BASES) {
      const name = `${profile.id}, ${basis}`;
      if (!profile.bases.includes(basis)) {
        refusedBy(t, 'profile-basis', { profiles, facts: whole(basis) }, name);
        refusedBy(t, 'profile-basis', { profiles, stream: { ...softStream, legalBasis: basis }, facts: facts() }, `${name} of the stream`);
        continue;
      }
      t.match(ask({ profiles, facts: whole(basis) }), { answer: 'yes', rule: 'ok-consent', profile: profile.id, shadowed: [] }, name);
      const needed = profile.basisFacts[basis] ?? [];
      for (const fact of needed) {
        refusedBy(t, `profile-${fact}`, { profiles, facts: whole(basis, { facts: BASIS_FACTS.filter((one) => one !== fact) }) }, name);
      }
      const lastsMs = profile.basisExpiresMs[basis];
      const softly = { profiles, stream: { ...softStream, legalBasis: basis }, facts: facts() };
      if (needed[0] !== undefined) t.match(ask(softly), { answer: 'no', rule: `profile-${needed[0]}` }, `${name} of the stream, nothing on record`);
      else if (lastsMs !== undefined) refusedBy(t, 'profile-undated', softly, `${name} of the stream`);
      else t.match(ask(softly), { answer: 'yes', tracking: NO_TRACKING }, `${name} of the stream`);
      if (lastsMs !== undefined) {
        t.match(ask({ profiles, facts: whole(basis, { givenAt: NOW - lastsMs + 1 }) }), { answer: 'yes' }, `${name} in time`);
        refusedBy(t, 'profile-expired', { profiles, facts: whole(basis, { givenAt: NOW - lastsMs }) }, name);
      }
    }
  }
  const day = 86_400_000;
  const ca = settings.profiles.get('ca');
  t.match(ca?.basisExpiresMs, { casl_implied_business: 730 * day, casl_implied_inquiry: 181 * day }, 'CASL: two years, six months');
  const de = { profiles: settings, domain: 'mail.x.de' };
  t.match(ask({ ...de, facts: facts({ facts: ['double-opt-in'] }) }), { answer: 'yes', profile: 'de' });
  t.match(ask({ ...de, stream: receipts, facts: facts() }), { answer: 'yes', profile: 'de' }, 'a receipt is no marketing');
  t.match(ask({ ...de, facts: facts({ legalBasis: "somebody's own words" }) }), { rule: 'profile-basis', reason: /an unknown legal basis/ });
  t.match(ask({ ...de, facts: facts({ state: 'withdrawn' }) }), { rule: 'consent-withdrawn' }, 'who said no comes first');
});

t.test("T33: what the message must show, by the recipients' profiles", async (t) => {
  const contact = { name: 'Acme Books', email: 'privacy@acme.example', postal: '1 Example Street, 12345 Example Town', url: 'https://acme.example/privacy/' };
  const tenant = { ...tenantOf(policy(1)), contact };
  const header: MessageFacts = { fromFields: 1, from: ['news@acme.example'], fromMalformed: false, toAndCc: 0, dates: 1, messageIds: 1, hasListUnsubscribe: false, shown: [], oneClickBroken: false, names: new Set(['from']) };
  const envelope: Envelope = { mailFrom: '', recipients: [], smtpUtf8: false, body: '7BIT' };
  const judge = (profiles: readonly Profile[], over: Partial<MessageQuestion> = {}): Verdict => {
    const question = { tenant, stream: newsStream, credential, envelope, header, profiles, ...over };
    const verdict = judgeMessage(question);
    seen.add(verdict.rule);
    const { steps, ...rest } = judgeMessage({ ...question, explain: true });
    t.same(rest, verdict, 'explained the same');
    t.equal(steps?.at(-1)?.rule, verdict.rule);
    return verdict;
  };
  const lines: Readonly<Record<FooterElement, string>> = { sender: 'ACME\n books', postal: '1 Example Street\n12345 Example\u00a0Town', contact: 'Ask us: acme.example/privacy' };
  for (const profile of [...shipped, { ...open, footer: FOOTER_ELEMENTS }]) {
    const text = (): string => Object.values(lines).join('\n');
    t.match(judge([open, profile], { text }), { answer: 'yes', rule: 'ok-message', shadowed: [] }, `${profile.id}: all there`);
    for (const element of FOOTER_ELEMENTS) {
      const without = (): string => FOOTER_ELEMENTS.filter((one) => one !== element).map((one) => lines[one]).join('\n');
      const rule = `profile-footer-${element}` as const;
      const asked = profile.footer.includes(element);
      t.match(judge([open, profile], { text: without }), asked ? { answer: 'no', rule } : { answer: 'yes' }, `${profile.id} without ${element}`);
      if (asked) t.match(judge([profile], { text: without, tenant: { ...tenant, shadow: new Set([rule]) } }), { answer: 'yes', shadowed: [rule] }, 'tried out');
    }
    const bare = { ...tenant, contact: { name: '', email: '', postal: '', url: '' } };
    if (profile.footer.length > 0) t.match(judge([profile], { text, tenant: bare }), { answer: 'no', rule: 'profile-footer-unset', reason: /^contact\.\w+ .*is not configured, and profile/ }, `${profile.id}: nothing configured`);
  }
  const loud: Profile = { ...open, headers: ['X-Advertisement', 'from'] };
  t.match(judge([loud]), { answer: 'no', rule: 'profile-header', reason: /X-Advertisement/ });
  t.match(judge([loud], { header: { ...header, names: new Set(['from', 'x-advertisement']) } }), { answer: 'yes' });
  t.match(judge([loud], { stream: receipts }), { answer: 'yes' }, 'a receipt is no marketing');
  judge([open], { text: () => { throw new Error('nobody asked for a footer'); } });
  const raw = Buffer.from(`Content-Type: text/html\r\n\r\n<p>Hello<p>Acme <b>Books</b><br>1 Example Street<br>12345 Example&nbsp;Town<br><a href="x">privacy@acme.example</a>`);
  t.match(judge([{ ...open, footer: FOOTER_ELEMENTS }], { text: () => shownText(raw) }), { answer: 'yes' }, 'as newsletters have it');
});

t.test('whose rules hold: record, domain, tenant, the strictest', async (t) => {
  const { profiles, strictest } = settings;
  const of = (jurisdiction: string | undefined, domain: string, told?: string): string =>
    profileOf(settings, { ...(jurisdiction !== undefined && { jurisdiction }) }, domain, { ...(told !== undefined && { jurisdiction: told }) }).id;
  t.equal(of('us', 'x.de', 'fr'), 'fr', 'what the record says');
  t.equal(of('us', 'x.de', ''), 'de', 'a record that says nothing');
  t.equal(of('us', 'mail.x.co.uk'), 'uk', 'the last label');
  t.equal(of('us', 'x.com'), 'us', "the tenant's");
  t.equal(of(undefined, 'x.com'), strictest.id, 'nobody knows');
  t.equal(of('us', 'x.com', 'atlantis'), strictest.id, 'a record names no profile: the strictest');
  t.equal(of('atlantis', 'x.com'), strictest.id, 'nor does the tenant');
  t.equal(profileOf(settings, {}, '', undefined), strictest);
  for (const profile of profiles.values()) for (const tld of profile.tlds) t.equal(of('us', `x.${tld}`), profile.id);
  t.same(profilesNamed(settings, ['de', 'gone', 'strictest', 'de']), [profiles.get('de'), strictest], 'what a reload took away is the strictest');
  t.match(ask({ profiles: settings, domain: 'x.com' }), { answer: 'no', rule: 'profile-double-opt-in', reason: /strictest/ });
  t.match(ask({ profiles: settings, domain: 'x.com', tenant: { ...tenantOf(policy(1)), jurisdiction: 'eu' } }), { answer: 'yes', profile: 'eu' });
  t.match(ask({}), { answer: 'yes', profile: '' }, 'no profiles, no rules of theirs');

  const fr = { profiles: settings, domain: 'x.fr' };
  t.match(ask(fr), { answer: 'yes', tracking: { opens: 'lastOpenDate', clicks: 'none' } }, 'fr: not asked apart');
  t.match(ask({ ...fr, facts: facts({ facts: ['tracking-consent-apart'] }) }), { answer: 'yes', tracking: ALL }, 'fr: asked apart');
  t.match(ask({ ...fr, stream: receipts }), { answer: 'yes', tracking: { opens: 'lastOpenDate', clicks: 'none' } }, 'receipts are tracked no further');
});

t.test('what stands in the text: placeholders, and the trackers of others', async (t) => {
  const about = (over: Partial<TextQuestion>): Verdict => {
    const verdict = judgeText({ tenant: tenantOf(policy(1)), stream: newsStream, plan: { parts: [] }, individual: false, ...over });
    seen.add(verdict.rule);
    return verdict;
  };
  const part = (kind: 'link' | 'tracker'): Plan['parts'] => [{ range: { start: 0, end: 9 }, encoding: 'identity', charset: 'utf-8', edits: [{ kind, start: 1, end: 2, target: '' }] }];
  const refusing = { ...newsStream, thirdPartyTrackers: 'refuse' as const };
  t.equal(about({}).rule, 'ok-message');
  const unfilled = about({ plan: { parts: [], unfilled: '2: it is signed' } });
  t.match(unfilled, { answer: 'no', rule: 'message-placeholder-unfilled' });
  if (unfilled.answer === 'no') t.equal(formatReply(verdictReply(unfilled, 'R1')), '554 5.6.0 a placeholder stands where nothing is filled in, in part 2: it is signed (rule message-placeholder-unfilled, ref R1)');
  t.match(about({ plan: { parts: [], unknown: 'unsubscrybe' } }), { answer: 'no', rule: 'message-placeholder', reason: /postern\.unsubscrybe; there are unsubscribe, / });
  for (const [stream, kind, individual, rule] of [
    [newsStream, 'tracker', false, 'ok-message'], [refusing, 'link', false, 'ok-message'], [refusing, 'tracker', true, 'ok-message'], [refusing, 'tracker', false, 'message-third-party-tracker'],
  ] as const) t.equal(about({ stream, plan: { parts: part(kind) }, individual }).rule, rule);
  const shadow = new Set(['message-third-party-tracker', 'message-placeholder', 'message-placeholder-unfilled']);
  t.match(about({ tenant: { ...tenantOf(policy(1)), shadow }, stream: refusing, plan: { parts: part('tracker') } }), { answer: 'yes', shadowed: ['message-third-party-tracker'] });
  t.match(about({ tenant: { ...tenantOf(policy(1)), shadow }, plan: { parts: [], unknown: '' } }), { answer: 'no' }, 'nobody gets what was never filled in');
});

t.test('only the form of a message and the rules of a jurisdiction can be tried out', async (t) => {
  const all = new Set<string>(Object.keys(RULES));
  const tenant = { ...tenantOf(policy(1)), shadow: all };
  for (const [over, rule] of [
    [{ facts: facts() }, 'consent-missing'], [{ facts: facts({ state: 'withdrawn' }) }, 'consent-withdrawn'], [{ facts: facts({ expiresAt: NOW }) }, 'consent-expired'],
    [{ facts: facts({}, against('unsubscribe')) }, 'suppressed-unsubscribe'], [{ facts: { ...facts({}), suspension } }, 'tenant-suspended'],
    [{ stream: { ...newsStream, purpose: 'offers' } }, 'purpose-not-in-policy'], [{ facts: undefined }, 'ledger-unavailable'],
  ] as const) t.match(ask({ ...over, tenant }), { rule }, rule);
  const bad: MessageFacts = { fromFields: 0, from: [], fromMalformed: false, toAndCc: 3, dates: 2, messageIds: 2, hasListUnsubscribe: true, shown: [], oneClickBroken: true, names: new Set() };
  const envelope: Envelope = { mailFrom: '', recipients: [], smtpUtf8: false, body: '7BIT' };
  t.match(judgeMessage({ tenant, stream: newsStream, credential, envelope, header: bad }), { answer: 'no', rule: 'message-from-count' });
  const good = { ...bad, fromFields: 1, from: ['a@acme.example'] };
  t.match(judgeMessage({ tenant, stream: newsStream, credential, envelope, header: good }), { answer: 'yes', shadowed: ['message-duplicate-field', 'message-visible-recipients'] });
  t.match(judgeMessage({ tenant, stream: receipts, credential, envelope, header: good, explain: true }), { answer: 'yes', steps: [{}, {}, {}, {}, {}, { result: 'shadowed' }, { result: 'shadowed', rule: 'message-unsubscribe' }, { result: 'decided' }] });
  t.same([...SHADOWABLE].toSorted(), [...all].filter((rule) => /^(?:profile|message)-(?!from|sender|placeholder)/.test(rule)).toSorted(), 'the settings know the same ones');
});

t.test('explain: each step says what it relied on', async (t) => {
  const { steps } = judgeRecipient({ tenant: tenantOf(policy(1), policy(2)), stream: newsStream, now: NOW, facts: facts({}), profiles: asking(open), explain: true });
  t.match(steps?.find(({ rule }) => rule === 'purpose-not-in-policy'), { result: 'passed', policy: '2'.repeat(64) }, 'the policy in force');
  t.match(steps?.find(({ rule }) => rule === 'profile-basis'), { result: 'passed', evidence: 'E1', policy: '1'.repeat(64) });
  t.match(steps?.at(-1), { rule: 'ok-consent', result: 'decided', evidence: 'E1', policy: '1'.repeat(64) }, 'the policy it was collected under');
  const no = judgeRecipient({ tenant: tenantOf(policy(1)), stream: newsStream, now: NOW, facts: facts({}, against('complaint')), explain: true });
  t.match(no.steps?.at(-1), { result: 'decided', evidence: 'X' }, 'the suppression');
});

t.test('T4: a stream without a purpose, or with one no policy names, does not load', async (t) => {
  const file = join(root, 'tenants/example.yaml');
  const text = readFileSync(file, 'utf8');
  t.teardown(() => writeFileSync(file, text));
  for (const [change, says] of [['', /purpose/], ['    purpose: lottery\n', /lottery/], ['    purpose: ""\n', /purpose/]] as const) {
    const changed = text.replace('    purpose: newsletter\n', change);
    t.not(changed, text);
    writeFileSync(file, changed);
    const loaded = loadSettings(root);
    if (loaded.ok) t.fail(`loaded with ${JSON.stringify(change)}`);
    else t.match(loaded.problems.map(formatProblem).join('\n'), says);
  }
  t.match(ask({ stream: { ...receipts, purpose: 'lottery' } }), { answer: 'no', rule: 'purpose-not-in-policy' }, 'nor does the gate take one on trust, whatever it is for');
});

t.test('T30: where the ledger does not answer nobody says yes', async (t) => {
  for (const stream of [newsStream, softStream, receipts]) for (const profiles of [undefined, settings]) {
    t.match(ask({ stream, facts: undefined, ...(profiles && { profiles, domain: 'x.de' }) }), { answer: 'cannot-tell', rule: 'ledger-unavailable' });
  }
  const origin = { tenant: 'acme', stream: 'weekly', credential: 'app', kind: 'relay' } as const;
  t.match(judgeAttempt({ origin, tenant: tenantOf(policy(1)), stream: newsStream, now: NOW, facts: undefined }), { answer: 'cannot-tell' });
});

const tracking = fc.record({ opens: fc.constantFrom(...OPEN_MODES), clicks: fc.constantFrom(...CLICK_MODES) });
const atMost = (a: Tracking, b: Tracking): boolean => OPEN_MODES.indexOf(a.opens) <= OPEN_MODES.indexOf(b.opens) && CLICK_MODES.indexOf(a.clicks) <= CLICK_MODES.indexOf(b.clicks);
/** Everything `a` allows `b` allows too. */
const within = (a: Verdict, b: Verdict): boolean => a.answer !== 'yes' || (b.answer === 'yes' && atMost(a.tracking, b.tracking));

const few = <T>(list: readonly T[]): fc.Arbitrary<T[]> => fc.subarray([...list]);
const version = (n: number): fc.Arbitrary<Policy> => fc.record({ purposes: few(['news', 'offers']), tracking }).map((over) => policy(n, over));
const consents = fc.record({
  legalBasis: fc.constantFrom<LegalBasis>('gdpr_6_1_a', 'casl_implied_inquiry'), facts: few<BasisFact>(['double-opt-in', 'tracking-consent-apart']), tracking,
  givenAt: fc.constantFrom(NOW - 10, NOW - 1_000), state: fc.constantFrom('given', 'given', 'given', 'withdrawn'),
}) satisfies fc.Arbitrary<Partial<ConsentRecord>>;
const jurisdiction: fc.Arbitrary<Profile> = fc.record({
  bases: few<LegalBasis>(['gdpr_6_1_a', 'casl_implied_inquiry']), asks: fc.boolean(), lastsMs: fc.constantFrom(100, 10_000), tracking, trackingApart: tracking,
}).map(({ asks, lastsMs, ...over }) => ({ ...open, ...over, basisFacts: asks ? { gdpr_6_1_a: ['double-opt-in'] } : {}, basisExpiresMs: { casl_implied_inquiry: lastsMs } }));

t.test('T39, T40, T41: a policy can narrow what was given, never broaden it', async (t) => {
  fc.assert(fc.property(version(1), version(2), consents, fc.option(jurisdiction), fc.constantFrom(newsStream, softStream, receipts), (v1, v2, consent, place, stream) => {
    const more = { stream, facts: facts(consent), ...(place !== null && { profiles: asking(place) }) };
    const under1 = ask({ tenant: tenantOf(v1), ...more });
    const under2 = ask({ tenant: tenantOf(v1, v2), ...more });
    // T39; and nothing past any of the four. A receipt does not rest on the record: what a later policy
    // allows is sent, and not tracked.
    const later = stream === receipts && under1.answer === 'no' && under2.answer === 'yes';
    if (later ? under2.evidence !== '' || !atMost(under2.tracking, NO_TRACKING) : !within(under2, under1)) return false;
    if (under2.answer === 'yes' && ![v2.tracking, v1.tracking, consent.tracking].every((one) => atMost(under2.tracking, one))) return false;
    // T41: rolled back, by publishing the first again or by taking the second away
    return JSON.stringify(ask({ tenant: tenantOf(v1, v2, { ...v1, effectiveAt: 3 }), ...more })) === JSON.stringify(under1);
  }), { numRuns: 500 });
  fc.assert(fc.property(jurisdiction, jurisdiction, consents, version(1), (one, other, consent, v1) => {
    const both: Profile = {
      ...one,
      bases: one.bases.filter((basis) => other.bases.includes(basis)),
      basisFacts: { gdpr_6_1_a: [...one.basisFacts.gdpr_6_1_a ?? [], ...other.basisFacts.gdpr_6_1_a ?? []] },
      basisExpiresMs: { casl_implied_inquiry: Math.min(one.basisExpiresMs.casl_implied_inquiry ?? 0, other.basisExpiresMs.casl_implied_inquiry ?? 0) },
      tracking: leastOf(one.tracking, other.tracking), trackingApart: leastOf(one.trackingApart, other.trackingApart),
    };
    const under = (profile: Profile | undefined): Verdict => ask({ tenant: tenantOf(v1), facts: facts(consent), ...(profile && { profiles: asking(profile) }) });
    // A profile only takes away, and the stricter one takes no less.
    return within(under(one), under(undefined)) && within(under(both), under(one)) && within(under(both), under(other));
  }), { numRuns: 500 });
  fc.assert(fc.property(fc.constantFrom(...LEGAL_BASES), few(BASIS_FACTS), tracking, fc.constantFrom(1, NOW - 1), (legalBasis, told, choice, time) => {
    const under = (profile: Profile): Verdict => ask({ facts: facts({ legalBasis, facts: told, tracking: choice, givenAt: time }), profiles: asking(profile) });
    const strict = under(settings.strictest);
    return shipped.every((profile) => within(strict, under(profile)));
  }), { numRuns: 200 });

  const noClicks = policy(1, { tracking: { opens: 'none', clicks: 'none' } });
  const tenant = tenantOf(noClicks, policy(2));
  t.match(ask({ tenant }), { tracking: NO_TRACKING }, 'T40 collected under the first');
  t.match(ask({ tenant, facts: facts({ policyHash: '2'.repeat(64) }) }), { tracking: ALL }, 'T40 collected under the second');
  t.match(ask({ tenant: tenantOf(noClicks, policy(2), { ...noClicks, effectiveAt: 3 }) }), { tracking: NO_TRACKING }, 'T41 rolled back');
  t.match(ask({ tenant: tenantOf(noClicks), facts: facts({ policyHash: '2'.repeat(64) }) }), { rule: 'policy-unknown' }, 'T41 what was given under a version that is gone is not guessed at');
  t.equal(policyInForce(tenant, NOW)?.version, '2');
  t.equal(policyInForce(tenant, NOW, new Set(['2'.repeat(64)]))?.version, '1', 'T38 a version nobody has seen is not in force');
});

const leastOf = (a: Tracking, b: Tracking): Tracking => ({ opens: atMost(a, { ...a, opens: b.opens }) ? a.opens : b.opens, clicks: atMost(a, { ...a, clicks: b.clicks }) ? a.clicks : b.clicks });

t.test('senders and messages', async (t) => {
  const tenant = tenantOf(policy(1));
  const sender = (mailFrom: string, known: { suspension?: typeof suspension } | undefined = {}): Verdict => {
    const verdict = judgeSender({ tenant, credential, mailFrom, facts: known });
    seen.add(verdict.rule);
    return verdict;
  };
  for (const good of ['news@acme.example', 'NEWS@ACME.example', '', 'Boss@other.example']) t.equal(sender(good).rule, 'ok-sender', good);
  for (const bad of ['a@other.example', 'a@sub.acme.example', 'a@notacme.example', 'nonsense', 'a@acme.example@x.example']) t.equal(sender(bad).rule, 'sender-not-allowed', bad);
  t.equal(sender('a@acme.example', { suspension }).rule, 'tenant-suspended');
  t.match(judgeSender({ tenant, credential, mailFrom: '', facts: undefined }), { answer: 'cannot-tell', rule: 'ledger-unavailable' });

  const envelope: Envelope = { mailFrom: '', recipients: [], smtpUtf8: false, body: '7BIT' };
  const header: MessageFacts = { fromFields: 1, from: ['news@acme.example'], fromMalformed: false, toAndCc: 1, dates: 1, messageIds: 1, hasListUnsubscribe: false, shown: ['list@acme.example'], oneClickBroken: false, names: new Set(['from']) };
  const message = (over: Partial<MessageFacts>, rest: Partial<MessageQuestion> = {}): RuleId => {
    const verdict = judgeMessage({ tenant, stream: newsStream, credential, envelope, header: { ...header, ...over }, ...rest });
    seen.add(verdict.rule);
    return verdict.rule;
  };
  t.equal(message({}), 'ok-message');
  t.equal(message({ dates: 0, messageIds: 0, toAndCc: 0 }), 'ok-message', 'what is missing is added on the way');
  t.equal(message({ fromFields: 2, from: ['a@acme.example', 'b@acme.example'] }), 'message-from-count');
  t.equal(message({ fromFields: 1, from: ['a@acme.example', 'b@acme.example'] }), 'message-from-count');
  t.equal(message({ fromFields: 2, from: ['a@acme.example'] }), 'message-from-count');
  t.equal(message({ fromFields: 0, from: [] }), 'message-from-count');
  t.equal(message({ fromMalformed: true }), 'message-from-malformed');
  t.equal(message({ from: ['a@else.example'] }), 'message-from-not-allowed');
  t.equal(message({ from: ['boss@other.example'] }), 'message-from-domain', 'allowed, but nothing we could sign for');
  t.equal(message({ sender: 'a@else.example' }), 'message-sender-not-allowed');
  t.equal(message({ dates: 2 }), 'message-duplicate-field');
  t.equal(message({ messageIds: 2 }), 'message-duplicate-field');
  t.equal(message({ toAndCc: 2 }), 'message-visible-recipients');
  t.equal(message({ toAndCc: 2 }, { stream: receipts }), 'ok-message', 'a receipt may have a copy');
  t.equal(message({ oneClickBroken: true }), 'ok-message', 'marketing mail gets fields of ours in its place');
  t.equal(message({ oneClickBroken: true }, { stream: receipts }), 'message-unsubscribe', 'where it would stay it must work');
  const shows = (shown: string | undefined, ...recipients: readonly string[]): RuleId =>
    message(shown === undefined ? { toAndCc: 1, shown: [] } : { toAndCc: 1, shown: [shown] }, { envelope: { ...envelope, recipients: recipients.map((wire) => ({ wire })) } });
  t.equal(shows('ann@x.example', 'ann@x.example'), 'ok-message', 'the person it goes to');
  t.equal(shows('Ann@X.example', 'ann@x.example'), 'ok-message', 'in another case');
  t.equal(shows('bob@x.example', 'ann@x.example'), 'message-to-mismatch', 'somebody else');
  t.equal(shows('ann@x.example', 'ann@x.example', 'bob@x.example'), 'message-to-mismatch', 'one of two, for the other to read');
  t.equal(shows('readers@acme.example', 'ann@x.example', 'bob@x.example'), 'ok-message', "a list of the sender's");
  t.equal(shows('readers@lists.acme.example', 'ann@x.example'), 'ok-message', 'and below');
  t.equal(shows('readers@notacme.example', 'ann@x.example'), 'message-to-mismatch');
  t.equal(shows(undefined, 'ann@x.example'), 'message-to-mismatch', 'an address that cannot be read');
  t.equal(message({ toAndCc: 0, shown: [] }, { envelope: { ...envelope, recipients: [{ wire: 'ann@x.example' }, { wire: 'bob@x.example' }] } }), 'ok-message', 'undisclosed recipients');
  t.equal(message({ toAndCc: 1, shown: ['bob@x.example'] }, { stream: receipts, envelope: { ...envelope, recipients: [{ wire: 'ann@x.example' }] } }), 'ok-message', 'a receipt may go to an address that is not shown');
});

t.test('the facts of a header that the gate asks for', async (t) => {
  const of = (text: string): MessageFacts => {
    const raw = Buffer.from(text.replaceAll('\n', '\r\n'));
    return messageFacts(raw, indexHeader(raw));
  };
  t.match(of('To: Ann <a@x.example>,\n b@x.example\nCC: c@x.example\n\n'), { toAndCc: 3, shown: ['a@x.example', 'b@x.example', 'c@x.example'] });
  t.match(of('To: undisclosed-recipients:;\n\n'), { toAndCc: 0, shown: [] });
  t.match(of('To: a@x.example b\n\n'), { toAndCc: 1, shown: [] }, 'what cannot be read is counted and not shown');
  t.same([...of('Subject: x\nX-Loud: 1\n\nBody: y\n').names], ['subject', 'x-loud']);
  const post = 'List-Unsubscribe-Post: List-Unsubscribe=One-Click\n';
  for (const [broken, text] of [
    [false, ''], [false, 'List-Unsubscribe: <mailto:u@acme.example>\n'], [true, post], [true, `${post}List-Unsubscribe: <mailto:u@acme.example>\n`],
    [false, `${post}List-Unsubscribe: <mailto:u@acme.example>,\n <https://acme.example/u>\n`], [true, `${post}List-Unsubscribe: <http://acme.example/u>\n`],
    [true, `${post}${post}List-Unsubscribe: <https://acme.example/u>\n`], [true, `${post}List-Unsubscribe: <https://a.example>\nList-Unsubscribe: <https://b.example>\n`],
  ] as const) t.equal(of(`${text}\n`).oneClickBroken, broken, JSON.stringify(text));
});

t.test('attempts, stamps and replies', async (t) => {
  const origin = { tenant: 'acme', stream: 'weekly', credential: 'app', kind: 'relay' } as const;
  const attempt = (over: Partial<AttemptQuestion>): Verdict => {
    const verdict = judgeAttempt({ origin, tenant: tenantOf(policy(1)), stream: newsStream, now: NOW, facts: facts({}), ...over });
    seen.add(verdict.rule);
    return verdict;
  };
  t.equal(attempt({}).rule, 'ok-consent');
  t.equal(attempt({ facts: facts({ state: 'withdrawn' }) }).rule, 'consent-withdrawn');
  t.match(attempt({ origin: { ...origin, kind: 'notice' }, facts: undefined, tenant: undefined }), { answer: 'yes', rule: 'notice', tracking: NO_TRACKING, unsubscribable: false });
  const invitation = { ...origin, kind: 'invitation' } as const;
  t.match(attempt({ origin: invitation, facts: facts({ state: 'pending' }) }), { answer: 'yes', rule: 'invitation', tracking: NO_TRACKING, unsubscribable: false });
  t.equal(attempt({ origin: invitation }).rule, 'invitation-not-pending');
  t.match(attempt({ stream: undefined }), { answer: 'cannot-tell', rule: 'stream-unknown' });
  t.same(Object.keys(RULES).filter((rule) => ![...seen].includes(rule as RuleId)), [], 'every rule has decided something above');

  const no = ask({ facts: facts() });
  if (no.answer !== 'no') throw new Error('expected a no');
  t.equal(formatReply(verdictReply(no, 'R1')), '550 5.7.1 no consent on record for purpose news (rule consent-missing, ref R1)');
  const unsure = ask({ facts: undefined });
  if (unsure.answer !== 'cannot-tell') throw new Error('expected cannot-tell');
  t.equal(formatReply(verdictReply(unsure, 'R1')), '451 4.7.1 the consent ledger does not answer (rule ledger-unavailable, ref R1)');
  t.ok(formatReply(verdictReply({ ...no, reason: `ü\r\n${'x'.repeat(9_000)}` }, 'R1')).length < 510, 'never an illegal line');

  const yes = ask({});
  if (yes.answer !== 'yes') throw new Error('expected a yes');
  const recipient = { wire: 'a@x.example' } as AdmittedRecipient;
  const admitted = admit({ id: 'M', envelope: { mailFrom: 'b@acme.example', recipients: [{ wire: 'z@x.example' }] } } as unknown as Submitted, [recipient]);
  t.same(admitted, { id: 'M', envelope: { mailFrom: 'b@acme.example' }, recipients: [recipient] });
  t.same(clear({ id: 'M', index: 0 } as Due, yes), { id: 'M', index: 0, evidence: 'E1', policy: '1'.repeat(64), tracking: ALL, unsubscribable: true });
});
