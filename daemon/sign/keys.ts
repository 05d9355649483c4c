// DKIM private keys: reading and checking them, making them, and what of them goes into the DNS. A key
// file is PEM (PKCS #8; PKCS #1 is read too), unencrypted, and closed to others. Only what receivers can
// be expected to verify is taken: RSA from 2048 to 4096 bits, and Ed25519. Whatever is wrong with a file,
// the answer is E_KEY_UNREADABLE and nothing is signed. RFC 6376 §3.6.1, RFC 8301 §3.2, RFC 8463 §4.
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { MailError } from '../mail/index.ts';

export interface SigningKey {
  readonly algorithm: 'rsa-sha256' | 'ed25519-sha256';
  readonly key: KeyObject;
}

// RFC 8301 §3.2: at least 2048 bits SHOULD be used; verifiers need not go beyond 4096.
const RSA_BITS_MIN = 2048;
const RSA_BITS_MAX = 4096;
const RSA_BITS_NEW = 2048; // 4096 costs six times as much a signature and its record seldom fits one UDP answer
const ED25519_OCTETS = 32;
// One stat a second and file is nothing; one a message would be two microseconds of each.
const RECHECK_MS = 1_000;

interface Cached extends SigningKey {
  /** Changes whenever the file does. */
  readonly version: string;
  checkedAt: number;
}

/** Keys by file, read once and again when the file changes. */
export class KeyFiles {
  readonly #keys = new Map<string, Cached>();

  /** The key in `file`. `now` in ms; `fresh` looks at the file whenever it was last looked at. @throws MailError E_KEY_UNREADABLE */
  key(file: string, now: number, fresh = false): SigningKey {
    const known = this.#keys.get(file);
    if (known !== undefined && !fresh && now >= known.checkedAt && now - known.checkedAt < RECHECK_MS) return known;
    const version = fileVersion(file);
    if (known?.version === version) {
      known.checkedAt = now;
      return known;
    }
    // A key that can no longer be read is not used on from memory: it may have been taken away for a reason.
    this.#keys.delete(file);
    const read: Cached = { ...readKey(file), version, checkedAt: now };
    this.#keys.set(file, read);
    return read;
  }
}

/** Reads and checks one key file. @throws MailError E_KEY_UNREADABLE */
export function readKey(file: string): SigningKey {
  fileVersion(file);
  try {
    return checkedKey(readFileSync(file));
  } catch (cause) {
    throw unreadable(file, cause);
  }
}

/** A new private key as PKCS #8 PEM, and the text of its TXT record. */
export function generateKey(kind: 'rsa' | 'ed25519'): { readonly pem: string; readonly record: string } {
  const pair = kind === 'rsa' ? generateKeyPairSync('rsa', { modulusLength: RSA_BITS_NEW }) : generateKeyPairSync('ed25519');
  const pem = pair.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
  return { pem, record: publicRecord(pem) };
}

/** The text of the TXT record that belongs to a private key in PEM. @throws MailError E_KEY_UNREADABLE */
export function publicRecord(pem: string | Buffer): string {
  try {
    return recordOf(checkedKey(pem));
  } catch (cause) {
    throw unreadable('DKIM key', cause);
  }
}

/** The text of the TXT record of a key that has been read. */
export function recordOf(key: SigningKey): string {
  const der = createPublicKey(key.key).export({ type: 'spki', format: 'der' });
  if (key.algorithm === 'rsa-sha256') return `v=DKIM1; k=rsa; p=${der.toString('base64')}`;
  // RFC 8463 §4: the bare 32 octets, which are the last of the SubjectPublicKeyInfo.
  return `v=DKIM1; k=ed25519; p=${der.subarray(-ED25519_OCTETS).toString('base64')}`;
}

function checkedKey(pem: string | Buffer): SigningKey {
  const key = createPrivateKey(pem);
  if (key.asymmetricKeyType === 'ed25519') return { algorithm: 'ed25519-sha256', key };
  if (key.asymmetricKeyType !== 'rsa') throw new Error(`expected an RSA or Ed25519 key, not ${key.asymmetricKeyType}`);
  const bits = key.asymmetricKeyDetails?.modulusLength ?? 0;
  if (bits < RSA_BITS_MIN || bits > RSA_BITS_MAX) throw new Error(`RSA key of ${bits} bits; expected ${RSA_BITS_MIN} to ${RSA_BITS_MAX}`);
  return { algorithm: 'rsa-sha256', key };
}

function fileVersion(file: string): string {
  try {
    const at = statSync(file);
    if ((at.mode & 0o007) !== 0) throw new Error(`mode ${(at.mode & 0o777).toString(8)} lets others read it; chmod 0600`);
    return `${at.ino} ${at.size} ${at.mtimeMs}`;
  } catch (cause) {
    throw unreadable(file, cause);
  }
}

function unreadable(what: string, cause: unknown): MailError {
  return new MailError('E_KEY_UNREADABLE', `${what}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
}
