// Rows of CSV or NDJSON out of a stream of octets, one at a time, so that a list of millions takes no
// memory. Callers may rely on: a bad row is a value with its line and a reason, never an exception, and
// the rows after it are read; no reason repeats what the row said. RFC 4180; a header row is required.
import { MailError } from '../mail/index.ts';

export interface Row {
  /** Of the row's first line; 1 is the first line of the file. */
  readonly line: number;
  readonly fields: ReadonlyMap<string, string>;
}

export interface RowError {
  readonly line: number;
  readonly reason: string;
}

export type RowFormat = 'csv' | 'ndjson';

// No honest row is longer; a missing quote must not swallow the file.
const ROW_CHARACTERS = 16_384;

/** @throws MailError E_CONTROL when the CSV header is not made of the `known` columns or lacks a `required` one */
export async function* readRows(source: AsyncIterable<Uint8Array | string>, format: RowFormat, known: readonly string[], required: readonly string[]): AsyncGenerator<Row | RowError> {
  let header: readonly string[] | undefined;
  for await (const { line, text } of records(source, format === 'csv')) {
    if (text.trim() === '') continue;
    if (text.length > ROW_CHARACTERS) yield { line, reason: `the row is longer than ${ROW_CHARACTERS} characters; is a quote missing?` };
    else if (format === 'ndjson') yield jsonRow(line, text, known, required);
    else if (header === undefined) header = readHeader(text, known, required);
    else yield csvRow(line, text, header);
  }
}

/** Splits at line ends; in CSV not at those inside quotes. */
async function* records(source: AsyncIterable<Uint8Array | string>, quotes: boolean): AsyncGenerator<{ line: number; text: string }> {
  const decoder = new TextDecoder('utf-8'); // drops a byte order mark; what is not UTF-8 becomes U+FFFD, which no address may have
  let waiting = '';
  let line = 1;
  let startedAt = 1;
  let open = false;
  for await (const chunk of source) {
    const lines = (typeof chunk === 'string' ? chunk : decoder.decode(chunk, { stream: true })).split('\n');
    for (const [i, part] of lines.entries()) {
      if (quotes && count(part, '"') % 2 === 1) open = !open;
      waiting += part;
      if (i === lines.length - 1) break;
      line++;
      if (open && waiting.length <= ROW_CHARACTERS) {
        waiting += '\n';
        continue;
      }
      yield { line: startedAt, text: waiting.endsWith('\r') ? waiting.slice(0, -1) : waiting };
      waiting = '';
      startedAt = line;
      open = false;
    }
    // Without a line end in sight nothing more of it is kept than shows that it is too long.
    if (waiting.length > ROW_CHARACTERS) waiting = waiting.slice(0, ROW_CHARACTERS + 1);
  }
  waiting += decoder.decode();
  if (waiting !== '') yield { line: startedAt, text: waiting.endsWith('\r') ? waiting.slice(0, -1) : waiting };
}

function count(text: string, character: string): number {
  let n = 0;
  for (let at = text.indexOf(character); at >= 0; at = text.indexOf(character, at + 1)) n++;
  return n;
}

function readHeader(text: string, known: readonly string[], required: readonly string[]): readonly string[] {
  const names = splitCsv(text.replace(/^\uFEFF/, ''))?.map((name) => name.trim().toLowerCase());
  if (names === undefined) throw new MailError('E_CONTROL', 'the header row is badly quoted');
  for (const [i, name] of names.entries()) {
    if (!known.includes(name)) throw new MailError('E_CONTROL', `column ${i + 1} of the header is not one of ${known.join(', ')}`);
    if (names.indexOf(name) !== i) throw new MailError('E_CONTROL', `the header names ${name} twice`);
  }
  const missing = required.filter((name) => !names.includes(name));
  if (missing.length > 0) throw new MailError('E_CONTROL', `the header lacks ${missing.join(', ')}`);
  return names;
}

function csvRow(line: number, text: string, header: readonly string[]): Row | RowError {
  const values = splitCsv(text);
  if (values === undefined) return { line, reason: 'the row is badly quoted' };
  if (values.length !== header.length) return { line, reason: `the row has ${values.length} fields, the header ${header.length}` };
  return { line, fields: new Map(header.map((name, i) => [name, (values[i] ?? '').trim()])) };
}

function splitCsv(text: string): string[] | undefined {
  const values: string[] = [];
  const field = /(?:"((?:[^"]|"")*)"|([^",]*))(,|$)/gy;
  for (;;) {
    const m = field.exec(text);
    if (m === null) return undefined;
    values.push(m[1] === undefined ? (m[2] ?? '') : m[1].replaceAll('""', '"'));
    if (m[3] === '') return values;
  }
}

function jsonRow(line: number, text: string, known: readonly string[], required: readonly string[]): Row | RowError {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return { line, reason: 'the row is not JSON' }; // the parser's own words would quote the row
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return { line, reason: 'the row is not a JSON object' };
  const fields = new Map<string, string>();
  for (const [name, told] of Object.entries(value)) {
    if (!known.includes(name)) return { line, reason: `the row has a field that is not one of ${known.join(', ')}` };
    if (typeof told !== 'string' && typeof told !== 'number' && told !== null) return { line, reason: `${name} is not a text` };
    fields.set(name, told === null ? '' : String(told).trim());
  }
  const missing = required.filter((name) => !fields.has(name));
  return missing.length > 0 ? { line, reason: `the row lacks ${missing.join(', ')}` } : { line, fields };
}
