// Which header field names a message's campaign, and what is no name.
import t from 'tap';
import { campaignOf, indexHeader } from '../../daemon/mail/index.ts';

const named = (lines: string, field?: string): string | undefined => {
  const raw = Buffer.from(`From: a@b.example\r\n${lines}Subject: x\r\n\r\nX-Campaign: in the body\r\n`);
  return campaignOf(raw, indexHeader(raw), field);
};

t.test('the campaign of a message', async (t) => {
  for (const [lines, expected] of [
    ['', undefined],
    ['X-Campaign-ID: summer-2026\r\n', 'summer-2026'],
    ['x-campaign:  Sommer für alle \r\n', 'Sommer für alle'],
    ['Feedback-ID: black-friday:acme:promo:acmesender\r\n', 'black-friday'],
    ['Feedback-ID: only\r\n', 'only'],
    ['X-Campaign: second\r\nFeedback-ID: third:a:b:c\r\nX-Campaign-ID: first\r\n', 'first'],
    ['X-Campaign-ID: one\r\nX-Campaign-ID: two\r\nX-Campaign: three\r\n', 'three'],
    ['X-Campaign-ID: \r\nX-Campaign: next\r\n', 'next'],
    ['Feedback-ID: :acme:promo:acmesender\r\n', undefined],
    ['X-Campaign-ID: a\r\n\tb\r\n', undefined],
    ['X-Campaign-ID: a\x1b[31mb\r\n', undefined],
    ['X-Campaign-ID: a\u202eb\r\n', undefined],
    [`X-Campaign-ID: ${'x'.repeat(128)}\r\n`, 'x'.repeat(128)],
    [`X-Campaign-ID: ${'x'.repeat(129)}\r\n`, undefined],
  ] as const) t.equal(named(lines), expected, JSON.stringify(lines.slice(0, 60)));
  t.equal(named('X-Campaign-ID: a\r\nX-Mailing: b\r\n', 'X-Mailing'), 'b', 'the field the stream names');
  t.equal(named('X-Campaign-ID: a\r\n', 'X-Mailing'), undefined, 'and no other then');
  t.equal(named('Feedback-ID: a:b:c:d\r\n', 'Feedback-ID'), 'a');
});
