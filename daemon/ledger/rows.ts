// Rows of CSV or NDJSON out of octets that come in pieces of any length, one row at a time, so that a
// list of millions takes no memory. Callers may rely on: a bad row is a value with its line and a reason,
// never an exception, and the rows after it are read; no reason repeats what the row said; `octets` and
// `line` tell where the next row begins. UTF-8, with or without a byte order mark. RFC 4180 with LF or
// CRLF; a header row is required, and breaks inside quotes are part of a field.
import { isAscii, isUtf8 } from 'node:buffer';
import { MailError } from '../mail/index.ts';

export interface Row {
  /** Of the row's first line; 1 is the first line of the file. */
  readonly line: number;
  /** In the order of the known columns; '' where the row has none. */
  readonly fields: readonly string[];
}

export interface RowError {
  readonly line: number;
  readonly reason: string;
}

export type RowFormat = 'csv' | 'ndjson';

export interface RowColumns {
  readonly format: RowFormat;
  readonly known: readonly string[];
  readonly required: readonly string[];
}

/** Where a file is gone on with: behind octets that were read before. */
export interface RowStart {
  readonly octets: number;
  readonly line: number;
  /** The header row as it stands in the file; CSV only. */
  readonly header: Buffer;
}

// No honest row is longer; a missing quote must not swallow the file.
const ROW_OCTETS = 16_384;
const LF = 0x0a;
const CR = 0x0d;
const QUOTE = 0x22;
const MARK = Buffer.of(0xef, 0xbb, 0xbf);
const NOTHING = Buffer.alloc(0);

const tooLong = `the row is longer than ${ROW_OCTETS} octets`;
const openQuote = 'a quote is opened that is not closed';

export class RowReader {
  readonly #format: RowFormat;
  readonly #known: readonly string[];
  readonly #required: readonly string[];
  /** For each field of a row the place of its column among the known. */
  #columns: readonly number[] | undefined;
  #waiting: Buffer = NOTHING;
  #at = 0;
  /** The first quote in #waiting that has not been read. */
  #quote = Number.POSITIVE_INFINITY;
  /** Octets of the file before #waiting. */
  #before: number;
  #line: number;
  /** The rest of a line that was too long. */
  #skipping = false;
  /** Nothing in #waiting is outside ASCII, or NUL. */
  #plain = false;

  /** @throws MailError E_CONTROL when the header it goes on with is unusable */
  constructor({ format, known, required }: RowColumns, start?: RowStart) {
    this.#format = format;
    this.#known = known;
    this.#required = required;
    this.#before = start?.octets ?? 0;
    this.#line = start?.line ?? 1;
    if (start !== undefined && format === 'csv') {
      const header = new RowReader({ format, known, required });
      header.push(start.header);
      header.next(true);
      this.#columns = header.#columns;
    }
  }

  /** Octets of the file that have been read as rows. */
  get octets(): number {
    return this.#before + this.#at;
  }

  /** The line the next row begins in. */
  get line(): number {
    return this.#line;
  }

  push(piece: Buffer): void {
    this.#before += this.#at;
    const rest = this.#waiting.subarray(this.#at);
    this.#waiting = rest.length === 0 ? piece : Buffer.concat([rest, piece]);
    this.#at = 0;
    this.#quote = this.#quoteFrom(0);
    this.#plain = isAscii(this.#waiting) && !this.#waiting.includes(0);
  }

  /**
   * The next row; undefined when none is complete yet, or with `last` when there is none any more.
   * @throws MailError E_CONTROL when the CSV header is not made of the known columns, or lacks a required one
   */
  next(last: boolean): Row | RowError | undefined {
    for (;;) {
      const line = this.#line;
      const octets = this.#record(last);
      if (octets === undefined) return undefined;
      if (typeof octets === 'string' && this.#format === 'csv' && this.#columns === undefined) throw new MailError('E_CONTROL', `the header row cannot be read: ${octets}`);
      if (typeof octets === 'string') return { line, reason: octets };
      if (octets.length === 0) continue;
      const row = this.#parse(line, octets);
      if (row !== undefined) return row;
    }
  }

  /** The octets of one row without its line end, or what is wrong with it. */
  #record(last: boolean): Buffer | string | undefined {
    if (this.#skipping && !this.#skipLine()) return undefined;
    const from = this.#at;
    let to = from;
    let quote = this.#quote;
    let open = false;
    for (let lines = 1; ; lines++) {
      const found = this.#waiting.indexOf(LF, to);
      const end = found < 0 ? this.#waiting.length : found;
      if (end - from > ROW_OCTETS) return this.#tooLong(lines, open);
      if (found < 0 && (!last || from === end)) return undefined;
      if (this.#format === 'csv') {
        for (; quote < end; quote = this.#quoteFrom(quote + 1)) open = !open;
        if (open && found < 0) return this.#firstLine();
      }
      if (open) {
        to = end + 1;
        continue;
      }
      this.#at = found < 0 ? end : end + 1;
      this.#quote = quote;
      this.#line += lines;
      const text = this.#waiting.subarray(from, end > from && this.#waiting[end - 1] === CR ? end - 1 : end);
      return this.#before + from === 0 && text.subarray(0, MARK.length).equals(MARK) ? text.subarray(MARK.length) : text;
    }
  }

  /** Where the next quote stands, or the end: looked for once, and not again for every row. */
  #quoteFrom(at: number): number {
    const found = this.#waiting.indexOf(QUOTE, at);
    return found < 0 ? Number.POSITIVE_INFINITY : found;
  }

  /** A quote that never closes costs its own line and no other. */
  #tooLong(lines: number, open: boolean): string {
    if (open && lines > 1) return this.#firstLine();
    this.#skipping = true;
    this.#skipLine();
    return tooLong;
  }

  #firstLine(): string {
    const end = this.#waiting.indexOf(LF, this.#at);
    this.#at = end < 0 ? this.#waiting.length : end + 1;
    this.#quote = this.#quoteFrom(this.#at);
    this.#line++;
    return openQuote;
  }

  #skipLine(): boolean {
    const end = this.#waiting.indexOf(LF, this.#at);
    this.#at = end < 0 ? this.#waiting.length : end + 1;
    this.#quote = this.#quoteFrom(this.#at);
    if (end < 0) return false;
    this.#line++;
    this.#skipping = false;
    return true;
  }

  #parse(line: number, octets: Buffer): Row | RowError | undefined {
    const header = this.#format === 'csv' && this.#columns === undefined;
    const wrong = this.#plain ? undefined : octets.includes(0) ? 'has a NUL character' : isUtf8(octets) ? undefined : 'is not UTF-8';
    if (wrong !== undefined && header) throw new MailError('E_CONTROL', `the header row ${wrong}`);
    if (wrong !== undefined) return { line, reason: `the row ${wrong}` };
    const text = octets.toString(this.#plain ? 'latin1' : 'utf8');
    if (text.trim() === '') return undefined;
    if (this.#format === 'ndjson') return this.#jsonRow(line, text);
    if (this.#columns !== undefined) return csvRow(line, text, this.#columns, this.#known.length);
    this.#columns = readHeader(text, this.#known, this.#required);
    return undefined;
  }

  #jsonRow(line: number, text: string): Row | RowError {
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch {
      return { line, reason: 'the row is not JSON' }; // the parser's own words would quote the row
    }
    if (typeof value !== 'object' || value === null || Array.isArray(value)) return { line, reason: 'the row is not a JSON object' };
    const fields = this.#known.map(() => '');
    for (const [name, told] of Object.entries(value)) {
      const place = this.#known.indexOf(name);
      if (place < 0) return { line, reason: `the row has a field that is not one of ${this.#known.join(', ')}` };
      const said = textOf(told);
      if (said === undefined) return { line, reason: `${name} is not a text` };
      fields[place] = said.trim();
    }
    const missing = this.#required.filter((name) => fields[this.#known.indexOf(name)] === '');
    return missing.length > 0 ? { line, reason: `the row lacks ${missing.join(', ')}` } : { line, fields };
  }
}

/** A list of texts is a text with spaces between: `facts` may be written either way. */
function textOf(told: unknown): string | undefined {
  if (told === null) return '';
  if (Array.isArray(told)) return told.every((one) => typeof one === 'string') ? told.join(' ') : undefined;
  return typeof told === 'string' || typeof told === 'number' ? String(told) : undefined;
}

function readHeader(text: string, known: readonly string[], required: readonly string[]): readonly number[] {
  const names = splitCsv(text)?.map((name) => name.trim().toLowerCase());
  if (names === undefined) throw new MailError('E_CONTROL', 'the header row is badly quoted');
  for (const [i, name] of names.entries()) {
    if (!known.includes(name)) throw new MailError('E_CONTROL', `column ${i + 1} of the header is not one of ${known.join(', ')}`);
    if (names.indexOf(name) !== i) throw new MailError('E_CONTROL', `the header names ${name} twice`);
  }
  const missing = required.filter((name) => !names.includes(name));
  if (missing.length > 0) throw new MailError('E_CONTROL', `the header lacks ${missing.join(', ')}`);
  return names.map((name) => known.indexOf(name));
}

function csvRow(line: number, text: string, columns: readonly number[], width: number): Row | RowError {
  const values = text.includes('"') ? splitCsv(text) : text.split(',');
  if (values === undefined) return { line, reason: 'the row is badly quoted' };
  if (values.length !== columns.length) return { line, reason: `the row has ${values.length} fields, the header ${columns.length}` };
  const fields: string[] = [];
  while (fields.length < width) fields.push(''); // a fifth of what Array.from takes
  for (let i = 0; i < values.length; i++) fields[columns[i] ?? 0] = (values[i] ?? '').trim();
  return { line, fields };
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
