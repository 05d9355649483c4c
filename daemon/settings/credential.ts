// Adds a login to a tenant's file. The secret is shown once, to whoever asked; the file gets only its
// hash. Comments and layout stay. The tree as it would be is checked first, and a tree with a fault is
// left as it is; the file is replaced in one step, so that a reader sees the old one or the new one.
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

/** Adds a credential and answers its secret, which is kept nowhere. @throws MailError E_CONFIG when the tree would not load */
export function addCredential(root: string, tenantId: string, wanted: NewCredential, options: LoadOptions = {}): { readonly secret: string } {
  if (!isOperatorId(tenantId)) throw new MailError('E_CONFIG', `${JSON.stringify(tenantId)} is not a tenant id`);
  const name = `tenants/${tenantId}.yaml`;
  const secret = randomBytes(SECRET_OCTETS).toString('base64url');
  const text = withCredential(readTenant(join(root, name), tenantId), {
    username: wanted.username,
    secret: `sha256:${createHash('sha256').update(secret).digest('hex')}`,
    stream: wanted.stream,
    from: [...wanted.from],
    ...(wanted.rate === undefined ? {} : { rate: wanted.rate }),
  });
  const loaded = loadSettings(root, { ...options, overlay: new Map([[name, Buffer.from(text)]]) });
  if (!loaded.ok) throw new MailError('E_CONFIG', `nothing was changed; with this credential the configuration would not load:\n${loaded.problems.map(formatProblem).join('\n')}`);
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

function withCredential(text: string, credential: Readonly<Record<string, unknown>>): string {
  const document = parseDocument(text);
  if (document.errors.length > 0) return text; // the check of the tree names the fault
  const list = document.get('credentials');
  const entry = document.createNode(credential);
  if (isSeq(list)) {
    list.flow = false;
    list.add(entry);
  } else {
    document.set('credentials', document.createNode([]));
    document.addIn(['credentials'], entry);
    const made = document.get('credentials');
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
