// Notices as their readers see them: each is parsed back by mailparser and by our own reader of reports, and
// its parts are compared octet by octet, for ASCII and for internationalised mail.
import { simpleParser } from 'mailparser';
import t from 'tap';
import { composeDsn, type DsnFacts } from '../../daemon/events/index.ts';
import { readReport } from '../../daemon/feedback/report.ts';
import { indexHeader, indexMime } from '../../daemon/mail/index.ts';

const HEADER = 'From: news@acme.example\r\nTo: lee@example.com\r\nSubject: News\r\n\r\n';
const BODY = 'The story.\r\n.dots\r\n';
const original = (header: string, body = ''): Pick<DsnFacts, 'original' | 'headerOctets' | 'full'> => ({ original: Buffer.from(header + body), headerOctets: Buffer.byteLength(header), full: body !== '' });
const FACTS: DsnFacts = {
  reportingMta: 'relay.acme.example', from: 'mailer-daemon@acme.example', to: 'bounce@acme.example', messageId: '01JDZZ', at: 1_800_000_000_000, arrivedAt: 1_799_990_000_000,
  recipient: 'lee@example.com', action: 'failed', status: '5.1.1', remoteMta: 'mx.example.com', diagnostic: '550 5.1.1 no such user', reason: 'the receiver answered RCPT with 550 5.1.1', ...original(HEADER),
};

/** Types of the parts and their decoded octets; everything a test looks at. */
async function read(facts: DsnFacts): Promise<{ readonly raw: string; readonly types: string; readonly parts: readonly string[]; readonly text: string; readonly subject: string }> {
  const raw = await composeDsn(facts);
  const { leaves } = indexMime(raw, indexHeader(raw));
  const mail = await simpleParser(raw, { keepDeliveryStatus: true });
  const bodies = raw.toString().split(/\r\n--[^\r\n]+\r\n/).slice(1).map((one) => one.slice(one.indexOf('\r\n\r\n') + 4).replace(/\r\n--[^\r\n]+--\r\n$/, ''));
  return { raw: raw.toString(), types: leaves.map(({ type }) => type).join(' '), parts: bodies, text: mail.text ?? '', subject: mail.subject ?? '' };
}

t.test('a failure: fields, header only, ENVID and ORCPT', async (t) => {
  const { raw, types, parts, text, subject } = await read({ ...FACTS, envid: 'QQ=1 a', orcpt: 'rfc822;Lee+x@example.com' });
  t.equal(types, 'text/plain message/delivery-status text/rfc822-headers');
  t.match(raw, /^Content-Type: multipart\/report;\s+report-type="?delivery-status/mi);
  t.match(raw, /^Auto-Submitted: auto-replied\r$/m);
  t.equal(subject, 'Mail could not be delivered');
  t.match(text, /Your message to lee@example\.com could not be delivered/);
  t.equal(parts[1], [
    'Original-Envelope-Id: QQ=1 a', 'Reporting-MTA: dns; relay.acme.example', 'Arrival-Date: Fri, 15 Jan 2027 05:13:20 +0000', '',
    'Original-Recipient: rfc822;Lee+x@example.com', 'Final-Recipient: rfc822; lee@example.com', 'Action: failed', 'Status: 5.1.1', 'Remote-MTA: dns; mx.example.com',
    'Diagnostic-Code: smtp; 550 5.1.1 no such user', 'Last-Attempt-Date: Fri, 15 Jan 2027 08:00:00 +0000', '',
  ].join('\r\n'));
  t.match(parts[2], /^From: news@acme\.example\r\nTo: lee@example\.com\r\nSubject: News/);
  t.notMatch(raw, /The story/);
  t.match(await readReport(Buffer.from(raw)), { kind: 'delivery', recipients: [{ action: 'failed', status: '5.1.1', recipient: 'lee@example.com', reply: { code: 550 } }] });
});

t.test('the whole message comes back octet by octet', async (t) => {
  const full = await read({ ...FACTS, ...original(HEADER, BODY) });
  t.equal(full.types, 'text/plain message/delivery-status message/rfc822');
  t.equal(full.parts[2], `${HEADER}${BODY}`);
  const octets = Buffer.concat([Buffer.from(HEADER), Buffer.from([0xe9, 0xff, 13, 10]), Buffer.from('x'.repeat(900))]);
  t.ok((await composeDsn({ ...FACTS, full: true, original: octets })).includes(octets), '8-bit bodies and long lines');
});

t.test('each action, read by our own reader', async (t) => {
  for (const [action, status] of [['failed', '5.1.1'], ['delayed', '4.2.0'], ['relayed', '2.0.0']] as const) {
    t.match(await readReport(Buffer.from((await read({ ...FACTS, action, status })).raw)), { kind: 'delivery', recipients: [{ action, status }] });
  }
});

t.test('a delay says until when', async (t) => {
  const { raw, text, subject } = await read({ ...FACTS, action: 'delayed', status: '4.2.0', diagnostic: '450 4.2.0 later', until: 1_800_100_000_000 });
  t.equal(subject, 'Mail is delayed');
  t.match(text, /is still waiting[^]*It will be tried again/);
  t.match(raw, /^Action: delayed\r\nStatus: 4\.2\.0\r$/m);
  t.match(raw, /^Will-Retry-Until: Sat, 16 Jan 2027 11:46:40 \+0000\r$/m);
});

t.test('internationalised mail: RFC 6533', async (t) => {
  const header = 'From: news@acme.example\r\nTo: пётр@пример.example\r\nSubject: Привет\r\n\r\n';
  const facts: DsnFacts = { ...FACTS, ...original(header), recipient: 'пётр@пример.example', orcpt: 'utf-8;пётр@пример.example', to: 'возврат@acme.example' };
  const hdrs = await read(facts);
  t.equal(hdrs.types, 'text/plain message/global-delivery-status message/global-headers');
  t.match(hdrs.parts[1], /^Original-Recipient: utf-8;пётр@пример\.example\r\nFinal-Recipient: utf-8; пётр@пример\.example\r$/m);
  t.match(hdrs.parts[2], /Subject: Привет/);
  t.match(hdrs.raw, /^Content-Transfer-Encoding: 8bit\r$/m);
  t.match(hdrs.text, /Your message to пётр@пример\.example/);
  t.match((await read({ ...facts, ...original(header, BODY) })).types, /message\/global$/);
  t.match(await readReport(Buffer.from(hdrs.raw)), { kind: 'delivery', recipients: [{ action: 'failed', status: '5.1.1' }] });
  const plain = await read({ ...FACTS, ...original(header) });
  t.match(plain.types, /message\/global-delivery-status message\/global-headers/, 'a header in UTF-8 is enough');
  t.match(plain.parts[1], /Final-Recipient: rfc822; lee@example\.com/);
});

t.test('a hostile reply stays in its field', async (t) => {
  const { raw } = await read({ ...FACTS, diagnostic: `550 no\r\nStatus: 2.0.0\r\n\r\nAction: delivered ${'y'.repeat(5_000)}`, envid: 'a' });
  t.equal(raw.match(/^(?:Status|Action):/gm)?.length, 2);
  t.ok(raw.split('\r\n').every((line) => line.length <= 998));
});
