// Collects the octets of one DATA phase: takes out dot-stuffing, finds the end (CRLF.CRLF and nothing
// else), and refuses what must not pass: bare CR or LF (smuggling), NUL, lines beyond 998 octets, and
// more octets than allowed, which are thrown away while they arrive. One pass over the octets and one
// growing buffer: dotted lines or one-octet reads cost no more than others. RFC 5321 §4.5.2, §2.3.8.
import { REPLIES, type Reply } from '../mail/index.ts';

const CR = 0x0d;
const LF = 0x0a;
const DOT = 0x2e;
// RFC 5321 §4.5.3.1.6: 1000 octets with CRLF, a stuffed dot not counted.
const LINE_OCTETS = 998;
// Most mail fits; a larger declared SIZE is believed up to the second, beyond that octets must come first.
const FIRST_OCTETS = 16_384;
const MOST_BELIEVED_OCTETS = 1_048_576;

/** What came in: the message in canonical form, or why it is refused. */
export type Collected = { readonly kind: 'message'; readonly raw: Buffer } | { readonly kind: 'refused'; readonly reply: Reply };

/** Where in a line the next octet stands; `dot` and `dotCr`: a dot (and CR) at its start is held back. */
type Place = 'start' | 'dot' | 'dotCr' | 'line' | 'cr';

/** One DATA phase. Feed chunks until feed() says where the message ended. */
export class Intake {
  readonly #limit: number;
  #raw: Buffer;
  #size = 0;
  #refusal: Reply | undefined;
  /** Octets of the current line so far, without its end. */
  #line = 0;
  #place: Place = 'start';

  /** `expectedBytes` is what MAIL said with SIZE, or a guess; no more than room that is made at once. */
  constructor(limitBytes: number, expectedBytes = 0) {
    this.#limit = limitBytes;
    this.#raw = Buffer.allocUnsafe(Math.min(Math.max(expectedBytes, FIRST_OCTETS), MOST_BELIEVED_OCTETS));
  }

  /** Takes a chunk. @returns the offset just past the end of the message, or -1 when more must come */
  feed(chunk: Buffer): number {
    let from = 0;
    let at = 0;
    while (at < chunk.length) {
      if (this.#place === 'line') {
        at = this.#passLine(chunk, at);
        continue;
      }
      const octet = chunk[at];
      if (this.#place === 'start' && octet === DOT) {
        this.#keep(chunk, from, at);
        this.#place = 'dot';
        at += 1;
        from = at;
      } else if (this.#place === 'dot' && octet === CR) {
        this.#place = 'dotCr';
        at += 1;
        from = at;
      } else if (this.#place === 'dotCr' && octet === LF) {
        return at + 1;
      } else if (this.#place === 'cr' && octet === LF) {
        this.#place = 'start';
        this.#line = 0;
        at += 1;
      } else {
        // A CR must have been followed by LF; a held dot was stuffing and stays out.
        if (this.#place === 'cr' || this.#place === 'dotCr') this.#refuse(REPLIES.bareLineEnding);
        this.#place = 'line';
      }
    }
    this.#keep(chunk, from, chunk.length);
    return -1;
  }

  /** What came in, after the end was found. */
  collected(): Collected {
    if (this.#refusal !== undefined) return { kind: 'refused', reply: this.#refusal };
    const raw = this.#raw.subarray(0, this.#size);
    // What was expected and did not come is given back: the message may be kept for a while.
    return { kind: 'message', raw: this.#raw.length > 2 * Math.max(this.#size, FIRST_OCTETS) ? Buffer.from(raw) : raw };
  }

  /** Passes the text of a line and the octet that ends it. @returns where to go on */
  #passLine(chunk: Buffer, at: number): number {
    const { length } = chunk;
    let end = at;
    let octet = 0x20;
    for (; end < length; end++) {
      octet = chunk[end] ?? 0;
      if (octet <= CR && (octet === CR || octet === LF || octet === 0)) break;
    }
    this.#line += end - at;
    if (this.#line > LINE_OCTETS) this.#refuse(REPLIES.longLine);
    if (end === length) return end;
    if (octet === CR) this.#place = 'cr';
    // Only CRLF starts a line: what follows a bare LF is no place for a terminator.
    else this.#refuse(octet === LF ? REPLIES.bareLineEnding : REPLIES.nulOctet);
    return end + 1;
  }

  #keep(chunk: Buffer, from: number, to: number): void {
    if (to <= from || this.#refusal !== undefined) return;
    const size = this.#size + to - from;
    if (size > this.#limit) {
      this.#refuse(REPLIES.tooBig);
      return;
    }
    if (size > this.#raw.length) {
      const grown = Buffer.allocUnsafe(Math.max(size, Math.min(this.#limit, this.#raw.length * 2)));
      this.#raw.copy(grown, 0, 0, this.#size);
      this.#raw = grown;
    }
    chunk.copy(this.#raw, this.#size, from, to);
    this.#size = size;
  }

  #refuse(reply: Reply): void {
    this.#refusal ??= reply;
    this.#raw = NOTHING;
  }
}

const NOTHING = Buffer.alloc(0);
