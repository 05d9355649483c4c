// The outbound session against a scripted MX: every phase with every fault, and bytes that must arrive exact.
import t from 'tap';
import * as fc from 'fast-check';
import { SMTPServer } from 'smtp-server';
import { connectSession, parseExtensions, type ConnectOptions, type Letter, type OutboundSession } from '../../daemon/smtp/session.ts';
import { stuffDots } from '../../daemon/smtp/dots.ts';
import { ReplyReader } from '../../daemon/smtp/reply-reader.ts';
import type { Reply } from '../../daemon/mail/index.ts';
import { startMx, type Answer, type Mx, type MxPhase, type MxScript } from '../lib/mx.ts';

const QUICK = { connectMs: 500, tlsMs: 150, greetMs: 150, mailMs: 150, rcptMs: 150, dataMs: 150, blockMs: 150, finalMs: 150, quitMs: 100 };
const open = (mx: { port: number }, more: Partial<ConnectOptions> = {}) => connectSession({
  host: '127.0.0.1', port: mx.port, helo: 'out.example', tls: { mode: 'opportunistic', servername: 'mx.example' }, timeouts: QUICK, ...more,
});
async function session(mx: { port: number }, more: Partial<ConnectOptions> = {}): Promise<OutboundSession> {
  const connected = await open(mx, more);
  if (connected.kind !== 'session') throw new Error(JSON.stringify(connected));
  return connected.session;
}
const letter = (body: string | Buffer | readonly Buffer[] = 'Subject: x\r\n\r\nhello\r\n', more: Partial<Letter> = {}): Letter => {
  const chunks = Array.isArray(body) ? body as readonly Buffer[] : [Buffer.isBuffer(body) ? body : Buffer.from(body as string)];
  return { from: 'a@sender.example', recipient: 'b@mx.example', smtpUtf8: false, body8bit: false, size: Buffer.concat(chunks).length, chunks, ...more };
};
async function withMx(script: MxScript, run: (mx: Mx) => Promise<void>): Promise<void> {
  const mx = await startMx(script);
  try { await run(mx); } finally { await mx.close(); }
}

t.test('dots', async (t) => {
  const unstuff = (wire: Buffer): Buffer => {
    const text = wire.toString('latin1');
    const end = text === '.\r\n' ? 0 : text.indexOf('\r\n.\r\n') + 2;
    if (end !== text.length - 3) throw new Error('the end mark is not at the end alone');
    return Buffer.from(text.slice(0, end).replace(/(^|\r\n)\./g, '$1'), 'latin1');
  };
  fc.assert(fc.property(fc.array(fc.array(fc.constantFrom('.', '\r\n', '\r', '\n', 'a', '..', '\r\n.', '.\r\n'), { maxLength: 6 }).map((p) => Buffer.from(p.join(''))), { maxLength: 8 }), (chunks) => {
    const whole = Buffer.concat(chunks);
    const expected = whole.length === 0 || whole.toString('latin1').endsWith('\r\n') ? whole : Buffer.concat([whole, Buffer.from('\r\n')]);
    return unstuff(Buffer.concat(stuffDots(chunks))).equals(expected);
  }), { numRuns: 2_000 });
  const plain = Buffer.from('a\r\nb. c\r\n');
  t.equal(stuffDots([plain])[0], plain, 'no copy where no line starts with a dot');
});

t.test('replies', async (t) => {
  const read = (...chunks: string[]): { replies: Reply[]; fault: string | undefined } => {
    const reader = new ReplyReader();
    const replies: Reply[] = [];
    let fault: string | undefined;
    for (const c of chunks) fault ??= reader.push(Buffer.from(c, 'utf8'), (r) => replies.push(r));
    return { replies, fault };
  };
  t.same(read('250-a\r\n25', '0 2.0.0 b\r', '\n').replies, [{ code: 250, enhanced: '2.0.0', lines: ['a', 'b'] }]);
  t.same(read('550 5.1.1 kein Empfänger\n').replies[0]?.lines, ['kein Empfänger']);
  t.equal(read('250\r\n').replies[0]?.code, 250);
  for (const bad of ['hello\r\n', '250-a\r\n251 b\r\n', '250 a\0b\r\n', '250 a\rb\r\n', '2500 x\r\n', '150 x\r\n', '\r\n', `250 ${'x'.repeat(3_000)}`, '250-x\r\n'.repeat(200)]) {
    t.type(read(bad).fault, 'string', JSON.stringify(bad.slice(0, 20)));
  }
  const odd = parseExtensions({ code: 250, enhanced: '', lines: ['dsn.pipelining-smtputf8.example DSN', 'SIZE 100', 'auth=LOGIN', '8bitmime '] });
  t.same([...odd.keys()], ['SIZE', 'AUTH', '8BITMIME'], 'the first line is a name');
});

t.test('bytes arrive exact, pipelined and not, in clear and in TLS', async (t) => {
  for (const script of [{}, { extensions: [] }, { tls: true }] as MxScript[]) {
    await withMx(script, async (mx) => {
      const s = await session(mx);
      t.match(s.tls, script.tls === true ? /^TLSv1\.3 / : /^$/);
      await fc.assert(fc.asyncProperty(fc.array(fc.array(fc.constantFrom('.', '\r\n', '\r\n.', 'text', '\xe9'), { maxLength: 8 }).map((p) => Buffer.from(p.join(''), 'latin1')), { maxLength: 5 }), async (chunks) => {
        const result = await s.send(letter([...chunks, Buffer.from('\r\n')]));
        if (result.kind !== 'reply' || result.reply.code !== 250) throw new Error(JSON.stringify(result));
        return mx.messages.at(-1)?.body.equals(Buffer.concat([...chunks, Buffer.from('\r\n')])) === true;
      }), { numRuns: 40 });
      const big = Buffer.from(`${'x'.repeat(70)}\r\n.${'y'.repeat(5)}\r\n`.repeat(20_000));
      t.match(await s.send(letter(big)), { kind: 'reply', phase: 'final', reply: { code: 250 } });
      t.ok(mx.messages.at(-1)?.body.equals(big), 'a message of many blocks');
      t.equal(mx.connections(), 1);
      t.equal(mx.reads.some((r) => r.includes('MAIL') && r.includes('DATA')), script.extensions === undefined, 'pipelined only where offered');
      t.equal(s.usable, true);
      await s.quit();
      t.equal(s.usable, false);
      t.equal(mx.lines.at(-1), 'QUIT');
    });
  }
});

t.test('parameters only when offered', async (t) => {
  const dsn = { ret: 'HDRS', envid: 'a+b c', notify: ['FAILURE', 'DELAY'], orcpt: 'rfc822;x=y@example.com' } as const;
  await withMx({}, async (mx) => {
    const s = await session(mx);
    await s.send(letter('x\r\n', { dsn, body8bit: true, smtpUtf8: true }));
    t.equal(mx.lines[1], 'MAIL FROM:<a@sender.example> SIZE=3 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=a+2Bb+20c');
    t.equal(mx.lines[2], 'RCPT TO:<b@mx.example> NOTIFY=FAILURE,DELAY ORCPT=rfc822;x+3Dy@example.com');
    await s.send(letter('x\r\n', { from: '', recipient: 'jörg@mx.example' }));
    t.equal(mx.lines[4], 'MAIL FROM:<> SIZE=3 SMTPUTF8');
    const international = { notify: [], orcpt: 'utf-8;jörg=+\\@x.example' } as const;
    for (const [more, orcpt] of [[{}, 'j\\x{F6}rg\\x{3D}\\x{2B}\\x{5C}@x.example'], [{ recipient: 'jörg@mx.example' }, 'jörg\\x{3D}\\x{2B}\\x{5C}@x.example']] as const) {
      await s.send(letter('x\r\n', { dsn: international, ...more }));
      t.match(mx.lines.findLast((line) => line.startsWith('RCPT'))?.split(' ORCPT=')[1], `utf-8;${orcpt}`, 'RFC 6533 §3');
    }
    const said = mx.lines.length;
    t.match(await s.send(letter('x\r\n', { recipient: 'a@b>\r\nDATA' })), { kind: 'unsendable', status: '5.1.3' });
    t.equal(mx.lines.length, said, 'no command can be smuggled in an address');
    s.close();
  });
  await withMx({ extensions: [] }, async (mx) => {
    const s = await session(mx);
    await s.send(letter('\xe9\r\n', { dsn, body8bit: true }));
    t.equal(mx.lines[1], 'MAIL FROM:<a@sender.example>');
    t.equal(mx.messages.length, 1, '8-bit goes as it is');
    t.match(await s.send(letter('x\r\n', { recipient: 'jörg@mx.example' })), { kind: 'unsendable', status: '5.6.7' });
    t.equal(mx.lines.length, 4, 'and nothing was said');
    t.equal(s.usable, true);
    s.close();
  });
});

t.test('every phase, every fault', async (t) => {
  const phases: readonly [MxPhase, string][] = [['connect', 'greet'], ['ehlo', 'greet'], ['mail', 'mail'], ['rcpt', 'rcpt'], ['data', 'data'], ['final', 'final']];
  const faults: readonly [string, Answer, string, number | string][] = [
    ['421', '421 4.3.2 closing', 'reply', 421], ['450', '450 4.2.0 later', 'reply', 450], ['550', '550 5.7.1 no', 'reply', 550],
    ['garbage', { raw: 'what is this\r\n' }, 'broken', 'protocol'], ['wrong class', { raw: '334 go?\r\n' }, 'broken', 'protocol'],
    ['close', { fault: 'close' }, 'broken', 'closed'], ['reset', { fault: 'reset' }, 'broken', 'closed'], ['stall', { fault: 'stall' }, 'broken', 'timeout'],
    ['half a line', { raw: '250 hal' }, 'broken', 'timeout'],
  ];
  await Promise.all(phases.flatMap(([at, phase]) => faults.flatMap(([name, answer, kind, what]) => [true, false].map(async (pipelining) => {
    // HELO rescues a peer that knows no EHLO; here it refuses that as well.
    const answers = { [at]: answer, ...(at === 'ehlo' ? { helo: answer } : {}) };
    await withMx({ answers, ...(pipelining ? {} : { extensions: [] }) }, async (mx) => {
      const label = `${name} at ${at}${pipelining ? '' : ', not pipelined'}`;
      const connected = await open(mx);
      const result = connected.kind === 'session' ? await connected.session.send(letter()) : connected;
      t.equal(result.kind === 'refused' ? 'reply' : result.kind, kind, label);
      if (!('phase' in result)) throw new Error(label);
      // A reset overtakes what was said before it: earlier replies are lost with it.
      if (name !== 'reset') t.equal(result.phase, phase, `${label}: phase`);
      if (result.kind === 'reply' || result.kind === 'refused') t.equal(result.reply.code, what, `${label}: code`);
      if (result.kind === 'broken') t.equal(result.fault, what, `${label}: fault`);
      if (result.kind === 'broken' && 'afterDot' in result && (name !== 'reset' || !pipelining)) t.equal(result.afterDot, at === 'final', `${label}: after the dot`);
      t.equal(mx.messages.length, 0, `${label}: nothing was taken`);
      if (connected.kind === 'session') {
        // The scripted peer lets RCPT and DATA through after a refused MAIL: nothing is said in such a transaction.
        t.equal(connected.session.usable, kind === 'reply' && what !== 421 && !(at === 'mail' && pipelining), `${label}: usable`);
        if (connected.session.usable) {
          mx.script = { ...mx.script, answers: {} };
          t.match(await connected.session.send(letter()), { kind: 'reply', phase: 'final', reply: { code: 250 } }, `${label}: and the next goes through`);
          t.equal(mx.messages.length, 1);
        }
        connected.session.close();
      }
    });
  }))));
});

t.test('refused while DATA was let through', async (t) => {
  await withMx({ answers: { rcpt: (n) => (n === 0 ? '550 5.1.1 unknown' : undefined) } }, async (mx) => {
    const s = await session(mx);
    t.match(await s.send(letter()), { kind: 'reply', phase: 'rcpt', reply: { code: 550, enhanced: '5.1.1' } });
    t.match(await s.send(letter()), { kind: 'reply', phase: 'final', reply: { code: 250 } });
    t.same(mx.lines.slice(4).map((l) => l.slice(0, 4)), ['MAIL', 'RCPT', 'DATA'], 'no RSET was needed');
    t.equal(mx.messages.length, 1);
    s.close();
  });
  await withMx({ answers: { rcpt: (n) => (n === 0 ? '550 5.1.1 unknown' : undefined), data: (n) => (n === 0 ? '503 5.5.1 no recipients' : undefined) } }, async (mx) => {
    const s = await session(mx);
    t.match(await s.send(letter()), { phase: 'rcpt', reply: { code: 550 } }, 'the first refusal decides');
    t.match(await s.send(letter()), { phase: 'final', reply: { code: 250 } });
    t.equal(mx.lines[4], 'RSET');
    s.close();
  });
});

t.test('HELO, TLS and their failures', async (t) => {
  await withMx({ answers: { ehlo: '502 5.5.1 what?' } }, async (mx) => {
    const s = await session(mx);
    t.equal(s.extensions.size, 0);
    t.match(await s.send(letter()), { phase: 'final', reply: { code: 250 } });
    s.close();
    t.match(await open(mx, { tls: { mode: 'required', servername: 'x' } }), { kind: 'broken', phase: 'tls', fault: 'tls' });
    t.notOk(mx.lines.slice(5).some((l) => l.startsWith('MAIL')), 'nothing in clear under required');
  });
  await withMx({ brokenTls: true }, async (mx) => {
    t.match(await open(mx), { kind: 'broken', phase: 'tls' });
    t.equal((await session(mx, { tls: { mode: 'off', servername: '' } })).tls, '');
  });
  await withMx({ tls: true, answers: { starttls: '220 2.0.0 go\r\n250 2.0.0 injected' } }, async (mx) => {
    const s = await session(mx);
    t.match(s.tls, /^TLS/, 'what stood in clear behind the 220 is dropped');
    t.match(await s.send(letter()), { phase: 'final', reply: { lines: ['taken'] } });
    s.close();
  });
  await withMx({ tls: true, answers: { starttls: '454 4.7.0 not now' } }, async (mx) => {
    t.equal((await session(mx)).tls, '', 'opportunistic goes on in clear');
    t.match(await open(mx, { tls: { mode: 'required', servername: 'x' } }), { kind: 'refused', phase: 'tls', reply: { code: 454 } });
  });
  await withMx({ tls: true, answers: { starttls: { fault: 'stall' } } }, async (mx) => {
    t.match(await open(mx), { kind: 'broken', phase: 'tls', fault: 'timeout' });
  });
  await withMx({ tls: true }, async (mx) => {
    t.match(await open(mx, { tls: { mode: 'required', servername: 'mx.example', rejectUnauthorized: true } }), { kind: 'broken', phase: 'tls' }, 'verified where asked');
  });
});

t.test('connections that fail, idle ones that end, and the abort', async (t) => {
  const gone = await startMx();
  await gone.close();
  t.match(await open(gone), { kind: 'broken', phase: 'connect', fault: 'closed', reason: /ECONNREFUSED/ });
  await withMx({}, async (mx) => {
    const s = await session(mx, { localAddress: '127.0.0.9' });
    let ended = false;
    s.onClosed(() => { ended = true; });
    mx.dropAll();
    await new Promise((r) => setTimeout(r, 50));
    t.equal(s.usable, false);
    t.equal(ended, true);
    t.match(await s.send(letter()), { kind: 'broken', phase: 'mail', afterDot: false });
    const controller = new AbortController();
    mx.script = { answers: { connect: { fault: 'stall' } } };
    const waiting = open(mx, { signal: controller.signal, timeouts: {} });
    setTimeout(() => controller.abort(), 30);
    t.match(await waiting, { kind: 'broken', phase: 'greet', fault: 'closed' });
  });
});

t.test('an independent receiver takes it', async (t) => {
  const got: Buffer[] = [];
  const server = new SMTPServer({ authOptional: true, disabledCommands: ['AUTH'], onData(stream, _s, done) {
    const parts: Buffer[] = [];
    stream.on('data', (c: Buffer) => parts.push(c));
    stream.on('end', () => { got.push(Buffer.concat(parts)); done(); });
  } });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', () => resolve()));
  const address = server.server.address();
  const s = await session({ port: typeof address === 'object' && address !== null ? address.port : 0 }, { timeouts: {} });
  t.match(s.tls, /^TLS/);
  const bodies = ['.\r\n', '..\r\n.a\r\n', 'x\r\n.\r\n.\r\ny\r\n', `${'z'.repeat(990)}\r\n`.repeat(500)].map((b) => Buffer.from(`Subject: x\r\n\r\n${b}`));
  for (const body of bodies) t.match(await s.send(letter(body)), { phase: 'final', reply: { code: 250 } });
  t.ok(bodies.every((b, i) => got[i]?.equals(b)));
  await s.quit();
  await new Promise<void>((resolve) => server.close(() => resolve()));
});
