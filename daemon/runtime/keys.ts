// The keys of the house. One master key, kept outside the data directory, wraps the random keys of each
// tenant, which lie in <data>/keys/<tenant>.json. Whoever destroys that file destroys everything the
// tenant ever had here. Callers may rely on: no key is ever derived from another tenant's, a wrong or
// missing master key stops the caller with E_KEY_UNREADABLE or E_KEY_WRONG, and files are made 0600,
// synced, and replaced only whole, when a token key is made or forgotten. AES-256-GCM (NIST SP 800-38D), HMAC-SHA-256 (RFC 2104).
import { createCipheriv, createDecipheriv, createSecretKey, hkdfSync, type KeyObject } from 'node:crypto';
import { closeSync, fstatSync, fsyncSync, linkSync, mkdirSync, openSync, readFileSync, renameSync, statSync, unlinkSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { MailError } from '../mail/index.ts';
import { randomOctets } from './ids.ts';

/** A key of the tokens in recipients' links. */
export interface TokenKey {
  readonly id: Buffer;
  readonly key: KeyObject;
}

/** The keys of one tenant, as KeyObjects: five times quicker than Buffers in an HMAC. */
export interface TenantKeys {
  /** HMAC of addresses: consent, suppression and family hashes. */
  readonly address: KeyObject;
  /** AES-256-GCM of spool bodies, queue rows and events. */
  readonly payload: KeyObject;
  /** AES-256-GCM of the tokens in recipients' links; `id` (4 octets) stands in clear before each token. */
  readonly token: TokenKey;
  /** Every key that may still open a token, the newest first; `token` is the first. */
  readonly tokens: readonly TokenKey[];
  /** HMAC of reverse-path tokens. */
  readonly verp: KeyObject;
  /** What a person's own secret is mixed with to veil their consent record and its evidence, 32 octets each. */
  readonly people: Buffer;
  readonly evidence: Buffer;
  /** Seed of the Ed25519 key that signs the checkpoints of the tenant's log, 32 octets. */
  readonly log: Buffer;
}

export interface Keyring {
  /** AES-256-GCM of what the relay keeps for itself; derived from the master key (RFC 5869), so that it needs no file. */
  readonly house: KeyObject;
  /** The tenant's keys, made on first use. @throws MailError E_KEY_WRONG, E_KEY_UNREADABLE */
  tenant(id: string): TenantKeys;
  /** The tenant a token key id belongs to. */
  tenantOfToken(keyId: Buffer): string | undefined;
  /** Loads the keys of these tenants, so that tokens of all of them are known. */
  load(tenants: Iterable<string>): void;
  /** The folder of all that must be forgettable: back it up apart, and keep only the latest copy. */
  readonly dir: string;
  /** All keys of a tenant in clear, hex by kind, for `postern tenant export`; whoever has them reads everything. */
  reveal(id: string): Readonly<Record<string, string>>;
  /** Takes over keys that reveal() told. @throws MailError E_KEY_WRONG when the tenant has keys already or a kind is missing */
  adopt(id: string, keys: Readonly<Record<string, string>>): void;
  /** Makes a new token key, which seals from now on; the older ones still open. @returns ids of all, hex, newest first */
  rotateToken(id: string): readonly string[];
  /** Forgets an old token key: links it sealed lead nowhere any more. @throws MailError E_CONTROL for the newest or an unknown one */
  retireToken(id: string, tokenId: string): readonly string[];
  /** Destroys the tenant's keys: what they sealed cannot be read again by anybody. */
  destroy(id: string): void;
}

const KEY_OCTETS = 32;
const IV_OCTETS = 12;
const TAG_OCTETS = 16;
const KINDS = ['address', 'payload', 'token', 'verp', 'people', 'evidence', 'log'] as const;

/** Octets that seal() adds. */
export const sealedLength = (clear: number): number => clear + IV_OCTETS + TAG_OCTETS;

/** AES-256-GCM: IV, ciphertext and tag in one buffer. `bound` must be given again to open it. */
export function seal(key: KeyObject, clear: Buffer, bound: Buffer | string): Buffer {
  return Buffer.concat(sealPieces(key, clear, bound));
}

/** The same in three pieces, for what is large and written piece by piece. */
export function sealPieces(key: KeyObject, clear: Buffer, bound: Buffer | string): readonly [Buffer, Buffer, Buffer] {
  const iv = randomOctets(IV_OCTETS);
  const cipher = createCipheriv('aes-256-gcm', key, iv);
  cipher.setAAD(typeof bound === 'string' ? Buffer.from(bound) : bound);
  const text = cipher.update(clear);
  cipher.final();
  return [iv, text, cipher.getAuthTag()];
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
  const house = createSecretKey(Buffer.from(hkdfSync('sha256', master.export(), '', 'postern house', KEY_OCTETS)));

  function tenant(id: string): TenantKeys {
    const known = tenants.get(id);
    if (known !== undefined) return known;
    const keys = tenantKeys(unwrap(readOrMake(dir, id, master), id, master));
    tenants.set(id, keys);
    for (const { id: tokenId } of keys.tokens) tokenIds.set(tokenId.toString('hex'), id);
    return keys;
  }

  function forget(id: string): void {
    tenants.delete(id);
    for (const [tokenId, owner] of tokenIds) if (owner === id) tokenIds.delete(tokenId);
  }

  /** Puts another file in place of the tenant's, and takes up what it says. */
  function change(id: string, next: (now: Wrapped) => Wrapped): readonly string[] {
    replace(dir, keyFile(dir, id), JSON.stringify(next(readOrMake(dir, id, master))));
    forget(id);
    return tenant(id).tokens.map((one) => one.id.toString('hex'));
  }

  return {
    house,
    dir,
    tenant,
    tenantOfToken: (keyId) => tokenIds.get(keyId.toString('hex')),
    load(ids) {
      for (const id of ids) tenant(id);
    },
    reveal(id) {
      const { tokenId, older, ...clear } = unwrap(readOrMake(dir, id, master), id, master);
      return {
        tokenId: tokenId.toString('hex'), ...Object.fromEntries(KINDS.map((kind) => [kind, clear[kind].toString('hex')])),
        ...(older.length > 0 && { olderTokens: older.map((one) => one.id.toString('hex') + one.key.toString('hex')).join(' ') }),
      };
    },
    adopt(id, keys) {
      for (const [kind, digits] of [...KINDS.map((kind) => [kind, 64] as const), ['tokenId', 8] as const]) {
        if (!new RegExp(`^[0-9a-f]{${digits}}$`).test(keys[kind] ?? '')) throw new MailError('E_KEY_WRONG', `the ${kind} key of ${id} is missing or not ${digits} hex digits`);
      }
      const file = keyFile(dir, id);
      const older = (keys['olderTokens'] ?? '').split(' ').filter((text) => text !== '');
      if (!older.every((text) => /^[0-9a-f]{72}$/.test(text))) throw new MailError('E_KEY_WRONG', `the older token keys of ${id} are not 72 hex digits each`);
      const wrapped = wrap(id, master, (kind) => Buffer.from(keys[kind] ?? '', 'hex'), Buffer.from(keys['tokenId'] ?? '', 'hex'));
      const olderTokens = older.map((text) => ({ id: text.slice(0, 8), key: wrapToken(id, text.slice(0, 8), Buffer.from(text.slice(8), 'hex'), master) }));
      writeOnce(dir, file, JSON.stringify({ ...wrapped, ...(olderTokens.length > 0 && { olderTokens }) }));
      const now = unwrap(readOrMake(dir, id, master), id, master);
      if (now.address.toString('hex') !== keys['address']) throw new MailError('E_KEY_WRONG', `${file} exists already with other keys; delete that tenant first`);
      forget(id);
      tenant(id);
    },
    rotateToken: (id) => change(id, (now) => {
      const clear = unwrap(now, id, master);
      const oldId = clear.tokenId.toString('hex');
      const olderTokens = [{ id: oldId, key: wrapToken(id, oldId, clear.token, master) }, ...now.olderTokens ?? []];
      return { ...now, tokenId: randomOctets(4).toString('hex'), token: seal(master, randomOctets(KEY_OCTETS), `${id}/token`).toString('base64'), olderTokens };
    }),
    retireToken: (id, tokenId) => change(id, (now) => {
      const olderTokens = (now.olderTokens ?? []).filter((one) => one.id !== tokenId);
      if (olderTokens.length === (now.olderTokens ?? []).length) throw new MailError('E_CONTROL', `${tokenId} is no older token key of ${id}; there are: ${olderTokens.map((one) => one.id).join(', ') || 'none'}`);
      return { ...now, olderTokens };
    }),
    destroy(id) {
      const file = keyFile(dir, id);
      forget(id);
      overwrite(file);
      unlinkSync(file);
      syncFolder(dir);
    },
  };
}

type Kind = (typeof KINDS)[number];
type Wrapped = Readonly<Record<Kind | 'tokenId', string>> & { readonly olderTokens?: readonly { readonly id: string; readonly key: string }[] };
type Clear = Readonly<Record<Kind | 'tokenId', Buffer>> & { readonly older: readonly { readonly id: Buffer; readonly key: Buffer }[] };

function keyFile(dir: string, id: string): string {
  if (!/^[a-z0-9][a-z0-9-]{0,62}$/.test(id)) throw new MailError('E_KEY_UNREADABLE', `tenant id ${JSON.stringify(id)}`);
  return join(dir, `${id}.json`);
}

function readOrMake(dir: string, id: string, master: KeyObject): Wrapped {
  const file = keyFile(dir, id);
  for (;;) {
    try {
      const found = JSON.parse(readFileSync(file, 'utf8')) as Partial<Wrapped>;
      if (KINDS.every((kind) => typeof found[kind] === 'string')) return found as Wrapped;
      throw new Error(`it lacks the ${KINDS.find((kind) => typeof found[kind] !== 'string')} key: version 0.1 made it, whose data this one cannot use; start with an empty data_dir`);
    } catch (cause) {
      if (!(cause instanceof Error && 'code' in cause && cause.code === 'ENOENT')) {
        throw new MailError('E_KEY_UNREADABLE', `${file}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
      }
    }
    writeOnce(dir, file, JSON.stringify(wrap(id, master, () => randomOctets(KEY_OCTETS), randomOctets(4))));
  }
}

function wrap(id: string, master: KeyObject, key: (kind: Kind) => Buffer, tokenId: Buffer): Wrapped {
  const kinds = Object.fromEntries(KINDS.map((kind) => [kind, seal(master, key(kind), `${id}/${kind}`).toString('base64')])) as Record<Kind, string>;
  return { tokenId: tokenId.toString('hex'), ...kinds };
}

const wrapToken = (id: string, tokenId: string, key: Buffer, master: KeyObject): string => seal(master, key, `${id}/token/${tokenId}`).toString('base64');

/** Puts a whole file in the place of another; the old octets are overwritten, for they may hold what must go. */
function replace(dir: string, file: string, text: string): void {
  const draft = `${file}.${randomOctets(6).toString('hex')}`;
  const old = openSync(file, 'r+');
  try {
    const fd = openSync(draft, 'wx', 0o600);
    try {
      writeSync(fd, text);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    const size = fstatSync(old).size;
    renameSync(draft, file);
    syncFolder(dir);
    // Only once the new file is there for good.
    writeSync(old, Buffer.alloc(size), 0, undefined, 0);
    fsyncSync(old);
  } finally {
    closeSync(old);
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
  syncFolder(dir);
}

function syncFolder(dir: string): void {
  const folder = openSync(dir, 'r');
  fsyncSync(folder);
  closeSync(folder);
}

/** Zeros over what a file holds, synced: its name alone is not what must go. */
function overwrite(file: string): void {
  const fd = openSync(file, 'r+');
  try {
    writeSync(fd, Buffer.alloc(fstatSync(fd).size), 0, undefined, 0);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function unwrap(wrapped: Wrapped, id: string, master: KeyObject): Clear {
  const open = (kind: Kind): Buffer => {
    const clear = unseal(master, Buffer.from(wrapped[kind], 'base64'), `${id}/${kind}`);
    if (clear === undefined) throw new MailError('E_KEY_WRONG', `the keys of tenant ${id} do not open with this master key`);
    return clear;
  };
  const older = (wrapped.olderTokens ?? []).map(({ id: tokenId, key }) => {
    const clear = unseal(master, Buffer.from(key, 'base64'), `${id}/token/${tokenId}`);
    if (clear === undefined) throw new MailError('E_KEY_WRONG', `an older token key of tenant ${id} does not open with this master key`);
    return { id: Buffer.from(tokenId, 'hex'), key: clear };
  });
  return { older, tokenId: Buffer.from(wrapped.tokenId, 'hex'), ...(Object.fromEntries(KINDS.map((kind) => [kind, open(kind)])) as Record<Kind, Buffer>) };
}

function tenantKeys(clear: Clear): TenantKeys {
  const token = { id: clear.tokenId, key: createSecretKey(clear.token) };
  return {
    address: createSecretKey(clear.address),
    payload: createSecretKey(clear.payload),
    token,
    tokens: [token, ...clear.older.map(({ id, key }) => ({ id, key: createSecretKey(key) }))],
    verp: createSecretKey(clear.verp),
    people: clear.people,
    evidence: clear.evidence,
    log: clear.log,
  };
}
