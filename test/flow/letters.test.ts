// The letter that asks for a confirmation, and keys of links that change, through the whole relay: who may be
// invited, what the letter is, that the click on it is the consent, and that old mail's links go on working.
import t from 'tap';
import { type Grounds, serveDaemon } from '../lib/daemon.ts';
import { indexHeader, indexMime, decodeQp, parseAddress } from '../../daemon/mail/index.ts';
import { openStores } from '../../daemon/main.ts';
import { openLog } from '../../daemon/runtime/index.ts';

t.setTimeout(60_000);
const [asked, gone, known, reader] = ['asked@example.com', 'gone@example.com', 'known@example.com', 'reader@example.com'] as const;
const { mx, grounds } = await serveDaemon(t, { [known]: 'none', [reader]: 'individual' }, async ({ root }) => {
  const stores = await openStores(root, openLog('silent'));
  const policyHash = stores.live.current().tenants.get('demo')?.policies[0]?.hash ?? '';
  await stores.ledger.giveAll('demo', [asked, gone].map((address) => ({
    hashes: stores.ledger.hashes('demo', parseAddress(address)), purpose: 'newsletter', state: 'pending' as const, legalBasis: 'gdpr_6_1_a', policyHash,
    method: 'form', evidence: { source: 'sign-up form', time: Date.now() }, tracking: { opens: 'none' as const, clicks: 'none' as const }, by: 'test',
  })));
  await stores.ledger.suppress('demo', { hashes: stores.ledger.hashes('demo', parseAddress(gone)), scope: 'all', cause: 'objection', by: 'test' });
  await stores.close();
});

const invite = (rcpt: string, lang = 'en'): Promise<unknown> => grounds.control('consent.invite', { tenant: 'demo', rcpt, purpose: 'newsletter', lang });
const copyTo = (to: string): Buffer => mx.messages.findLast((one) => one.to === to)?.body ?? Buffer.alloc(0);
const letter = (to: string): Parameters<Grounds['send']>[0] => ({ from: 'news@demo.example', to, subject: 'The letter', text: 'x', html: '<p><a href="https://demo.example/story">the story</a></p>' });
const onPages = (url: string): string => url.replace(/^https?:\/\/[^/]+/, `http://127.0.0.1:${grounds.ports.pages}`);

t.test('nobody is invited who did not ask, who objected or who said yes already', async (t) => {
  for (const [who, why] of [['stranger@example.com', /invitation-not-pending/], [gone, /suppressed-objection/], [known, /invitation-not-pending/]] as const) await t.rejects(invite(who), why);
  await t.rejects(invite(asked, 'xx'), /lang: expected one of /);
  t.equal(mx.messages.length, 0);
  t.match((await grounds.send(letter(asked))).reply, /^550 5\.7\.1 .*consent-pending/, 'a pending yes is no yes');
});

t.test('the letter comes signed, untracked and plain, and the click on its page is the consent', async (t) => {
  const { message_id: id } = await invite(asked) as { message_id: string };
  t.match(await grounds.event(id, ['delivered']), { event: 'delivered' });
  const raw = copyTo(asked);
  const index = indexHeader(raw);
  const head = raw.toString('latin1', 0, index.bodyStart);
  for (const field of [/^Auto-Submitted: auto-generated\r$/m, /^DKIM-Signature: /m, /^Content-Language: en\r$/m, /^From: .*@demo\.example>?\r$/m, /^To: .*asked@example\.com/m]) t.match(head, field);
  t.notMatch(head, /^List-Unsubscribe/m);
  const [leaf] = indexMime(raw, index).leaves;
  const text = leaf === undefined ? '' : leaf.encoding === 'quoted-printable' ? decodeQp(raw, leaf.range.start, leaf.range.end)?.text ?? '' : raw.toString('latin1', leaf.range.start, leaf.range.end);
  const link = /\bhttps?:\/\/\S+\/confirm\/\S+/.exec(text)?.[0] ?? '';
  t.notMatch(text, /\/[co]\//, 'nothing counts it');
  const page = await fetch(onPages(link));
  t.equal(page.status, 200);
  t.match((await grounds.send(letter(asked))).reply, /consent-pending/, 'looking is no yes');
  t.equal((await fetch(onPages(link), { method: 'POST', body: 'confirm=yes', headers: { 'content-type': 'application/x-www-form-urlencoded' } })).status, 200);
  const { id: sent, reply } = await grounds.send(letter(asked));
  t.match(await grounds.event(sent, ['delivered']), { event: 'delivered' }, reply);
  await t.rejects(invite(asked), /invitation-not-pending/, 'and nobody is asked twice');
});

t.test('a key rotated: old mail\'s links work on, until the key is retired', async (t) => {
  const unsubscribeLink = async (): Promise<string> => {
    mx.messages.length = 0;
    const { id } = await grounds.send(letter(reader));
    await grounds.event(id, ['delivered']);
    return onPages(/^List-Unsubscribe: <(\S+)>/m.exec(copyTo(reader).toString('latin1').replaceAll('\r\n ', ' '))?.[1] ?? '');
  };
  const before = await unsubscribeLink();
  const { opens: [, old] } = await grounds.control('keys.rotate', { tenant: 'demo' }) as { opens: string[] };
  const after = await unsubscribeLink();
  const seen = async (link: string): Promise<boolean> => (await (await fetch(link)).text()).includes('Demo tenant');
  t.same([await seen(before), await seen(after)], [true, true]);
  await t.rejects(grounds.control('keys.retire', { tenant: 'demo', key: old }), /say --yes/);
  await grounds.control('keys.retire', { tenant: 'demo', key: old, yes: true });
  const broken = await fetch(`http://127.0.0.1:${grounds.ports.pages}/u/forged`);
  const retired = await fetch(before);
  t.same([retired.status, await retired.text()], [broken.status, await broken.text()], 'what a retired key sealed is like what nobody sealed');
  t.ok(await seen(after));
  const { tenants } = await grounds.control('ledger.verify', { tenant: 'demo' }) as { tenants: { ok: boolean; leaves: number }[] };
  t.match(tenants, [{ ok: true }]);
  const told = await Promise.all([2, 1].map(async (back) => (await grounds.control('ledger.receipt', { tenant: 'demo', leaf: (tenants[0]?.leaves ?? 0) - back }) as { payload: string }).payload));
  t.match(told.map((payload) => (JSON.parse(payload) as { act: string }).act), ['token-key-made', 'token-key-retired'], 'both stand in the log');
});

t.test('a placeholder that nothing fills in reaches no reader', async (t) => {
  const html = '<p><a href="{{postern.unsubscribe}}">Leave</a></p>';
  const raw = (charset: string): string => `From: news@demo.example\r\nTo: ${reader}\r\nSubject: x\r\nContent-Type: text/html; charset=${charset}\r\n\r\n${html}\r\n`;
  const send = (charset: string): ReturnType<Grounds['send']> => grounds.send({ envelope: { from: 'news@demo.example', to: reader }, raw: raw(charset) });
  const before = mx.messages.length;
  t.match((await send('shift_jis')).reply, /^554 5\.6\.0 a placeholder stands where nothing is filled in, in part 1: its charset .* \(rule message-placeholder-unfilled, ref \w+\)/);
  t.match(await grounds.event((await send('utf-8')).id, ['delivered']), { event: 'delivered' });
  t.equal(mx.messages.length, before + 1);
  t.notMatch(copyTo(reader).toString(), '{{');
});
