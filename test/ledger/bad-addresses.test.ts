// Consent narrow, suppression wide, as decisions: what the ledger and the gate say together when the same
// person, or somebody who looks like them, is written in every way that has ever got a filter round.
// The keys themselves are tested in test/mail/address.test.ts; here no answer may be yes that should not.
import * as fc from 'fast-check';
import t from 'tap';
import { judgeRecipient } from '../../daemon/gate/index.ts';
import { SUPPRESSION_CAUSES, type Ledger, type SuppressionCause } from '../../daemon/ledger/index.ts';
import type { Stores } from '../../daemon/main.ts';
import { isMailError, parseAddress, type AddressHashes } from '../../daemon/mail/index.ts';
import type { Stream, Tenant } from '../../daemon/settings/index.ts';
import { makeTwoTenants, type TwoTenants } from '../lib/two-tenants.ts';

// What a mailbox did is the mailbox's; everything else a person has asked for.
const FAMILY: readonly SuppressionCause[] = SUPPRESSION_CAUSES.filter((cause) => cause !== 'hard-bounce' && cause !== 'unsubscribe' && cause !== 'pause');
const HOUR_MS = 3_600_000;

let two: TwoTenants;
let stores: Stores;
let ledger: Ledger;
let tenant: Tenant;
let stream: Stream;
t.before(async () => {
  two = await makeTwoTenants(9);
  stores = await two.stores();
  ({ ledger } = stores);
  const { tenants } = stores.live.current();
  const [acme, newsletter] = [tenants.get('acme'), tenants.get('acme')?.streams.get('newsletter')];
  if (acme === undefined || newsletter === undefined) throw new Error('the sandbox has no newsletter of acme');
  [tenant, stream] = [acme, newsletter];
});
t.teardown(async () => {
  await stores.close();
  two.remove();
});

const hashes = (text: string): AddressHashes => ledger.hashes('acme', parseAddress(text));

/** The yes of an hour ago, so that every no of now is later. */
async function give(text: string): Promise<void> {
  await ledger.give('acme', {
    hashes: hashes(text), purpose: 'newsletter', state: 'given', legalBasis: 'gdpr_6_1_a', policyHash: tenant.policies[0]?.hash ?? '', method: 'form',
    evidence: { source: 'test', time: Date.now() - HOUR_MS }, tracking: { opens: 'none', clicks: 'none' }, by: 'test',
  });
}

const suppress = (text: string, cause: SuppressionCause): Promise<unknown> => ledger.suppress('acme', { hashes: hashes(text), scope: 'all', cause, by: 'test' });

/** The rule that decides about this spelling now. */
async function rule(text: string): Promise<string> {
  const { unpublished: _, ...facts } = await ledger.facts('acme', 'newsletter', 'newsletter', hashes(text));
  return judgeRecipient({ tenant, stream, now: Date.now(), facts }).rule;
}

// Every run has people of its own: the number is part of the name, in characters that nothing folds.
let run = 0;
const fresh = (): string => `n${run++}n`;

// Names out of the characters that make trouble, and what a person may write instead of each.
const TWINS: Readonly<Record<string, readonly string[]>> = {
  a: ['A', 'ａ', 'ª', '𝐚'], k: ['K', '\u212A', 'ⓚ'], s: ['S', 'ſ', 'ｓ'], i: ['I', 'ⁱ', 'ı'], 1: ['１', '¹', '①'],
  ß: ['ẞ', 'ss', 'SS', 'ſs'], ς: ['Σ', 'σ'], ﬁ: ['fi', 'FI', 'Fi'], é: ['É'], ǆ: ['Ǆ', 'ǅ'], '.': ['․'], '+': ['＋'], 'x': ['X'],
};
const pieces = fc.array(fc.constantFrom(...Object.keys(TWINS)), { minLength: 1, maxLength: 8 });
/** For each piece which twin to write; 0 is the piece itself. */
const choices = fc.array(fc.nat(4), { minLength: 8, maxLength: 8 });
const written = (all: readonly string[], picks: readonly number[]): string => all.map((piece, at) => {
  const ways = [piece, ...(TWINS[piece] ?? [])];
  return ways[(picks[at] ?? 0) % ways.length] ?? piece;
}).join('').normalize('NFC');

/** Quoted, with a quoted pair here and there: the same mailbox. */
const quoted = (local: string, pairs: boolean): string => `"${pairs ? local.replaceAll(/[a-z1]/g, '\\$&') : local}"`;
const DOMAINS: readonly (readonly string[])[] = [
  ['people.example', 'People.EXAMPLE', 'people.example.'], ['bücher.example', 'BÜCHER.example', 'xn--bcher-kva.example', 'XN--BCHER-KVA.example.'],
  ['faß.example', 'xn--fa-hia.example'], ['gmail.com', 'GMAIL.com.'], ['outlook.com', 'Outlook.COM'],
];

/** undefined where a spelling is no address at all: then nobody is mailed either. */
function readable(text: string): string | undefined {
  try {
    parseAddress(text);
    return text;
  } catch (error) {
    if (isMailError(error, 'E_ADDRESS')) return undefined;
    throw error;
  }
}

t.test('(c) who is suppressed in one spelling is refused in every other, whatever consent that one has', async (t) => {
  let compared = 0;
  await fc.assert(fc.asyncProperty(
    pieces, choices, choices, fc.nat(4), fc.nat(3), fc.nat(3), fc.boolean(), fc.constantFrom(...SUPPRESSION_CAUSES), fc.boolean(),
    async (all, one, other, domain, oneWay, otherWay, pairs, cause, suppressFirst) => {
      const ways = DOMAINS[domain] ?? [];
      const name = fresh();
      const spelling = (picks: readonly number[], way: number): string | undefined =>
        readable(`${quoted(`${name}${written(all, picks)}`, pairs && picks === one)}@${ways[way % ways.length] ?? ''}`);
      const [suppressed, asked] = [spelling(one, oneWay), spelling(other, otherWay)];
      if (suppressed === undefined || asked === undefined) return;
      compared++;
      if (suppressFirst) await suppress(suppressed, cause);
      await give(asked);
      if (!suppressFirst) await suppress(suppressed, cause);
      for (const text of [asked, suppressed]) {
        const decided = await rule(text);
        if (decided !== `suppressed-${cause}`) throw new Error(`${suppressed} is suppressed, ${text} gets ${decided}`);
      }
    },
  ), { numRuns: 120 });
  t.ok(compared > 80, `${compared} pairs of spellings`);
});

t.test('(c), (e) what a person demands holds for the family of their spellings, what one mailbox did for that mailbox', async (t) => {
  const tag = fc.constantFrom('', '+x', '+News.Letter', '+');
  const dots = (name: string, mask: number): string => [...name].map((char, at) => (at > 0 && ((mask >> at) & 1) === 1 ? `.${char}` : char)).join('');
  await fc.assert(fc.asyncProperty(fc.nat(255), fc.nat(255), tag, tag, fc.boolean(), fc.boolean(), fc.constantFrom(...SUPPRESSION_CAUSES), async (m1, m2, t1, t2, g1, g2, cause) => {
    const name = fresh();
    const at = (mask: number, ending: string, alias: boolean): string => `${dots(name, mask)}${ending}@${alias ? 'GoogleMail.com' : 'gmail.com'}`;
    const [one, other] = [at(m1, t1, g1), at(m2, t2, g2).toUpperCase()];
    await give(other);
    await suppress(one, cause);
    const same = one.toLowerCase() === other.toLowerCase();
    const expected = FAMILY.includes(cause) || same ? `suppressed-${cause}` : 'ok-consent';
    const decided = await rule(other);
    if (decided !== expected) throw new Error(`${one} is suppressed for ${cause}, ${other} gets ${decided}`);
  }), { numRuns: 120 });
  await give('ab+x@googlemail.com');
  await suppress('a.b@gmail.com', 'objection');
  t.equal(await rule('ab+x@googlemail.com'), 'suppressed-objection');
});

t.test('(d) consent is for the mailbox it was given for, and for nobody who looks like it', async (t) => {
  // An independent model of one mailbox: quotes off, ASCII folded, the domain as A-labels.
  const mailbox = (text: string): string => {
    const at = text.lastIndexOf('@');
    const local = text.slice(0, at).replaceAll(/^"|"$/g, '').replaceAll(/\\(.)/g, '$1').replaceAll(/[A-Z]/g, (letter) => letter.toLowerCase());
    return `${local}@${new URL(`http://${text.slice(at + 1).replace(/\.$/, '')}`).hostname}`;
  };
  let [same, apart] = [0, 0];
  await fc.assert(fc.asyncProperty(pieces, choices, choices, fc.nat(4), fc.nat(3), fc.nat(3), async (all, one, other, domain, oneWay, otherWay) => {
    const ways = DOMAINS[domain] ?? [];
    const name = fresh();
    const [given, asked] = ([[one, oneWay], [other, otherWay]] as const).map(([picks, way]) => readable(`${quoted(`${name}${written(all, picks)}`, false)}@${ways[way % ways.length] ?? ''}`));
    if (given === undefined || asked === undefined) return;
    await give(given);
    const expected = mailbox(given) === mailbox(asked) ? 'ok-consent' : 'consent-missing';
    if (expected === 'ok-consent') same++;
    else apart++;
    const decided = await rule(asked);
    if (decided !== expected) throw new Error(`${given} said yes, ${asked} gets ${decided}`);
  }), { numRuns: 120 });
  t.ok(same > 0 && apart > 20, `${same} the same, ${apart} others`);

  const table: readonly (readonly [string, string, string])[] = [
    ['a+news@gmail.com', 'a@gmail.com', 'consent-missing'],
    ['b@gmail.com', 'b+news@gmail.com', 'consent-missing'],
    ['c.d@gmail.com', 'cd@gmail.com', 'consent-missing'],
    ['e@gmail.com', 'e@googlemail.com', 'consent-missing'],
    ['"john"@people.example', 'John@PEOPLE.example.', 'ok-consent'],
    ['"j\\o\\e"@people.example', 'joe@people.example', 'ok-consent'],
    ['"two words"@people.example', '"two\\ words"@people.example', 'ok-consent'],
    ['"quote\\"d"@people.example', '"quote\\"D"@people.example', 'ok-consent'],
    ['f@bücher.example', 'F@xn--bcher-kva.example', 'ok-consent'],
    ['g@faß.example', 'g@fass.example', 'consent-missing'],
    // Another script, another person.
    ['pаul@people.example', 'paul@people.example', 'consent-missing'],
    ['paula@people.example', 'pаula@people.example', 'consent-missing'],
    ['οmega@people.example', 'omega@people.example', 'consent-missing'],
    ['h@аpple.example', 'h@apple.example', 'consent-missing'],
    // Folding that only suppression does.
    ['straße@people.example', 'strasse@people.example', 'consent-missing'],
    ['ﬁn@people.example', 'fin@people.example', 'consent-missing'],
    ['ｗide@people.example', 'wide@people.example', 'consent-missing'],
    ['ÉVA@people.example', 'éva@people.example', 'consent-missing'],
    ['x²@people.example', 'x2@people.example', 'consent-missing'],
  ];
  for (const [given, asked, expected] of table) {
    await give(given);
    t.equal(await rule(given), 'ok-consent', given);
    t.equal(await rule(asked), expected, `${given} said yes, ${asked} is asked for`);
  }
});

t.test('a look-alike is not silenced by somebody else\'s no', async (t) => {
  for (const [suppressed, other] of [['pеter@people.example', 'peter@people.example'], ['mia@people.example', 'miа@people.example'], ['i@bücher.example', 'i@bucher.example']] as const) {
    await give(other);
    await suppress(suppressed, 'objection');
    t.equal(await rule(other), 'ok-consent', `${suppressed} objected, ${other} did not`);
  }
});

t.test('(f) a hosted domain keeps its dots and tags, whatever software runs it', async (t) => {
  await fc.assert(fc.asyncProperty(fc.constantFrom('.', '+', '-'), fc.constantFrom('workspace.example', 'gmail.com.example', 'mail.gmail.com', 'notgmail.com'), fc.constantFrom(...FAMILY), async (mark, domain, cause) => {
    const name = fresh();
    await give(`${name}x@${domain}`);
    await give(`${name}@${domain}`);
    await suppress(`${name}${mark}x@${domain}`, cause);
    return (await rule(`${name}x@${domain}`)) === 'ok-consent' && (await rule(`${name}@${domain}`)) === 'ok-consent';
  }), { numRuns: 40 });
  t.pass('an objection of a.b or a+b is not ab\'s and not a\'s');
});

t.test('(g) asking and recording leave the wire form alone, and withdrawal finds it again', async (t) => {
  await fc.assert(fc.asyncProperty(pieces, choices, fc.nat(4), fc.nat(3), async (all, picks, domain, way) => {
    const ways = DOMAINS[domain] ?? [];
    const text = readable(`${quoted(`${fresh()}${written(all, picks)}`, false)}@${ways[way % ways.length] ?? ''}`);
    if (text === undefined) return;
    const address = Object.freeze(parseAddress(text));
    await give(text);
    const before = ledger.hashes('acme', address);
    if (address.wire !== text || (await rule(text)) !== 'ok-consent') throw new Error(text);
    if ((await ledger.withdraw('acme', 'newsletter', before, 'test')) !== 1 || (await rule(text)) !== 'consent-withdrawn') throw new Error(`${text} cannot withdraw`);
  }), { numRuns: 40 });
  t.pass();
});

t.test('what is no address never reaches the ledger', async (t) => {
  const longest = `${'a'.repeat(64)}@${`${'b'.repeat(63)}.`.repeat(2)}${'c'.repeat(50)}.example`;
  t.ok(readable(longest), `${longest.length} octets are an address`);
  const table: readonly string[] = [
    // RFC 5321 §4.5.3.1.3 leaves 254 octets; 320 is what the parts may have each on their own.
    `${'a'.repeat(64)}@${`${'b'.repeat(63)}.`.repeat(3)}${'c'.repeat(63)}`, `${'é'.repeat(32)}@${`${'b'.repeat(62)}.`.repeat(3)}example`,
    'a@0x7f.1', 'a@0X7F.1', 'a@0177.0.0.1', 'a@2130706433', 'a@①②⑦.1', 'a@x.example.0x7f', '"a"@0x7f.1', 'a@ｘ.0x7f',
    'e\u0301va@people.example', 'a@bu\u0308cher.example', '"e\u0301"@people.example', 'A\u030A@people.example', '\u1100\u1161@people.example',
    'pa\u200Dul@people.example', 'paul\u2060@people.example', '\u202Epaul@people.example', 'paul@peo\u00ADple.example', '\uFF41@people。example',
    '"a\r\nRCPT TO:<b@people.example>"@people.example', '"a\0b"@people.example', '"a@people.example', 'a"@people.example', '""@people.example', '"a""b"@people.example',
    '<a@people.example>', 'a@people.example>', '@relay.example:a@people.example', 'a@people.example,b@people.example', 'a@people.example b', 'a@@people.example',
  ];
  for (const text of table) t.throws(() => hashes(text), { code: 'E_ADDRESS' }, JSON.stringify(text.slice(0, 40)));
});
