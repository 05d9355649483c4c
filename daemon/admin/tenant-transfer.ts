// `tenant.export`, `tenant.import` and `tenant.delete`, as an operator asks for them. Files are written and
// read by this process, so their folder must be one it may use; an export is made 0600, never over a file
// that exists, and nothing of it stays when it fails. What is wrong is MailError E_CONTROL with what to do.
import { createReadStream, createWriteStream, openSync, closeSync, readSync, rmSync, statSync } from 'node:fs';
import { isAbsolute } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { isSealed, linesOf, openSealed, sealLines } from '../ledger/index.ts';
import { MailError } from '../mail/index.ts';
import type { Operation, Params } from './control.ts';
import type { Desk } from './operations.ts';

type Progress = Parameters<Operation>[1];

/** Characters a passphrase has at least: with scrypt's half second a guess, five words or so. */
const PASSPHRASE_CHARACTERS = 12;
const PROGRESS_LINES = 10_000;

/**
 * Writes everything of `tenant` to `file` (absolute), sealed with `passphrase`, or with `clear: true` as open
 * NDJSON, which gives its keys to whoever reads it. The tenant's log says that it was done.
 */
export async function exportTenant(desk: Desk, params: Params, progress: Progress): Promise<unknown> {
  const tenant = required(params, 'tenant');
  const file = fileOf(params);
  const passphrase = params['clear'] === true ? undefined : passphraseOf(params);
  if (desk.settings().tenants.get(tenant) === undefined && await desk.ledger.suspension(tenant) === undefined) {
    throw wrong(`no tenant ${JSON.stringify(tenant)}; there are: ${[...desk.settings().tenants.keys()].join(', ')}`);
  }
  await desk.ledger.note(tenant, 'exported', 'cli', { sealed: passphrase !== undefined });
  let lines = 0;
  async function* counted(): AsyncGenerator<string> {
    for await (const line of desk.ledger.transfers.export(tenant, desk.settings().tenants.get(tenant)?.policies ?? [])) {
      if (++lines % PROGRESS_LINES === 0) progress({ lines });
      yield line;
    }
  }
  // Made here and not by the stream: a file that was there before must not be taken away when this fails.
  let fd: number;
  try {
    fd = openSync(file, 'wx', 0o600);
  } catch (cause) {
    throw wrong(`${file} cannot be made: ${cause instanceof Error ? cause.message : String(cause)}`, cause);
  }
  try {
    await pipeline(Readable.from(passphrase === undefined ? counted() : sealLines(counted(), passphrase)), createWriteStream(file, { fd, flush: true }));
  } catch (error) {
    rmSync(file, { force: true });
    if (error instanceof MailError) throw error;
    throw wrong(`${file} cannot be written: ${error instanceof Error ? error.message : String(error)}`, error);
  }
  return { tenant, file, lines, octets: statSync(file).size, sealed: passphrase !== undefined };
}

/** Brings in what an export wrote to `file`. The tenant's configuration is put in place after it. */
export async function importTenant(desk: Desk, params: Params, progress: Progress): Promise<unknown> {
  const file = fileOf(params);
  const sealed = isSealed(beginning(file));
  const source = createReadStream(file);
  const octets = sealed ? openSealed(source, passphraseOf(params)) : source;
  try {
    const imported = await desk.ledger.transfers.import(linesOf(octets), (lines) => progress({ lines }));
    const suspension = await desk.ledger.suspension(imported.tenant);
    return {
      ...imported, suspended: suspension !== undefined,
      next: `put the policies (with their texts) and tenants/${imported.tenant}.yaml in place and reload${suspension === undefined ? '' : `; it is suspended (${suspension.cause}) until \`postern tenant resume ${imported.tenant}\``}`,
    };
  } finally {
    source.destroy();
  }
}

/**
 * Ends `tenant`: it must be suspended and its file out of the configuration in force, or the next start
 * would make it new keys and the operator would not notice that it is another tenant. `yes: true` is needed.
 */
export async function deleteTenant(desk: Desk, params: Params, _progress: Progress): Promise<unknown> {
  const tenant = required(params, 'tenant');
  if (params['yes'] !== true) throw wrong(`this destroys everything of tenant ${tenant} for good; export it first if it may be wanted, then say --yes`);
  if (desk.settings().tenants.has(tenant)) throw wrong(`tenant ${tenant} is configured: suspend it, take tenants/${tenant}.yaml out of the configuration and reload, then delete it`);
  if (await desk.ledger.suspension(tenant) === undefined) throw wrong(`tenant ${tenant} is not suspended, or nothing is recorded of it; it must be suspended before its file leaves the configuration`);
  desk.expel(tenant);
  const dropped = await desk.spool.drop({ tenant });
  const deleted = await desk.ledger.transfers.delete(tenant, 'cli');
  return {
    tenant, dropped, ...deleted,
    name: deleted.leaves === 0 ? 'nobody was recorded under this name: it can be used again' : 'not used again: the commitments and the last checkpoint of its log stay under it',
  };
}

function wrong(message: string, cause?: unknown): MailError {
  return new MailError('E_CONTROL', message, { cause });
}

function required(params: Params, name: string): string {
  const value = params[name];
  if (typeof value !== 'string' || value === '') throw wrong(`${name} is missing`);
  return value;
}

function fileOf(params: Params): string {
  const file = required(params, 'file');
  if (!isAbsolute(file)) throw wrong(`file: expected an absolute path, got ${JSON.stringify(file)}`);
  return file;
}

function passphraseOf(params: Params): string {
  const passphrase = params['passphrase'];
  if (typeof passphrase !== 'string' || passphrase === '') throw wrong('passphrase is missing: the export holds keys and is sealed with one');
  if (passphrase.length < PASSPHRASE_CHARACTERS) throw wrong(`the passphrase is shorter than ${PASSPHRASE_CHARACTERS} characters`);
  return passphrase;
}

function beginning(file: string): Buffer {
  const octets = Buffer.alloc(32);
  try {
    const fd = openSync(file, 'r');
    try {
      readSync(fd, octets);
    } finally {
      closeSync(fd);
    }
  } catch (cause) {
    throw wrong(`${file} cannot be read: ${cause instanceof Error ? cause.message : String(cause)}`, cause);
  }
  return octets;
}
