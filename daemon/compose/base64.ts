// Base64 with the way back: decodeBase64() knows where in the message each group of four characters
// stands, so that the groups a link lies in can be replaced and every other line stays as it was
// submitted; encodeRun() writes groups into the line they land in. A run inside a part must be whole
// groups without padding, which is for the caller to see to. Text that is not canonical base64 in
// lines is not decoded at all: nobody can say what its reader would see. RFC 2045 §6.8.
import { lastAtMost, type Range } from '../mail/index.ts';

export interface Base64Text {
  readonly octets: Buffer;
  /** The groups that hold decoded octets [start, end), and how many octets of others they hold before and after. */
  place(start: number, end: number): Range & { readonly keep: readonly [number, number] };
}

const GROUP_OCTETS = 3;
const GROUP_CHARS = 4;
// RFC 2045 §6.8: encoded lines of at most 76 characters.
const LINE_CHARS = 76;

/** Decodes raw[start, end); undefined unless encoding it again gives the same characters. */
export function decodeBase64(raw: Buffer, start: number, end: number): Base64Text | undefined {
  const text = raw.toString('latin1', start, end);
  const read = readLines(text.split('\r\n')) ?? readLines(text.split(/[\t\n\r ]/), 1);
  if (read === undefined) return undefined;
  const { octets, charAt, rawAt } = read;
  const offset = (char: number): number => {
    const line = lastAtMost(charAt, char);
    return start + (rawAt[line] ?? 0) + char - (charAt[line] ?? 0);
  };
  return {
    octets,
    place(from, to) {
      const first = Math.floor(from / GROUP_OCTETS);
      const last = Math.ceil(to / GROUP_OCTETS);
      const after = Math.min(last * GROUP_OCTETS, octets.length) - to;
      const stop = last === 0 ? start : offset(last * GROUP_CHARS - 1) + 1;
      // Nothing but a place between two groups: at the end of a line rather than before the next.
      return { start: first === last ? stop : offset(first * GROUP_CHARS), end: stop, keep: [from - first * GROUP_OCTETS, after] };
    },
  };
}

interface Lines {
  readonly octets: Buffer;
  /** For each line that is not empty: how many characters came before it, and where it begins. */
  readonly charAt: readonly number[];
  readonly rawAt: readonly number[];
}

function readLines(lines: readonly string[], between = 2): Lines | undefined {
  const compact = lines.join('');
  const octets = Buffer.from(compact, 'base64');
  // Node skips what it does not know; encoding again shows whether something was skipped.
  if (octets.toString('base64') !== compact) return undefined;
  const charAt: number[] = [];
  const rawAt: number[] = [];
  let chars = 0;
  let at = 0;
  for (const { length } of lines) {
    if (length > 0) {
      charAt.push(chars);
      rawAt.push(at);
    }
    chars += length;
    at += length + between;
  }
  return { octets, charAt, rawAt };
}

/** The decoded octets of whole groups, one character each. */
export const clearText = (raw: Buffer, { start, end }: Range): string => Buffer.from(raw.toString('latin1', start, end), 'base64').toString('latin1');

/** Latin-1 text as base64 in place of raw[run), which lies in raw[part): its line is filled up, others follow, and what stood behind it begins a line. */
export function encodeRun(text: string, raw: Buffer, run: Range, part: Range): string {
  const chars = Buffer.from(text, 'latin1').toString('base64');
  const lineStart = run.start === 0 ? 0 : Math.max(raw.lastIndexOf(10, run.start - 1) + 1, part.start);
  const column = run.start - lineStart;
  let at = Math.max(0, LINE_CHARS - column) & ~(GROUP_CHARS - 1);
  let out = chars.slice(0, at);
  for (; at < chars.length; at += LINE_CHARS) out += `${column + at > 0 ? '\r\n' : ''}${chars.slice(at, at + LINE_CHARS)}`;
  return run.end === part.end || raw[run.end] === 13 ? out : `${out}\r\n`;
}
