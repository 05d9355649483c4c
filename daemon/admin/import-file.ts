// Importing a file of any size: what the CLI does, and the operations it asks for. The CLI reads and sends
// 256 KiB at a time, and the daemon keeps of them what is not written yet (ledger/import.ts), so that
// neither holds the file. How far it came is written in the transaction of the rows themselves: the same
// command after a crash of either side goes on behind them. What was refused is told before its rows are
// written, so that no reason is lost between the two; the report leaves out what it has already.
import { createHash } from 'node:crypto';
import { closeSync, fstatSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import { basename } from 'node:path';
import { openConsentImport, openSuppressionImport, type ImportOptions, type ImportProgress, type ImportRun, type RowError, type RowFormat } from '../ledger/index.ts';
import { MailError } from '../mail/index.ts';
import { newId } from '../runtime/index.ts';
import type { Operation } from './control.ts';
import { record, type Desk } from './desk.ts';
import { oneOf, required, tenantOf, text, wrong, type Params } from './params.ts';

// Under the socket's limit as base64, and some thousand rows.
const CHUNK_OCTETS = 262_144;
// What names a file, with its name and size: enough to tell this month's list from last month's.
const NAMED_BY_OCTETS = 65_536;
// Whoever sends nothing for so long is gone; what it sent and is not written is forgotten.
const IDLE_MS = 600_000;
const SHOWN = 20;
const SAY_EVERY_MS = 10_000;
const DRAW_EVERY_MS = 200;

const FORMATS = ['csv', 'ndjson'] as const;
const OPENERS = { consent: openConsentImport, suppression: openSuppressionImport } as const;
type What = keyof typeof OPENERS;

// ---- what the daemon does ------------------------------------------------------------------------

interface Session {
  readonly tenant: string;
  readonly file: string;
  readonly dryRun: boolean;
  readonly run: ImportRun;
  refused: RowError[];
  /** Settles when what was asked last is done. */
  busy: Promise<unknown>;
  forget: () => void;
}

/** `consent.import` and `suppress.import`, each in steps: begin, rows as often as needed, end. */
export function importOperations(desk: Desk): Readonly<Record<string, Operation>> {
  const sessions = new Map<string, Session>();
  return { 'consent.import': (params) => step(desk, sessions, params, 'consent'), 'suppress.import': (params) => step(desk, sessions, params, 'suppression') };
}

async function step(desk: Desk, sessions: Map<string, Session>, params: Params, what: What): Promise<unknown> {
  const named = required(params, 'step');
  if (named === 'begin') return begin(desk, sessions, params, what);
  const id = required(params, 'session');
  const session = sessions.get(id);
  if (session === undefined) throw wrong('this import is not open any more: the daemon was started anew, or waited ten minutes for rows; the same command goes on where it stopped');
  session.forget();
  const last = named === 'end';
  // One at a time, whoever asks.
  const work = session.busy.then(async () => {
    // Only now: that there is more says that what was refused so far has been heard.
    if (session.run.full) await session.run.flush();
    await session.run.take(last ? Buffer.alloc(0) : Buffer.from(text(params, 'text'), 'base64'), last);
    const refused = session.refused.splice(0);
    if (last && refused.length === 0) await session.run.flush(true);
    return { done: last && refused.length === 0, refused, ...session.run.result };
  });
  session.busy = work.catch(() => undefined); // told to whoever asked
  try {
    const result = await work;
    if (result.done) {
      const tenant = tenantOf(desk, params);
      if (!session.dryRun) record(desk, what, tenant, undefined, `${result.recorded} imported`);
      sessions.delete(id);
    } else {
      session.forget = desk.clock.after(IDLE_MS, () => sessions.delete(id));
    }
    return result;
  } catch (error) {
    sessions.delete(id);
    throw error;
  }
}

async function begin(desk: Desk, sessions: Map<string, Session>, params: Params, what: What): Promise<unknown> {
  const tenant = tenantOf(desk, params);
  const format: RowFormat = oneOf(params, 'format', FORMATS, 'csv');
  const file = text(params, 'file');
  if (file !== '' && !/^[0-9a-f]{64}$/.test(file)) throw wrong('file: expected 64 hex digits');
  for (const [id, other] of sessions) {
    if (file === '' || other.file !== file || other.tenant !== tenant.id) continue;
    // Its command was killed: what it had sent is read again.
    sessions.delete(id);
    other.forget();
    await other.busy;
  }
  const dryRun = params['dryRun'] === true;
  const before = file === '' || dryRun || params['fromStart'] === true ? undefined : await desk.ledger.importProgress(tenant.id, file);
  const refused: RowError[] = [];
  const options: ImportOptions = {
    format, now: desk.clock.now(), by: 'import', jurisdictions: [...desk.settings().profiles.keys()], dryRun, onError: (error) => refused.push(error),
    ...(file !== '' && { file }), ...(before !== undefined && { from: { progress: before, header: Buffer.from(text(params, 'header'), 'base64') } }),
    ...(typeof params['window'] === 'number' && params['window'] >= 1 && { windowRows: params['window'] }),
  };
  const id = newId(options.now);
  sessions.set(id, { tenant: tenant.id, file, dryRun, run: OPENERS[what](desk.ledger, tenant, options), refused, busy: Promise.resolve(), forget: desk.clock.after(IDLE_MS, () => sessions.delete(id)) });
  return { session: id, from: before };
}

// ---- what the CLI does ---------------------------------------------------------------------------

export interface ImportFileOptions {
  readonly tenant: string;
  /** Without it the file's name decides: .ndjson and .jsonl, else CSV. */
  readonly format?: string;
  readonly fromStart?: boolean;
  readonly dryRun?: boolean;
  /** Where all that was refused is written, as CSV. */
  readonly report?: string;
  /** Rows written in one go. */
  readonly window?: number;
  readonly quiet?: boolean;
}

export interface ImportedFile {
  readonly rows: number;
  readonly recorded: number;
  readonly kept: number;
  /** How many rows were refused, those of an import this one went on with included. */
  readonly errors: number;
  /** The first of them in this run. */
  readonly refused: readonly RowError[];
  /** The line an earlier import had come to; absent when this one began at the start. */
  readonly resumedAt?: number;
}

interface Answer {
  readonly done: boolean;
  readonly rows: number;
  readonly recorded: number;
  readonly kept: number;
  readonly errors: number;
  readonly refused: readonly RowError[];
}

type Ask = (op: string, params: Record<string, unknown>) => Promise<unknown>;

/**
 * Imports `path`, or standard input for `-`, through `ask`.
 * @throws MailError E_CONTROL when the file cannot be read or its header is unusable, E_STORE when the store fails
 */
export async function importFile(op: 'consent.import' | 'suppress.import', path: string, options: ImportFileOptions, ask: Ask): Promise<ImportedFile> {
  const stdin = path === '-';
  const fd = stdin ? 0 : opened(path);
  try {
    const size = stdin ? undefined : sizeOf(fd, path);
    const name = stdin ? undefined : nameOf(op, fd, path, size ?? 0);
    const format = options.format ?? (/\.(?:ndjson|jsonl)$/i.test(path) ? 'ndjson' : 'csv');
    const { tenant, fromStart, dryRun, window } = options;
    const { session, from } = await ask(op, { step: 'begin', tenant, format, ...(name !== undefined && { file: name.file, header: name.header }), fromStart, dryRun, window }) as { session: string; from?: ImportProgress };
    const report = options.report === undefined ? undefined : openReport(options.report, from !== undefined);
    const meter = new Meter(options.quiet === true ? undefined : process.stderr, size, from);
    const refused: RowError[] = [];
    const hear = (answer: Answer): Answer => {
      for (const one of answer.refused) if (refused.length < SHOWN) refused.push(one);
      report?.add(answer.refused);
      return answer;
    };
    try {
      let at = from?.octets ?? 0;
      for await (const chunk of stdin ? stdinChunks() : fileChunks(fd, at)) {
        const answer = hear(await ask(op, { step: 'rows', tenant, session, text: chunk.toString('base64') }) as Answer);
        at += chunk.length;
        meter.show(at, answer.rows);
      }
      let answer: Answer;
      do answer = hear(await ask(op, { step: 'end', tenant, session }) as Answer); while (!answer.done);
      const { rows, recorded, kept, errors } = answer;
      return { rows, recorded, kept, errors, refused, ...(from !== undefined && { resumedAt: from.line }) };
    } finally {
      meter.end();
      report?.close();
    }
  } finally {
    if (!stdin) closeSync(fd);
  }
}

/** For people: what became of the file. */
export function describeImport(path: string, { rows, recorded, kept, errors, refused, resumedAt }: ImportedFile, { dryRun, report }: ImportFileOptions): string {
  const more = errors - refused.length;
  return [
    ...(resumedAt === undefined ? [] : [`went on at line ${resumedAt}, where an earlier import stopped (--from-start begins anew)`]),
    dryRun === true ? `${rows - errors} of ${rows} rows can be imported, ${errors} refused; nothing was written` : `${recorded} imported, ${kept} on record already, ${errors} refused`,
    ...refused.map(({ line, reason }) => `${path}:${line}: ${reason}`),
    ...(more > 0 ? [`and ${more} more${report === undefined ? '; --report FILE takes all of them' : `: ${report}`}`] : []),
  ].join('\n');
}

function opened(path: string): number {
  try {
    return openSync(path, 'r');
  } catch (cause) {
    throw new MailError('E_CONTROL', `${path} cannot be read: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

function sizeOf(fd: number, path: string): number | undefined {
  const stat = fstatSync(fd);
  if (stat.isDirectory()) throw new MailError('E_CONTROL', `${path} is a folder`);
  return stat.isFile() ? stat.size : undefined;
}

/** What the file is known by, and its first line; undefined for a pipe, which cannot be gone on with. */
function nameOf(op: string, fd: number, path: string, size: number): { readonly file: string; readonly header: string } | undefined {
  if (!fstatSync(fd).isFile()) return undefined;
  const octets = Buffer.alloc(Math.min(NAMED_BY_OCTETS, size));
  const start = octets.subarray(0, readSync(fd, octets, 0, octets.length, 0));
  const file = createHash('sha256').update(JSON.stringify([op, basename(path), size])).update(start).digest('hex');
  const end = start.indexOf(0x0a);
  return { file, header: start.subarray(0, end < 0 ? start.length : end + 1).toString('base64') };
}

function* fileChunks(fd: number, from: number): Generator<Buffer> {
  const seekable = fstatSync(fd).isFile();
  for (let at = from; ;) {
    const chunk = Buffer.allocUnsafe(CHUNK_OCTETS);
    const read = readSync(fd, chunk, 0, chunk.length, seekable ? at : null);
    if (read === 0) return;
    at += read;
    yield chunk.subarray(0, read);
  }
}

async function* stdinChunks(): AsyncGenerator<Buffer> {
  let waiting: Buffer[] = [];
  let octets = 0;
  for await (const piece of process.stdin as AsyncIterable<Buffer>) {
    // What comes in one piece may be longer than what may be sent in one.
    for (let at = 0; at < piece.length; at += CHUNK_OCTETS) {
      const part = piece.subarray(at, at + CHUNK_OCTETS);
      if (octets + part.length > CHUNK_OCTETS) {
        yield Buffer.concat(waiting);
        waiting = [];
        octets = 0;
      }
      waiting.push(part);
      octets += part.length;
    }
  }
  if (octets > 0) yield Buffer.concat(waiting);
}

/** All that was refused, as CSV. An import that is gone on with goes on with its report. */
function openReport(path: string, goOn: boolean): { add(list: readonly RowError[]): void; close(): void } {
  try {
    const known = goOn ? lastLine(path) : 0;
    const fd = openSync(path, known > 0 ? 'a' : 'w', 0o600);
    if (known === 0) writeSync(fd, 'line,reason\n');
    return {
      add(list) {
        const rows = list.filter(({ line }) => line > known).map(({ line, reason }) => `${line},"${reason.replaceAll('"', '""')}"\n`);
        if (rows.length > 0) writeSync(fd, rows.join(''));
      },
      close: () => closeSync(fd),
    };
  } catch (cause) {
    throw new MailError('E_CONTROL', `the report ${path} cannot be written: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

/** The last line number the report of an earlier run tells; 0 when there is none. */
function lastLine(path: string): number {
  try {
    return Number(/(?:^|\n)(\d+),"[^\n]*\n$/.exec(readFileSync(path, 'utf8'))?.[1] ?? 0);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return 0;
    throw error;
  }
}

/** Rows, rows a second, how much of the file and how long yet: drawn on a terminal, told now and then elsewhere. */
class Meter {
  readonly #out: NodeJS.WriteStream | undefined;
  readonly #size: number | undefined;
  readonly #startedAt = performance.now();
  readonly #from: { readonly octets: number; readonly rows: number };
  #shownAt = this.#startedAt;
  #drawn = false;

  constructor(out: NodeJS.WriteStream | undefined, size: number | undefined, from: ImportProgress | undefined) {
    this.#out = out;
    this.#size = size;
    this.#from = { octets: from?.octets ?? 0, rows: from?.rows ?? 0 };
  }

  show(octets: number, rows: number): void {
    const now = performance.now();
    if (this.#out === undefined || now - this.#shownAt < (this.#out.isTTY ? DRAW_EVERY_MS : SAY_EVERY_MS)) return;
    this.#shownAt = now;
    const seconds = (now - this.#startedAt) / 1_000;
    const size = this.#size ?? 0;
    const rest = size === 0 ? undefined : Math.round(((size - octets) / (octets - this.#from.octets)) * seconds);
    const line = [
      ...(size === 0 ? [] : [`${Math.floor((100 * octets) / size)}%`]), `${rows} rows`, `${Math.round((rows - this.#from.rows) / seconds)} rows/s`, ...(rest === undefined ? [] : [`${rest} s to go`]),
    ].join(', ');
    this.#drawn = this.#out.isTTY;
    // ED 0: what a longer line left behind goes.
    this.#out.write(this.#out.isTTY ? `\r${line}\u001b[K` : `${line}\n`);
  }

  end(): void {
    if (this.#drawn) this.#out?.write('\r\u001b[K');
  }
}
