// Jurisdictions through the whole relay: whom a profile refuses at RCPT, what it asks of the text at the
// end of DATA, how far it lets a copy be tracked, and what becomes of a rule a tenant only tries out.
import t from 'tap';
import { type Grounds, serveDaemon } from '../lib/daemon.ts';

const LINK = '<a href="https://read.example/story">the story</a>';
const SHADOW = 'shadow: [profile-footer-sender, profile-footer-contact]';

const { mx, grounds } = await serveDaemon(t, { 'a@x.de': 'individual', 'a@x.fr': 'individual', 'a@x.nl': 'individual', 'a@x.ca': 'individual' }, ({ edit }) => {
  edit('tenants/demo.yaml', (text) => text.replace(SHADOW, 'shadow: []'));
});

const send = (to: string | readonly string[], footer: string): ReturnType<Grounds['send']> => grounds.send({
  from: 'news@demo.example', to: typeof to === 'string' ? to : 'readers@demo.example', subject: 'The letter',
  html: `<html><body><p>${LINK}<p>${footer}</body></html>`, text: 'The story.', envelope: { from: 'news@demo.example', to: [to].flat() },
});
const refusals = async (): Promise<string> =>
  (await (await fetch(`http://127.0.0.1:${grounds.ports.metrics}/metrics`)).text()).split('\n').filter((line) => /refused\w*\{/.test(line)).join('\n');

t.test('T33: each missing element is refused by its own rule, of all recipients the strictest', async (t) => {
  const sender = 'Demo&nbsp;Tenant';
  const whole = `${sender}, privacy@demo.example`;
  for (const [to, footer, says] of [
    ['a@x.de', whole, /^550 5\.7\.1 no double opt-in is on record, and profile de asks for it \(rule profile-double-opt-in, ref \w+\)/],
    ['a@x.nl', 'privacy@demo.example', /\(rule profile-footer-sender,/],
    ['a@x.nl', sender, /\(rule profile-footer-contact,/],
    ['a@x.nl', whole, /^250 /],
    [['a@x.nl', 'a@x.ca'], whole, /^550 5\.7\.1 the text does not show contact\.postal, which profile ca asks for \(rule profile-footer-postal,/],
    [['a@x.nl', 'a@x.ca'], `${whole}<br>1 Example<br>Street<br>Example Town`, /^250 /],
  ] as const) t.match((await send(to, footer)).reply, says);
});

t.test('fr: without a choice of its own no click is followed; nl: as the person chose', async (t) => {
  const copy = async (to: string): Promise<string> => {
    const { id } = await send(to, 'Demo tenant, demo.example/privacy');
    t.equal((await grounds.event(id, ['delivered'])).event, 'delivered');
    return mx.messages.findLast((message) => message.to === to)?.body.toString().replaceAll('=\r\n', '').replaceAll('=3D', '=') ?? '';
  };
  t.match(await copy('a@x.fr'), LINK);
  const nl = await copy('a@x.nl');
  t.notMatch(nl, LINK);
  t.match(nl, /\/c\//);
});

t.test('a rule that is only tried out refuses nobody, is told, and is no refusal in the metrics', async (t) => {
  grounds.edit('tenants/demo.yaml', (text) => text.replace('shadow: []', 'shadow: [profile-double-opt-in, profile-footer-sender]'));
  await grounds.control('reload');
  const before = await refusals();
  const { id, reply } = await send('a@x.de', 'privacy@demo.example');
  t.match(reply, /^250 /);
  const { events } = await grounds.control('trace', { id }) as { events: readonly { event: string; rule?: string; reason?: string; person?: string }[] };
  t.match(events.filter(({ event }) => event === 'soft-refused'), [
    { rule: 'profile-double-opt-in', reason: 'shadow', person: /^[0-9a-f]{12}$/ }, { rule: 'profile-footer-sender', reason: 'shadow' },
  ]);
  t.equal((await grounds.event(id, ['delivered'])).event, 'delivered', 'nor does the attempt refuse it');
  t.equal(await refusals(), before);
  t.match((await send('a@x.de', 'nothing')).reply, /\(rule profile-footer-contact,/, 'what is not tried out holds');
});
