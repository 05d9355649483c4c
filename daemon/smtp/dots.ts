// Dot-stuffing of an outbound message and the mark that ends it. Callers may rely on: what the receiver
// sees after removing the dots is the chunks' octets, plus one CRLF where the message did not end with
// one, and nothing else. Chunks without a line that starts with a dot are passed on as the views they are;
// only the others are copied. Wants canonical CRLF: a line starts after CRLF and nowhere else.
// RFC 5321 §4.5.2.

const DOT = 0x2e;
const CR = 0x0d;
const LF = 0x0a;
const NEEDLE = Buffer.from('\r\n.');
const END = Buffer.from('.\r\n');
const CRLF_END = Buffer.from('\r\n.\r\n');

/** The chunks with dots stuffed across chunk boundaries, followed by the end-of-data mark. */
export function stuffDots(chunks: readonly Buffer[]): Buffer[] {
  const out: Buffer[] = [];
  let lineStart = true;
  let afterCr = false;
  for (const chunk of chunks) {
    const length = chunk.length;
    if (length === 0) continue;
    // The only dots that indexOf cannot see: those whose CRLF stands (partly) in an earlier chunk.
    let first = -1;
    if (lineStart && chunk[0] === DOT) first = 0;
    else if (afterCr && chunk[0] === LF && chunk[1] === DOT) first = 1;
    const next = chunk.indexOf(NEEDLE);
    out.push(first === -1 && next === -1 ? chunk : stuffed(chunk, first, next));
    const last = chunk[length - 1];
    lineStart = last === LF && (length > 1 ? chunk[length - 2] === CR : afterCr);
    afterCr = last === CR;
  }
  // RFC 5321 §4.1.1.4: the CRLF before the final dot is the message's own where it has one.
  out.push(lineStart ? END : CRLF_END);
  return out;
}

function stuffed(chunk: Buffer, first: number, next: number): Buffer {
  let extra = first === -1 ? 0 : 1;
  for (let at = next; at !== -1; at = chunk.indexOf(NEEDLE, at + 2)) extra++;
  const copy = Buffer.allocUnsafe(chunk.length + extra);
  let read = 0;
  let write = 0;
  const upTo = (dot: number): void => {
    write += chunk.copy(copy, write, read, dot);
    copy[write++] = DOT;
    read = dot;
  };
  if (first !== -1) upTo(first);
  for (let at = next; at !== -1; at = chunk.indexOf(NEEDLE, at + 2)) upTo(at + 2);
  chunk.copy(copy, write, read);
  return copy;
}
