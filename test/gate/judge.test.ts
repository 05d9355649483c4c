// The decision: one row for each rule, the properties of pinned policies, and the ledger with the gate
// against a model of a few lines.
import * as fc from 'fast-check';
import { createSecretKey, randomBytes } from 'node:crypto';
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import {
  RULES, admit, clear, judgeAttempt, judgeMessage, judgeRecipient, judgeSender, verdictReply, type AttemptQuestion, type MessageQuestion, type RecipientQuestion, type RuleId, type Verdict,
} from '../../daemon/gate/index.ts';
import { openLedger, type ConsentRecord, type Facts, type Suppression, type SuppressionCause } from '../../daemon/ledger/index.ts';
import { CLICK_MODES, NO_TRACKING, OPEN_MODES, formatReply, parseAddress, type AdmittedRecipient, type Due, type Envelope, type MessageFacts, type Submitted, type Tracking } from '../../daemon/mail/index.ts';
import { openKeyring } from '../../daemon/runtime/index.ts';
import type { Credential, Policy, Stream, Tenant } from '../../daemon/settings/index.ts';
import { openLedgerStore } from '../../daemon/store/index.ts';

const NOW = Date.UTC(2026, 5, 1);
const ALL: Tracking = { opens: 'individual', clicks: 'individual' };
const seen = new Set<RuleId>();

const policy = (n: number, over: Partial<Policy> = {}): Policy => ({ version: String(n), hash: `${n}`.repeat(64), text: '', effectiveAt: n, purposes: ['news'], tracking: ALL, ...over });
const tenantOf = (...policies: readonly Policy[]): Tenant => ({
  id: 'acme', contact: { name: '', email: '', postal: '', url: '' }, policies, streams: new Map(), credentials: [], softRefuse: false,
  domains: [{ name: 'acme.example', dkim: [], returnPath: 'b.acme.example', pages: 'https://p.acme.example' }],
});
const newsStream: Stream = { id: 'weekly', purpose: 'news', class: 'marketing', consentRequired: true, retryForMs: 1, legalBasis: 'gdpr_6_1_a', textLinks: false, bouncesTo: '' };
const softStream: Stream = { ...newsStream, consentRequired: false, legalBasis: 'eprivacy_13_2' };
const receipts: Stream = { ...newsStream, id: 'receipts', class: 'transactional', consentRequired: false };
const credential: Credential = { username: 'app', tenant: 'acme', secretHash: Buffer.alloc(32), stream: 'weekly', from: ['acme.example', 'boss@other.example'], rate: undefined };
const record: ConsentRecord = {
  id: 'E1', purpose: 'news', state: 'given', legalBasis: 'gdpr_6_1_a', policyHash: '1'.repeat(64), method: 'form', evidence: { source: 'f', time: 1 }, givenAt: 1, tracking: ALL, changedAt: 1, changedBy: 't',
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
    ['suspended', { facts: { ...facts({}), suspension } }, 'no', 'tenant-suspended'],
    ['hard bounce', { facts: facts({}, against('hard-bounce')) }, 'no', 'suppressed-hard-bounce'],
    ['complaint', { facts: facts({}, against('complaint')) }, 'no', 'suppressed-complaint'],
    ['unsubscribe', { facts: facts({}, against('unsubscribe', { scope: 'purpose:news' })) }, 'no', 'suppressed-unsubscribe'],
    ['objection', { facts: facts({}, against('objection', { scope: 'purpose:news' })) }, 'no', 'suppressed-objection'],
    ['erasure', { facts: facts({}, against('erasure')) }, 'no', 'suppressed-erasure'],
    ['manual, this stream', { facts: facts({}, against('manual', { scope: 'stream:weekly' })) }, 'no', 'suppressed-manual'],
    ['unsubscribe of another purpose', { facts: facts({}, against('unsubscribe', { scope: 'purpose:offers' })) }, 'yes', 'ok-consent'],
    ['manual, another stream', { facts: facts({}, against('manual', { scope: 'stream:receipts' })) }, 'yes', 'ok-consent'],
    ['a suppression that is over', { facts: facts({}, against('manual', { until: NOW })) }, 'yes', 'ok-consent'],
    ['and one that is not', { facts: facts({}, against('manual', { until: NOW + 1 })) }, 'no', 'suppressed-manual'],
    ['a receipt needs no consent', { stream: receipts, facts: facts() }, 'yes', 'ok-no-consent-needed'],
    ['a receipt after a withdrawal', { stream: receipts, facts: facts({ state: 'withdrawn' }) }, 'yes', 'ok-no-consent-needed'],
    ['no receipt to a dead address', { stream: receipts, facts: facts(undefined, against('hard-bounce')) }, 'no', 'suppressed-hard-bounce'],
    ['soft opt-in', { stream: softStream, facts: facts() }, 'yes', 'ok-no-consent-needed'],
    ['soft opt-in after a no', { stream: softStream, facts: facts({ state: 'refused' }) }, 'no', 'consent-refused'],
  ];
  for (const [name, over, answer, rule] of table) t.match(ask(over), { answer, rule }, name);
  t.match(ask({}), { evidence: 'E1', policy: '1'.repeat(64), unsubscribable: true }, 'T2 the policy and the evidence relied on');
  t.match(ask({ stream: receipts, facts: facts() }), { evidence: '', policy: '1'.repeat(64), unsubscribable: false, tracking: NO_TRACKING }, 'no consent record, no tracking');
  t.match(ask({ stream: receipts, facts: facts({ state: 'pending' }) }), { tracking: NO_TRACKING }, 'nor with one that is not active');
  t.match(ask({ stream: receipts }), { tracking: ALL, evidence: 'E1' }, 'with an active one as it allows');
});

const tracking = fc.record({ opens: fc.constantFrom(...OPEN_MODES), clicks: fc.constantFrom(...CLICK_MODES) });
const atMost = (a: Tracking, b: Tracking): boolean => OPEN_MODES.indexOf(a.opens) <= OPEN_MODES.indexOf(b.opens) && CLICK_MODES.indexOf(a.clicks) <= CLICK_MODES.indexOf(b.clicks);

t.test('T39, T40, T41: a policy can narrow what was given, never broaden it', async (t) => {
  fc.assert(fc.property(tracking, tracking, tracking, (v1, v2, choice) => {
    const under1 = ask({ tenant: tenantOf(policy(1, { tracking: v1 })), facts: facts({ tracking: choice }) });
    const under2 = ask({ tenant: tenantOf(policy(1, { tracking: v1 }), policy(2, { tracking: v2 })), facts: facts({ tracking: choice }) });
    if (under1.answer !== 'yes' || under2.answer !== 'yes') return false;
    return atMost(under2.tracking, under1.tracking) && atMost(under2.tracking, v2) && atMost(under1.tracking, v1) && atMost(under1.tracking, choice);
  }));
  const noClicks = policy(1, { tracking: { opens: 'none', clicks: 'none' } });
  const tenant = tenantOf(noClicks, policy(2));
  t.match(ask({ tenant }), { tracking: NO_TRACKING }, 'T40 collected under the first');
  t.match(ask({ tenant, facts: facts({ policyHash: '2'.repeat(64) }) }), { tracking: ALL }, 'T40 collected under the second');
  t.match(ask({ tenant: tenantOf(noClicks, policy(2), { ...noClicks, effectiveAt: 3 }) }), { tracking: NO_TRACKING }, 'T41 rolled back');
});

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
  const header: MessageFacts = { fromFields: 1, from: ['news@acme.example'], fromMalformed: false, toAndCc: 1, dates: 1, messageIds: 1, hasListUnsubscribe: false };
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

t.test('T32: the ledger and the gate against a model', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'postern-gate-'));
  const store = openLedgerStore(dir);
  t.teardown(() => store.close());
  const keyring = openKeyring(join(dir, 'keys'), createSecretKey(randomBytes(32)));
  const clock = { at: NOW, now: () => clock.at, after: () => () => undefined };
  const ledger = openLedger({ store, keyring, clock });
  const tenant = tenantOf(policy(1, { purposes: ['news', 'offers'] }));
  const streams = [newsStream, { ...newsStream, id: 'deals', purpose: 'offers' }];
  // Two spellings of one person at Gmail, another mailbox, and one whose case differs.
  const people = ['a.b@gmail.com', 'ab+x@googlemail.com', 'c@x.example', 'C@x.example'];
  const person = ['g1', 'g2', 'c', 'c'];
  const family = ['g', 'g', 'c', 'c'];
  const step = fc.record({
    act: fc.constantFrom('give', 'give', 'giveOld', 'pending', 'withdraw', 'withdrawAll', 'unsubscribe', 'object', 'bounce', 'lift', 'wait'), who: fc.nat(3), stream: fc.nat(1), expires: fc.boolean(),
  });
  let run = 0;
  await fc.assert(fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 25 }), async (steps) => {
    const id = `t${run++}`; // a tenant of its own each time: nothing of another may show
    const yes = new Map<string, { until: number; since: number }>();
    const noSince = new Map<string, number>();
    const blocked = new Map<string, Set<string>>();
    const block = (key: string, what: string): void => void blocked.set(key, (blocked.get(key) ?? new Set()).add(what));
    for (const { act, who, stream, expires } of steps) {
      clock.at += 10;
      const [email = '', p = '', f = '', { purpose } = newsStream] = [people[who], person[who], family[who], streams[stream]];
      const hashes = ledger.hashes(id, parseAddress(email));
      const key = `${p}/${purpose}`;
      const entry = { hashes, purpose, legalBasis: 'b', policyHash: '1'.repeat(64), method: 'm', tracking: NO_TRACKING, by: 't' };
      if (act === 'give') {
        const until = expires ? clock.at + 35 : Number.POSITIVE_INFINITY;
        await ledger.give(id, { ...entry, state: 'given', evidence: { source: 's', time: clock.at }, ...(expires && { expiresAt: until }) });
        yes.set(key, { until, since: clock.at });
      } else if (act === 'giveOld') {
        const time = NOW - 1; // older than everything else here: counts only where nothing else is known
        await ledger.give(id, { ...entry, state: 'given', evidence: { source: 's', time } });
        if (!yes.has(key) && !noSince.has(key)) yes.set(key, { until: Number.POSITIVE_INFINITY, since: time });
      } else if (act === 'pending') {
        await ledger.give(id, { ...entry, state: 'pending', evidence: { source: 's', time: clock.at } });
        if ((yes.get(key)?.until ?? 0) <= clock.at) {
          yes.delete(key);
          noSince.set(key, clock.at);
        }
      } else if (act === 'withdraw' || act === 'withdrawAll') {
        await ledger.withdraw(id, act === 'withdraw' ? purpose : '*', hashes, 't');
        for (const { purpose: each } of streams) {
          if ((act === 'withdrawAll' || each === purpose) && yes.delete(`${p}/${each}`)) noSince.set(`${p}/${each}`, clock.at);
        }
      } else if (act === 'unsubscribe') {
        await ledger.suppress(id, { hashes, scope: `purpose:${purpose}`, cause: 'unsubscribe', by: 't' });
        block(`self ${p}`, purpose);
      } else if (act === 'object') {
        await ledger.suppress(id, { hashes, scope: 'all', cause: 'objection', by: 't' });
        block(`family ${f}`, 'all');
      } else if (act === 'bounce') {
        await ledger.suppress(id, { hashes, scope: 'all', cause: 'hard-bounce', by: 't' });
        block(`self ${p}`, 'all');
      } else if (act === 'lift') {
        await ledger.lift(id, hashes, 't');
        blocked.delete(`self ${p}`);
        blocked.delete(`family ${f}`);
      }
      for (const [i, email] of people.entries()) {
        for (const stream of streams) {
          const facts = await ledger.facts(id, stream.purpose, stream.id, ledger.hashes(id, parseAddress(email)));
          const verdict = judgeRecipient({ tenant, stream, now: clock.at, facts });
          const walls = [blocked.get(`self ${person[i]}`), blocked.get(`family ${family[i]}`)];
          const may = (yes.get(`${person[i]}/${stream.purpose}`)?.until ?? 0) > clock.at && !walls.some((wall) => wall?.has('all') === true || wall?.has(stream.purpose) === true);
          if ((verdict.answer === 'yes') !== may) throw new Error(`${email} ${stream.id}: ${verdict.rule}, the model says ${may}`);
        }
      }
    }
  }), { numRuns: 60 });
  t.pass('verdicts agree after every step');

  const hashes = Array.from({ length: 2_000 }, (_, i) => ledger.hashes('speed', parseAddress(`p${i}@x.example`)));
  await ledger.giveAll('speed', hashes.map((h) => ({ hashes: h, purpose: 'news', state: 'given', legalBasis: 'b', policyHash: '1'.repeat(64), method: 'm', tracking: ALL, by: 't', evidence: { source: 's', time: 1 } })));
  const rounds = 10;
  const startedAt = performance.now();
  let said = 0;
  for (let round = 0; round < rounds; round++) {
    for (const h of hashes) {
      const found = await ledger.facts('speed', 'news', 'weekly', h);
      if (judgeRecipient({ tenant, stream: newsStream, now: NOW, facts: found }).answer === 'yes') said++;
    }
  }
  const us = ((performance.now() - startedAt) * 1000) / (rounds * hashes.length);
  t.equal(said, rounds * hashes.length);
  const hashedAt = performance.now();
  for (let i = 0; i < 5_000; i++) ledger.hashes('speed', parseAddress(`p${i}@x.example`));
  t.comment(`facts and verdict ${us.toFixed(1)} us (${Math.round(1e6 / us)}/s); parsing and hashing ${((performance.now() - hashedAt) / 5).toFixed(1)} us`);
});
