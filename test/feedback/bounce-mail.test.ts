// What a message that came back says: the labelled corpus as a whole, makes of bounces by themselves, and what
// is no bounce. The labels are another program's opinion; where ours differs it is counted as wrong here.
import { existsSync, readFileSync } from 'node:fs';
import t from 'tap';
import { messagesIn, readBounce, type BouncedMail } from '../../daemon/feedback/index.ts';
import { shippedBounces } from '../../daemon/settings/index.ts';

const CORPUS = new URL('../../../shared/corpus/bounces/', import.meta.url);
const skip = existsSync(CORPUS) ? false : 'SKIPPED: no bounces at ../shared/corpus: how many are understood is NOT known';
if (skip !== false) t.comment(skip);
t.setTimeout(60_000);
const rules = shippedBounces();
const read = async (text: string): Promise<BouncedMail> => (await Promise.all(messagesIn(Buffer.from(text)).map((raw) => readBounce(raw, rules))))[0] ?? { kind: 'other', recipients: [] };

interface Label {
  readonly reason: string;
  readonly hard: boolean;
}

/** Where we are sure that a label is wrong. */
const DEVIATIONS: Readonly<Record<string, readonly Label[]>> = {
  // The very words of rhost-aol-06, which is labelled notaccept: an MX of "." as a Postfix older than RFC 7505 tells of it.
  'lhost-postfix-17.eml': [{ reason: 'notaccept', hard: true }],
};

t.test('of the labelled bounces at least 97 in a hundred are told hard or not, and 90 why', { skip }, async (t) => {
  const labels = JSON.parse(readFileSync(new URL('labels.json', CORPUS), 'utf8')) as Readonly<Record<string, readonly Label[]>>;
  let [all, hard, reason] = [0, 0, 0];
  for (const [file, labelled] of Object.entries(labels)) {
    const wanted = DEVIATIONS[file] ?? labelled;
    const found = (await Promise.all(messagesIn(readFileSync(new URL(file, CORPUS))).map((raw) => readBounce(raw, rules)))).flatMap(({ recipients }) => recipients);
    for (const [i, label] of wanted.entries()) {
      all++;
      if (found[i]?.hard === label.hard) hard++;
      if (found[i]?.reason === label.reason) reason++;
      else t.comment(`${file} ${i}: labelled ${label.reason}, read as ${found[i]?.reason ?? 'nothing'}`);
    }
  }
  const [hardShare, reasonShare] = [(100 * hard) / all, (100 * reason) / all];
  t.comment(`${all} recipients of ${Object.keys(labels).length} messages: hard or not ${hardShare.toFixed(1)} %, reason ${reasonShare.toFixed(1)} %`);
  t.ok(all >= 282 && hardShare >= 97, `hard or not: ${hardShare.toFixed(1)} %`);
  t.ok(reasonShare >= 90, `reason: ${reasonShare.toFixed(1)} %`);
});

const from = 'From: MAILER-DAEMON@mx.example\nSubject: Undelivered Mail Returned to Sender\n';
const report = (fields: string): string => `${from}MIME-Version: 1.0\nContent-Type: multipart/report; report-type=delivery-status; boundary=b\n\n--b\n\nSorry.\n--b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; mx.example\n\n${fields}\n\n--b--\n`;

t.test('reports and prose, each recipient by itself and in order', async (t) => {
  const table: readonly [string, string, string, readonly (readonly [string, string, string, string, boolean])[]][] = [
    ['a report', report('Final-Recipient: rfc822; a@x.example\nAction: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 5.1.1 <a@x.example>... User unknown\n\nFinal-Recipient: rfc822; b@x.example\nAction: failed\nStatus: 5.2.2\nDiagnostic-Code: smtp; 552 5.2.2 Mailbox full'), 'bounce', [['a@x.example', '5.1.1', '550', 'userunknown', true], ['b@x.example', '5.2.2', '552', 'mailboxfull', false]]],
    ['a delay', report('Final-Recipient: rfc822; a@x.example\nAction: delayed\nStatus: 4.4.1\nDiagnostic-Code: smtp; connect to mx.x.example[192.0.2.1]:25: Connection refused'), 'delay', [['a@x.example', '4.4.1', '', 'networkerror', false]]],
    ['a success', report('Final-Recipient: rfc822; a@x.example\nAction: relayed\nStatus: 2.0.0'), 'success', [['a@x.example', '2.0.0', '', 'delivered', false]]],
    ['the mailbox is called spam@', report('Final-Recipient: rfc822; spam@virus.example\nAction: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 5.1.1 <spam@virus.example>: no such user here'), 'bounce', [['spam@virus.example', '5.1.1', '550', 'userunknown', true]]],
    ['4.x.x condemns nobody', report('Final-Recipient: rfc822; a@x.example\nAction: failed\nStatus: 4.4.3\nDiagnostic-Code: smtp; Host unknown'), 'bounce', [['a@x.example', '4.4.3', '', 'networkerror', false]]],
    ['but a mailbox unknown until its mail was given up', report('Final-Recipient: rfc822; a@x.example\nAction: failed\nStatus: 4.1.1\nDiagnostic-Code: smtp; 450 4.1.1 <a@x.example>: Recipient address rejected: User unknown'), 'bounce', [['a@x.example', '4.1.1', '450', 'userunknown', true]]],
    ['while it waits it is not', report('Final-Recipient: rfc822; a@x.example\nAction: delayed\nStatus: 4.1.1\nDiagnostic-Code: smtp; 450 4.1.1 <a@x.example>: Recipient address rejected: User unknown'), 'delay', [['a@x.example', '4.1.1', '450', 'userunknown', false]]],
    ['Oracle Messaging Server: an address was rejected', `${from}\nYour message cannot be delivered to the following recipients:\n\n  Recipient address: a@x.example\n  Reason: Remote SMTP server has rejected address\n  Diagnostic code: smtp;550 <a@x.example>: User unknown\n`, 'bounce', [['a@x.example', '', '550', 'userunknown', true]]],
    ['qmail', 'From: MAILER-DAEMON@q.example\nSubject: failure notice\n\nHi. This is the qmail-send program at q.example.\nI\'m afraid I wasn\'t able to deliver your message to the following addresses.\n\n<a@x.example>:\n192.0.2.1 does not like recipient.\nRemote host said: 550 5.1.1 no such user\nGiving up on 192.0.2.1.\n\n<b@x.example>:\nSorry, I couldn\'t find any host named x.example. (#5.1.2)\n\n--- Below this line is a copy of the message.\n\nReturn-Path: <c@y.example>\nTo: <d@z.example>\n', 'bounce', [['a@x.example', '5.1.1', '550', 'userunknown', true], ['b@x.example', '5.1.2', '', 'hostunknown', true]]],
    ['Exim', 'From: Mailer-Daemon@e.example\nX-Failed-Recipients: a@x.example\nAuto-Submitted: auto-replied\nSubject: Mail delivery failed: returning message to sender\n\nThis message was created automatically by mail delivery software.\n\n  a@x.example\n    host mx.x.example [192.0.2.1]\n    SMTP error from remote mail server after initial connection:\n    554 5.7.1 No PTR record found\n\n------ This is a copy of the message, including all the headers. ------\n\nSubject: mailbox full\n', 'bounce', [['a@x.example', '5.7.1', '554', 'requireptr', false]]],
    ['an answer', 'From: Jo <jo@x.example>\nSubject: Re: News\nAuto-Submitted: auto-replied\n\nI am away until Friday; 550 of you wrote.\n', 'auto-reply', [['jo@x.example', '', '', 'vacation', false]]],
    ['a complaint', 'From: fbl@x.example\nSubject: complaint\nMIME-Version: 1.0\nContent-Type: multipart/report; report-type=feedback-report; boundary=b\n\n--b\n\nx\n--b\nContent-Type: message/feedback-report\n\nFeedback-Type: abuse\nOriginal-Rcpt-To: <a@x.example>\n\n--b--\n', 'complaint', [['a@x.example', '', '', 'feedback', false]]],
    ['a letter', 'From: Jo <jo@x.example>\nSubject: Lunch?\n\nMy mailbox is full of 550 letters.\n', 'other', []],
  ];
  for (const [name, text, kind, recipients] of table) {
    const found = await read(text);
    t.equal(found.kind, kind, name);
    t.same(found.recipients.map((one) => [one.address, one.status, one.reply, one.reason, one.hard]), recipients, name);
  }
});

t.test('an mbox holds several; whatever the octets are there is an answer, soon', async (t) => {
  const one = `${from}\n<a@x.example>: user unknown\n`;
  t.equal(messagesIn(Buffer.from(`From x Thu Apr 29 23:34:45 2015\n${one}\nFrom y Thu Apr 29 23:34:46 2015\n${one}`)).length, 2);
  t.equal(messagesIn(Buffer.from(one.replaceAll('\n', '\r\n'))).length, 1);
  t.equal(messagesIn(Buffer.alloc(0)).length, 1, 'an empty file is a message that says nothing');
  const hostile = ['', '\0', `${from}\n${'<a@x.example>:\n'.repeat(20_000)}`, `${from}\n${'a'.repeat(1_000_000)}`, `${from}\n${'@'.repeat(300_000)}`, `${from}\n${'550 '.repeat(200_000)}`, `${from}\n${'mailbox '.repeat(100_000)}`, report(`Final-Recipient: ${'x'.repeat(500_000)}\nAction: failed`), report('Final-Recipient: rfc822;a@x\nAction: failed\n\n'.repeat(5_000)), `${from}\n{"notificationType":${'{'.repeat(100_000)}`];
  for (const text of hostile) {
    const started = performance.now();
    const { recipients } = await read(text);
    t.ok(recipients.length <= 100);
    t.comment(`${JSON.stringify(text.slice(-20))}: ${(performance.now() - started).toFixed(0)} ms`);
  }
});
