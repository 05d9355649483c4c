// Jurisdictions, and what a tenant says of them: the shipped values against their laws, the strictest of
// any profiles, where profiles.yaml comes from, API tokens, and what a new policy version changes.
import { createHash } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as fc from 'fast-check';
import t, { type Test } from 'tap';
import { RULES } from '../../daemon/gate/rules.ts';
import { BASIS_FACTS, CLICK_MODES, LEGAL_BASES, OPEN_MODES, type BasisFact, type LegalBasis, type Tracking } from '../../daemon/mail/index.ts';
import { systemClock, type Log } from '../../daemon/runtime/index.ts';
import {
  addApiToken, describeSettings, diffPolicies, FOOTER_ELEMENTS, formatDuration, formatProblem, hashPolicy, loadSettings, openSettings, SHADOWABLE, strictestOf,
  type Policy, type Profile, type Settings,
} from '../../daemon/settings/index.ts';
import { CASES, copyTree, REPOSITORY } from './tree.ts';

const roots: string[] = [];
t.teardown(() => roots.forEach((root) => rmSync(root, { recursive: true })));
const temporary = (): string => {
  const root = copyTree(join(CASES, 'good/acme'));
  roots.push(root);
  return root;
};
function load(root: string, overlay: Readonly<Record<string, string>> = {}): Settings {
  const loaded = loadSettings(root, { overlay: new Map(Object.entries(overlay).map(([name, text]) => [name, Buffer.from(text)])) });
  if (!loaded.ok) throw new Error(loaded.problems.map(formatProblem).join('\n'));
  return loaded.settings;
}
const silent: Log = { debug() {}, info() {}, warn() {}, error() {} };
const SHIPPED = readFileSync(join(REPOSITORY, 'config/profiles.yaml'), 'utf8');
const ACME = readFileSync(join(CASES, 'good/acme/tenants/acme.yaml'), 'utf8');
const tenantWith = (more: string): Settings => load(temporary(), { 'tenants/acme.yaml': `${ACME}${more}` });

const SOFT: readonly BasisFact[] = ['obtained-in-sale', 'own-similar-products', 'opt-out-offered'];
const FULL: Tracking = { opens: 'individual', clicks: 'individual' };

t.test('the shipped profiles say what their laws say', async (t) => {
  const { profiles } = load(temporary());
  t.strictSame([...profiles.keys()], ['eu', 'fr', 'it', 'de', 'uk', 'us', 'ca', 'in', 'au']);
  const rows: readonly (readonly [string, readonly LegalBasis[], Profile['basisFacts'], Readonly<Record<string, string>>, Tracking, readonly string[], string, string])[] = [
    ['eu', ['gdpr_6_1_a', 'eprivacy_13_2'], { eprivacy_13_2: SOFT }, {}, FULL, ['sender', 'contact'], '0ms', '60d'],
    ['fr', ['gdpr_6_1_a', 'eprivacy_13_2'], { eprivacy_13_2: SOFT }, {}, { opens: 'lastOpenDate', clicks: 'none' }, ['sender', 'contact'], '184d', '60d'],
    ['it', ['gdpr_6_1_a', 'eprivacy_13_2'], { eprivacy_13_2: SOFT }, {}, FULL, ['sender', 'contact'], '0ms', '60d'],
    ['de', ['gdpr_6_1_a', 'eprivacy_13_2'], { gdpr_6_1_a: ['double-opt-in'], eprivacy_13_2: SOFT }, {}, FULL, ['sender', 'contact'], '0ms', '60d'],
    ['uk', ['gdpr_6_1_a', 'eprivacy_13_2', 'pecr_charity'], { eprivacy_13_2: SOFT, pecr_charity: ['opt-out-offered'] }, {}, FULL, ['sender', 'contact'], '0ms', '60d'],
    ['us', LEGAL_BASES.filter((basis) => basis !== 'gdpr_6_1_b' && basis !== 'gdpr_6_1_c'), {}, {}, FULL, ['postal'], '0ms', '30d'],
    ['ca', ['gdpr_6_1_a', 'casl_express', 'casl_implied_business', 'casl_implied_inquiry'], {}, { casl_implied_business: '730d', casl_implied_inquiry: '181d' }, FULL, ['sender', 'postal', 'contact'], '0ms', '60d'],
    ['in', ['gdpr_6_1_a', 'dpdp_6'], {}, {}, FULL, [], '0ms', '60d'],
    ['au', ['gdpr_6_1_a', 'au_express', 'au_inferred'], {}, {}, FULL, ['sender', 'contact'], '0ms', '30d'],
  ];
  const inOrder = (bases: readonly LegalBasis[] = []): readonly LegalBasis[] => LEGAL_BASES.filter((basis) => bases.includes(basis));
  for (const [id, bases, facts, expires, tracking, footer, reask, unsubscribe] of rows) {
    const profile = profiles.get(id);
    t.strictSame(inOrder(profile?.bases), inOrder(bases), `${id} bases`);
    t.strictSame(profile?.basisFacts, facts, `${id} facts`);
    t.strictSame(Object.fromEntries(Object.entries(profile?.basisExpiresMs ?? {}).map(([basis, ms]) => [basis, formatDuration(ms)])), expires, `${id} expiry`);
    t.strictSame(profile?.tracking, tracking, `${id} tracking`);
    t.strictSame(profile?.trackingApart, FULL, `${id}: who was asked by itself decides`);
    t.strictSame(profile?.footer, footer, `${id} footer`);
    t.strictSame([profile?.headers, formatDuration(profile?.reaskMs ?? -1), formatDuration(profile?.unsubscribeForMs ?? -1)], [[], reask, unsubscribe], id);
    for (const part of [profile, profile?.bases, profile?.basisFacts, profile?.basisFacts.eprivacy_13_2, profile?.tracking]) t.ok(Object.isFrozen(part));
  }
  const tlds = [...profiles.values()].flatMap((profile) => profile.tlds);
  t.equal(new Set(tlds).size, tlds.length);
  for (const tld of ['no', 'xn--qxam', 're', 'uk', 'gov', 'xn--h2brj9c']) t.ok(tlds.includes(tld), tld);
});

t.test('of the shipped profiles the strictest asks for confirmed consent', async (t) => {
  t.strictSame({ ...load(temporary()).strictest }, {
    id: 'strictest', tlds: [], bases: ['gdpr_6_1_a'], basisFacts: { gdpr_6_1_a: ['double-opt-in'] }, basisExpiresMs: {},
    tracking: { opens: 'lastOpenDate', clicks: 'none' }, trackingApart: FULL, headers: [], footer: ['sender', 'contact', 'postal'],
    reaskMs: 184 * 86_400_000, unsubscribeForMs: 60 * 86_400_000,
  });
});

const some = <T>(...items: readonly T[]): fc.Arbitrary<T[]> => fc.subarray([...items]);
const trackings = fc.record({ opens: fc.constantFrom(...OPEN_MODES), clicks: fc.constantFrom(...CLICK_MODES) });
const perBasis = <T>(value: fc.Arbitrary<T>): fc.Arbitrary<Partial<Record<LegalBasis, T>>> => fc.dictionary(fc.constantFrom(...LEGAL_BASES), value, { maxKeys: 5 });
const profile: fc.Arbitrary<Profile> = fc.record({
  id: fc.constantFrom('a', 'b', 'c'), tlds: fc.constant([]), bases: some(...LEGAL_BASES), basisFacts: perBasis(some(...BASIS_FACTS)), basisExpiresMs: perBasis(fc.nat()),
  tracking: trackings, trackingApart: trackings, headers: some('Reply-To', 'reply-to', 'X-A'), footer: some(...FOOTER_ELEMENTS), reaskMs: fc.nat(), unsubscribeForMs: fc.nat(),
});

/** What is laxer in `a` than in `b`; '' when nothing is. */
function laxer(a: Profile, b: Profile): string {
  const rank = (modes: readonly string[], mode: string): number => modes.indexOf(mode);
  const all = <T>(wanted: readonly T[], found: readonly T[]): boolean => wanted.every((one) => found.includes(one));
  const lower = (names: readonly string[]): string[] => names.map((name) => name.toLowerCase());
  if (!all(a.bases, b.bases)) return 'bases';
  for (const basis of a.bases) {
    if (!all(b.basisFacts[basis] ?? [], a.basisFacts[basis] ?? [])) return `facts of ${basis}`;
    if ((a.basisExpiresMs[basis] ?? Infinity) > (b.basisExpiresMs[basis] ?? Infinity)) return `expiry of ${basis}`;
  }
  for (const key of ['tracking', 'trackingApart'] as const) {
    if (rank(OPEN_MODES, a[key].opens) > rank(OPEN_MODES, b[key].opens) || rank(CLICK_MODES, a[key].clicks) > rank(CLICK_MODES, b[key].clicks)) return key;
  }
  if (!all(lower(b.headers), lower(a.headers)) || !all(b.footer, a.footer)) return 'headers or footer';
  return a.reaskMs < b.reaskMs || a.unsubscribeForMs < b.unsubscribeForMs ? 'times' : '';
}

t.test('the strictest is laxer than none of its profiles, and no stricter than it must be', async () => {
  fc.assert(fc.property(fc.array(profile, { minLength: 1, maxLength: 5 }), (profiles) => {
    const strictest = strictestOf(profiles);
    for (const one of profiles) if (laxer(strictest, one) !== '') return false;
    // Each of its rules is some profile's rule, and the order of the file says nothing.
    const bases = LEGAL_BASES.filter((basis) => profiles.every((one) => one.bases.includes(basis)));
    const other = strictestOf(profiles.toReversed());
    return bases.length === strictest.bases.length
      && bases.every((basis) => (strictest.basisFacts[basis] ?? []).every((fact) => profiles.some((one) => one.basisFacts[basis]?.includes(fact))))
      && bases.every((basis) => strictest.basisExpiresMs[basis] === undefined || profiles.some((one) => one.basisExpiresMs[basis] === strictest.basisExpiresMs[basis]))
      && profiles.some((one) => one.tracking.opens === strictest.tracking.opens) && profiles.some((one) => one.trackingApart.clicks === strictest.trackingApart.clicks)
      && strictest.footer.every((element) => profiles.some((one) => one.footer.includes(element)))
      && profiles.some((one) => one.reaskMs === strictest.reaskMs) && profiles.some((one) => one.unsubscribeForMs === strictest.unsubscribeForMs)
      && laxer(strictest, other) === '' && laxer(other, strictest) === '';
  }), { numRuns: 500 });
});

t.test('a profiles.yaml of the tree takes the place of the shipped one, live', async (t) => {
  const root = temporary();
  const live = openSettings(root, { clock: systemClock, log: silent });
  const before = live.current();
  t.equal(before.profiles.size, 9);
  const nz = 'profiles:\n  - id: nz\n    tlds: [nz]\n    bases: [gdpr_6_1_a]\n    basis_expires: { gdpr_6_1_a: 365d }\n    headers: [Reply-To]\n';
  writeFileSync(join(root, 'profiles.yaml'), nz);
  t.match(await live.reload(), { ok: true, changed: true, needRestart: [] });
  const { profiles, strictest } = live.current();
  t.strictSame({ ...profiles.get('nz') }, {
    id: 'nz', tlds: ['nz'], bases: ['gdpr_6_1_a'], basisFacts: {}, basisExpiresMs: { gdpr_6_1_a: 365 * 86_400_000 }, tracking: { opens: 'none', clicks: 'none' },
    trackingApart: { opens: 'none', clicks: 'none' }, headers: ['Reply-To'], footer: [], reaskMs: 0, unsubscribeForMs: 60 * 86_400_000,
  }, 'what is left out has its default');
  t.equal(profiles.size, 1);
  t.equal(strictest.basisExpiresMs.gdpr_6_1_a, 365 * 86_400_000);
  t.equal(before.profiles.size, 9, 'an old snapshot never changes');

  writeFileSync(join(root, 'profiles.yaml'), nz.replace('nz\n', 'nz\n    base: []\n'));
  t.match(await live.reload(), { ok: false });
  t.equal(live.current().profiles, profiles, 'a broken file changes nothing');
  writeFileSync(join(root, 'profiles.yaml'), SHIPPED);
  t.match(await live.reload(), { ok: true, changed: true });
  t.strictSame([...live.current().profiles], [...before.profiles], 'the shipped text, copied');
  rmSync(join(root, 'profiles.yaml'));
  await live.reload();
  t.equal(live.current().hash, before.hash);
  live.close();
});

t.test('the shipped profiles are described as such, and are no change', async (t) => {
  const root = temporary();
  const shipped = load(root);
  const of = (settings: Settings, mode: 'changed' | 'effective'): readonly string[] => describeSettings(settings, mode).map((one) => one.key).filter((key) => key.startsWith('profiles.yaml'));
  t.ok(of(shipped, 'effective').includes('profiles.yaml (shipped) profiles[3].basis_facts.gdpr_6_1_a'));
  t.ok(of(shipped, 'effective').includes('profiles.yaml (shipped) profiles[1].tracking_apart.opens'));
  t.notOk(of(shipped, 'effective').includes('profiles.yaml (shipped) profiles[0].tracking_apart.opens'), 'eu leaves it out, so nothing is said of it');
  t.strictSame(of(shipped, 'changed'), []);
  t.ok(of(load(root, { 'profiles.yaml': SHIPPED }), 'changed').includes('profiles.yaml profiles[0].bases'));
});

t.test('what a tenant says: jurisdiction, shadow, evidence, tokens', async (t) => {
  const plain = load(temporary()).tenants.get('acme');
  t.match(plain, { shadow: new Set(), apiTokens: [], keepEvidenceMs: 0 });
  t.equal(plain?.jurisdiction, undefined);
  const { tenants } = tenantWith([
    'jurisdiction: fr', 'shadow: [profile-footer-sender, message-visible-recipients]', 'keep_evidence: 1095d', 'api_tokens:',
    `  - { id: shop, secret: "sha256:${'ab'.repeat(32)}", scopes: [consents:read, export] }`, '',
  ].join('\n'));
  const acme = tenants.get('acme');
  t.match(acme, { jurisdiction: 'fr', keepEvidenceMs: 1095 * 86_400_000 });
  t.strictSame([...(acme?.shadow ?? [])], ['profile-footer-sender', 'message-visible-recipients']);
  t.strictSame({ ...acme?.apiTokens?.[0] }, { id: 'shop', tenant: 'acme', secretHash: Buffer.alloc(32, 0xab), scopes: ['consents:read', 'export'] });
  t.ok(Object.isFrozen(acme?.apiTokens?.[0]?.scopes));
  t.strictSame(load(temporary(), { 'postern.yaml': readFileSync(join(CASES, 'good/acme/postern.yaml'), 'utf8').replace('listeners:', 'listeners:\n  api: ["127.0.0.1:8443"]') }).server.listeners.api, [{ host: '127.0.0.1', port: 8443 }]);
});

t.test('a legal basis is one of the list, or a plain word for one', async (t) => {
  for (const [word, basis] of [['consent', 'gdpr_6_1_a'], ['contract', 'gdpr_6_1_b'], ['legal-obligation', 'gdpr_6_1_c'], ...LEGAL_BASES.map((one) => [one, one] as const)] as const) {
    const { tenants } = load(temporary(), { 'tenants/acme.yaml': ACME.replace('legal_basis: contract', `legal_basis: ${word}`) });
    t.equal(tenants.get('acme')?.streams.get('receipts')?.legalBasis, basis, word);
  }
});

t.test('a postal address is asked for where marketing mail would be refused without one', async (t) => {
  const faults = (text: string): string[] => {
    const loaded = loadSettings(temporary(), { overlay: new Map([['tenants/acme.yaml', Buffer.from(text)]]) });
    return loaded.ok ? [] : loaded.problems.map(formatProblem);
  };
  t.strictSame(faults(`${ACME}jurisdiction: ca\n`), ['tenants/acme.yaml:2:10 contact: profile ca asks marketing mail for a postal address, and contact.postal is empty']);
  t.strictSame(faults(`${ACME}jurisdiction: au\n`), []);
  t.strictSame(faults(`${ACME}jurisdiction: ca\nshadow: [profile-footer-unset]\n`), []);
  t.strictSame(faults(`${ACME.replace('class: marketing', 'class: transactional')}jurisdiction: ca\n`), []);
  t.strictSame(faults(`${ACME.replace('name: Acme Books', 'name: Acme Books, postal: 1 Example Street')}jurisdiction: ca\n`), []);
});

t.test('two tokens never share a secret, not over tenants either', async (t) => {
  const token = (id: string): string => `api_tokens: [{ id: ${id}, secret: "sha256:${'0'.repeat(64)}", scopes: [export] }]\n`;
  const beta = ACME.replaceAll('acme.example', 'beta.example').replace(/^credentials:[^]*/m, '');
  const loaded = loadSettings(temporary(), { overlay: new Map([['tenants/acme.yaml', Buffer.from(ACME + token('shop'))], ['tenants/beta.yaml', Buffer.from(beta + token('crm'))]]) });
  t.strictSame(loaded.ok ? [] : loaded.problems.map(formatProblem), ['tenants/beta.yaml:23:33 api_tokens[0].secret: the secret of token shop of tenant acme too; each has its own']);
});

t.test('what may be tried out is every such rule of the gate, but none that says in whose name mail goes', async (t) => {
  const firm = ['message-from-malformed', 'message-from-count', 'message-from-not-allowed', 'message-from-domain', 'message-sender-not-allowed', 'message-placeholder', 'message-placeholder-unfilled'];
  const kinds = Object.keys(RULES).filter((rule) => /^(?:message|profile)-/.test(rule) && !firm.includes(rule));
  t.strictSame([...SHADOWABLE].sort(), kinds.sort());
});

t.test('a token is added with comments kept, its secret shown once', async (t) => {
  const root = temporary();
  const file = join(root, 'tenants/acme.yaml');
  const { secret } = addApiToken(root, 'acme', { id: 'shop', scopes: ['consents:read', 'consents:write'] });
  t.match(secret, /^[A-Za-z0-9_-]{32}$/);
  const text = readFileSync(file, 'utf8');
  t.match(text, /^# Comments stay where they are\.\n/);
  t.match(text, /\napi_tokens:\n {2}- id: shop\n {4}secret: sha256:/);
  t.notMatch(text, secret);
  addApiToken(root, 'acme', { id: 'crm', scopes: ['subjects'] });
  const tokens = load(root).tenants.get('acme')?.apiTokens ?? [];
  t.strictSame(tokens.map((one) => one.id), ['shop', 'crm']);
  t.strictSame(tokens[0]?.secretHash, createHash('sha256').update(secret).digest());
  const before = readFileSync(file, 'utf8');
  const refused = (t: Test, tenant: string, id: string, scopes: readonly string[], message: RegExp): void => {
    t.throws(() => addApiToken(root, tenant, { id, scopes }, {}), { code: 'E_CONFIG', message });
  };
  refused(t, 'acme', 'shop', ['export'], /with this token the configuration would not load:\n.*"shop" stands here twice/);
  refused(t, 'acme', 'x', ['exprt'], /did you mean export\?/);
  refused(t, 'acme', 'x', [], /expected at least one item/);
  refused(t, 'acme', 'Not an id', ['export'], /expected an id of lower-case letters/);
  refused(t, 'beta', 'x', ['export'], /tenant beta has no readable file/);
  t.equal(readFileSync(file, 'utf8'), before);
});

const policy = (over: Partial<Policy>): Policy => ({ version: '1', hash: '', text: 'text', effectiveAt: 0, purposes: ['newsletter'], tracking: { opens: 'aggregate', clicks: 'none' }, ...over });

t.test('T1: a policy hash changes with one octet of the text and with any permission', async (t) => {
  fc.assert(fc.property(fc.uint8Array({ minLength: 1, maxLength: 300 }), fc.nat(), fc.integer({ min: 1, max: 255 }), (octets, at, by) => {
    const one = policy({});
    const changed = Buffer.from(octets);
    changed[at % changed.length] = (changed[at % changed.length] ?? 0) ^ by;
    return hashPolicy(Buffer.from(octets), one) !== hashPolicy(changed, one) && hashPolicy(Buffer.from(octets), one) !== hashPolicy(Buffer.from([...octets, 0]), one);
  }));
  const hashes = new Set<string>();
  for (const purposes of [['a'], ['b'], ['a', 'b'], ['ab']]) {
    for (const opens of OPEN_MODES) for (const clicks of CLICK_MODES) hashes.add(hashPolicy(Buffer.from('text'), { purposes, tracking: { opens, clicks } }));
  }
  t.equal(hashes.size, 4 * OPEN_MODES.length * CLICK_MODES.length);

  const root = temporary();
  const hashOf = (settings: Settings): string | undefined => settings.tenants.get('acme')?.policies[0]?.hash;
  const text = readFileSync(join(root, 'policies/acme-2026-01.md'), 'utf8');
  const before = hashOf(load(root));
  t.not(hashOf(load(root, { 'policies/acme-2026-01.md': text.replace('y', 'Y') })), before, 'from files too');
  t.not(hashOf(load(root, { 'tenants/acme.yaml': ACME.replace('opens: aggregate', 'opens: individual') })), before);
  t.equal(hashOf(load(root, { 'tenants/acme.yaml': ACME.replace('[newsletter, offers]', '[offers, newsletter]') })), before, 'order is no permission');
});

t.test('what a new policy version changes, in words', async (t) => {
  const anew = 'only for people who consent anew';
  const atOnce = 'for everybody, from the day the version takes effect';
  const rows: readonly (readonly [string, Partial<Policy>, readonly string[], readonly string[], 'same' | 'changed'])[] = [
    ['nothing', { version: '2', purposes: ['newsletter', 'newsletter'] }, [], [], 'same'],
    ['the text alone', { text: 'Text' }, [], [], 'changed'],
    ['purposes added', { purposes: ['offers', 'newsletter', 'events'] }, [], [`mail for purpose events: ${anew}`, `mail for purpose offers: ${anew}`], 'same'],
    ['a purpose for another', { purposes: ['offers'] }, [`no mail for purpose newsletter any more: ${atOnce}`], [`mail for purpose offers: ${anew}`], 'same'],
    ['opens up', { tracking: { opens: 'individual', clicks: 'none' } }, [], [`each open is noted for each person, where opens are counted without noting who until now: ${anew}`], 'same'],
    ['opens up a step', { tracking: { opens: 'lastOpenDate', clicks: 'none' } }, [], [`the day of the last open is noted for each person, where opens are counted without noting who until now: ${anew}`], 'same'],
    ['opens down, clicks up', { tracking: { opens: 'none', clicks: 'individual' }, text: '' }, [`opens are not measured, where opens are counted without noting who until now: ${atOnce}`], [`each click is noted for each person, where clicks are not measured until now: ${anew}`], 'changed'],
  ];
  for (const [name, over, narrows, widens, text] of rows) t.strictSame({ ...diffPolicies(policy({}), policy(over)) }, { narrows, widens, text }, name);
  // What widens one way narrows the other way.
  fc.assert(fc.property(some('a', 'b', 'c'), some('a', 'b', 'c'), trackings, trackings, (p, q, a, b) => {
    const there = diffPolicies(policy({ purposes: p, tracking: a }), policy({ purposes: q, tracking: b }));
    const back = diffPolicies(policy({ purposes: q, tracking: b }), policy({ purposes: p, tracking: a }));
    return there.widens.length === back.narrows.length && there.narrows.length === back.widens.length;
  }));
});
