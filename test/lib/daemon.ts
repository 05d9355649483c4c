// A whole relay in a sandbox of its own for tests: free ports, a temporary folder, every domain routed to
// the port the test chose. Callers may rely on: stop() ends all and removes the folder. The daemon runs in
// the test's process, or as a child where the test must kill it or read its output.
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { connect as connectTls } from 'node:tls';
import { createTransport, type SendMailOptions } from 'nodemailer';
import { callControl } from '../../daemon/admin/index.ts';
import { controlSocket, openStores, serve, type Daemon } from '../../daemon/main.ts';
import { parseAddress, type OpenMode } from '../../daemon/mail/index.ts';
import { openLog } from '../../daemon/runtime/index.ts';
import { startMx, type Mx } from './mx.ts';
import { makeSandbox, type Ports, type Sandbox } from '../../scripts/sandbox.ts';

export const CHECKOUT = resolve(import.meta.dirname, '../..');

export interface Told {
  readonly event: string;
  readonly reply?: string;
  readonly reason?: string;
  readonly rule?: string;
  readonly class?: string;
  readonly tls?: string;
}

export interface Grounds extends Sandbox {
  readonly dir: string;
  readonly ports: Ports;
  /** Asks the running daemon. */
  control(op: string, params?: Record<string, unknown>): Promise<unknown>;
  /** Submits one message as the demo tenant. @returns the id, or '' with the reply that refused it */
  send(mail: SendMailOptions, user?: string): Promise<{ readonly id: string; readonly reply: string }>;
  /** Waits for one of these events of a message, at most five seconds. */
  event(id: string, kinds: readonly string[]): Promise<Told>;
  /** Writes a configuration file from what it said. */
  edit(name: string, change: (text: string) => string): void;
  /** Consents recorded while no daemon runs. */
  consent(people: Readonly<Record<string, OpenMode>>): Promise<void>;
  serve(): Promise<Daemon>;
  remove(): void;
}

/** A sandbox with free ports; nothing runs in it yet. */
export async function makeGrounds(sink: number): Promise<Grounds> {
  const dir = mkdtempSync(join(tmpdir(), 'postern-flow-'));
  const ports = { ...(await freePorts()), sink };
  const sandbox = await makeSandbox(dir, ports);
  const socket = controlSocket({ server: { dataDir: sandbox.dataDir } });
  const control = (op: string, params: Record<string, unknown> = {}): Promise<unknown> => callControl(socket, op, params);
  return {
    ...sandbox, dir, ports, control,
    async send(mail, user = sandbox.username) {
      const transport = createTransport({ host: '127.0.0.1', port: ports.submissions, secure: true, auth: { user, pass: sandbox.secret }, tls: { rejectUnauthorized: false } });
      try {
        const info = await transport.sendMail(mail);
        return { id: /queued as (\S+)/.exec(info.response)?.[1] ?? '', reply: info.response };
      } catch (error) {
        return { id: '', reply: (error as { response?: string }).response ?? String(error) };
      } finally {
        transport.close();
      }
    },
    async event(id, kinds) {
      for (let i = 0; i < 200; i++) {
        const { events } = await control('trace', { id }) as { events: readonly Told[] };
        const found = events.find(({ event }) => kinds.includes(event));
        if (found !== undefined) return found;
        await pause(25);
      }
      return { event: 'nothing' };
    },
    edit: (name, change) => writeFileSync(join(sandbox.root, name), change(readFileSync(join(sandbox.root, name), 'utf8'))),
    async consent(people) {
      const stores = await openStores(sandbox.root, openLog('silent'));
      const policyHash = stores.live.current().tenants.get('demo')?.policies[0]?.hash ?? '';
      await stores.ledger.giveAll('demo', Object.entries(people).map(([address, mode]) => ({
        hashes: stores.ledger.hashes('demo', parseAddress(address)), purpose: 'newsletter', state: 'given' as const, legalBasis: 'gdpr_6_1_a' as const, policyHash,
        method: 'form', evidence: { source: 'test', time: Date.now() }, tracking: { opens: mode, clicks: mode === 'individual' ? mode : 'none' }, by: 'test',
      })));
      await stores.close();
    },
    serve: () => serve(sandbox.root, { log: openLog('silent') }),
    remove: () => rmSync(dir, { recursive: true, force: true }),
  };
}

/** What a flow test stands on; `restart` puts another daemon in its place. */
export interface Scene {
  readonly mx: Mx;
  readonly grounds: Grounds;
  daemon: Daemon;
}

/**
 * A relay that serves people with these consents towards a scripted MX, until the test ends. `before` is done in
 * the grounds before the daemon starts.
 */
export async function serveDaemon(t: { teardown(end: () => Promise<void>): unknown }, people: Readonly<Record<string, OpenMode>>, before?: (grounds: Grounds) => Promise<void> | void): Promise<Scene> {
  const mx = await startMx();
  const grounds = await makeGrounds(mx.port);
  await grounds.consent(people);
  await before?.(grounds);
  const scene: Scene = { mx, grounds, daemon: await grounds.serve() };
  t.teardown(async () => {
    await scene.daemon.stop();
    await mx.close();
    grounds.remove();
  });
  return scene;
}

/** The relay as a process of its own; resolves when it takes mail. */
export async function spawnDaemon(root: string, env: NodeJS.ProcessEnv = process.env): Promise<{ readonly child: ChildProcess; readonly output: () => string; readonly kill: (signal: NodeJS.Signals) => Promise<void> }> {
  const child = spawn(join(CHECKOUT, 'scripts/postern'), ['serve', '--config', root], { env, stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  const gone = new Promise<void>((done) => child.once('exit', () => done()));
  await new Promise<void>((ready, fail) => {
    const take = (chunk: Buffer): void => {
      output += chunk.toString();
      if (output.includes('postern is ready')) ready();
    };
    child.stdout.on('data', take);
    child.stderr.on('data', take);
    child.once('exit', () => fail(new Error(`the daemon ended: ${output}`)));
  });
  return {
    child, output: () => output,
    async kill(signal) {
      child.kill(signal);
      await gone;
    },
  };
}

export const pause = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));

/** Waits for what takes a moment. @returns whether it came about in time */
export async function eventually(done: () => boolean, timeoutMs = 10_000): Promise<boolean> {
  for (const end = Date.now() + timeoutMs; Date.now() < end; await pause(20)) if (done()) return true;
  return done();
}

/** Ports nobody uses now. */
export async function freePorts(): Promise<Omit<Ports, 'sink'>> {
  const servers = await Promise.all([1, 2, 3, 4].map(() => new Promise<ReturnType<typeof createServer>>((done) => {
    const server = createServer();
    server.listen(0, '127.0.0.1', () => done(server));
  })));
  const [submissions = 0, submission = 0, pages = 0, metrics = 0] = servers.map((server) => (server.address() as AddressInfo).port);
  await Promise.all(servers.map((server) => new Promise((done) => server.close(done))));
  return { submissions, submission, pages, metrics };
}

/** One submission under TLS, line by line. @returns the last line of each reply */
export async function converse(port: number, lines: readonly string[]): Promise<string[]> {
  const socket = connectTls({ host: '127.0.0.1', port, rejectUnauthorized: false });
  const replies: string[] = [];
  let text = '';
  socket.setEncoding('utf8');
  await new Promise<void>((done, fail) => {
    socket.on('error', fail);
    socket.on('close', () => done());
    socket.on('data', (chunk: string) => {
      text += chunk;
      if (!/(?:^|\n)\d{3} [^\n]*\r\n$/.test(text)) return;
      replies.push(text.trimEnd().split('\r\n').at(-1) ?? '');
      text = '';
      const next = lines[replies.length - 1];
      if (next !== undefined) socket.write(`${next}\r\n`);
    });
  });
  return replies;
}
