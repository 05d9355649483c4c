// HMAC-SHA-256 of addresses (RFC 2104). Built from two one-shot hashes, because it stands in every
// decision: Node's Hmac objects cost three times as much. The tests hold it against node:crypto's own.
// One digest gives two hashes of 16 octets that nobody without the key can bring together: the first half
// names consents, the second suppressions.
import { hash, type KeyObject } from 'node:crypto';

const BLOCK_OCTETS = 64;
const DIGEST_OCTETS = 32;
// An address of 320 octets fits, and a label before it.
const TEXT_OCTETS = 512;
const LABEL_OCTETS = 64;

export const HASH_OCTETS = 16;

/** Buffer's own writer for octets in a string, twice as quick as write(); Node has it, its types do not. */
export interface OctetWriter extends Buffer {
  latin1Write(text: string, at: number, length?: number): number;
}

export interface Halves {
  readonly consent: Buffer;
  readonly suppression: Buffer;
}

export class AddressHash {
  readonly #inner = Buffer.alloc(BLOCK_OCTETS + LABEL_OCTETS + TEXT_OCTETS);
  readonly #outer = Buffer.alloc(BLOCK_OCTETS + DIGEST_OCTETS) as OctetWriter;

  readonly #start: number;

  /** `label` stands before every text, so that the key may serve other uses. */
  constructor(key: KeyObject, label: string) {
    const octets = key.export();
    // RFC 2104 §2: a key up to the block's length is used as it is.
    if (octets.length > BLOCK_OCTETS) throw new RangeError(`a key of ${octets.length} octets`);
    for (let i = 0; i < BLOCK_OCTETS; i++) {
      this.#inner[i] = (octets[i] ?? 0) ^ 0x36;
      this.#outer[i] = (octets[i] ?? 0) ^ 0x5c;
    }
    this.#start = BLOCK_OCTETS + this.#inner.write(`${label}\0`, BLOCK_OCTETS);
  }

  /** Both hashes of `text`. */
  of(text: string): Halves {
    // A text that is too long for the buffer is no address; parseAddress lets none pass.
    if (text.length * 3 > TEXT_OCTETS && Buffer.byteLength(text) > TEXT_OCTETS) throw new RangeError('a text of more than 512 octets is no address');
    const end = this.#start + this.#inner.write(text, this.#start);
    this.#outer.latin1Write(hash('sha256', this.#inner.subarray(0, end), 'binary'), BLOCK_OCTETS);
    const digest = hash('sha256', this.#outer, 'binary');
    const consent = Buffer.allocUnsafe(HASH_OCTETS) as OctetWriter;
    const suppression = Buffer.allocUnsafe(HASH_OCTETS) as OctetWriter;
    consent.latin1Write(digest, 0, HASH_OCTETS);
    suppression.latin1Write(digest.slice(HASH_OCTETS), 0, HASH_OCTETS);
    return { consent, suppression };
  }
}
