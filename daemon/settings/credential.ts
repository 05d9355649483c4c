// Adds a login to a tenant's file: a credential for SMTP or a token for the HTTP API. The secret is shown
// once, to whoever asked; the file gets only its hash. Comments and layout stay. The tree as it would be is
// checked first, and a tree with a fault is left as it is; the file is replaced in one step, so that a
// reader sees the old one or the new one.
import { createHash, randomBytes } from 'node:crypto';
import { closeSync, fchmodSync, fchownSync, fsyncSync, openSync, realpathSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { isSeq, parseDocument } from 'yaml';
import { MailError } from '../mail/index.ts';
import { loadSettings, type LoadOptions } from './load.ts';
import { formatProblem } from './problem.ts';
import { isOperatorId } from './values.ts';

// 192 bits: no list of guesses reaches it, so one plain SHA-256 is enough to keep it.
const SECRET_OCTETS = 24;

export interface NewCredential {
  readonly username: string;
  readonly stream: string;
  readonly from: readonly string[];
  /** As in YAML, `600/min`; no limit if left out. */
  readonly rate?: string | undefined;
}

export interface NewApiToken {
  readonly id: string;
  /** Among API_SCOPES; anything else is refused as in the file. */
  readonly scopes: readonly string[];
}

/** Adds a credential and answers its secret, which is kept nowhere. @throws MailError E_CONFIG when the tree would not load */
export function addCredential(root: string, tenantId: string, wanted: NewCredential, options: LoadOptions = {}): { readonly secret: string } {
  return addLogin(root, tenantId, { list: 'credentials', noun: 'credential' }, (secret) => ({
    username: wanted.username,
    secret,
    stream: wanted.stream,
    from: [...wanted.from],
    ...(wanted.rate === undefined ? {} : { rate: wanted.rate }),
  }), options);
}

/** Adds an API token and answers its secret, which is kept nowhere. @throws MailError E_CONFIG when the tree would not load */
export function addApiToken(root: string, tenantId: string, wanted: NewApiToken, options: LoadOptions = {}): { readonly secret: string } {
  return addLogin(root, tenantId, { list: 'api_tokens', noun: 'token' }, (secret) => ({ id: wanted.id, secret, scopes: [...wanted.scopes] }), options);
}

/** Which list of a tenant's file a login goes to, and what it is called in an error. */
interface Place {
  readonly list: 'credentials' | 'api_tokens';
  readonly noun: string;
}

type Entry = Readonly<Record<string, unknown>>;

/** `make` is given what stands in the file in place of the secret. */
function addLogin(root: string, tenantId: string, { list, noun }: Place, make: (secret: string) => Entry, options: LoadOptions): { readonly secret: string } {
  if (!isOperatorId(tenantId)) throw new MailError('E_CONFIG', `${JSON.stringify(tenantId)} is not a tenant id`);
  const name = `tenants/${tenantId}.yaml`;
  const secret = randomBytes(SECRET_OCTETS).toString('base64url');
  const text = withEntry(readTenant(join(root, name), tenantId), list, make(`sha256:${createHash('sha256').update(secret).digest('hex')}`));
  const loaded = loadSettings(root, { ...options, overlay: new Map([[name, Buffer.from(text)]]) });
  if (!loaded.ok) throw new MailError('E_CONFIG', `nothing was changed; with this ${noun} the configuration would not load:\n${loaded.problems.map(formatProblem).join('\n')}`);
  replaceFile(join(root, name), text);
  return { secret };
}

function readTenant(file: string, tenantId: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (cause) {
    throw new MailError('E_CONFIG', `tenant ${tenantId} has no readable file ${file}`, { cause });
  }
}

function withEntry(text: string, name: Place['list'], login: Entry): string {
  const document = parseDocument(text);
  if (document.errors.length > 0) return text; // the check of the tree names the fault
  const list = document.get(name);
  const entry = document.createNode(login);
  if (isSeq(list)) {
    list.flow = false;
    list.add(entry);
  } else {
    document.set(name, document.createNode([]));
    document.addIn([name], entry);
    const made = document.get(name);
    if (isSeq(made)) made.flow = false;
  }
  return document.toString({ lineWidth: 0 });
}

/** Replaces a file whole, keeping its mode and owner; follows a link to the file behind it. */
function replaceFile(name: string, text: string): void {
  const file = realpathSync(name);
  const { mode, uid, gid } = statSync(file);
  const draft = `${file}.${randomBytes(6).toString('hex')}~`;
  const fd = openSync(draft, 'wx', 0o600);
  try {
    writeFileSync(fd, text);
    fchmodSync(fd, mode & 0o777);
    if (process.getuid?.() === 0) fchownSync(fd, uid, gid);
    fsyncSync(fd);
    renameSync(draft, file);
  } catch (error) {
    rmSync(draft, { force: true });
    throw error;
  } finally {
    closeSync(fd);
  }
  const folder = openSync(dirname(file), 'r');
  fsyncSync(folder);
  closeSync(folder);
}
