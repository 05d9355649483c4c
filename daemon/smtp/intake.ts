// Collects the octets of one DATA phase: takes out dot-stuffing, finds the end (CRLF.CRLF and nothing
// else), and refuses what must not pass: bare CR or LF (smuggling), NUL, lines beyond 998 octets, and
// more octets than allowed, which are thrown away while they arrive. Works on whole chunks with
// Buffer.indexOf; a message of nothing but dotted lines costs one pass. RFC 5321 §4.5.2 and §2.3.8.
import { REPLIES, type Reply } from '../mail/index.ts';

const CR = 0x0d;
const LF = 0x0a;
const DOT = 0x2e;
// RFC 5321 §4.5.3.1.6: 1000 octets with CRLF, a stuffed dot not counted.
const LINE_OCTETS = 998;

/** What came in: the message in canonical form, or why it is refused. */
export type Collected = { readonly kind: 'message'; readonly raw: Buffer } | { readonly kind: 'refused'; readonly reply: Reply };

/** One DATA phase. Feed chunks until feed() says where the message ended. */
export class Intake {
  readonly #limit: number;
  readonly #pieces: Buffer[] = [];
  #size = 0;
  #refusal: Reply | undefined;
  /** Octets of the current line so far, without its end. */
  #line = 0;
  /** The chunk before ended with CR. */
  #cr = false;
  /** We stand at the start of a line; `dot`: a dot was its first octet and is held back. */
  #start: 'no' | 'yes' | 'dot' | 'dot-cr' = 'yes';

  constructor(limitBytes: number) {
    this.#limit = limitBytes;
  }

  get sizeBytes(): number {
    return this.#size;
  }

  /** Takes a chunk. @returns the offset just past the end of the message, or -1 when more must come */
  feed(chunk: Buffer): number {
    let from = 0;
    let at = 0;
    if (this.#refusal === undefined && chunk.includes(0)) this.#refuse(REPLIES.nulOctet);
    while (at < chunk.length) {
      if (this.#start === 'dot-cr') {
        if (chunk[at] === LF) return at + 1;
        // `.CR` and something else: the CR is bare
        this.#refuse(REPLIES.bareLineEnding);
        this.#start = 'no';
      } else if (this.#start === 'dot') {
        if (chunk[at] === CR) {
          this.#start = 'dot-cr';
          at += 1;
          from = at;
          continue;
        }
        this.#start = 'no'; // the dot was stuffing and stays out
        from = at;
      } else if (this.#start === 'yes' && chunk[at] === DOT) {
        this.#keep(chunk, from, at);
        this.#start = 'dot';
        at += 1;
        from = at;
        continue;
      }
      if (this.#start === 'yes') this.#start = 'no';
      at = this.#toLineEnd(chunk, at);
    }
    this.#keep(chunk, from, chunk.length);
    return -1;
  }

  /** What came in, after the end was found. */
  collected(): Collected {
    if (this.#refusal !== undefined) return { kind: 'refused', reply: this.#refusal };
    return { kind: 'message', raw: Buffer.concat(this.#pieces, this.#size) };
  }

  /** Passes the rest of a line, or of the chunk; checks its end and its length. */
  #toLineEnd(chunk: Buffer, at: number): number {
    const lf = chunk.indexOf(LF, at);
    const end = lf < 0 ? chunk.length : lf;
    const paired = lf >= 0 && (lf > at ? chunk[lf - 1] === CR : lf === 0 ? this.#cr : chunk[lf - 1] === CR);
    if (lf >= 0 && !paired) this.#refuse(REPLIES.bareLineEnding);
    // A CR anywhere but right before the LF (or, for now, at the end of the chunk) is bare.
    if (this.#cr && at < chunk.length && at === 0 && chunk[0] !== LF) this.#refuse(REPLIES.bareLineEnding);
    const cr = chunk.indexOf(CR, at);
    if (cr >= 0 && cr < end - (lf < 0 ? 1 : paired && lf > at ? 1 : 0)) this.#refuse(REPLIES.bareLineEnding);
    this.#line += end - at;
    this.#cr = lf < 0 && chunk[chunk.length - 1] === CR;
    if (this.#line - (this.#cr || paired ? 1 : 0) > LINE_OCTETS) this.#refuse(REPLIES.longLine);
    if (lf < 0) return chunk.length;
    this.#line = 0;
    this.#start = 'yes';
    return lf + 1;
  }

  #keep(chunk: Buffer, from: number, to: number): void {
    if (to <= from || this.#refusal !== undefined) return;
    if (this.#size + to - from > this.#limit) {
      this.#refuse(REPLIES.tooBig);
      return;
    }
    // A copy: the socket's buffer is used again.
    this.#pieces.push(Buffer.from(chunk.subarray(from, to)));
    this.#size += to - from;
  }

  #refuse(reply: Reply): void {
    this.#refusal ??= reply;
    this.#pieces.length = 0;
  }
}
