// Messages, people and keys for the tests of compose: real keys in a real keyring, stage types made by
// a cast because their own rooms are not what is tested here.
import { createSecretKey } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { compose, openToken, render, type ComposeContext } from '../../daemon/compose/index.ts';
import type { Admitted, Cleared, Composed, Rendered, Tracking } from '../../daemon/mail/index.ts';
import { newId, openKeyring, type Keyring } from '../../daemon/runtime/index.ts';
import type { SendingDomain, Stream } from '../../daemon/settings/index.ts';

export const PAGES = 'https://news.acme.example';
export const DOMAIN: SendingDomain = { name: 'acme.example', dkim: [], returnPath: 'bounce.acme.example', pages: PAGES };
export const STREAM: Stream = {
  id: 'news', purpose: 'newsletter', class: 'marketing', consentRequired: true, retryForMs: 1, priority: 'normal', legalBasis: 'gdpr_6_1_a', textLinks: false, thirdPartyTrackers: 'strip', delayNoticeMs: 14_400_000, bouncesTo: '',
};
export const RECEIVED = 'Received: by mx.postern.example (Postern) with ESMTPSA;\r\n Mon, 23 Nov 2026 04:10:00 +0000\r\n';
export const ALL: Tracking = { opens: 'individual', clicks: 'individual' };
export const NOW = Date.UTC(2026, 10, 23, 4, 10);

export function keyring(dir: string): Keyring {
  const ring = openKeyring(dir, createSecretKey(Buffer.alloc(32, 7)));
  ring.load(['acme', 'other']);
  return ring;
}

export const crlf = (text: string): Buffer => Buffer.from(text.replaceAll(/\r?\n/g, '\r\n'));

/** A complete message; `extra` is more header. */
export function letter(contentHeader: string, body: string | Buffer, extra = ''): Buffer {
  const head = `From: Acme <news@acme.example>\nTo: x@y.example\nSubject: s\nDate: Mon, 23 Nov 2026 04:09:00 +0000\nMessage-ID: <1@acme.example>\n${extra}MIME-Version: 1.0\n${contentHeader}\n`;
  return Buffer.concat([crlf(head), typeof body === 'string' ? crlf(body) : body]);
}

export type Coding = '8bit' | 'quoted-printable' | 'base64';
export const CODINGS: readonly Coding[] = ['8bit', 'quoted-printable', 'base64'];

/** The text in a transfer encoding, written with other code than the one under test. */
export function encoded(text: Buffer, coding: Coding): Buffer {
  if (coding === '8bit') return text;
  if (coding === 'base64') return Buffer.from(`${text.toString('base64').replaceAll(/.{76}/g, '$&\r\n')}\r\n`);
  const lines = text.toString('latin1').split('\r\n').map((line) => {
    const units = [...line].map((c, i) => (/[!-<>-~]/.test(c) || ((c === ' ' || c === '\t') && i < line.length - 1) ? c : `=${c.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`));
    let out = '';
    let column = 0;
    for (const unit of units) {
      if (column + unit.length > 75) {
        out += '=\r\n';
        column = 0;
      }
      out += unit;
      column += unit.length;
    }
    return out;
  });
  return Buffer.from(lines.join('\r\n'), 'latin1');
}

export function decoded(octets: Buffer, coding: Coding): string {
  const text = octets.toString('latin1');
  if (coding === '8bit') return text;
  if (coding === 'base64') return Buffer.from(text, 'base64').toString('latin1');
  return text.replaceAll('=\r\n', '').replaceAll(/=([0-9A-F]{2})/gi, (_, hex: string) => String.fromCharCode(parseInt(hex, 16)));
}

export const html = (text: Buffer | string, coding: Coding = '8bit', charset = 'utf-8'): Buffer =>
  letter(`Content-Type: text/html; charset=${charset}\nContent-Transfer-Encoding: ${coding}\n`, encoded(typeof text === 'string' ? crlf(text) : text, coding));

export function composed(raw: Buffer, more: Partial<ComposeContext> = {}, origin: Partial<Admitted['origin']> = {}): Composed {
  const admitted = {
    id: newId(NOW), origin: { tenant: 'acme', stream: 'news', credential: 'app', kind: 'relay', ...origin }, raw, receivedAt: NOW, protocol: 'ESMTPSA',
    envelope: { mailFrom: 'news@acme.example', smtpUtf8: false, body: '8BITMIME' }, recipients: [],
  } as unknown as Admitted;
  return compose(admitted, { hostname: 'mx.postern.example', stream: STREAM, domain: DOMAIN, receivedFields: RECEIVED, ...more });
}

export const hashes = (n: number) => ({ consent: Buffer.alloc(16, n), suppression: Buffer.alloc(16, n + 1), family: Buffer.alloc(16, n + 2) });

export function copy(message: Composed, ring: Keyring, tracking: Tracking, more: { readonly index?: number; readonly unsubscribable?: boolean; readonly stream?: Stream } = {}): Rendered {
  const { id, raw, origin, envelope, receivedAt } = message;
  // As the spool gives it back.
  const plan = JSON.parse(JSON.stringify(message.plan)) as Composed['plan'];
  const index = more.index ?? 0;
  const cleared = {
    id, index, message: { origin, envelope, plan, sizeBytes: raw.length, receivedAt }, tracking, evidence: '', policy: '', unsubscribable: more.unsubscribable ?? true,
    recipient: { wire: 'x@y.example', domain: 'y.example', hashes: hashes(index), evidence: '', attempts: 0, nextAt: 0, expiresAt: 0, held: false, lastReply: '' },
  } as unknown as Cleared;
  return render(cleared, raw, { tenant: origin.tenant, keys: ring.tenant(origin.tenant), domain: DOMAIN, stream: more.stream ?? STREAM });
}

export const bytes = (r: Rendered): Buffer => Buffer.concat([r.header, Buffer.from('\r\n'), ...r.body]);
export const body = (r: Rendered): Buffer => Buffer.concat(r.body);

const PIXEL = /<img src="https:\/\/news\.acme\.example\/o\/[\w-]+" width="1" height="1" alt="" border="0" align="left" style="margin-top:-1px" {0,2}>/g;

/** A rendered text with every edit taken back, opened tokens being the only source of what stood there. */
export function undone(text: string, ring: Keyring): { readonly text: string; readonly targets: readonly string[] } {
  const targets: string[] = [];
  const back = text.replaceAll(PIXEL, '').replaceAll(/https:\/\/news\.acme\.example\/[cf]\/([\w-]+)/g, (_, token: string) => {
    const target = openToken(ring, token)?.claim.target;
    if (target === undefined) throw new Error('a token that does not open');
    targets.push(target);
    return Buffer.from(target).toString('latin1');
  });
  return { text: back, targets };
}

/**
 * True when every octet that no edit covers stands in the copy as it was submitted, undecoded, in its
 * order: first the text before the first edit, last the text after the last, one short edit between each.
 */
export function gapsStand({ raw, plan }: Composed, out: Buffer, kinds?: ReadonlySet<string>): boolean {
  const edits = plan.parts.flatMap((part) => part.edits).filter(({ kind }) => kinds?.has(kind) !== false).toSorted((a, b) => a.start - b.start);
  let [from, at] = [plan.bodyStart, 0];
  for (const [i, edit] of edits.entries()) {
    const gap = raw.subarray(from, edit.start);
    const found = out.indexOf(gap, at);
    if (found < 0 || (i === 0 ? found !== 0 : found - at > 3_000)) return false;
    [from, at] = [edit.end, found + gap.length];
  }
  const tail = raw.subarray(from);
  return out.length - tail.length >= at && out.subarray(out.length - tail.length).equals(tail);
}

const CORPUS = new URL('../../../shared/corpus/newsletters/', import.meta.url);

/** Name and CRLF text of the corpus' newsletters; empty where there is no corpus. */
export function newsletters(suffix: '.html' | '.txt' = '.html'): readonly (readonly [string, Buffer])[] {
  if (!existsSync(CORPUS)) return [];
  return readdirSync(CORPUS).filter((name) => name.endsWith(suffix)).map((name) => [name, crlf(readFileSync(new URL(name, CORPUS), 'utf8'))]);
}
