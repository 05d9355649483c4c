// The postern command against a running relay: every command has help, prints for people and as JSON, and
// says of a bad call what to do. The command runs in this process, loaded afresh for each call, because a
// process of its own takes half a second; a few do run as operators run them.
import { execFile } from 'node:child_process';
import { cpSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { Daemon } from '../../daemon/main.ts';
import { CHECKOUT, makeGrounds, type Grounds } from '../lib/daemon.ts';
import { startMx, type Mx } from '../lib/mx.ts';

let mx: Mx;
let grounds: Grounds;
let daemon: Daemon;
const at = (name: string): string => `${name}@example.com`;

interface Ran {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

class Exit extends Error {}
const runs = { count: 0 };

/** Runs the command as it is, with what it prints kept. */
async function plain(...args: string[]): Promise<Ran> {
  const { argv, exit, exitCode } = process;
  const written = { out: '', err: '' };
  const [out, err] = [process.stdout.write.bind(process.stdout), process.stderr.write.bind(process.stderr)];
  const take = (name: 'out' | 'err') => (chunk: string | Uint8Array): boolean => {
    written[name] += Buffer.from(chunk).toString();
    return true;
  };
  Object.assign(process.stdout, { write: take('out') });
  Object.assign(process.stderr, { write: take('err') });
  let status = 0;
  try {
    process.argv = [argv[0] ?? '', 'postern', ...args];
    process.exitCode = 0;
    process.exit = ((code: number) => {
      status = code;
      throw new Exit();
    }) as typeof process.exit;
    await import(`${'../../daemon/cli.ts'}?${++runs.count}`);
    status = Number(process.exitCode);
  } catch (error) {
    if (!(error instanceof Exit)) throw error;
  } finally {
    Object.assign(process, { argv, exit, exitCode });
    Object.assign(process.stdout, { write: out });
    Object.assign(process.stderr, { write: err });
  }
  return { status, ...written };
}
const cli = (...args: string[]): Promise<Ran> => plain(...args, '--config', grounds.root);

t.before(async () => {
  mx = await startMx({ answers: { rcpt: '450 4.2.0 later' } });
  grounds = await makeGrounds(mx.port);
  await grounds.consent({ [at('reader')]: 'individual', [at('second')]: 'none', [at('third')]: 'none', [at('forgotten')]: 'none' });
  daemon = await grounds.serve();
});
t.teardown(async () => {
  await daemon.stop();
  await mx.close();
  grounds.remove();
});
const waiting = async (name = 'reader'): Promise<string> => {
  const { id } = await grounds.send({ from: 'news@demo.example', to: at(name), subject: 'x', text: 'x' });
  await grounds.event(id, ['deferred']);
  return id;
};

/** A good call, for people and as JSON, and a bad one with what it must say. */
interface Case {
  readonly good?: readonly string[];
  readonly status?: number;
  readonly says?: RegExp;
  readonly json?: RegExp;
  readonly bad: readonly string[];
  readonly badStatus?: number;
  readonly wants: RegExp;
}
const T = ['--tenant', 'demo'];
const of = (name: string): string[] => [...T, '--rcpt', at(name)];
const missing = (option: string): Pick<Case, 'bad' | 'badStatus' | 'wants'> => ({ bad: [], badStatus: 2, wants: new RegExp(`required option '${option}`) });

const CASES: Readonly<Record<string, Case>> = {
  serve: { bad: ['--no-such-option'], badStatus: 2, wants: /unknown option '--no-such-option'/ },
  check: { says: /no errors/, json: /^\{"ok":true/, bad: ['--config', '/nowhere'], wants: /postern\.yaml/ },
  'config show': { says: /hostname/, json: /^\[\{"key"/, bad: ['--changed', '--defaults'], badStatus: 2, wants: /cannot be used with/ },
  'credential create': { good: [...T, '--stream', 'newsletter', '--username', 'NAME', '--from', 'demo.example'], says: /secret +\S{32}/, json: /"secret"/, bad: [...T, '--stream', 'x', '--username', 'u', '--from', 'demo.example'], wants: /nothing was changed.*\n.*stream/ },
  'dkim keygen': { good: ['--kind', 'ed25519', '--out', 'FILE'], says: /Publish at/, json: /"record":"v=DKIM1/, bad: ['--out', '/dev/null'], wants: /\/dev\/null exists already/ },
  'dns records': { says: /_domainkey\.demo\.example/, json: /"type":"TXT"/, bad: ['--domain', 'x.example'], wants: /no sending domain/ },
  explain: { good: [...of('reader'), '--stream', 'newsletter'], says: /ok-consent +decides/, json: /"rule":"ok-consent"/, bad: T, badStatus: 2, wants: /explain needs --tenant, --stream and --rcpt or --list/ },
  'consent add': { good: [...of('new'), '--purpose', 'newsletter', '--source', 'counter'], says: /recorded/, json: /"kind":"recorded"/, bad: [...of('new'), '--purpose', 'x', '--source', 's'], wants: /purpose "x" is in no policy of demo; there are: newsletter/ },
  'consent withdraw': { good: of('third'), says: /withdrawn +1/, json: /\{"withdrawn":0\}/, bad: [...T, '--rcpt', 'nobody'], wants: /address/ },
  'consent show': { good: of('reader'), says: /newsletter +given/, json: /"purpose":"newsletter"/, bad: ['--tenant', 'x', '--rcpt', at('a')], wants: /no tenant "x"; there are: demo/ },
  'consent invite': { bad: [...of('reader'), '--purpose', 'newsletter'], wants: /no letter is sent: no consent for purpose newsletter waits to be confirmed/ },
  'keys rotate': { good: T, says: /seals +[0-9a-f]{8}/, json: /"opens":\["[0-9a-f]{8}",/, bad: ['--tenant', 'x'], wants: /no tenant "x"/ },
  'keys retire': { bad: [...T, '--key', '00000000'], wants: /lead nowhere any more.* say --yes/ },
  classify: { good: ['BOUNCE'], says: /: bounce\n[^]*userunknown +the address is no good/, json: /^\{"file":[^]*"kind":"bounce","recipients":\[\{"address":"x@example.com","status":"5.1.1","reply":"550","class":"bad-mailbox","reason":"userunknown","hard":true\}\]/, bad: ['/nowhere', '/dev/null'], wants: /\/dev\/null: other[^]*\/nowhere cannot be read/ },
  'suppress add': { good: of('noisy'), says: /manual/, json: /"cause":"manual"/, bad: [...of('noisy'), '--cause', 'x'], wants: /cause: expected one of hard-bounce/ },
  'suppress remove': { good: of('noisy'), says: /lifted +1/, json: /\{"lifted":0\}/, ...missing('--tenant') },
  'suppress list': { good: T, says: /suppressions|\(nothing\)/, json: /^\{"suppressions":/, ...missing('--tenant') },
  'subject export': { good: of('reader'), says: /"pii_principal_id"/, json: /^\{"format":"postern-subject\/1"/, bad: [...of('reader'), '--out', '/dev/null'], wants: /exists already/ },
  'subject erase': { good: [...of('forgotten'), '--yes'], says: /consent_records +1/, json: /"consent_records":0/, bad: of('forgotten'), wants: /for good; .*subject export.* --yes/ },
  'subject restrict': { good: of('second'), says: /restricted +true/, json: /"restricted":true/, bad: T, badStatus: 2, wants: /required option '--rcpt/ },
  'policy list': { good: T, says: /2026-01 .*in force/, json: /"state":"in force"/, ...missing('--tenant') },
  'policy diff': { good: ['2026-01', '2026-01', ...T], says: /nobody is treated otherwise\nthe text is the same/, json: /"narrows":\[\]/, bad: ['2026-01', 'x', ...T], wants: /no policy version "x"; it has: 2026-01/ },
  'policy publish': { good: ['2026-01', ...T], says: /changed +false/, json: /"changed":false/, bad: ['x', ...T], wants: /no policy version "x"; it has: 2026-01/ },
  'token create': { good: [...T, '--id', 'NAME', '--scope', 'receipts', 'export'], says: /Authorization: Bearer \S{32}/, json: /"secret"/, bad: [...T, '--id', 'n', '--scope', 'everything'], badStatus: 2, wants: /Allowed choices are consents:read/ },
  'ledger verify': { says: /demo +good/, json: /^\{"ok":true/, bad: ['--tenant', 'x'], wants: /no tenant "x"/ },
  'ledger receipt': { good: [...of('reader'), '--purpose', 'newsletter'], says: /"format": "postern-receipt\/1"/, json: /^\{"format":"postern-receipt\/1"/, bad: T, wants: /say which: --rcpt with --purpose, or --leaf/ },
  'ledger checkpoint': { good: T, says: /verifier key +relay\.demo\.example/, json: /"verifier_key"/, ...missing('--tenant') },
  'queue list': { good: T, says: /counts/, json: /"rows":\[/, bad: ['--tenant', 'x'], wants: /no tenant "x"/ },
  'queue show': { good: ['ID'], says: /deferred|450 4\.2\.0 later/, json: /"recipients":\[/, bad: ['x'], wants: /"x" is not a message id/ },
  'queue hold': { good: ['ID'], says: /changed +1/, json: /\{"changed":0\}/, bad: [], wants: /say which: a message id, --tenant, --domain, --campaign, or --all/ },
  'queue release': { good: ['ID'], says: /changed +1/, json: /\{"changed":0\}/, bad: ['x'], wants: /is not a message id/ },
  'queue retry': { good: ['ID'], says: /changed +\d/, json: /\{"changed":\d\}/, bad: [], wants: /say which/ },
  'queue drop': { good: ['ID'], says: /changed +1/, json: /\{"changed":0\}/, bad: [], wants: /say which/ },
  trace: { good: ['ID'], says: /accepted .*\n.*deferred/, json: /"event":"accepted"/, bad: ['x'], wants: /is not a message id/ },
  'tenant suspend': { good: ['demo', '--cause', 'unpaid'], says: /cause +unpaid/, json: /"cause":"unpaid"/, bad: ['demo'], badStatus: 2, wants: /required option '--cause/ },
  'tenant resume': { good: ['demo'], says: /resumed +true/, json: /\{"resumed":false\}/, bad: ['x'], wants: /no tenant "x"; there are: demo/ },
  'tenant export': { good: ['demo', '--out', 'FILE', '--clear'], says: /sealed +false/, json: /"sealed":false/, bad: ['demo', '--out', '/tmp/x'], badStatus: 2, wants: /needs --passphrase-file, or --clear/ },
  'tenant import': { bad: ['/nowhere'], wants: /\/nowhere cannot be read/ },
  'tenant delete': { bad: ['demo'], wants: /destroys everything of tenant demo for good.* --yes/ },
  'shaping show': { good: ['reader.example'], says: /connections +20 +defaults\n/, json: /"key":"connections","value":"20","from":"defaults"/, bad: ['x y'], wants: /"x y" is not a domain/ },
  'shaping why': { good: ['reader.example'], says: /no recipient of the domain waits/, json: /"holds":\[/, bad: [], badStatus: 2, wants: /missing required argument 'domain'/ },
  'automation list': { says: /\(nothing\)/, json: /\{"actions":\[\]\}/, bad: ['--domain', 'x y'], wants: /is not a domain/ },
  'automation lift': { good: ['--all'], says: /lifted +0/, json: /\{"lifted":0\}/, bad: [], wants: /say which: --lane, --domain, --rule, or --all/ },
  status: { says: /hash/, json: /"recipients":/, bad: ['--x'], badStatus: 2, wants: /unknown option/ },
  top: { good: ['--once'], says: /^postern .* UTC .*\nqueue \d+ recipients/, json: /"lanes":\[/, bad: ['--every', '0'], badStatus: 2, wants: /--every: expected seconds, at least 0\.2/ },
  'consent import': missing('--tenant'),
  'suppress import': missing('--tenant'),
};

t.test('every command: help, a good call for people and as JSON, a bad one', async (t) => {
  const id = await waiting();
  const bounce = join(grounds.dir, 'bounce.eml');
  writeFileSync(bounce, 'From: MAILER-DAEMON@mx.example\nSubject: failure notice\n\nI was not able to deliver your message.\n\n<x@example.com>:\n192.0.2.1 does not like recipient.\nRemote host said: 550 5.1.1 User unknown\n\n--- Below this line is a copy of the message.\n');
  let made = 0;
  for (const [name, { good = [], status = 0, says, json, bad, badStatus = 1, wants }] of Object.entries(CASES)) {
    const words = name.split(' ');
    const help = await plain(...words, '--help');
    t.match(help, { status: 0, out: new RegExp(`^Usage: postern ${name} .*options`) }, `${name} --help`);
    t.match(help.out, /--config/, `${name}: --config`);
    const call = (): string[] => [...words, ...good.map((word) => ({ ID: id, BOUNCE: bounce, FILE: join(grounds.dir, `made-${++made}`), NAME: `name-${++made}` })[word] ?? word)];
    if (says !== undefined) t.match(await cli(...call()), { status, out: says }, name);
    if (json !== undefined) {
      const { status: ended, out } = await cli(...call(), '--json');
      t.match(out, json, `${name} --json`);
      t.equal(ended, status);
      t.doesNotThrow(() => JSON.parse(out), `${name} --json is one JSON text`);
    }
    const refused = await (bad.includes('--config') ? plain(...words, ...bad) : cli(...words, ...bad));
    t.match(refused.out + refused.err, wants, `${name} ${bad.join(' ')}`);
    t.equal(refused.status, badStatus, `${name} ${bad.join(' ')}: exit status`);
    t.notMatch(refused.err, /\n +at /, 'no stack');
  }
});

t.test('no command is left out', async (t) => {
  const commands = async (...words: string[]): Promise<string[]> => {
    const { out } = await plain(...words, '--help');
    const listed = [...(/^Commands:\n([^]*)/m.exec(out)?.[1] ?? '').matchAll(/^ {2}([a-z]+)/gm)].map(([, name = '']) => name).filter((name) => name !== 'help');
    const found: string[] = [];
    for (const name of listed) found.push(...await commands(...words, name)); // one after the other: they share standard output
    return listed.length === 0 ? [words.join(' ')] : found;
  };
  t.same((await commands()).sort(), Object.keys(CASES).sort());
});

t.test('explain: several people, a list, a letter, a proposed tree, and a message that was sent', async (t) => {
  const place = [...T, '--stream', 'newsletter'];
  const several = await cli('explain', ...place, '--rcpt', at('reader'), '--rcpt', at('stranger'));
  t.match(several, { status: 1, out: /people +answer +rule +says\n1 +yes +ok-consent\n1 +no +consent-missing +no consent on record/ });
  const list = join(grounds.dir, 'list.txt');
  writeFileSync(list, `${at('reader')}\r\n\n${at('reader')}\nnobody\n`);
  t.match((await cli('explain', ...place, '--list', list)).out, /nobody +no address +.*\n\npeople +answer +rule\n2 +yes +ok-consent\n1 +no address\n/);
  const lines = (await cli('explain', ...place, '--list', list, '--json')).out.trim().split('\n').map((line) => JSON.parse(line) as object);
  t.match(lines, [{ rcpt: at('reader'), answer: 'yes', rule: 'ok-consent' }, {}, { rcpt: 'nobody', error: String }, { summary: [{ people: 2, answer: 'yes', rule: 'ok-consent' }, { people: 1 }] }]);
  writeFileSync(list, Array.from({ length: 2_500 }, (_, i) => at(`stranger${i}`)).join('\n'));
  t.match(await cli('explain', ...place, '--list', list), { status: 1, out: /^people[^\n]*\n2500 +no +consent-missing[^\n]*\n--json prints each of them\.\n$/ }, 'more than one request holds');
  writeFileSync(list, `${at('reader')}\n${at('reader')}\nnobody\n`);
  const proposed = join(grounds.dir, 'proposed');
  cpSync(grounds.root, proposed, { recursive: true });
  t.match(await cli('explain', ...place, '--rcpt', at('reader'), '--policy', proposed), { status: 0, out: /nobody would be treated otherwise/ });
  writeFileSync(join(proposed, 'tenants/demo.yaml'), readFileSync(join(proposed, 'tenants/demo.yaml'), 'utf8').replace('jurisdiction: eu', 'jurisdiction: de'));
  const letter = join(grounds.dir, 'letter.eml');
  writeFileSync(letter, 'From: news@demo.example\nSubject: x\n\nNothing shown.\n');
  const change = await cli('explain', ...place, '--list', list, '--policy', proposed, '--message', letter);
  t.match(change, { status: 1, out: /2 of 3 would be treated otherwise\npeople +change\n2 +was yes \(ok-consent\) -> no \(profile-double-opt-in\)\n/ });
  t.match(change.out, /\nmessage\n[^]*profile-footer-sender +only tried out[^]*\nmessage, under /);
  t.match((await cli('explain', ...place, '--rcpt', at('reader'), '--message', letter)).out, /profile-footer-sender +only tried out/);
  t.match(await grounds.control('status'), { hash: daemon.live.current().hash }, 'the daemon has not taken the proposed tree');
  writeFileSync(join(proposed, 'tenants/demo.yaml'), 'x: 1\n');
  t.match(await cli('explain', ...place, '--rcpt', at('reader'), '--policy', proposed), { status: 1, err: /could not be taken, \d+ problem\(s\):\n[^]*tenants\/demo\.yaml:1:1 x: unknown key/ });
  t.match(await cli('explain', ...place, '--rcpt', at('reader'), '--at', 'soon'), { status: 2, err: /--at: expected a time/ });
  const id = await waiting();
  const sent = await cli('explain', '--message-id', id);
  t.match(sent, { status: 0, out: /event +deferred\n[^]*rule +ok-consent\nevidence +\d+\npolicy +[0-9a-f]{64}\nversion +2026-01\nreceipt +postern ledger receipt --tenant demo --leaf \d+/ });
  t.match(await cli('explain', '--message-id', 'x'), { status: 1, err: /not a message id/ });
  t.match(await cli('explain', '--message-id', id, '--stream', 'x'), { status: 2, err: /cannot be used with/ });
});

t.test('what is written is for its owner, and receipts check out by themselves', async (t) => {
  const file = join(grounds.dir, 'receipt.json');
  const written = await cli('ledger', 'receipt', ...of('reader'), '--purpose', 'newsletter', '--out', file);
  t.match(written, { status: 0, out: /^leaf \d+ of \d+ written to/ });
  t.equal(statSync(file).mode & 0o777, 0o600);
  const [, key = ''] = /--key (\S+)/.exec(written.out) ?? [];
  const checked = await spawned('verify-receipt', file, '--key', key);
  t.match(checked, { status: 0, out: /ok +policy/ });
  t.match(await cli('ledger', 'receipt', ...of('reader'), '--purpose', 'newsletter', '--out', file), { status: 1, err: /exists already/ });
});

t.test('what a receiver says works nobody\'s terminal and fills nobody\'s disk', async (t) => {
  const evil = '\x1b]0;owned\x07\x1b[2J\x9b31m\x7f';
  mx.script = { answers: { rcpt: { raw: `${`450-4.2.0 ${evil}${'x'.repeat(1_900)}\r\n`.repeat(100)}450 4.2.0 later\r\n` } } };
  const id = await waiting();
  const report = join(grounds.dir, 'evil.eml');
  writeFileSync(report, 'Content-Type: multipart/report; report-type=delivery-status; boundary=b\n\n--b\n\nx\n--b\nContent-Type: message/delivery-status\n\n'
    + `Reporting-MTA: dns; mx.example\n\nFinal-Recipient: rfc822; x${evil}@example.com\nAction: failed\nStatus: 5.1.1\nDiagnostic-Code: x; ${evil} 550 5.1.1 \x1b[31mno\n\n--b--\n`, 'latin1');
  for (const args of [['queue', 'show', id], ['queue', 'list'], ['trace', id], ['shaping', 'why', 'example.com'], ['classify', report]]) {
    const { status, out, err } = await cli(...args);
    t.equal(status, 0, err);
    // oxlint-disable-next-line no-control-regex
    t.notMatch(out + err, /[\x00-\x08\x0b-\x1f\x7f-\x9f]/, args.join(' '));
    t.ok(out.length < 20_000, args.join(' '));
  }
  const { recipients } = JSON.parse((await cli('queue', 'show', id, '--json')).out) as { recipients: { lastReply: string }[] };
  t.match(recipients[0]?.lastReply, /^450 4\.2\.0 \?\]0;owned\?\?\[2J/);
  t.equal(recipients[0]?.lastReply.length, 2_000);
  await cli('queue', 'drop', id);
});

t.test('as a process of its own', async (t) => {
  t.match(await spawned('postern', 'status', '--config', grounds.root), { status: 0, out: /hash/ });
  t.match(await spawned('postern', 'trace', 'x', '--config', grounds.root), { status: 1, err: /^postern: "x" is not a message id\n$/ });
  t.match(await spawned('postern', 'nonsense'), { status: 2, err: /unknown command 'nonsense'/ });
});

const spawned = (name: string, ...args: string[]): Promise<Ran> => new Promise((done) => {
  execFile(join(CHECKOUT, 'scripts', name), args, (error, out, err) => done({ status: error === null ? 0 : Number(error.code), out, err }));
});
