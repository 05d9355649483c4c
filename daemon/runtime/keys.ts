// The keys of the house. One master key, kept outside the data directory, wraps the random keys of each
// tenant, which lie in <data>/keys/<tenant>.json. Whoever destroys that file destroys everything the
// tenant ever had here. Callers may rely on: no key is ever derived from another tenant's, a wrong or
// missing master key stops the caller with E_KEY_UNREADABLE or E_KEY_WRONG, and files are made 0600,
// synced, and never overwritten. AES-256-GCM (NIST SP 800-38D), HMAC-SHA-256 (RFC 2104).
import { createCipheriv, createDecipheriv, createSecretKey, type KeyObject } from 'node:crypto';
import { closeSync, fsyncSync, linkSync, mkdirSync, openSync, readFileSync, statSync, unlinkSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { MailError } from '../mail/index.ts';
import { randomOctets } from './ids.ts';

/** The keys of one tenant, as KeyObjects: five times quicker than Buffers in an HMAC. */
export interface TenantKeys {
  /** HMAC of addresses: consent, suppression and family hashes. */
  readonly address: KeyObject;
  /** AES-256-GCM of spool bodies, queue rows and events. */
  readonly payload: KeyObject;
  /** AES-256-GCM of the tokens in recipients' links; `id` (4 octets) stands in clear before each token. */
  readonly token: { readonly id: Buffer; readonly key: KeyObject };
  /** HMAC of reverse-path tokens. */
  readonly verp: KeyObject;
}

export interface Keyring {
  /** The tenant's keys, made on first use. @throws MailError E_KEY_WRONG, E_KEY_UNREADABLE */
  tenant(id: string): TenantKeys;
  /** The tenant a token key id belongs to. */
  tenantOfToken(keyId: Buffer): string | undefined;
  /** Loads the keys of these tenants, so that tokens of all of them are known. */
  load(tenants: Iterable<string>): void;
}

const KEY_OCTETS = 32;
const IV_OCTETS = 12;
const TAG_OCTETS = 16;
const KINDS = ['address', 'payload', 'token', 'verp'] as const;

/** Octets that seal() adds. */
export const sealedLength = (clear: number): number => clear + IV_OCTETS + TAG_OCTETS;

/** AES-256-GCM: IV, ciphertext and tag in one buffer. `bound` must be given again to open it. */
export function seal(key: KeyObject, clear: Buffer, bound: Buffer | string): Buffer {
  const iv = randomOctets(IV_OCTETS);
  const cipher = createCipheriv('aes-256-gcm', key, iv);
  cipher.setAAD(typeof bound === 'string' ? Buffer.from(bound) : bound);
  const text = cipher.update(clear);
  cipher.final();
  return Buffer.concat([iv, text, cipher.getAuthTag()]);
}

/** Opens what seal() made; undefined when key, bound data or bytes are not the ones it was made with. */
export function unseal(key: KeyObject, sealed: Buffer, bound: Buffer | string): Buffer | undefined {
  if (sealed.length < IV_OCTETS + TAG_OCTETS) return undefined;
  const decipher = createDecipheriv('aes-256-gcm', key, sealed.subarray(0, IV_OCTETS));
  decipher.setAAD(typeof bound === 'string' ? Buffer.from(bound) : bound);
  decipher.setAuthTag(sealed.subarray(sealed.length - TAG_OCTETS));
  const clear = decipher.update(sealed.subarray(IV_OCTETS, sealed.length - TAG_OCTETS));
  try {
    decipher.final();
  } catch {
    return undefined; // the tag does not match: forged, damaged, or another key's
  }
  return clear;
}

/** Reads the master key: 32 octets as 64 hex digits. @throws MailError E_KEY_UNREADABLE */
export function readMasterKey(file: string): KeyObject {
  let text: string;
  try {
    const mode = statSync(file).mode & 0o077;
    // A systemd credential is 0440 root:service on a private mount; anything for "others" is a leak.
    if ((mode & 0o007) !== 0) throw new Error(`mode ${mode.toString(8)} lets others read it; chmod 0600`);
    text = readFileSync(file, 'latin1').trim();
  } catch (cause) {
    throw new MailError('E_KEY_UNREADABLE', `master key ${file}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
  if (!/^[0-9a-f]{64}$/i.test(text)) throw new MailError('E_KEY_UNREADABLE', `master key ${file}: expected 64 hex digits`);
  return createSecretKey(Buffer.from(text, 'hex'));
}

/** Opens the keyring in `dir` (made 0700 where missing). */
export function openKeyring(dir: string, master: KeyObject): Keyring {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const tenants = new Map<string, TenantKeys>();
  const tokenIds = new Map<string, string>();

  function tenant(id: string): TenantKeys {
    const known = tenants.get(id);
    if (known !== undefined) return known;
    const keys = unwrap(readOrMake(dir, id, master), id, master);
    tenants.set(id, keys);
    tokenIds.set(keys.token.id.toString('hex'), id);
    return keys;
  }

  return {
    tenant,
    tenantOfToken: (keyId) => tokenIds.get(keyId.toString('hex')),
    load(ids) {
      for (const id of ids) tenant(id);
    },
  };
}

type Wrapped = Readonly<Record<(typeof KINDS)[number] | 'tokenId', string>>;

function readOrMake(dir: string, id: string, master: KeyObject): Wrapped {
  if (!/^[a-z0-9][a-z0-9-]{0,62}$/.test(id)) throw new MailError('E_KEY_UNREADABLE', `tenant id ${JSON.stringify(id)}`);
  const file = join(dir, `${id}.json`);
  for (;;) {
    try {
      return JSON.parse(readFileSync(file, 'utf8')) as Wrapped;
    } catch (cause) {
      if (!(cause instanceof Error && 'code' in cause && cause.code === 'ENOENT')) {
        throw new MailError('E_KEY_UNREADABLE', `${file}: ${String(cause)}`, { cause });
      }
    }
    const fresh = JSON.stringify({
      tokenId: randomOctets(4).toString('hex'),
      ...Object.fromEntries(KINDS.map((kind) => [kind, seal(master, randomOctets(KEY_OCTETS), `${id}/${kind}`).toString('base64')])),
    });
    writeOnce(dir, file, fresh);
  }
}

/** Writes a file whole or not at all, and leaves an existing one alone. */
function writeOnce(dir: string, file: string, text: string): void {
  const draft = `${file}.${randomOctets(6).toString('hex')}`;
  const fd = openSync(draft, 'wx', 0o600);
  try {
    writeSync(fd, text);
    fsyncSync(fd);
    linkSync(draft, file);
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST')) throw error;
  } finally {
    closeSync(fd);
    unlinkSync(draft);
  }
  const folder = openSync(dir, 'r');
  fsyncSync(folder);
  closeSync(folder);
}

function unwrap(wrapped: Wrapped, id: string, master: KeyObject): TenantKeys {
  const open = (kind: (typeof KINDS)[number]): KeyObject => {
    const clear = unseal(master, Buffer.from(String(wrapped[kind]), 'base64'), `${id}/${kind}`);
    if (clear === undefined) throw new MailError('E_KEY_WRONG', `the keys of tenant ${id} do not open with this master key`);
    return createSecretKey(clear);
  };
  return {
    address: open('address'),
    payload: open('payload'),
    token: { id: Buffer.from(wrapped.tokenId, 'hex'), key: open('token') },
    verp: open('verp'),
  };
}
