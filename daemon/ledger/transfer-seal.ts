// The sealed form of an export, for it holds a tenant's keys: a line of its own, a salt, then the lines of
// the open form in chunks of 64 KiB under AES-256-GCM (NIST SP 800-38D), the key made from a passphrase by
// scrypt (RFC 7914). The nonce of a chunk is its number, and a last octet that says whether it is the last,
// so that no chunk can be left out, moved or cut off without its being noticed (the STREAM construction).
// Callers may rely on: nothing is handed out before its chunk was proved whole; both ways are streams.
// What does not open is E_CONTROL with a guess at why.
import { createCipheriv, createDecipheriv, scrypt } from 'node:crypto';
import { MailError } from '../mail/index.ts';
import { randomOctets } from '../runtime/index.ts';

const MAGIC = Buffer.from('postern-tenant-sealed/1\n');
const SALT_OCTETS = 16;
const HEAD_OCTETS = MAGIC.length + SALT_OCTETS;
const CHUNK_OCTETS = 65_536;
const TAG_OCTETS = 16;
const NONCE_OCTETS = 12;
// N of scrypt, with r = 8 and p = 1: 128 MiB and half a second a guess, the strongest of OWASP's equal
// choices. The form's number stands for it as well, so no file can make us take more.
const COST = 2 ** 17;

/** The sealed octets of these lines. `cost` belongs to the form: only a test that opens hundreds gives another. */
export async function* sealLines(lines: AsyncIterable<string>, passphrase: string, cost = COST): AsyncGenerator<Buffer> {
  const salt = randomOctets(SALT_OCTETS);
  const head = Buffer.concat([MAGIC, salt]);
  const key = await keyOf(passphrase, salt, cost);
  yield head;
  let waiting: Buffer[] = [];
  let octets = 0;
  let number = 0;
  const seal = (clear: Buffer, last: boolean): Buffer => {
    const cipher = createCipheriv('aes-256-gcm', key, nonceOf(number++, last));
    cipher.setAAD(head);
    return Buffer.concat([cipher.update(clear), cipher.final(), cipher.getAuthTag()]);
  };
  for await (const line of lines) {
    waiting.push(Buffer.from(line));
    octets += Buffer.byteLength(line);
    if (octets <= CHUNK_OCTETS) continue;
    let clear = Buffer.concat(waiting);
    // A full chunk is kept back until more follows: only then it is not the last.
    for (; clear.length > CHUNK_OCTETS; clear = clear.subarray(CHUNK_OCTETS)) yield seal(clear.subarray(0, CHUNK_OCTETS), false);
    waiting = [clear];
    octets = clear.length;
  }
  yield seal(Buffer.concat(waiting), true);
}

/** Whether these are the first octets of a sealed export; 24 are enough. */
export function isSealed(octets: Buffer): boolean {
  return octets.subarray(0, MAGIC.length).equals(MAGIC);
}

/** The octets that were sealed. @throws MailError E_CONTROL when they do not open */
export async function* openSealed(source: AsyncIterable<Uint8Array>, passphrase: string, cost = COST): AsyncGenerator<Buffer> {
  const sealedOctets = CHUNK_OCTETS + TAG_OCTETS;
  let waiting = Buffer.alloc(0);
  let key: Buffer | undefined;
  let head = waiting;
  let number = 0;
  const open = (sealed: Buffer, last: boolean): Buffer | undefined => {
    if (key === undefined || sealed.length < TAG_OCTETS) return undefined;
    const decipher = createDecipheriv('aes-256-gcm', key, nonceOf(number, last));
    decipher.setAAD(head);
    decipher.setAuthTag(sealed.subarray(sealed.length - TAG_OCTETS));
    const clear = decipher.update(sealed.subarray(0, sealed.length - TAG_OCTETS));
    try {
      decipher.final();
    } catch {
      return undefined; // the tag does not match
    }
    return clear;
  };
  for await (const part of source) {
    waiting = Buffer.concat([waiting, part]);
    if (key === undefined) {
      if (waiting.length < HEAD_OCTETS) continue;
      if (!isSealed(waiting)) throw wrong('this is not a sealed export of a tenant');
      head = Buffer.from(waiting.subarray(0, HEAD_OCTETS));
      key = await keyOf(passphrase, head.subarray(MAGIC.length), cost);
      waiting = waiting.subarray(HEAD_OCTETS);
    }
    for (; waiting.length > sealedOctets; waiting = waiting.subarray(sealedOctets), number++) yield open(waiting.subarray(0, sealedOctets), false) ?? fault(number);
  }
  if (key === undefined) throw wrong('this is not a sealed export of a tenant, or only the beginning of one');
  const rest = open(waiting, true);
  if (rest === undefined) throw open(waiting, false) === undefined ? faultOf(number, waiting.length) : cut(number + 1);
  yield rest;
}

/** The lines of the open form, whole; text that is not UTF-8 is E_CONTROL. */
export async function* linesOf(source: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder('utf-8', { fatal: true });
  let waiting: string[] = [];
  try {
    for await (const octets of source) {
      const parts = decoder.decode(octets, { stream: true }).split('\n');
      const rest = parts.pop() ?? '';
      for (const part of parts) {
        yield waiting.join('') + part;
        waiting = [];
      }
      waiting.push(rest);
    }
    decoder.decode();
  } catch (cause) {
    if (cause instanceof TypeError) throw new MailError('E_CONTROL', 'the export is not UTF-8 text: it is damaged, or another file', { cause });
    throw cause;
  }
  // The last line ends like the others; without that end it was cut off.
  if (waiting.some((part) => part !== '')) throw wrong('the export ends in the middle of a line: it was cut off');
}

function keyOf(passphrase: string, salt: Buffer, cost: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    // NFC: the same passphrase typed on another keyboard is the same octets.
    scrypt(passphrase.normalize('NFC'), salt, 32, { N: cost, r: 8, p: 1, maxmem: 2 ** 28 }, (error, key) => (error === null ? resolve(key) : reject(error)));
  });
}

function nonceOf(number: number, last: boolean): Buffer {
  const nonce = Buffer.alloc(NONCE_OCTETS);
  nonce.writeUIntBE(number, NONCE_OCTETS - 7, 6);
  nonce[NONCE_OCTETS - 1] = last ? 1 : 0;
  return nonce;
}

function wrong(what: string): MailError {
  return new MailError('E_CONTROL', what);
}

function cut(number: number): MailError {
  return wrong(`the export was cut off after ${number} pieces of 64 KiB: all before opens, but the end is missing`);
}

function faultOf(number: number, octets: number): MailError {
  if (number > 0) return wrong(`the export does not open from its piece ${number + 1} of 64 KiB on: it is damaged, or was cut off there`);
  return octets < TAG_OCTETS ? wrong('only the beginning of a sealed export is here: it was cut off') : wrong('the export does not open: the passphrase is another one, or the file is damaged at its beginning');
}

function fault(number: number): never {
  throw faultOf(number, CHUNK_OCTETS);
}
