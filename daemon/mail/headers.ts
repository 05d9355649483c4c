// Where the fields of a header lie, and what the gate needs to know of them. indexHeader() looks at
// each octet once and keeps offsets; nothing is decoded until somebody asks for a value. Callers may
// rely on: offsets cover the header without gaps, names are lower case, and a header that cannot be
// read to the end says so in `fault`. A faulty header names no author that could be relied upon, so
// messageFacts() then reports `fromMalformed`. Input is canonical: CRLF only. RFC 5322 §2.2, §3.4, §3.6.
import { parseMailboxes } from './mailboxes.ts';

/** One header field; offsets into the message. `name` is '' for a line that is no field. */
export interface HeaderField {
  readonly name: string;
  readonly start: number;
  /** Past the CRLF of the last folded line. */
  readonly end: number;
  readonly valueStart: number;
}

export type HeaderFault = 'header-not-a-field' | 'header-too-many-fields';

export interface HeaderIndex {
  readonly fields: readonly HeaderField[];
  /** Offset of the first octet of the body, just past the empty line; the end where there is none. */
  readonly bodyStart: number;
  /** Set when the header could not be read as fields to its end. */
  readonly fault?: HeaderFault;
}

/** What the gate asks of a message. Addresses are bare, as written. */
export interface MessageFacts {
  readonly fromFields: number;
  readonly from: readonly string[];
  /** From or Sender is not a strict RFC 5322 list, there are several Sender fields, or the header is faulty. */
  readonly fromMalformed: boolean;
  readonly headerFault?: HeaderFault;
  readonly sender?: string;
  /** How many addresses stand in To and Cc; a field that cannot be read counts its @ signs. */
  readonly toAndCc: number;
  /** The addresses in To and Cc, of the fields that can be read. */
  readonly shown: readonly string[];
  readonly dates: number;
  readonly messageIds: number;
  readonly hasListUnsubscribe: boolean;
  /** List-Unsubscribe-Post stands there without the one List-Unsubscribe with an https URI that it needs. */
  readonly oneClickBroken: boolean;
  /** Names of all fields, lower case. */
  readonly names: ReadonlySet<string>;
}

// Far above any real header (the longest seen in the wild have a few hundred fields), far below what hurts.
const MAX_FIELDS = 20_000;
const CR = 13;
const LF = 10;
const SPACE = 32;
const TAB = 9;
const COLON = 58;

/** Finds the fields of the header that starts at `start`; never throws. */
export function indexHeader(raw: Buffer, start = 0, end = raw.length): HeaderIndex {
  const fields: HeaderField[] = [];
  let fault: HeaderFault | undefined;
  let at = start;
  while (at < end) {
    if (raw[at] === CR && raw[at + 1] === LF) return made(fields, at + 2, fault);
    if (fields.length === MAX_FIELDS) return made(fields, bodyAfter(raw, at, end), 'header-too-many-fields');
    const field = fieldAt(raw, at, end);
    if (field.name === '') fault = 'header-not-a-field';
    fields.push(field);
    at = field.end;
  }
  return made(fields, end, fault);
}

function made(fields: readonly HeaderField[], bodyStart: number, fault: HeaderFault | undefined): HeaderIndex {
  return fault === undefined ? { fields, bodyStart } : { fields, bodyStart, fault };
}

function bodyAfter(raw: Buffer, at: number, end: number): number {
  const empty = raw.indexOf('\r\n\r\n', at, 'latin1');
  return empty === -1 || empty + 4 > end ? end : empty + 4;
}

function fieldAt(raw: Buffer, start: number, end: number): HeaderField {
  // RFC 5322 §2.2.3: a line that begins with white space continues the field.
  let next = lineEnd(raw, start, end);
  const firstEnd = next;
  while (next < end && (raw[next] === SPACE || raw[next] === TAB)) next = lineEnd(raw, next, end);
  let colon = start;
  // RFC 5322 §2.2: a name is printable ASCII without colon.
  while (colon < firstEnd && isNameOctet(raw[colon] ?? 0)) colon++;
  const nameEnd = colon;
  // RFC 5322 §4.5: old messages may have white space before the colon.
  while (colon < firstEnd && (raw[colon] === SPACE || raw[colon] === TAB)) colon++;
  const isField = nameEnd > start && raw[colon] === COLON && colon < firstEnd;
  return isField
    ? { name: raw.toString('latin1', start, nameEnd).toLowerCase(), start, end: next, valueStart: colon + 1 }
    : { name: '', start, end: next, valueStart: start };
}

function isNameOctet(octet: number): boolean {
  return octet > SPACE && octet < 127 && octet !== COLON;
}

function lineEnd(raw: Buffer, at: number, end: number): number {
  const lf = raw.indexOf(LF, at);
  return lf === -1 || lf >= end ? end : lf + 1;
}

/** The field's value without folding and outer white space, as UTF-8 where it is valid UTF-8, else as Latin-1. */
export function fieldValue(raw: Buffer, field: HeaderField): string {
  const text = raw.toString('utf8', field.valueStart, field.end);
  const value = text.includes('\uFFFD') ? raw.toString('latin1', field.valueStart, field.end) : text;
  return value.replaceAll('\r\n', '').trim();
}

/** Every value of the fields with this lower-case name, in order. */
export function fieldValues(raw: Buffer, header: HeaderIndex, name: string): readonly string[] {
  return header.fields.filter((field) => field.name === name).map((field) => fieldValue(raw, field));
}

/** Counts and addresses for the gate; never throws. */
export function messageFacts(raw: Buffer, header: HeaderIndex): MessageFacts {
  const values = (name: string): readonly string[] => fieldValues(raw, header, name);
  const fromValues = values('from');
  const lists = fromValues.map((value) => parseMailboxes(value));
  const senders = values('sender');
  const sender = senders.length === 1 ? parseMailboxes(senders[0] ?? '') : undefined;
  // RFC 5322 §3.6.2: Sender is one mailbox.
  const senderBad = senders.length > 0 && sender?.length !== 1;
  const visible = [...values('to'), ...values('cc')].map((value) => ({ value, list: parseMailboxes(value) }));
  const ways = values('list-unsubscribe');
  const names = new Set(header.fields.map((field) => field.name));
  const count = (name: string): number => header.fields.reduce((n, field) => n + (field.name === name ? 1 : 0), 0);
  return {
    fromFields: fromValues.length,
    from: lists.flatMap((list) => list ?? []),
    fromMalformed: header.fault !== undefined || senderBad || lists.some((list) => list === undefined),
    ...(header.fault === undefined ? {} : { headerFault: header.fault }),
    ...(sender?.[0] === undefined || senderBad ? {} : { sender: sender[0] }),
    toAndCc: visible.reduce((n, { value, list }) => n + (list?.length ?? value.split('@').length - 1), 0),
    shown: visible.flatMap(({ list }) => list ?? []),
    dates: count('date'),
    messageIds: count('message-id'),
    hasListUnsubscribe: ways.length > 0,
    // RFC 8058 §3.1: one field of each, and one HTTPS URI
    oneClickBroken: names.has('list-unsubscribe-post') && (ways.length !== 1 || count('list-unsubscribe-post') !== 1 || !/<\s*https:/i.test(ways[0] ?? '')),
    names,
  };
}
