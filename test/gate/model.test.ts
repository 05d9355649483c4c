// The ledger with the gate against a model of a few lines, and what a decision costs.
import * as fc from 'fast-check';
import { createSecretKey, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { judgeRecipient } from '../../daemon/gate/index.ts';
import { openLedger } from '../../daemon/ledger/index.ts';
import { NO_TRACKING, parseAddress, type Tracking } from '../../daemon/mail/index.ts';
import { openKeyring } from '../../daemon/runtime/index.ts';
import type { Policy, Profile, Stream, Tenant } from '../../daemon/settings/index.ts';
import { openLedgerStore } from '../../daemon/store/index.ts';

const NOW = Date.UTC(2026, 5, 1);
const ALL: Tracking = { opens: 'individual', clicks: 'individual' };
const policy: Policy = { version: '1', hash: '1'.repeat(64), text: '', effectiveAt: 1, purposes: ['news', 'offers'], tracking: ALL };
const tenant: Tenant = {
  id: 'acme', contact: { name: '', email: '', postal: '', url: '' }, policies: [policy], streams: new Map(), credentials: [], softRefuse: false,
  domains: [{ name: 'acme.example', dkim: [], returnPath: 'b.acme.example', pages: 'https://p.acme.example' }],
};
const newsStream: Stream = { id: 'weekly', purpose: 'news', class: 'marketing', consentRequired: true, retryForMs: 1, priority: 'normal', legalBasis: 'gdpr_6_1_a', textLinks: false, thirdPartyTrackers: 'strip', delayNoticeMs: 14_400_000, bouncesTo: '' };
const place: Profile = {
  id: 'place', tlds: ['example'], bases: ['casl_implied_business'], basisFacts: { casl_implied_business: ['double-opt-in'] }, basisExpiresMs: { casl_implied_business: 2 * NOW },
  tracking: ALL, trackingApart: ALL, headers: [], footer: [], reaskMs: 0, unsubscribeForMs: 1,
};

t.test('T32: the ledger and the gate against a model', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'postern-gate-'));
  const store = openLedgerStore(dir);
  t.teardown(async () => {
    await store.close();
    rmSync(dir, { recursive: true });
  });
  const keyring = openKeyring(join(dir, 'keys'), createSecretKey(randomBytes(32)));
  const clock = { at: NOW, now: () => clock.at, after: () => () => undefined };
  const ledger = openLedger({ store, keyring, clock });
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
        // Who says yes after unsubscribing is subscribed again; nothing else gives way to a yes.
        blocked.get(`self ${p}`)?.delete(purpose);
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

  const facts = { consent: { id: 'E1', purpose: 'news', state: 'given', legalBasis: 'casl_implied_business', policyHash: policy.hash, method: 'm', evidence: { source: 's', time: 1 }, givenAt: 1, tracking: ALL, facts: ['double-opt-in'], changedAt: 1, changedBy: 't' }, suppressions: [] } as const;
  const profiles = { profiles: new Map([['place', place]]), strictest: place };
  const judgedAt = performance.now();
  for (let i = 0; i < 100_000; i++) if (judgeRecipient({ tenant, stream: newsStream, now: NOW, facts, profiles, domain: 'mail.x.example' }).answer !== 'yes') throw new Error('expected a yes');
  t.comment(`a verdict with a profile, the facts known: ${((performance.now() - judgedAt) / 100).toFixed(2)} us`);
});
