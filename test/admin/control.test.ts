// The control socket over real sockets: answers, progress, streams, refusals, and what a crash leaves.
import { once } from 'node:events';
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { callControl, serveControl, type Operations } from '../../daemon/admin/index.ts';
import { MailError } from '../../daemon/mail/index.ts';
import type { Log } from '../../daemon/runtime/index.ts';

const dir = mkdtempSync(join(tmpdir(), 'postern-control-'));
t.teardown(() => rmSync(dir, { recursive: true }));
let sockets = 0;
const newPath = (): string => join(dir, `${++sockets}.sock`);

const errors: string[] = [];
const log: Log = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: (_, text) => void errors.push(text) };

const work = { produced: 0, ended: false };
async function* endless(limit: number): AsyncGenerator<{ n: number; fill: string }> {
  try {
    for (let n = 0; n < limit; n++) {
      work.produced++;
      yield { n, fill: 'x'.repeat(1_000) };
    }
  } finally {
    work.ended = true;
  }
}

const operations: Operations = {
  echo: async (params) => params,
  nothing: async () => undefined,
  steps: async (_, progress) => {
    progress({ done: 1 });
    progress({ done: 2 });
    return 'ready';
  },
  list: async (params) => endless(Number(params['limit'])),
  refuse: async () => {
    throw new MailError('E_SPOOL_FULL', 'no room');
  },
  bug: async () => {
    throw new TypeError('x is undefined in /secret/path');
  },
  hang: () => new Promise(() => undefined),
};

/** Sends raw octets and answers all that comes back. */
async function raw(path: string, text: string): Promise<string> {
  const socket = connect(path);
  const chunks: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => chunks.push(chunk));
  socket.on('error', () => undefined);
  socket.end(text);
  await once(socket, 'close');
  return Buffer.concat(chunks).toString();
}

t.test('requests are answered with result, progress and items', async (t) => {
  const path = newPath();
  const control = await serveControl({ socketPath: path, operations, log });
  t.equal(statSync(path).mode & 0o777, 0o600);
  t.strictSame(await callControl(path, 'echo', { a: [1, 'ü\n'] }), { a: [1, 'ü\n'] });
  t.equal(await callControl(path, 'nothing', {}), null);
  const lines: object[] = [];
  t.equal(await callControl(path, 'steps', {}, (line) => lines.push(line)), 'ready');
  t.strictSame(lines, [{ progress: { done: 1 } }, { progress: { done: 2 } }]);
  let items = 0;
  t.equal(await callControl(path, 'list', { limit: 5_000 }, () => items++), null);
  t.equal(items, 5_000);
  await control.close();
  t.notOk(existsSync(path));
});

t.test('refusals keep their code; bugs tell nothing but are logged', async (t) => {
  const path = newPath();
  const control = await serveControl({ socketPath: path, operations, log });
  await t.rejects(callControl(path, 'refuse', {}), { code: 'E_SPOOL_FULL', message: 'no room', transient: true });
  await t.rejects(callControl(path, 'bug', {}), { code: 'E_CONTROL', message: 'unexpected failure; the log has it' });
  t.strictSame(errors, ['an operation failed unexpectedly']);
  await t.rejects(callControl(path, 'toString', {}), { code: 'E_CONTROL', message: /does not know the operation "toString"/ });
  for (const [text, message] of [
    ['{"op":\n', 'not JSON'], ['[]\n', 'a request is'], ['{"op":"echo","params":[]}\n', 'a request is'], ['{"op":"echo"', 'ended before its line did'], ['', 'ended before its line did'],
    [`{"op":"${'x'.repeat(1_100_000)}`, 'longer than 1048576 octets'],
  ] as const) {
    t.match(await raw(path, text), new RegExp(`"code":"E_CONTROL".*${message}`), text.slice(0, 20));
  }
  t.equal(await raw(path, '{"op":"nothing"}\n'), '{"result":null}\n', 'params may be left out');
  t.strictSame(await callControl(path, 'echo', { still: 'here' }), { still: 'here' });
  await control.close();
});

t.test('who goes away ends the work; who is slow is waited for', async (t) => {
  const path = newPath();
  const control = await serveControl({ socketPath: path, operations, log });
  Object.assign(work, { produced: 0, ended: false });
  const socket = connect(path);
  socket.write('{"op":"list","params":{"limit":1000000}}\n');
  await once(socket, 'data');
  socket.pause();
  await new Promise((resolve) => setTimeout(resolve, 100));
  t.ok(work.produced < 20_000, `a reader who pauses holds the list up (${work.produced} items made)`);
  socket.destroy();
  for (let i = 0; i < 100 && !work.ended; i++) await new Promise((resolve) => setTimeout(resolve, 10));
  t.ok(work.ended);
  await control.close();
});

t.test('closing ends requests that are under way', async (t) => {
  const path = newPath();
  const control = await serveControl({ socketPath: path, operations, log });
  const hanging = t.rejects(callControl(path, 'hang', {}), { code: 'E_CONTROL', message: 'the daemon went away before it answered' });
  await new Promise((resolve) => setTimeout(resolve, 50));
  await control.close();
  await hanging;
});

t.test('no daemon, a second daemon, a crashed daemon, a file in the way', async (t) => {
  const path = newPath();
  t.equal(await callControl(path, 'echo', {}), 'not-running');
  const control = await serveControl({ socketPath: path, operations, log });
  await t.rejects(serveControl({ socketPath: path, operations, log }), { code: 'E_STORE_LOCKED' });
  t.strictSame(await callControl(path, 'echo', { first: true }), { first: true }, 'the first still answers');
  await control.close();

  const stale = newPath();
  const child = spawn(process.execPath, ['-e', `require('net').createServer().listen(${JSON.stringify(stale)}, () => process.kill(process.pid, 'SIGKILL'))`]);
  await once(child, 'exit');
  t.ok(existsSync(stale), 'a crash leaves its socket');
  t.equal(await callControl(stale, 'echo', {}), 'not-running');
  const next = await serveControl({ socketPath: stale, operations, log });
  t.strictSame(await callControl(stale, 'echo', { next: true }), { next: true });
  await next.close();

  const file = newPath();
  writeFileSync(file, 'mine');
  await t.rejects(serveControl({ socketPath: file, operations, log }), { code: 'E_CONTROL', message: /is not a socket/ });
  t.equal(statSync(file).size, 4);
  await t.rejects(serveControl({ socketPath: join(dir, 'x'.repeat(120)), operations, log }), { code: 'E_CONTROL', message: /longer than the 107 octets/ });
});
