// The control socket: how `postern` talks to the running daemon, which alone may write to the store.
// A unix socket, mode 0600: whoever may open it is the operator. One request a connection, as one JSON
// line {op, params}; answers are JSON lines {progress} and {item}, then {result} or {error}. A socket
// left behind by a crash is replaced; one that a living daemon answers on is not.
import { once } from 'node:events';
import { chmodSync, lstatSync, mkdirSync, unlinkSync } from 'node:fs';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { createInterface } from 'node:readline';
import { ERRORS, isMailError, MailError, type ErrorCode } from '../mail/index.ts';
import type { Log } from '../runtime/index.ts';

// An import is read from a file by the daemon, not sent here: a request names things, it does not carry them.
const REQUEST_OCTETS = 1_048_576;
// A person's shell or a script sends its line at once.
const REQUEST_MS = 10_000;
// sockaddr_un holds 108 octets with the final NUL; longer names are cut without a word by some systems.
const PATH_OCTETS = 107;

export type Params = Record<string, unknown>;
/** Carries out one request. An AsyncIterable it answers with is sent item by item. */
export type Operation = (params: Params, progress: (p: object) => void) => Promise<unknown>;
export type Operations = Readonly<Record<string, Operation>>;

export interface ControlOptions {
  readonly socketPath: string;
  readonly operations: Operations;
  readonly log: Log;
}

/**
 * Opens the control socket.
 * @throws MailError E_STORE_LOCKED when another daemon answers there, E_CONTROL when the path cannot be used
 */
export async function serveControl({ socketPath, operations, log }: ControlOptions): Promise<{ close(): Promise<void> }> {
  if (Buffer.byteLength(socketPath) > PATH_OCTETS) throw new MailError('E_CONTROL', `${socketPath} is longer than the ${PATH_OCTETS} octets a socket name may have`);
  mkdirSync(dirname(socketPath), { recursive: true, mode: 0o700 });
  await clearStale(socketPath);
  const open = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    open.add(socket);
    socket.once('close', () => open.delete(socket));
    // The other side went away; there is nobody left to tell.
    socket.on('error', () => socket.destroy());
    serveOne(socket, operations, log).catch((error: unknown) => {
      log.error({ error: String(error) }, 'control connection failed');
      socket.destroy();
    });
  });
  await listenPrivately(server, socketPath);
  return {
    async close() {
      const closed = once(server, 'close');
      server.close();
      for (const socket of open) socket.destroy();
      await closed;
    },
  };
}

async function listenPrivately(server: Server, socketPath: string): Promise<void> {
  // The mask keeps the socket private from the moment it exists; the mode is set again for systems that ignore it.
  const mask = process.umask(0o177);
  try {
    server.listen(socketPath);
  } finally {
    process.umask(mask);
  }
  try {
    await once(server, 'listening');
  } catch (cause) {
    throw new MailError('E_CONTROL', `control socket ${socketPath}: ${String(cause)}`, { cause });
  }
  chmodSync(socketPath, 0o600);
}

/** Removes a socket nobody answers on. */
async function clearStale(socketPath: string): Promise<void> {
  const found = lstatSync(socketPath, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket()) throw new MailError('E_CONTROL', `${socketPath} exists and is not a socket; it is left alone`);
  const peer = await connect(socketPath);
  if (peer === 'not-running') {
    unlinkSync(socketPath);
    return;
  }
  peer.destroy();
  throw new MailError('E_STORE_LOCKED', `another daemon answers on ${socketPath}`);
}

function connect(socketPath: string): Promise<Socket | 'not-running'> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(socketPath);
    socket.once('connect', () => {
      socket.off('error', failed);
      resolve(socket);
    });
    const failed = (error: NodeJS.ErrnoException): void => {
      if (error.code === 'ENOENT' || error.code === 'ECONNREFUSED') resolve('not-running');
      else reject(new MailError('E_CONTROL', `control socket ${socketPath}: ${error.code ?? error.message}`, { cause: error }));
    };
    socket.once('error', failed);
  });
}

async function serveOne(socket: Socket, operations: Operations, log: Log): Promise<void> {
  const send = async (line: object): Promise<void> => {
    // A reader who is slower than an export must not make us hold it in memory.
    if (socket.destroyed) return;
    if (!socket.write(`${JSON.stringify(line)}\n`)) await drained(socket);
  };
  try {
    const { operation, params } = readRequest(await requestLine(socket), operations);
    const answer = await operation(params, (progress) => {
      if (!socket.destroyed) socket.write(`${JSON.stringify({ progress })}\n`);
    });
    if (isAsyncIterable(answer)) {
      for await (const item of answer) {
        if (socket.destroyed) return; // whoever asked has gone: leaving the loop ends the iteration
        await send({ item });
      }
      await send({ result: null });
    } else {
      await send({ result: answer ?? null });
    }
  } catch (error) {
    if (!isMailError(error)) log.error({ error: error instanceof Error ? error.stack : String(error) }, 'an operation failed unexpectedly');
    await send({ error: isMailError(error) ? { code: error.code, message: error.message } : { code: 'E_CONTROL', message: 'unexpected failure; the log has it' } });
  }
  socket.end();
}

/** Until the socket takes more, or is gone. */
function drained(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      socket.off('drain', done);
      socket.off('close', done);
      resolve();
    };
    socket.on('drain', done);
    socket.on('close', done);
  });
}

function requestLine(socket: Socket): Promise<string> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let octets = 0;
    const finish = (settle: () => void): void => {
      socket.off('data', take);
      socket.off('end', ended);
      socket.off('close', ended);
      socket.setTimeout(0);
      // Anything after the line is not read, but the end of the connection must still be noticed.
      socket.resume();
      settle();
    };
    const fail = (message: string): void => finish(() => reject(new MailError('E_CONTROL', message)));
    const take = (chunk: Buffer): void => {
      const end = chunk.indexOf(0x0a);
      octets += end === -1 ? chunk.length : end;
      chunks.push(end === -1 ? chunk : chunk.subarray(0, end));
      if (octets > REQUEST_OCTETS) fail(`the request is longer than ${REQUEST_OCTETS} octets`);
      else if (end !== -1) finish(() => resolve(Buffer.concat(chunks).toString('utf8')));
    };
    const ended = (): void => fail('the request ended before its line did');
    socket.on('data', take);
    socket.once('end', ended);
    socket.once('close', ended);
    socket.setTimeout(REQUEST_MS, () => fail('no request came'));
  });
}

function readRequest(line: string, operations: Operations): { readonly operation: Operation; readonly params: Params } {
  let request: unknown;
  try {
    request = JSON.parse(line);
  } catch (cause) {
    throw new MailError('E_CONTROL', 'the request is not JSON', { cause });
  }
  const { op, params = {} } = isRecord(request) ? request : {};
  if (typeof op !== 'string' || !isRecord(params)) throw new MailError('E_CONTROL', 'a request is {"op": "name", "params": {}}');
  const operation = Object.hasOwn(operations, op) ? operations[op] : undefined;
  if (operation === undefined) throw new MailError('E_CONTROL', `this daemon does not know the operation ${JSON.stringify(op.slice(0, 60))}`);
  return { operation, params };
}

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null && !Array.isArray(value);
const isAsyncIterable = (value: unknown): value is AsyncIterable<unknown> => typeof value === 'object' && value !== null && Symbol.asyncIterator in value;

/**
 * Asks the daemon and answers its result, or 'not-running' when nobody listens. Lines {progress} and
 * {item} go to `onProgress` as they are.
 * @throws MailError with the daemon's code, or E_CONTROL when it went away before it answered
 */
export async function callControl(socketPath: string, op: string, params: Params, onProgress?: (line: object) => void): Promise<unknown> {
  const socket = await connect(socketPath);
  if (socket === 'not-running') return 'not-running';
  // A broken connection shows as one that ends without a result.
  socket.on('error', () => socket.destroy());
  try {
    socket.write(`${JSON.stringify({ op, params })}\n`);
    for await (const text of createInterface({ input: socket, crlfDelay: Infinity })) {
      const line: unknown = JSON.parse(text);
      if (!isRecord(line)) continue;
      if ('result' in line) return line['result'];
      if (isRecord(line['error'])) throw errorOf(line['error']);
      onProgress?.(line);
    }
  } finally {
    socket.destroy();
  }
  throw new MailError('E_CONTROL', 'the daemon went away before it answered');
}

function errorOf(error: Record<string, unknown>): MailError {
  const code = error['code'];
  const message = String(error['message']);
  return isErrorCode(code) ? new MailError(code, message) : new MailError('E_CONTROL', message);
}

const isErrorCode = (code: unknown): code is ErrorCode => typeof code === 'string' && Object.hasOwn(ERRORS, code);
