// Quoted-printable, with the way back: decodeQp() keeps for each decoded octet where it stands in the
// message, so that one link can be replaced and the rest left byte for byte; encodeQpRun() writes an
// ASCII run between two soft line breaks, whatever line it lands in. A part that is not strictly
// quoted-printable is not decoded at all: nobody can say what its reader would see. RFC 2045 §6.7.

/** Decoded octets, and for each the offset in the message. */
export interface QpText {
  /** One character per octet (Latin-1). */
  readonly text: string;
  /** Offset in the message of the decoded octet `at`. */
  startOf(at: number): number;
  /** Offset just past the decoded octet `at - 1`, soft line breaks after it not included. */
  endOf(at: number): number;
}

const EQUALS = 61;
const CR = 13;
const LF = 10;

/** Decodes raw[start, end); undefined when an equals sign there is neither an octet nor a soft line break. */
export function decodeQp(raw: Buffer, start: number, end: number): QpText | undefined {
  const out = Buffer.allocUnsafe(end - start);
  // From decoded offset decodedAt[i] on, message offset = rawAt[i] + distance.
  const decodedAt: number[] = [0];
  const rawAt: number[] = [start];
  let length = 0;
  let at = start;
  while (at < end) {
    const found = raw.indexOf(EQUALS, at);
    const stop = found === -1 || found >= end ? end : found;
    length += raw.copy(out, length, at, stop);
    if (stop === end) break;
    const octet = hexPair(raw[stop + 1] ?? 0, raw[stop + 2] ?? 0);
    if (octet >= 0 && stop + 3 <= end) {
      decodedAt.push(length, length + 1);
      rawAt.push(stop, stop + 3);
      out[length++] = octet;
      at = stop + 3;
    } else {
      at = softBreakEnd(raw, stop, end);
      if (at === -1) return undefined;
      decodedAt.push(length);
      rawAt.push(at);
    }
  }
  const place = (offset: number): number => {
    const i = lastAtMost(decodedAt, offset);
    return (rawAt[i] ?? start) + offset - (decodedAt[i] ?? 0);
  };
  return {
    text: out.toString('latin1', 0, length),
    startOf: place,
    endOf(offset) {
      if (offset === 0) return start;
      const last = place(offset - 1);
      return last + (raw[last] === EQUALS ? 3 : 1);
    },
  };
}

/** Past `=` CRLF, or -1. White space a transport put before the CRLF is part of it (RFC 2045 §6.7 rule 3). */
function softBreakEnd(raw: Buffer, equals: number, end: number): number {
  let at = equals + 1;
  while (at < end && (raw[at] === 32 || raw[at] === 9)) at++;
  if (at === end) return end;
  return raw[at] === CR && raw[at + 1] === LF && at + 2 <= end ? at + 2 : -1;
}

function hexPair(high: number, low: number): number {
  const a = hexDigit(high);
  const b = hexDigit(low);
  return a < 0 || b < 0 ? -1 : a * 16 + b;
}

function hexDigit(c: number): number {
  if (c >= 48 && c <= 57) return c - 48;
  if (c >= 65 && c <= 70) return c - 55;
  return c >= 97 && c <= 102 ? c - 87 : -1;
}

/** Index of the last entry <= value; entries ascend and the first is 0. */
export function lastAtMost(entries: readonly number[], value: number): number {
  let low = 0;
  let high = entries.length;
  while (high - low > 1) {
    const middle = (low + high) >>> 1;
    if ((entries[middle] ?? 0) <= value) low = middle;
    else high = middle;
  }
  return low;
}

// RFC 2045 §6.7 rule 5: 76 characters a line, the soft break's equals sign included.
const QP_LINE = 75;

/** Printable ASCII as quoted-printable on lines of its own: it begins and ends with a soft line break. */
export function encodeQpRun(text: string): string {
  const escaped = text.replaceAll('=', '=3D');
  let out = '=\r\n';
  for (let at = 0; at < escaped.length;) {
    let stop = Math.min(at + QP_LINE, escaped.length);
    // An escape is not cut in two.
    if (stop < escaped.length && escaped[stop - 1] === '=') stop -= 1;
    else if (stop < escaped.length && escaped[stop - 2] === '=') stop -= 2;
    out += `${escaped.slice(at, stop)}=\r\n`;
    at = stop;
  }
  return out;
}
