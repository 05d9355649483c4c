// Reads the arguments of MAIL and RCPT. The address comes out exactly as it was written, quotes and all:
// what is delivered is what was submitted. Whether it can be mailed is not decided here.
// RFC 5321 §4.1.1.2 and §4.1.2, RFC 3461 §4, RFC 1870 §5, RFC 6152 §3, RFC 6531 §3.4, RFC 6533 §3, RFC 8689 §2.
import { REPLIES, type EnvelopeRecipient, type RecipientDsn, type Reply } from '../mail/index.ts';

/** MAIL FROM, understood. */
export interface MailCommand {
  /** '' is the null reverse-path. */
  readonly from: string;
  readonly sizeBytes: number;
  readonly body: '7BIT' | '8BITMIME';
  readonly smtpUtf8: boolean;
  readonly ret?: 'FULL' | 'HDRS';
  readonly envid?: string;
  readonly requireTls?: true;
}

/** Reads `MAIL FROM:<...> ...`; a Reply says what is wrong with it. */
export function parseMail(line: string): MailCommand | Reply {
  const read = parsePath(line, /^MAIL FROM:[ \t]*/i);
  if (read === undefined) return REPLIES.badSender;
  let command: MailCommand = { from: read.address, sizeBytes: 0, body: '7BIT', smtpUtf8: false };
  for (const [name, value] of read.parameters) {
    const more = mailParameter(name, value);
    if ('code' in more) return more;
    command = { ...command, ...more };
  }
  if (read.routed) return REPLIES.noSourceRoutes;
  return isAscii(command.from) || command.smtpUtf8 ? command : REPLIES.needsUtf8;
}

function mailParameter(name: string, value: string | undefined): Partial<MailCommand> | Reply {
  switch (name) {
    case 'SIZE':
      // RFC 1870 §5: 1*20DIGIT
      return value !== undefined && /^\d{1,20}$/.test(value) ? { sizeBytes: Number(value) } : REPLIES.badArguments;
    case 'BODY': {
      const body = value?.toUpperCase();
      return body === '7BIT' || body === '8BITMIME' ? { body } : REPLIES.badArguments;
    }
    case 'SMTPUTF8':
      return value === undefined ? { smtpUtf8: true } : REPLIES.badArguments;
    case 'REQUIRETLS':
      return value === undefined ? { requireTls: true } : REPLIES.badArguments;
    case 'RET': {
      const ret = value?.toUpperCase();
      return ret === 'FULL' || ret === 'HDRS' ? { ret } : REPLIES.badArguments;
    }
    case 'ENVID': {
      const envid = value === undefined ? undefined : parseXtext(value);
      // RFC 3461 §4.4: 100 characters encoded
      return envid === undefined || envid === '' || (value ?? '').length > 100 ? REPLIES.badArguments : { envid };
    }
    case 'AUTH':
      // RFC 4954 §5: the credential says who this is; the parameter is accepted and ignored.
      return value === undefined ? REPLIES.badArguments : {};
    default:
      return REPLIES.unknownParameter;
  }
}

/** Reads `RCPT TO:<...> ...`; a Reply says what is wrong with it. */
export function parseRcpt(line: string, smtpUtf8: boolean): EnvelopeRecipient | Reply {
  const read = parsePath(line, /^RCPT TO:[ \t]*/i);
  if (read === undefined || read.address === '') return REPLIES.badRecipient;
  let dsn: RecipientDsn = { notify: [] };
  for (const [name, value] of read.parameters) {
    const more = rcptParameter(name, value, smtpUtf8);
    if ('code' in more) return more;
    dsn = { ...dsn, ...more };
  }
  if (read.routed) return REPLIES.noSourceRoutes;
  if (!isAscii(read.address) && !smtpUtf8) return REPLIES.needsUtf8;
  return dsn.notify.length === 0 && dsn.orcpt === undefined ? { wire: read.address } : { wire: read.address, dsn };
}

const NOTIFY = ['NEVER', 'SUCCESS', 'FAILURE', 'DELAY'] as const;

function rcptParameter(name: string, value: string | undefined, smtpUtf8: boolean): Partial<RecipientDsn> | Reply {
  if (name === 'NOTIFY') {
    const notify = (value ?? '').toUpperCase().split(',').map((word) => NOTIFY.find((known) => known === word));
    // RFC 3461 §4.1: NEVER stands alone
    if (notify.includes(undefined) || (notify.includes('NEVER') && notify.length > 1)) return REPLIES.badArguments;
    return { notify: notify.filter((word) => word !== undefined) };
  }
  if (name === 'ORCPT') {
    // RFC 3461 §4.2: addr-type ";" xtext, 500 characters encoded
    const [, type, text] = /^([a-z0-9-]{1,64});(.{1,500})$/i.exec(value ?? '') ?? [];
    const original = text === undefined || (!smtpUtf8 && !isAscii(text)) ? undefined : type?.toLowerCase() === 'utf-8' ? parseUtf8Address(text) : parseXtext(text);
    return type === undefined || original === undefined ? REPLIES.badArguments : { orcpt: `${type.toLowerCase()};${original}` };
  }
  return REPLIES.unknownParameter;
}

interface Path {
  readonly address: string;
  readonly routed: boolean;
  readonly parameters: readonly (readonly [name: string, value: string | undefined])[];
}

/** `<path> param[=value] ...`; undefined when it is not that, or a parameter stands twice. */
function parsePath(line: string, verb: RegExp): Path | undefined {
  const start = verb.exec(line)?.[0].length;
  if (start === undefined || line[start] !== '<') return undefined;
  let at = start + 1;
  // A quoted local part may hold any of `> @` and spaces; a backslash takes the next character along.
  for (let quoted = false; at < line.length; at++) {
    const c = line[at];
    if (quoted && c === '\\') at += 1;
    else if (c === '"') quoted = !quoted;
    else if (!quoted && (c === '<' || c === ' ' || c === '\t')) return undefined;
    else if (!quoted && c === '>') break;
  }
  if (line[at] !== '>') return undefined;
  const inside = line.slice(start + 1, at);
  // U+FFFD stands where the octets were not UTF-8: the address as it was written is lost.
  if (/[\0-\x1f\x7f-\x9f\ufffd]/.test(inside)) return undefined;
  const rest = line.slice(at + 1);
  if (rest !== '' && !/^[ \t]/.test(rest)) return undefined;
  const parameters = rest.trim().split(/[ \t]+/).filter((text) => text !== '').map((text) => {
    const equals = text.indexOf('=');
    return equals < 0 ? [text.toUpperCase(), undefined] as const : [text.slice(0, equals).toUpperCase(), text.slice(equals + 1)] as const;
  });
  if (new Set(parameters.map(([name]) => name)).size < parameters.length) return undefined;
  return { address: inside, routed: inside.startsWith('@'), parameters };
}

/** RFC 3461 §4: xtext; undefined when it is none or hides a control character. */
function parseXtext(text: string): string | undefined {
  if (!/^(?:[!-*,-<>-~]|\+[0-9A-F]{2})*$/.test(text)) return undefined;
  const clear = text.replaceAll(/\+([0-9A-F]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
  return /[\0-\x1f\x7f-\xff]/.test(clear) ? undefined : clear;
}

/** RFC 6533 §3: utf-8-enc-addr, in any of its three forms; undefined when it is none or hides a control character. */
export function parseUtf8Address(text: string): string | undefined {
  // No xtext: what cannot stand as it is, is `\x{HEX}`; a lone backslash belongs to the plain form of quoted local parts.
  const clear = text.replaceAll(/\\x\{([0-9A-F]{2,6})\}/g, (whole, hex: string) => {
    const point = Number.parseInt(hex, 16);
    return point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff) ? whole : String.fromCodePoint(point);
  });
  return /[\0-\x1f\x7f-\x9f\ufffd]|\\x\{/.test(clear) ? undefined : clear;
}

/** The same, as it may stand in a command; `smtpUtf8`: the peer takes UTF-8 there. */
export function formatUtf8Address(address: string, smtpUtf8: boolean): string {
  return address.replaceAll(smtpUtf8 ? /[\0- +=\\\x7f]/g : /[^!-*,-<>-[\]-~]/gu, (c) => `\\x{${(c.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(2, '0')}}`);
}

const isAscii = (text: string): boolean => /^[\0-\x7f]*$/.test(text);
