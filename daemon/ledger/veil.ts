// The veil over what the ledger keeps of people: octets XORed with SHAKE256(tenant's key, person's
// secret, leaf number), FIPS 202 §6.2, keyed by its prefix as KMACXOF256 is (NIST SP 800-185 §4.3.1).
// It hides; it does not authenticate: the commitment in the log does that. Chosen over AES because a
// cipher with a key of its own for each person costs ten times as much per call in Node. A key stream is
// never used twice: each write of a row takes a new leaf number, and the two classes have their own keys.
import { hash } from 'node:crypto';
import type { OctetWriter } from './address-hash.ts';

const KEY_OCTETS = 32;
export const SECRET_OCTETS = 16;
const LEAF_OCTETS = 6;

const seed = Buffer.alloc(KEY_OCTETS + SECRET_OCTETS + LEAF_OCTETS);

/** The key stream of one write, as binary text of `length` characters. */
export function keyStream(key: Buffer, secret: Buffer, leaf: number, length: number): string {
  if (key.length !== KEY_OCTETS || secret.length !== SECRET_OCTETS) throw new RangeError('a key or secret of another length');
  seed.set(key, 0);
  seed.set(secret, KEY_OCTETS);
  seed.writeUIntBE(leaf, KEY_OCTETS + SECRET_OCTETS, LEAF_OCTETS);
  return hash('shake256', seed, { outputEncoding: 'binary', outputLength: length });
}

// The key stream as octets, for the loop below; longer texts than a row are rare and made room for.
let scratch = Buffer.alloc(4_096) as OctetWriter;

/** XORs `octets` in place with the key stream from `skip` on; veiling twice gives back what was. */
export function veil(octets: Buffer, stream: string, skip = 0): Buffer {
  if (stream.length > scratch.length) scratch = Buffer.alloc(stream.length) as OctetWriter;
  scratch.latin1Write(stream, 0);
  for (let i = 0; i < octets.length; i++) octets[i] = (octets[i] ?? 0) ^ (scratch[skip + i] ?? 0);
  return octets;
}
