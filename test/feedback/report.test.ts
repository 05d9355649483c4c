// Reading reports: what a message that came back is, and what a report says of each recipient. What follows
// from it is in flow/feedback.test.ts; whom it is about no report decides.
import t from 'tap';
import { judgeReport } from '../../daemon/feedback/returned.ts';
import { fieldText, isAutomatic, readReport, reportedRecipients } from '../../daemon/feedback/report.ts';
import { shippedBounces } from '../../daemon/settings/index.ts';

const crlf = (text: string): Buffer => Buffer.from(text.replaceAll('\n', '\r\n'));
const mixed = (kind: string, parts: readonly string[]): Buffer => crlf(`From: x@y.example\nSubject: s\nMIME-Version: 1.0\nContent-Type: multipart/report; report-type=${kind}; boundary=b\n\n${parts.map((part) => `--b\n${part}\n`).join('')}--b--\n`);
const status = (groups: string, type = 'message/delivery-status'): Buffer => mixed('delivery-status', ['\nSorry.', `Content-Type: ${type}\n\nReporting-MTA: dns; mx.example\n\n${groups}`, 'Content-Type: text/rfc822-headers\n\nSubject: returned']);
const GOOD = 'Final-Recipient: rfc822; jo@x.example\nAction: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 5.1.1 no such user';

t.test('what a message is', async (t) => {
  const table: readonly [string, Buffer, object][] = [
    ['RFC 3464', status(GOOD), { kind: 'delivery', recipients: [{ action: 'failed', status: '5.1.1', recipient: 'jo@x.example', reply: { code: 550, enhanced: '5.1.1' } }], returned: /Subject: returned/ }],
    ['RFC 6533', status(GOOD.replace('rfc822; jo', 'utf-8; jö'), 'message/global-delivery-status'), { kind: 'delivery', recipients: [{ action: 'failed' }] }],
    ['RFC 5965', mixed('feedback-report', ['\nx', 'Content-Type: message/feedback-report\n\nFeedback-Type: Abuse\nUser-Agent: x', 'Content-Type: message/rfc822\n\nSubject: mine']), { kind: 'complaint', type: 'abuse', returned: /Subject: mine/ }],
    ['RFC 3834', crlf('From: jo@x.example\nAuto-Submitted: auto-replied (vacation)\n\naway'), { kind: 'automatic' }],
    ['older programs', crlf('From: jo@x.example\nPrecedence: auto_reply\n\naway'), { kind: 'automatic' }],
    ['a person', crlf('From: jo@x.example\nAuto-Submitted: no\n\nhello'), { kind: 'other' }],
    ['a report that says it is automatic', Buffer.concat([crlf('Auto-Submitted: auto-replied\n'), status(GOOD)]), { kind: 'delivery' }],
    ['no MIME', Buffer.from([0, 255, 13, 10, 13, 10, 0]), { kind: 'other' }],
    ['nothing', Buffer.alloc(0), { kind: 'other' }],
  ];
  for (const [name, raw, expected] of table) t.match(await readReport(raw), expected, name);
  t.equal(isAutomatic(crlf('Auto-Submitted: auto-generated; x=y\n\n')), true);
  t.equal(fieldText(crlf('Subject: a\n b\nSubject: c\n\n'), 'subject'), 'a b');
});

t.test('the fields of a recipient', async (t) => {
  const one = (text: string) => reportedRecipients(text)[0];
  t.match(one('Action: FAILED (because)\nFinal-Recipient: RFC822;<jo@x.example>\nStatus: 5.1.1 (bad)'), { action: 'failed', recipient: 'jo@x.example', status: '5.1.1', reply: undefined, diagnostic: '' });
  t.match(one('Final-Recipient: rfc822; a@b\nAction: delayed\nDiagnostic-Code: smtp; 450-4.2.0 one\n 450 4.2.0 two'), { action: 'delayed', reply: { code: 450, enhanced: '4.2.0' } }, 'folded');
  t.match(one('Final-Recipient: rfc822; a@b\nAction: jumped\nStatus: 9.9.9\nDiagnostic-Code: x-unix; 67'), { action: 'unknown', status: '', reply: undefined, diagnostic: '67' });
  t.same(reportedRecipients('Reporting-MTA: dns; mx\n\nX: y\n\n'), [], 'groups about nobody are none');
  t.equal(reportedRecipients(`${GOOD}\n\n`.repeat(10_000)).length, 101, 'and there is an end to them');
});

t.test('who is condemned: everybody failed for good, and no policy spoke', async (t) => {
  const rules = shippedBounces();
  const judged = (text: string): { readonly class: string; readonly dead: boolean } => judgeReport(rules, reportedRecipients(text)).judged;
  t.match(judged(GOOD), { class: 'bad-mailbox', dead: true });
  t.match(judged(`${GOOD}\n\n${GOOD.replace('failed', 'delivered')}`), { dead: false }, 'a list that reached somebody');
  for (const text of [GOOD.replaceAll('5.1.1', '5.7.1'), GOOD.replace('Status: 5.1.1', 'Status: 5.7.1'), GOOD.replace('Action: failed', 'Action: delayed'), GOOD.replaceAll('5.1.1', '4.1.1').replace('550', '450'), 'Final-Recipient: rfc822; a@b\nAction: failed', GOOD.replaceAll('5.1.1', '5.1.2').replace('no such user', 'host unknown'), GOOD.replaceAll('5.1.1', '5.2.2').replace('no such user', 'mailbox full')]) {
    t.equal(judged(text).dead, false, text);
  }
  t.same(judgeReport(rules, []).judged, { class: 'other', dead: false });
});
