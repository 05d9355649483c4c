// Tenant isolation through the whole relay: what acme can see, count or be sent must not depend on what
// bravo knows. Everything runs against one real daemon in a process of its own; the last tests read what
// all the others have left in journal, log, notices and delivered headers. I-2 is `npm run bench -- isolation`.
import t from 'tap';
import { createHash, randomBytes, randomInt, type Hash } from 'node:crypto';
import { readFileSync, readdirSync } from 'node:fs';
import { request } from 'node:http';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { join } from 'node:path';
import { openReturnPath, openToken } from '../../daemon/compose/index.ts';
import { parseAddress } from '../../daemon/mail/index.ts';
import { idTime, isId } from '../../daemon/runtime/index.ts';
import { CHECKOUT, eventually, pause, spawnDaemon } from '../lib/daemon.ts';
import type { Client } from '../lib/dialog.ts';
import { startMx, type Mx, type Received } from '../lib/mx.ts';
import { CLIENT, makeTwoTenants, type Side, type TwoTenants } from '../lib/two-tenants.ts';

t.setTimeout(60_000);
const ENDED = ['delivered', 'failed', 'expired', 'suppressed'];
const CONNECTIONS = 4;

// Names drawn by lot: nothing in a name tells whose list it is on, and each can be searched for.
const drawn = new Set<string>();
function people(count: number, domain: (n: number) => string = () => 'people.example'): readonly string[] {
  const made = Array.from({ length: count }, (_, n) => `p${randomBytes(6).toString('hex')}@${domain(n)}`);
  for (const part of made.flatMap((address) => address.split('@'))) drawn.add(part);
  return made;
}
/** Which names and domains of people a text has in it. */
const namedIn = (text: string): readonly string[] => (text.toLowerCase().match(/[pv][0-9a-f]{12}(?:\.example)?|[a-z0-9.+]+\.example/g) ?? []).filter((part) => drawn.has(part) || part.startsWith('p.mixed'));
const person = (): string => people(1)[0] ?? '';

const onBravo = people(200, (n) => `d${n % 5}.example`);
const nowhere = people(200, (n) => `d${n % 5}.example`);
const [shared, onAcmeOnly, sharedLeaver, acmeLeaver, bounced, objected, left] = [person(), person(), person(), person(), person(), person(), person()];
const trio = people(3);
const spelled = 'P.MiXeD+Tag@People.EXAMPLE';
const vanity = people(500, () => `v${randomBytes(6).toString('hex')}.example`);
const slowBravo = people(100, () => 'slow.example');
const slowAcme = people(3, () => 'slow.example');

let mx: Mx;
let slow: { readonly port: number; readonly close: () => Promise<unknown> };
let two: TwoTenants;
let daemon: Awaited<ReturnType<typeof spawnDaemon>>;
t.before(async () => {
  mx = await startMx();
  slow = await slowDoor(mx.port, 15);
  two = await makeTwoTenants(mx.port);
  two.edit('shaping.yaml', (text) => text.replace(/connections: \d+/, `connections: ${CONNECTIONS}`)
    .replace('routes:', `routes:\n  - { domain: slow.example, via: ["127.0.0.1:${slow.port}"], tls: opportunistic }`));
  const both = [shared, sharedLeaver, bounced, objected];
  await two.record({
    acme: { yes: [...both, onAcmeOnly, acmeLeaver, left, ...trio, spelled, ...vanity, ...slowAcme] },
    bravo: {
      yes: [...both, ...onBravo, ...slowBravo],
      no: Object.fromEntries(onBravo.slice(100).map((address, n) => [address, (['hard-bounce', 'complaint', 'objection', 'manual'] as const)[n % 4] ?? 'manual'])),
    },
  });
  daemon = await spawnDaemon(two.root);
  for (const side of [two.acme, two.bravo]) await inForce(side);
});

/** Until the tenant's policy has been seen on its page, nobody may be mailed. */
async function inForce(side: Side): Promise<void> {
  const client = await two.session(side);
  for (let n = 0; n < 100 && !(await client.say(`RCPT TO:<${shared}>`)).startsWith('250'); n++) await pause(50);
  client.close();
}
t.teardown(async () => {
  await daemon.kill('SIGKILL');
  await Promise.all([mx.close(), slow.close()]);
  two.remove();
});

/** What comes back from `port` comes late. */
async function slowDoor(port: number, ms: number): Promise<{ readonly port: number; readonly close: () => Promise<unknown> }> {
  const open = new Set<Socket>();
  const server = createServer((client) => {
    const inside = connect(port, '127.0.0.1');
    for (const socket of [client, inside]) {
      open.add(socket);
      socket.on('error', () => socket.destroy()).on('close', () => { client.destroy(); inside.destroy(); });
    }
    client.on('data', (chunk) => inside.write(chunk));
    inside.on('data', (chunk) => setTimeout(() => client.write(chunk), ms));
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  return { port: (server.address() as AddressInfo).port, close: () => new Promise((done) => { for (const socket of open) socket.destroy(); server.close(done); }) };
}

/** The replies to RCPT for all of these, sent in one go. */
async function rcpts(client: Client, addresses: readonly string[]): Promise<string[]> {
  client.send(addresses.map((address) => `RCPT TO:<${address}>\r\n`).join(''));
  const replies: string[] = [];
  while (replies.length < addresses.length) replies.push(await client.reply());
  return replies;
}

/** The rest of a transaction that has begun. */
async function submit(client: Client, to: readonly string[], message: string): Promise<void> {
  for (const reply of [...await rcpts(client, to), await client.say('DATA'), await client.say(`${message}.`)]) {
    if (!/^[23]/.test(reply)) throw new Error(reply);
  }
}
const plain = (side: Side): string => `From: ${side.from}\r\nTo: undisclosed-recipients:;\r\nSubject: plain\r\n\r\n${side.footer}\r\n`;

const refOf = (reply: string): string => /\bref ([0-9A-Z]{26})/.exec(reply)?.[1] ?? '';
const masked = (reply: string): string => reply.replace(/\bref [0-9A-Z]{26}/, 'ref *');
const letter = ({ footer }: Side, to: string): { to: string; subject: string; text: string; html: string } =>
  ({ to, subject: 'The letter', text: `The story.\r\n${footer}`, html: `<html><body><p><a href="https://read.example/story">the story</a></p><p>${footer}</p></body></html>` });

/** Sends and waits for the end of it. */
async function deliver(side: Side, to: string): Promise<string> {
  const { id, reply } = await two.send(side, letter(side, to));
  return id === '' ? reply : (await two.event(id, ENDED)).event;
}

const copiesOf = (side: Side, to?: string): Received[] => mx.messages.filter((message) => message.from.endsWith(side.domain) && (to === undefined || message.to === to));
const headerOf = ({ body }: Received): string => body.toString('latin1', 0, body.indexOf('\r\n\r\n') + 2).replaceAll(/\r\n[ \t]/g, ' ');

/** Tokens in the links of a copy, by what they are for; its text is in quoted-printable. */
function tokens(copy: Received | undefined): { readonly c: string; readonly o: string; readonly u: string } {
  const text = copy?.body.toString('latin1').replaceAll('=\r\n', '') ?? '';
  const found = (page: string): string => new RegExp(`/${page}/([\\w-]{60,})`).exec(text)?.[1] ?? '';
  return { c: found('c'), o: found('o'), u: found('u') };
}

/** An HTTP answer as one text: status, header fields but Date as they came, body. */
function ask(side: Pick<Side, 'pages'>, method: string, path: string, form = ''): Promise<string> {
  return new Promise((done, fail) => {
    const headers = form === '' ? {} : { 'Content-Type': 'application/x-www-form-urlencoded' };
    const call = request(`${side.pages}${path}`, { method, headers, agent: false }, (answer) => {
      const parts: Buffer[] = [];
      answer.on('data', (part: Buffer) => parts.push(part));
      answer.on('end', () => {
        const fields = answer.rawHeaders.filter((_, n, all) => all[n - (n % 2)] !== 'Date').join('|');
        done(`${answer.statusCode} ${fields}\n${Buffer.concat(parts).toString('latin1')}`);
      });
    });
    call.on('error', fail);
    call.end(form);
  });
}
const oneClick = (side: Side, token: string): Promise<string> => ask(side, 'POST', `/u/${token}`, 'List-Unsubscribe=One-Click');

/** The first text of nine characters that both sides have. */
function sharedText(one: readonly string[], other: readonly string[]): string | undefined {
  const nines = (text: string): string[] => Array.from({ length: Math.max(0, text.length - 8) }, (_, at) => text.slice(at, at + 9));
  const known = new Set(one.flatMap(nines));
  return other.flatMap(nines).find((nine) => known.has(nine));
}

const refs: string[] = [];

t.test('I-1 who is on bravo\'s list only is to acme like nobody at all, to the octet', async (t) => {
  const acme = await two.session(two.acme);
  const both = onBravo.flatMap((address, n) => [address, nowhere[n] ?? '']);
  const replies = await rcpts(acme, both);
  t.equal(replies.length, 400);
  t.same(new Set(replies.map(masked)).size, 1, 'one text for all');
  t.match(replies[0], /^550 5\.7\.1 /);
  refs.push(...replies.map(refOf));
  acme.close();
  const bravo = await two.session(two.bravo);
  const own = await rcpts(bravo, onBravo);
  t.equal(own.filter((reply) => reply.startsWith('250')).length, 100, 'while bravo is told of its own');
  t.equal(new Set(own.map(masked)).size, 5, 'with a reason for each cause');
  bravo.close();
});

t.test('I-3 reference ids say when, and nothing of how much others send', async (t) => {
  const started = Date.now();
  const [acme, bravo] = [await two.session(two.acme), await two.session(two.bravo)];
  const own: { ref: string; between: number }[] = [];
  for (let n = 0; n < 150; n++) {
    const [reply = ''] = await rcpts(acme, [nowhere[n] ?? '']);
    const between = randomInt(2) * 20;
    if (between > 0) refs.push(...(await rcpts(bravo, nowhere.slice(0, between))).map(refOf));
    own.push({ ref: refOf(reply), between });
  }
  acme.close();
  bravo.close();
  refs.push(...own.map(({ ref }) => ref));
  t.ok(refs.every(isId) && new Set(refs).size === refs.length, 'all are ids, all differ');
  t.ok(own.every(({ ref }) => idTime(ref) >= started && idTime(ref) <= Date.now()));
  const random = refs.map((ref) => ref.slice(10)).sort();
  const prefix = (a: string, b: string): number => [...a].findIndex((char, at) => char !== b[at]);
  t.ok(Math.max(...random.slice(1).map((text, at) => prefix(text, random[at] ?? ''))) < 8, 'beyond the time they share no beginning');
  // A counter anywhere in an id shows as gaps that gather round one size; drawn ids have gaps of any size.
  const gathered = Array.from({ length: 16 }, (_, n) => 10 + n).flatMap((at) => [0, 20].map((busy) => {
    const gaps = own.slice(1).flatMap(({ ref }, n) => (own[n]?.between === busy ? [fraction(ref, at) - fraction(own[n]?.ref ?? '', at)] : []));
    // For drawn ids the square of this, times how many, passes 16 once in ten million times.
    return gathering(gaps) ** 2 * gaps.length;
  }));
  t.ok(Math.max(...gathered) < 16, 'whether bravo was busy in between or not, no gap is likelier than another');
});

/** One of an id's characters as a number below one. */
const fraction = (ref: string, at: number): number => '0123456789ABCDEFGHJKMNPQRSTVWXYZ'.indexOf(ref[at] ?? '') / 32;

/** 1 for gaps that are all the same on a circle of circumference one, near 0 for those spread evenly round it. */
function gathering(gaps: readonly number[]): number {
  const turn = (of: (angle: number) => number): number => gaps.reduce((sum, gap) => sum + of(2 * Math.PI * gap), 0) / gaps.length;
  return Math.hypot(turn(Math.cos), turn(Math.sin));
}

t.test('I-4 reverse-paths of one person at acme and at bravo have nothing in common', async (t) => {
  await Promise.all([two.acme, two.bravo].flatMap((side) => Array.from({ length: 10 }, () => deliver(side, shared))));
  const paths = (side: Side): string[] => copiesOf(side, shared).map(({ from }) => from.slice(0, from.lastIndexOf('@')));
  const [acme, bravo] = [paths(two.acme), paths(two.bravo)];
  t.same([acme.length, bravo.length], [10, 10]);
  // Fixed: what says when (as Date does) and which recipient of the message (here always the first).
  const drawnParts = (path: string): string[] => [path.slice(2, 8), path.slice(18, 34), path.slice(41)];
  t.equal(sharedText(acme.flatMap(drawnParts), bravo.flatMap(drawnParts)), undefined);
  const [ofAcme = '', ofBravo = ''] = [acme[0], bravo[0]];
  const everybody = two.keyring('acme', 'bravo');
  t.match(openReturnPath(everybody, ofAcme), { tenant: 'acme', recipient: 0 });
  t.match(openReturnPath(everybody, ofBravo), { tenant: 'bravo', recipient: 0 });
  const onlyBravo = two.keyring('bravo');
  t.equal(openReturnPath(onlyBravo, ofAcme), openReturnPath(onlyBravo, `b-${'a'.repeat(ofAcme.length - 2)}`), 'to bravo\'s keys it is garbage');
  t.equal(openReturnPath(everybody, ofBravo.slice(0, 41) + ofAcme.slice(41)), undefined, 'acme\'s tag proves nothing of bravo\'s message');
  t.equal(openReturnPath(everybody, ofBravo.slice(0, 8) + ofAcme.slice(8)), undefined, 'nor does bravo\'s key take acme\'s');
});

t.test('I-5 links of one person have nothing in common, and what is no link of a tenant is answered alike', async (t) => {
  const all = (side: Side): string[] => copiesOf(side, shared).flatMap((copy) => Object.values(tokens(copy)));
  const [acme, bravo] = [all(two.acme), all(two.bravo)];
  t.ok([...acme, ...bravo].every((token) => token.length > 60) && acme.length === 30, 'a click, an open and an unsubscribe in each copy');
  t.equal(sharedText(acme, bravo), undefined);
  const onlyBravo = two.keyring('bravo');
  t.ok(acme.every((token) => openToken(onlyBravo, token) === undefined), 'to bravo\'s keys acme\'s are garbage');

  const ofAcme = tokens(copiesOf(two.acme, shared)[0]);
  const ofBravo = tokens(copiesOf(two.bravo, shared)[0]);
  t.equal(await deliver(two.acme, left), 'delivered');
  const over = tokens(copiesOf(two.acme, left)[0]);
  await two.control('consent.withdraw', { tenant: 'acme', rcpt: left });
  const spoilt = (token: string): string[] => {
    const crossed = Buffer.from(token, 'base64url');
    const key = (side: Side): Buffer => two.keyring(side.id).tenant(side.id).token.id;
    (crossed.subarray(1, 5).equals(key(two.acme)) ? key(two.bravo) : key(two.acme)).copy(crossed, 1);
    const last = token.at(-1) === 'A' ? 'E' : 'A';
    return [`${token.slice(0, -9)}AAAA${token.slice(-5)}`, token.slice(0, -1) + last, token.slice(0, -4), crossed.toString('base64url'), randomBytes(150).toString('base64url'), 'x'];
  };
  const opens = [ofAcme.o, ofBravo.o, over.o, ...spoilt(ofAcme.o), ofAcme.c, ofAcme.u].flatMap((token) => [[two.acme, token], [two.bravo, token]] as const);
  for (const method of ['GET', 'HEAD']) {
    const pixels = new Set(await Promise.all(opens.map(([side, token]) => ask(side, method, `/o/${token}.gif`))));
    t.same(pixels.size, 1, `${method} of pixels, whoever's, valid, over or broken`);
  }
  const clicks = [...[...spoilt(ofAcme.c), ...spoilt(ofBravo.c), ofAcme.o, ofBravo.u].flatMap((token) => [[two.acme, token], [two.bravo, token]] as const), [two.bravo, ofAcme.c] as const, [two.acme, ofBravo.c] as const];
  const nots = new Set(await Promise.all(clicks.map(([side, token]) => ask(side, 'GET', `/c/${token}`))));
  t.same(nots.size, 1, 'clicks that are none, or another tenant\'s');
  t.match([...nots][0], /^404 /);
  const clicked = new Set(await Promise.all([ask(two.acme, 'GET', `/c/${ofAcme.c}`), ask(two.acme, 'GET', `/c/${over.c}`), ask(two.bravo, 'GET', `/c/${ofBravo.c}`)]));
  t.same(clicked.size, 1, 'clicks on one target, whoever\'s: they lead there and say nothing else');
  t.match([...clicked][0], /^302 .*\bhttps:\/\/read\.example\/story\b/);
  const leaving = [over.u, ...spoilt(ofAcme.u), ...spoilt(ofBravo.u), ofAcme.o].flatMap((token) => [[two.acme, token], [two.bravo, token]] as const);
  const said = new Set(await Promise.all(leaving.map(([side, token]) => oneClick(side, token))));
  t.same(said.size, 1, 'one-click for a withdrawn person and for broken tokens');
  t.equal(await deliver(two.bravo, shared), 'delivered', 'and nobody was unsubscribed by one of those');
});

t.test('I-6 who leaves acme stays with bravo, and is answered like one bravo has never heard of', async (t) => {
  for (const to of [sharedLeaver, acmeLeaver]) t.equal(await deliver(two.acme, to), 'delivered');
  const [known, unknown] = [sharedLeaver, acmeLeaver].map((to) => tokens(copiesOf(two.acme, to)[0]).u);
  // The page links to the preferences, by a token made for this one view; all else is compared to the octet.
  const asked = async (token = ''): Promise<string> => (await ask(two.acme, 'GET', `/u/${token}`)).replace(/(?<="\/p\/)[\w-]{100,200}(?=\?lang=en")/, (link) => `a link of ${link.length}`);
  t.equal(await asked(known), await asked(unknown), 'the page');
  t.equal(await oneClick(two.acme, known ?? ''), await oneClick(two.acme, unknown ?? ''), 'the one click');
  t.equal(await oneClick(two.acme, known ?? ''), await oneClick(two.acme, unknown ?? ''), 'and another');
  for (const to of [sharedLeaver, acmeLeaver]) t.match(await deliver(two.acme, to), /^550 5\.7\.1 /);
  t.equal(await deliver(two.bravo, sharedLeaver), 'delivered');
});

t.test('I-7 what bravo has learned of an address is not acme\'s', async (t) => {
  mx.script = { answers: { rcpt: (_n, line) => (line.includes(bounced) ? `550 5.1.1 <${bounced}> no such user` : undefined) } };
  t.equal(await deliver(two.bravo, bounced), 'failed');
  t.match(await deliver(two.bravo, bounced), /^550 5\.7\.1 .*suppressed-hard-bounce/);
  await two.control('suppress.add', { tenant: 'bravo', rcpt: objected, cause: 'objection' });
  t.match(await deliver(two.bravo, objected), /^550 5\.7\.1 .*suppressed-objection/);
  const acme = await two.session(two.acme);
  t.match(await rcpts(acme, [bounced, objected]), [/^250 /, /^250 /]);
  acme.close();
  const tried = (): number => mx.lines.filter((line) => line.startsWith('RCPT') && line.includes(bounced)).length;
  const before = tried();
  t.equal(await deliver(two.acme, bounced), 'failed', 'acme makes its own attempt');
  t.equal(tried(), before + 1);
  t.equal(await deliver(two.acme, objected), 'delivered');
  t.ok(await eventually(() => [two.acme, two.bravo].every(({ from }) => mx.messages.some(({ to }) => to === from))), 'and each gets its own notice');
  mx.script = {};
});

t.test('T8, T10 copies of one submission know nothing of each other', async (t) => {
  const acme = await two.session(two.acme);
  await submit(acme, [...trio, spelled], `From: News <${two.acme.from}>\r\nTo: undisclosed-recipients:;\r\nBcc: ${trio.join(', ')}\r\nSubject: one for all\r\n\r\nThe story.\r\n${two.acme.footer}\r\n`);
  acme.close();
  t.ok(await eventually(() => copiesOf(two.acme).filter((copy) => [...trio, spelled].includes(copy.to)).length === 4), 'all four get theirs');
  t.ok(mx.lines.some((line) => line.startsWith(`RCPT TO:<${spelled}>`)), 'the address as it was written');
  for (const to of [...trio, spelled]) {
    const text = copiesOf(two.acme, to)[0]?.body.toString('latin1') ?? 'nothing came';
    t.notMatch(text, /^(Resent-)?Bcc:/im);
    t.match(text, /^Subject: one for all/m);
    const others = [...trio, spelled].filter((other) => other !== to);
    t.same(others.filter((other) => text.includes(other)), [], 'no other recipient');
  }
});

t.test('I-9 behind a backlog of bravo\'s, acme waits for its turn and not for the backlog', async (t) => {
  const [acme, bravo] = [await two.session(two.acme), await two.session(two.bravo)];
  const started = mx.lines.length;
  const transactions = (): string[] => mx.lines.slice(started).filter((line) => line.startsWith('MAIL'));
  await submit(bravo, slowBravo, plain(two.bravo));
  t.ok(await eventually(() => transactions().length >= CONNECTIONS), 'all connections are open: a turn on one that is not yet would come later');
  for (const [n, to] of slowAcme.entries()) {
    if (n > 0) t.match(await acme.say(`MAIL FROM:<${two.acme.from}>`), /^250/);
    await submit(acme, [to], plain(two.acme));
    const accepted = transactions().length;
    const nth = (): number => transactions().findIndex((line, at) => line.includes(two.acme.domain) && transactions().slice(0, at).filter((earlier) => earlier.includes(two.acme.domain)).length === n);
    t.ok(await eventually(() => nth() !== -1));
    // Those under way on each connection, and one turn of the other tenant's.
    t.ok(nth() - accepted <= CONNECTIONS + 1, `message ${n + 1}: transaction ${nth()}, of which ${accepted} had begun when it was accepted`);
  }
  t.ok(transactions().length < slowBravo.length, 'bravo\'s backlog was not over by then');
  acme.close();
  bravo.close();
  t.ok(await eventually(() => transactions().length === slowBravo.length + slowAcme.length), 'and all of it arrives');
});

const metrics = async (): Promise<readonly string[]> =>
  (await ask({ pages: `http://127.0.0.1:${two.ports.metrics}` }, 'GET', '/metrics')).split('\n').slice(1).filter((line) => line !== '' && !line.startsWith('#'));

t.test('I-8 metrics name no person and no domain, and do not grow with them', async (t) => {
  const before = await metrics();
  const acme = await two.session(two.acme);
  await submit(acme, vanity, plain(two.acme));
  acme.close();
  t.ok(await eventually(() => copiesOf(two.acme).filter(({ to }) => to.includes('@v')).length === vanity.length), '500 domains are mailed');
  const after = await metrics();
  const seriesOf = (lines: readonly string[]): Set<string> => new Set(lines.map((line) => line.slice(0, line.lastIndexOf(' '))));
  const fresh = [...seriesOf(after)].filter((series) => !seriesOf(before).has(series));
  // Those of the runtime come and go by themselves.
  t.ok(fresh.filter((series) => series.startsWith('postern_')).length <= 2, `${seriesOf(after).size} series; new: ${fresh.join(' ')}`);
  const text = after.join('\n');
  t.notMatch(text, /@/);
  t.same(namedIn(text), [], 'no name, no domain of a recipient');
});

t.test('I-10 what the DNS cache tells is written down', async (t) => {
  const tour = readFileSync(join(CHECKOUT, 'daemon/README.md'), 'utf8').replaceAll(/\s+/g, ' ');
  t.ok(/remembered for all tenants together.*\(I-10\)/.test(tour), 'daemon/README.md says what is left');
});

t.test('I-12 journal, log and notices keep tenants apart, and name nobody to the operator', async (t) => {
  await daemon.kill('SIGTERM');
  const dir = join(two.dataDir, 'events');
  const files = readdirSync(dir).map((name) => ({ name, text: readFileSync(join(dir, name), 'utf8') }));
  const lines = files.filter(({ name }) => name.endsWith('.jsonl')).flatMap(({ text }) => text.trim().split('\n'));
  const of = (side: Side): string[] => lines.filter((line) => (JSON.parse(line) as { tenant?: string }).tenant === side.id);
  t.ok(of(two.acme).length > 400 && of(two.bravo).length > 100, `${lines.length} events`);
  const apart = /acme.*bravo|bravo.*acme|north\.example.*bravo|south\.example.*acme/;
  t.same(lines.filter((line) => apart.test(line)), [], 'no line tells of both');
  const persons = (side: Side): string[] => of(side).flatMap((line) => (JSON.parse(line) as { person?: string }).person ?? []);
  const acme = new Set(persons(two.acme));
  t.ok(acme.size > 100);
  t.same(persons(two.bravo).filter((one) => acme.has(one)), [], 'one person has a pseudonym with each');

  const seen = `${files.map(({ text }) => text).join('\n')}\n${daemon.output()}`;
  t.notMatch(seen, /[^\s"]@|%40/, 'no address in journal or log');
  t.same(namedIn(seen), [], 'no part of one');
  t.notMatch(seen, /The letter|read\.example|workstation/, 'no subject, no link, no client');

  for (const [side, other] of [[two.acme, two.bravo], [two.bravo, two.acme]] as const) {
    const notices = mx.messages.filter(({ to }) => to === side.from);
    t.equal(notices.length, 1);
    const text = notices[0]?.body.toString('latin1') ?? '';
    t.match(text, new RegExp(`Final-Recipient: rfc822; ?${bounced}`));
    t.notMatch(text, new RegExp(`${other.id}|${other.domain.replace('.', '\\.')}`, 'i'), 'nothing of the other tenant');
    t.same(namedIn(text).filter((part) => !bounced.split('@').includes(part)), [], 'and of no other person');
  }
});

t.test('I-13 a receipt of one consent shows of all others nothing that a list of addresses could be tried on', async (t) => {
  const stores = await two.stores();
  t.teardown(() => stores.close());
  const { log } = stores.ledger;
  const sha = (...parts: readonly (Buffer | string)[]): Buffer => parts.reduce<Hash>((hash, part) => hash.update(part), createHash('sha256')).digest();
  const leaf = (data: Buffer | string): string => sha('\0', data).toString('base64');
  // Everything that may be made of an address without the tenant's keys, or with the other one's.
  const guesses = new Set([shared, bounced, objected, ...onBravo].flatMap((address) => {
    const keyed = [two.acme, two.bravo].flatMap(({ id }) => Object.values(stores.ledger.hashes(id, parseAddress(address)) as unknown as Record<string, Buffer>));
    return [address, sha(address), ...keyed, ...keyed.map((hash) => sha(hash))].flatMap((one) => [Buffer.from(one).toString('base64'), leaf(one)]);
  }));
  const commitments = new Set<string>();
  let looked = 0;
  for (const { id } of [two.acme, two.bravo]) {
    const { size } = await log.checkpoint(id);
    for (let at = 0; at < size; at += 7) {
      const receipt = await log.receipt(id, at);
      const commitment = (await log.entry(id, at))?.commitment.toString('base64') ?? '';
      if (receipt === undefined) continue;
      looked++;
      const other = id === 'acme' ? two.bravo : two.acme;
      const named = [...namedIn(receipt.payload), ...(receipt.payload.includes(other.id) ? [other.id] : [])];
      if (named.length > 0 || [commitment, ...receipt.proof].some((hash) => guesses.has(hash)) || commitments.has(commitment)) t.fail(`leaf ${at} of ${id}`);
      commitments.add(commitment);
    }
  }
  t.ok(looked > 100, `${looked} receipts, ${guesses.size} guesses`);
});

t.test('I-14, T8 headers tell of no tenant name, login, client or other recipient', async (t) => {
  const copies = mx.messages.filter(({ from }) => from !== '');
  t.ok(copies.length > 600, `${copies.length} copies`);
  const wrong: string[] = [];
  for (const copy of copies) {
    const header = headerOf(copy);
    const [own, other] = copy.from.endsWith(two.acme.domain) ? [two.acme, two.bravo] : [two.bravo, two.acme];
    // What is drawn or sealed may spell any word; the tests above have looked at it.
    const bare = header.replaceAll(own.pages, '').replaceAll(/\bbh?=[\w+/= ]+|\/[cou]\/[\w-]+|\b[0-9a-z]{26}\b/gi, '');
    const found = new RegExp(`acme|bravo|${CLIENT.name}|127\\.0\\.0\\.|\\[|${other.domain}`, 'i').exec(bare)?.[0];
    if (found !== undefined) wrong.push(`${found} in ${header}`);
    if (namedIn(header).some((part) => !copy.to.toLowerCase().split('@').includes(part))) wrong.push(`another recipient in ${header}`);
  }
  t.same(wrong.slice(0, 2), []);
});
