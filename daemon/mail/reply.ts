// SMTP replies as values, ours and theirs. Ours are made only by reply(): the class digit of the
// enhanced status comes from the code and the detail from the refusing line, so the two cannot
// disagree. Foreign replies are parsed by parseReply and never re-worded.
// RFC 5321 §4.2, RFC 2034 §3, RFC 3463 §2.

/** One SMTP reply. `enhanced` is '' where the peer sent none; `lines` are without code and status. */
export interface Reply {
  readonly code: number;
  readonly enhanced: string;
  readonly lines: readonly string[];
}

// RFC 5321 §4.5.3.1.5: 512 octets a line, code, space and CRLF included.
const REPLY_LINE_OCTETS = 512;

/**
 * Makes one of our replies: `reply(550, '7.1', 'no consent on record')` says `550 5.7.1 no consent on record`.
 * @throws RangeError when the code, the detail or the text would not be a legal reply line.
 */
export function reply(code: number, detail: string, text: string): Reply {
  if (!Number.isInteger(code) || code < 200 || code > 599) throw new RangeError(`reply code ${code}`);
  if (!/^\d{1,3}\.\d{1,3}$/.test(detail)) throw new RangeError(`reply detail ${detail}`);
  if (!/^[\x20-\x7e]+$/.test(text)) throw new RangeError(`reply text ${JSON.stringify(text)}`);
  const made = Object.freeze({ code, enhanced: `${Math.floor(code / 100)}.${detail}`, lines: Object.freeze([text]) });
  if (formatReply(made).length + 2 > REPLY_LINE_OCTETS) throw new RangeError(`reply longer than ${REPLY_LINE_OCTETS} octets`);
  return made;
}

/** The reply as it goes on the wire, without the last CRLF; lines are joined by CRLF. */
export function formatReply(r: Reply): string {
  const last = r.lines.length - 1;
  return r.lines
    .map((line, i) => `${r.code}${i === last ? ' ' : '-'}${r.enhanced === '' ? '' : `${r.enhanced} `}${line}`)
    .join('\r\n');
}

// More than the four lines a real refusal has; it is kept for each recipient who waits.
const SHOWN_CHARS = 2_000;

/** The reply on one line, for logs and DSNs: `550 5.1.1 user unknown`; of a longer one the beginning. */
export function replyLine(r: Reply): string {
  return `${r.code} ${r.enhanced === '' ? '' : `${r.enhanced} `}${r.lines.join(' ')}`.trim().slice(0, SHOWN_CHARS);
}

// C0 but for tab and LF, DEL, C1, and what turns the direction of writing (UAX #9 §2).
// oxlint-disable-next-line no-control-regex
const UNSHOWN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

/** A stranger's text without what would work a terminal rather than be read on it; `?` stands for each. */
export function printable(text: string): string {
  return text.replaceAll(UNSHOWN, '?');
}

/**
 * Reads a peer's reply from its lines (without CRLF). The enhanced status is taken from the first line
 * that has one whose class agrees with the code (RFC 2034 §4).
 * @returns undefined when the lines are not a reply.
 */
export function parseReply(lines: readonly string[]): Reply | undefined {
  const texts: string[] = [];
  let code = 0;
  let enhanced = '';
  for (const [i, line] of lines.entries()) {
    const m = /^([2-5]\d\d)(?:([ -])(.*))?$/s.exec(line);
    if (m === null) return undefined;
    const more = m[2] === '-';
    if (more === (i === lines.length - 1)) return undefined;
    if (code !== 0 && Number(m[1]) !== code) return undefined;
    code = Number(m[1]);
    const status = /^([245]\.\d{1,3}\.\d{1,3})(?: (.*))?$/s.exec(m[3] ?? '');
    if (status !== null && status[1]?.[0] === m[1]?.[0]) {
      if (enhanced === '') enhanced = status[1] ?? '';
      texts.push(status[2] ?? '');
    } else {
      texts.push(m[3] ?? '');
    }
  }
  if (texts.length === 0) return undefined;
  return { code, enhanced, lines: texts };
}
