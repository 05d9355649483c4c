// npm start -- --demo: a campaign to five people who differ only in what they agreed to, run through a
// real relay over SMTP AUTH into a real MX, in a temporary folder. Prints what became of each and why,
// and how the copies differ. The result is 0 only if all came out as they should.
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createTransport } from 'nodemailer';
import { table } from '../daemon/admin/index.ts';
import { parseAddress, type Tracking } from '../daemon/mail/index.ts';
import { openLog } from '../daemon/runtime/index.ts';
import { openStores, serve, type Stores } from '../daemon/main.ts';
import { callControl } from '../daemon/admin/index.ts';
import { controlSocket } from '../daemon/main.ts';
import { makeSandbox, type Ports, type Sandbox } from './sandbox.ts';
import { startSink } from './sink.ts';

const ALL: Tracking = { opens: 'individual', clicks: 'individual' };
const NONE: Tracking = { opens: 'none', clicks: 'none' };

interface Person {
  readonly address: string;
  readonly who: string;
  readonly expect: 'delivered' | 'refused' | 'suppressed';
}

const PEOPLE = {
  consented: { address: 'consented@example.com', who: 'said yes, tracking too', expect: 'delivered' },
  untracked: { address: 'untracked@example.com', who: 'said yes, but no tracking', expect: 'delivered' },
  stranger: { address: 'stranger@example.com', who: 'never asked for it', expect: 'refused' },
  suppressed: { address: 'suppressed@example.com', who: 'said yes, later objected', expect: 'refused' },
  // The MX answers 450 to the first attempt, so the message waits while its reader changes their mind.
  withdrawn: { address: '450-withdrawn@example.org', who: 'withdrew while it was queued', expect: 'suppressed' },
} as const satisfies Record<string, Person>;

const HTML = '<html><body><h1>The monthly letter</h1><p>Read <a href="https://demo.example/story?id=1&amp;from=letter">the story</a>.</p></body></html>';

interface Row {
  readonly recipient: string;
  readonly who: string;
  readonly outcome: string;
  readonly why: string;
  readonly ok: boolean;
}

/** Runs the demo. @returns the exit status */
export async function runDemo({ json }: { readonly json: boolean }): Promise<number> {
  const dir = mkdtempSync(join(tmpdir(), 'postern-demo-'));
  const copies = new Map<string, string>();
  const attempts = new Map<string, number>();
  const ports = await freePorts();
  const sink = await startSink({
    port: ports.sink,
    onMessage: (message) => void copies.set(message.to[0] ?? '', message.raw.toString('latin1')),
    script: (to) => void attempts.set(to, (attempts.get(to) ?? 0) + 1),
  });
  try {
    const sandbox = await makeSandbox(dir, ports);
    await record(sandbox);
    const daemon = await serve(sandbox.root, { log: openLog('silent') });
    try {
      const rows = await campaign(sandbox, ports, copies);
      const same = differences(copies, ports);
      const ok = rows.every((row) => row.ok) && same.every((row) => row.ok) && attempts.get(PEOPLE.withdrawn.address) === 1;
      if (json) console.log(JSON.stringify({ ok, recipients: rows, copies: same }));
      else print(rows, same, ok, attempts.get(PEOPLE.withdrawn.address) ?? 0);
      return ok ? 0 : 1;
    } finally {
      await daemon.stop();
    }
  } finally {
    await sink.close();
    rmSync(dir, { recursive: true, force: true });
  }
}

/** What each of the five agreed to, before the relay starts. */
async function record(sandbox: Sandbox): Promise<void> {
  const stores = await openStores(sandbox.root, openLog('silent'));
  const give = async (address: string, tracking: Tracking): Promise<void> => {
    const policyHash = stores.live.current().tenants.get('demo')?.policies[0]?.hash ?? '';
    await stores.ledger.give('demo', {
      hashes: hashesOf(stores, address), purpose: 'newsletter', state: 'given', legalBasis: 'gdpr_6_1_a', policyHash,
      method: 'form', evidence: { source: 'demo sign-up form', time: Date.now() }, tracking, by: 'demo',
    });
  };
  await give(PEOPLE.consented.address, ALL);
  await give(PEOPLE.untracked.address, NONE);
  await give(PEOPLE.suppressed.address, ALL);
  await give(PEOPLE.withdrawn.address, ALL);
  await stores.ledger.suppress('demo', { hashes: hashesOf(stores, PEOPLE.suppressed.address), scope: 'all', cause: 'objection', by: 'demo' });
  await stores.close();
}

const hashesOf = (stores: Stores, address: string): ReturnType<Stores['ledger']['hashes']> => stores.ledger.hashes('demo', parseAddress(address));

async function campaign(sandbox: Sandbox, ports: Ports, copies: ReadonlyMap<string, string>): Promise<Row[]> {
  const transport = createTransport({
    host: '127.0.0.1', port: ports.submissions, secure: true, auth: { user: sandbox.username, pass: sandbox.secret }, tls: { rejectUnauthorized: false },
  });
  const socket = controlSocket({ server: { dataDir: sandbox.dataDir } });
  const rows: Row[] = [];
  for (const person of Object.values<Person>(PEOPLE)) {
    const sent = await transport.sendMail({
      from: 'The monthly letter <news@demo.example>', to: person.address, subject: 'The monthly letter', html: HTML, text: 'Read the story: https://demo.example/story?id=1',
    }).then((info) => ({ id: /queued as (\S+)/.exec(info.response)?.[1] ?? '', reply: info.response }), (error: Error & { response?: string }) => ({ id: '', reply: error.response ?? error.message }));
    if (sent.id === '') {
      rows.push({ recipient: person.address, who: person.who, outcome: 'refused', why: sent.reply, ok: person.expect === 'refused' });
      continue;
    }
    if (person.address === PEOPLE.withdrawn.address) {
      await outcome(socket, sent.id, ['deferred']);
      await callControl(socket, 'consent.withdraw', { tenant: 'demo', rcpt: person.address });
      await callControl(socket, 'queue.retry', { id: sent.id });
    }
    const event = await outcome(socket, sent.id, ['delivered', 'failed', 'suppressed', 'expired']);
    const arrived = person.expect === 'delivered' ? copies.has(person.address) : !copies.has(person.address);
    rows.push({ recipient: person.address, who: person.who, outcome: event.event, why: event.reply ?? `${event.reason ?? ''} (rule ${event.rule ?? ''})`, ok: event.event === person.expect && arrived });
  }
  transport.close();
  return rows;
}

interface Told {
  readonly event: string;
  readonly reply?: string;
  readonly reason?: string;
  readonly rule?: string;
}

/** Waits for one of these events of a message; at most ten seconds. */
async function outcome(socket: string, id: string, kinds: readonly string[]): Promise<Told> {
  for (let i = 0; i < 200; i++) {
    const { events } = await callControl(socket, 'trace', { id }) as { events: readonly Told[] };
    const found = events.find((event) => kinds.includes(event.event));
    if (found !== undefined) return found;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return { event: 'nothing', reason: 'nothing happened in ten seconds' };
}

interface Copy {
  readonly recipient: string;
  readonly link: string;
  readonly pixel: string;
  readonly signatures: number;
  readonly ok: boolean;
}

/** What the copies that arrived have in common, and what not. */
function differences(copies: ReadonlyMap<string, string>, ports: Ports): Copy[] {
  const host = `http://127.0.0.1:${ports.pages}`;
  return [PEOPLE.consented.address, PEOPLE.untracked.address].map((recipient) => {
    const raw = copies.get(recipient) ?? '';
    const text = raw.replaceAll('=\r\n', '').replaceAll('=3D', '=');
    const tracked = recipient === PEOPLE.consented.address;
    const link = /<a href="([^"]+)"/.exec(text)?.[1] ?? 'none';
    const signatures = raw.match(/^DKIM-Signature:/gm)?.length ?? 0;
    const pixel = text.includes(`${host}/o/`);
    const rewritten = link.startsWith(`${host}/c/`);
    return {
      recipient, signatures, pixel: pixel ? 'added' : 'none',
      link: rewritten ? `${link.slice(0, host.length + 12)}...` : link,
      ok: rewritten === tracked && pixel === tracked && signatures === 2 && (tracked || link === 'https://demo.example/story?id=1&amp;from=letter'),
    };
  });
}

function print(rows: readonly Row[], copies: readonly Copy[], ok: boolean, attempts: number): void {
  const mark = <T extends { readonly ok: boolean }>({ ok: right, ...row }: T): Record<string, unknown> => ({ '': right ? 'ok' : 'WRONG', ...row });
  console.log(`\nOne message to each of five people:\n\n${table(rows.map(mark))}`);
  console.log(`\nThe copies that arrived:\n\n${table(copies.map(mark))}`);
  console.log(`\nThe message of the reader who withdrew met its MX ${attempts} time(s): before the withdrawal, never after.`);
  console.log(`\n${ok ? 'Everything came out as it should.' : 'Something did NOT come out as it should.'}`);
}

/** Ports nobody uses now, so that the demo runs beside a sandbox. */
async function freePorts(): Promise<Ports> {
  const names = ['submissions', 'submission', 'pages', 'metrics', 'sink'] as const;
  const servers = await Promise.all(names.map(() => new Promise<ReturnType<typeof createServer>>((resolve) => {
    const server = createServer();
    server.listen(0, '127.0.0.1', () => resolve(server));
  })));
  const ports = servers.map((server) => {
    const at = server.address();
    return typeof at === 'object' && at !== null ? at.port : 0;
  });
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return Object.fromEntries(names.map((name, i) => [name, ports[i] ?? 0])) as unknown as Ports;
}
