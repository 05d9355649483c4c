// Cuts what a peer says into replies. Callers may rely on: every reply handed over is complete and has
// one code; anything else (no code, a code that changes within a reply, NUL, bare CR, a line or a reply
// without end) is a fault, after which the reader refuses to go on, because a stream that was misread
// once cannot be trusted to say which reply belongs to which command. Other control characters become `?`: replies
// end on operators' terminals. A bare LF ends a line: some old
// receivers write it, and nothing can be smuggled towards the sender. RFC 5321 §4.2.
import { parseReply, printable, type Reply } from '../mail/index.ts';

// RFC 5321 §4.5.3.1.5 says 512 octets; receivers that quote a policy with two URLs exceed it, and four times
// as much is still no burden.
const LINE_OCTETS = 2_048;
// The longest real EHLO replies have about 30 lines, the longest refusals a dozen.
const REPLY_LINES = 128;

/** One for each connection, and a new one after STARTTLS. */
export class ReplyReader {
  #rest = '';
  #lines: string[] = [];

  /**
   * Takes octets and hands each complete reply to `onReply`.
   * @returns what is wrong with the stream, in words, or undefined.
   */
  push(chunk: Buffer, onReply: (reply: Reply) => void): string | undefined {
    // Latin-1 keeps octets apart, so that a UTF-8 sequence cut by the network survives in #rest.
    const text = this.#rest + chunk.toString('latin1');
    let from = 0;
    for (;;) {
      const end = text.indexOf('\n', from);
      if (end === -1) break;
      if (end - from > LINE_OCTETS) return `a reply line longer than ${LINE_OCTETS} octets`;
      const line = text.slice(from, end > from && text[end - 1] === '\r' ? end - 1 : end);
      from = end + 1;
      const fault = this.#line(line, onReply);
      if (fault !== undefined) return fault;
    }
    this.#rest = text.slice(from);
    if (this.#rest.length > LINE_OCTETS) return `a reply line longer than ${LINE_OCTETS} octets`;
    return undefined;
  }

  /** True when part of a reply has been read. */
  get midReply(): boolean {
    return this.#rest !== '' || this.#lines.length > 0;
  }

  #line(line: string, onReply: (reply: Reply) => void): string | undefined {
    if (line.includes('\0') || line.includes('\r')) return 'a control character within a reply';
    if (!/^[2-5]\d\d(?:[ -]|$)/.test(line)) return 'a line that is no SMTP reply';
    this.#lines.push(printable(isAsciiText(line) ? line : Buffer.from(line, 'latin1').toString('utf8')));
    if (line[3] === '-') return this.#lines.length < REPLY_LINES ? undefined : `a reply of more than ${REPLY_LINES} lines`;
    const reply = parseReply(this.#lines);
    this.#lines = [];
    if (reply === undefined) return 'a reply whose code changes from line to line';
    onReply(reply);
    return undefined;
  }
}

function isAsciiText(line: string): boolean {
  for (let i = 0; i < line.length; i++) if (line.charCodeAt(i) > 0x7f) return false;
  return true;
}
