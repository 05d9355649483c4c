// Receivers that are broken or mean harm, against the outbound session: what they send and when they send it
// must lose no mail, hand nothing over twice, reach no other message, and cost no more than it is worth.
import { spawn } from 'node:child_process';
import { connect, type Socket } from 'node:net';
import t from 'tap';
import { connectSession, DEFAULT_TIMEOUTS, type Connected, type ConnectOptions, type Letter, type OutboundSession, type SendResult } from '../../daemon/smtp/session.ts';
import { ReplyReader } from '../../daemon/smtp/reply-reader.ts';
import { systemClock, type Clock } from '../../daemon/runtime/index.ts';
import type { Reply } from '../../daemon/mail/index.ts';
import { startMx, type Answer, type Mx, type MxPhase, type MxScript } from '../lib/mx.ts';
import { pause } from '../lib/daemon.ts';

const QUICK = { connectMs: 500, tlsMs: 200, greetMs: 200, mailMs: 200, rcptMs: 200, dataMs: 200, blockMs: 200, finalMs: 200, quitMs: 100 };
const open = (mx: { port: number }, more: Partial<ConnectOptions> = {}): Promise<Connected> => connectSession({
  host: '127.0.0.1', port: mx.port, helo: 'out.example', tls: { mode: 'opportunistic', servername: 'mx.example' }, timeouts: QUICK, ...more,
});
const BODY = Buffer.from('Subject: x\r\n\r\n.dots\r\nhello\r\n');
const letter = (more: Partial<Letter> = {}): Letter => ({ from: 'a@sender.example', recipient: 'b@mx.example', smtpUtf8: false, body8bit: false, size: BODY.length, chunks: [BODY], ...more });

async function withMx(script: MxScript, run: (mx: Mx) => Promise<void>): Promise<void> {
  const mx = await startMx(script);
  try { await run(mx); } finally { await mx.close(); }
}
async function session(mx: Mx, more: Partial<ConnectOptions> = {}): Promise<OutboundSession> {
  const connected = await open(mx, more);
  if (connected.kind !== 'session') throw new Error(JSON.stringify(connected));
  return connected.session;
}
/** One connection and, if it comes to that, one message. */
async function once(mx: Mx): Promise<SendResult | Exclude<Connected, { kind: 'session' }>> {
  const connected = await open(mx);
  if (connected.kind !== 'session') return connected;
  try { return await connected.session.send(letter()); } finally { connected.session.close(); }
}
const PHASES: readonly MxPhase[] = ['connect', 'ehlo', 'mail', 'rcpt', 'data', 'final'];
const at = (phase: MxPhase, answer: Answer): MxScript => ({ answers: { [phase]: answer, ...(phase === 'ehlo' && { helo: answer }) } });

t.test('replies that are none: no code, codes of nobody, codes that change, NUL, lines and replies without end', async (t) => {
  const bad: readonly [string, string][] = [
    ['no code', 'hello there\r\n'], ['code 0', '0 ok\r\n'], ['code 000', '000 ok\r\n'], ['code 099', '099 ok\r\n'], ['code 999', '999 ok\r\n'], ['code 600', '600 ok\r\n'], ['code 1xx', '150 ok\r\n'], ['four digits', '2500 ok\r\n'], ['digits of another script', '٢٥٠ ok\r\n'],
    ['a code that changes', '250-a\r\n550 b\r\n'], ['a class that changes', '250-a\r\n251 b\r\n'], ['NUL in the text', '250 o\0k\r\n'], ['NUL for a space', '250\0ok\r\n'], ['bare CR', '250 a\r250 b\r\n'], ['CR CR LF', '250 ok\r\r\n'], ['tab for a space', '250\tok\r\n'],
    ['an empty line', '\r\n'], ['100,000 lines', '250-x\r\n'.repeat(100_000)], ['a line of 1 MB', `250 ${'x'.repeat(1_000_000)}\r\n`], ['1 MB without an end', 'x'.repeat(1_000_000)], ['an HTTP answer', 'HTTP/1.1 400 Bad Request\r\n\r\n'],
  ];
  for (const [name, raw] of bad) {
    for (const phase of PHASES) {
      await withMx(at(phase, { raw: Buffer.from(raw).toString('latin1') }), async (mx) => {
        const result = await once(mx);
        t.match(result, { kind: 'broken', fault: 'protocol', ...('afterDot' in result && { afterDot: phase === 'final' }) }, `${name} at ${phase}`);
        t.equal(mx.messages.length, 0);
      });
    }
  }
});

t.test('floods cost a little memory and end', async (t) => {
  for (const endless of ['250-EXT\r\n', '250 ok\r\n', '220 mx\r\n', 'x', '250-', '\r\n', '354 go\r\n']) {
    for (const phase of PHASES) {
      await withMx(at(phase, { endless }), async (mx) => {
        const before = process.memoryUsage().heapUsed;
        const result = await once(mx);
        // Its first word about the message counts, whatever comes behind it.
        t.equal(result.kind, phase === 'final' && endless.startsWith('2') && endless[3] === ' ' ? 'reply' : 'broken', `${JSON.stringify(endless)} at ${phase}`);
        t.ok(process.memoryUsage().heapUsed - before < 64 * 1024 * 1024);
      });
    }
  }
  const reader = new ReplyReader();
  let read = 0;
  let fault: string | undefined;
  while (fault === undefined && read < 1_000) fault = reader.push(Buffer.from('250-x\r\n'.repeat(++read && 10)), () => undefined);
  t.match(fault, /more than 128 lines/);
  t.ok(read < 20, 'at once, not at the end of the input');
});

t.test('octet by octet, in clear: replies are the same, wherever the network cuts them', async (t) => {
  const wire = Buffer.from('250-mx.example grüßt\r\n250-SIZE 100\r\n250 2.0.0 ok\r\n550 5.1.1 nein\n');
  const read = (...pieces: Buffer[]): Reply[] => {
    const [reader, replies] = [new ReplyReader(), [] as Reply[]];
    for (const piece of pieces) t.equal(reader.push(piece, (reply) => replies.push(reply)), undefined);
    return replies;
  };
  const whole = read(wire);
  t.same(whole.map(({ code, lines }) => [code, lines.length]), [[250, 3], [550, 1]]);
  for (let cut = 1; cut < wire.length; cut++) t.same(read(wire.subarray(0, cut), wire.subarray(cut)), whole, `cut at ${cut}`);
  t.same(read(...[...wire].map((octet) => Buffer.of(octet))), whole);
  const slowly = (text: string): Answer => ({ slowly: text, everyMs: 1 });
  await withMx({ answers: { connect: slowly('220 mx\r\n'), ehlo: slowly('250-mx\r\n250 SIZE 1000\r\n'), mail: slowly('250 ok\r\n'), rcpt: slowly('250-a\r\n250 b\r\n'), data: slowly('354\r\n'), final: slowly('250 2.0.0 taken\r\n') } }, async (mx) => {
    t.match(await once(mx), { kind: 'reply', phase: 'final', reply: { code: 250 } });
    t.ok(mx.messages[0]?.body.equals(BODY));
  });
});

t.test('an octet at a time, for ever: the phase has its time and no more', async (t) => {
  for (const phase of PHASES) {
    await withMx({ extensions: [], ...at(phase, { slowly: `250-${'x'.repeat(2_000)}`, everyMs: 20 }) }, async (mx) => {
      const started = Date.now();
      const result = await once(mx);
      t.match(result, { kind: 'broken', fault: 'timeout' }, phase);
      t.ok(Date.now() - started < 5_000, 'octets that come in do not buy time');
    });
  }
});

t.test('out of step: an answer to another command is no answer to this one', async (t) => {
  const cases: readonly [string, MxScript['answers'], string][] = [
    ['250 to DATA', { data: '250 2.0.0 ok' }, 'data'],
    ['354 to RCPT', { rcpt: { raw: '354 go on\r\n' } }, 'rcpt'],
    ['354 to MAIL', { mail: { raw: '354 go on\r\n' } }, 'mail'],
    ['220 to EHLO', { ehlo: { raw: '220 hello again\r\n' } }, 'greet'],
    ['a second greeting', { connect: { raw: '220 one\r\n220 two\r\n' } }, 'greet'],
    ['a greeting that says 250', { connect: { raw: '250 mx\r\n' } }, 'greet'],
    ['the 250 to the message before the message', { data: { raw: '354 go on\r\n250 2.0.0 taken\r\n' } }, 'data'],
    ['two answers to MAIL', { mail: { raw: '250 ok\r\n250 ok\r\n' } }, 'data'],
    ['two answers to RCPT', { rcpt: { raw: '250 ok\r\n250 ok\r\n' } }, 'data'],
  ];
  for (const [name, answers, phase] of cases) {
    for (const extensions of [['PIPELINING'], []]) {
      await withMx({ answers, extensions }, async (mx) => {
        const result = await once(mx);
        t.match(result, { kind: 'broken', fault: 'protocol' }, `${name}, ${extensions.join()}`);
        // Without pipelining an answer too many is seen before the next command is said.
        if ('phase' in result && extensions.length > 0) t.equal(result.phase, phase, name);
        if ('afterDot' in result) t.equal(result.afterDot, false, name);
        t.equal(mx.messages.length, 0);
      });
    }
  }
});

t.test('what is said between transactions belongs to none: not to the next message either', async (t) => {
  for (const stray of ['550 5.1.1 no such user\r\n', '250 2.0.0 ok\r\n', '25', '550 5.1.1 no su', '421 4.4.2 idle\r\n']) {
    await withMx({ answers: { final: { raw: '250 2.0.0 taken\r\n' } } }, async (mx) => {
      const s = await session(mx);
      t.match(await s.send(letter()), { kind: 'reply', phase: 'final', reply: { code: 250 } });
      mx.say(stray);
      await pause(50);
      t.equal(s.usable, false, JSON.stringify(stray));
      t.match(await s.send(letter()), { kind: 'broken', phase: 'mail', fault: 'closed', afterDot: false }, 'and may be begun anew elsewhere');
      t.equal(mx.messages.length, 1);
    });
  }
  await withMx({ answers: { final: { raw: '250 2.0.0 taken\r\n550 5.1.1 for the next\r\n' } } }, async (mx) => {
    const s = await session(mx);
    t.match(await s.send(letter()), { kind: 'reply', phase: 'final', reply: { code: 250 } }, 'what was said in its place stands');
    t.equal(s.usable, false, 'in one packet');
  });
});

t.test('a refused MAIL and a 354: no empty letter is handed over for the recipient who was let through', async (t) => {
  await withMx({ answers: { mail: '451 4.3.0 later' } }, async (mx) => {
    const s = await session(mx);
    t.match(await s.send(letter()), { kind: 'reply', phase: 'mail', reply: { code: 451 } });
    t.equal(s.usable, false);
    await pause(50);
    t.notOk(mx.finals(), 'no dot was said');
    t.same(mx.lines.slice(1).map((line) => line.slice(0, 4)), ['MAIL', 'RCPT', 'DATA']);
  });
});

t.test('EHLO that lies', async (t) => {
  const big = Buffer.alloc(5_000, 'x\r\n');
  await withMx({ extensions: ['SIZE 10', 'PIPELINING'] }, async (mx) => {
    const s = await session(mx);
    t.match(await s.send(letter({ chunks: [big], size: big.length })), { kind: 'reply', phase: 'final', reply: { code: 250 } }, 'SIZE smaller than it takes: the receiver decides');
    s.close();
  });
  const refusing: MxScript = { extensions: ['SIZE', 'PIPELINING', '8BITMIME', 'SMTPUTF8', 'DSN'], answers: { mail: (_n, line) => (/ (?:SIZE|BODY|RET)=/.test(line) ? '555 5.5.4 unsupported option' : undefined) } };
  await withMx(refusing, async (mx) => {
    const s = await session(mx);
    t.match(await s.send(letter({ body8bit: true, dsn: { ret: 'HDRS', notify: [] } })), { kind: 'reply', phase: 'mail', reply: { code: 555 } }, 'offered, then refused: its word is handed on as it was said');
    t.equal(mx.messages.length, 0);
  });
  // What was offered in clear is forgotten with the clear: anybody may have written it (RFC 3207 §4.2).
  const inClear = '250-mx.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n250-SIZE 9\r\n250 STARTTLS';
  await withMx({ tls: true, answers: { ehlo: (n) => (n === 0 ? inClear : '250 mx.example') } }, async (mx) => {
    const s = await session(mx);
    t.match(s.tls, /^TLS/);
    t.equal(s.extensions.size, 0);
    const octets = Buffer.from('Subject: é\r\n\r\né\r\n');
    t.match(await s.send(letter({ body8bit: true, chunks: [octets], dsn: { ret: 'HDRS', notify: ['NEVER'] } })), { kind: 'reply', phase: 'final', reply: { code: 250 } });
    t.ok(mx.messages[0]?.body.equals(octets), 'octets that were signed are not converted');
    t.same(mx.lines.slice(3), ['MAIL FROM:<a@sender.example>', 'RCPT TO:<b@mx.example>', 'DATA']);
    t.equal(mx.reads.at(-1), 'DATA\r\n', 'nor pipelined');
    t.match(await s.send(letter({ recipient: 'jörg@mx.example' })), { kind: 'unsendable', status: '5.6.7' });
    s.close();
  });
  for (const go of ['250 2.0.0 ok', '354 go on']) {
    await withMx({ tls: true, answers: { starttls: { raw: `${go}\r\n` } } }, async (mx) => {
      t.match(await open(mx), { kind: 'broken', phase: 'tls' }, `STARTTLS answered ${go}`);
      t.notOk(mx.lines.some((line) => line.startsWith('MAIL')));
    });
  }
});

t.test('plaintext behind the 220 to STARTTLS is never read as said inside (CVE-2011-0411)', async (t) => {
  const injected = '250-mx.example\r\n250-DSN\r\n250 SMTPUTF8\r\n';
  for (const behind of [injected, '250 2.0.0 taken\r\n'.repeat(5), '250-half a rep', '550 5.1.1 no such user\r\n']) {
    await withMx({ tls: true, answers: { starttls: { raw: `220 2.0.0 go ahead\r\n${behind}` } } }, async (mx) => {
      const connected = await open(mx, { tls: { mode: 'required', servername: 'mx.example' } });
      // A half line leaves the scripted peer silent: its handshake never comes.
      if (connected.kind !== 'session') return void t.match(connected, { kind: 'broken', phase: 'tls' }, JSON.stringify(behind));
      t.ok(connected.session.extensions.has('8BITMIME'), 'the true EHLO');
      t.match(await connected.session.send(letter()), { kind: 'reply', phase: 'final', reply: { lines: ['taken'] } });
      t.equal(mx.messages.length, 1);
      t.ok(mx.messages.every(({ tls }) => tls));
      connected.session.close();
    });
  }
});

t.test('words that would work an operator\'s terminal are shown as what they are', async (t) => {
  await withMx({ answers: { rcpt: { raw: '550-5.1.1 \x1b]0;owned\x07\x1b[2J\x9b31m\r\n550 5.1.1 \x7f\x08 a\tb \xe2\x80\xaeelif \xc2\x9b1m gr\xc3\xbc\xc3\x9fe\r\n' } } }, async (mx) => {
    const result = await once(mx);
    const said = result.kind === 'reply' ? result.reply.lines.join('\n') : '';
    t.match(said, /grüße/, 'words in any script stay');
    t.match(said, 'a\tb');
    t.notMatch(said, /[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/);
  });
});

t.test('the time limits are those of RFC 5321 §4.5.3.2, each in its phase', async (t) => {
  const waits: number[] = [];
  const clock: Clock = { now: () => systemClock.now(), after: (ms, run) => { waits.push(ms); return systemClock.after(ms, run); } };
  await withMx({ tls: true }, async (mx) => {
    const s = await session(mx, { clock, timeouts: {} });
    const { connectMs, greetMs, mailMs, rcptMs, dataMs, blockMs, finalMs, tlsMs } = DEFAULT_TIMEOUTS;
    t.same(waits.splice(0), [connectMs, greetMs, greetMs, dataMs, tlsMs, greetMs]);
    const half = Buffer.alloc(400_000, `${'x'.repeat(78)}\r\n`);
    t.match(await s.send(letter({ chunks: [half], size: half.length })), { kind: 'reply', phase: 'final' });
    t.match(waits, new Set([mailMs, dataMs, blockMs, finalMs]));
    t.equal(waits.includes(blockMs) && waits.includes(finalMs), true);
    t.ok(greetMs >= 300_000 && mailMs >= 300_000 && rcptMs >= 300_000 && dataMs >= 120_000 && blockMs >= 180_000 && finalMs >= 600_000);
    s.close();
  });
});

t.test('two addresses: the other is tried when the first is refused, or silent for a second', async (t) => {
  await withMx({}, async (mx) => {
    t.equal((await open(mx, { host: '127.0.1.1', other: '127.0.0.1' })).kind, 'session', 'refused');
    const { host, fill, end } = await deafPort(mx.port);
    try {
      await fill();
      const started = Date.now();
      const connected = await open(mx, { host, other: '127.0.0.1', timeouts: { ...QUICK, connectMs: 20_000 } });
      t.equal(connected.kind, 'session', 'silent');
      t.ok(Date.now() - started >= 900, 'not before a second: a slow host would see two connections');
      t.match(await open(mx, { host, other: '127.0.1.1', timeouts: { ...QUICK, connectMs: 1_500 } }), { kind: 'broken', phase: 'connect', fault: 'timeout' }, 'neither');
      t.match(await open(mx, { host: '127.0.1.1', other: '127.0.1.1' }), { kind: 'broken', phase: 'connect', fault: 'closed' });
      const alone = mx.connections();
      t.equal((await open(mx, { other: '127.0.0.1' })).kind, 'session');
      await pause(50);
      t.equal(mx.connections(), alone + 1, 'who answers sees one');
    } finally {
      end();
    }
  });
});

/** An address that takes no connection and refuses none: its backlog is full and nobody accepts. */
async function deafPort(port: number): Promise<{ readonly host: string; readonly fill: () => Promise<void>; readonly end: () => void }> {
  const host = '127.0.1.9';
  const child = spawn('perl', ['-MSocket', '-e', 'socket(S,PF_INET,SOCK_STREAM,0) && bind(S,sockaddr_in($ARGV[1],inet_aton($ARGV[0]))) && listen(S,0) or die; $|=1; print "up"; sleep 60', host, String(port)], { stdio: ['ignore', 'pipe', 'inherit'] });
  await new Promise((up) => child.stdout.once('data', up));
  const sockets: Socket[] = [];
  return {
    host,
    async fill() {
      for (let i = 0; i < 4; i++) sockets.push(connect({ host, port }).on('error', () => undefined));
      await pause(100);
    },
    end() {
      for (const socket of sockets) socket.destroy();
      child.kill();
    },
  };
}

t.test('a peer that stops reading', async (t) => {
  await withMx({}, async (mx) => {
    const s = await session(mx);
    mx.script = { answers: { data: (_n) => { mx.stopReading(); return '354 go on'; } } };
    const huge = Buffer.alloc(64 * 1024 * 1024, `${'x'.repeat(78)}\r\n`);
    t.match(await s.send(letter({ chunks: [huge], size: huge.length })), { kind: 'broken', phase: 'data', fault: 'timeout', afterDot: false });
    t.equal(mx.messages.length, 0);
  });
});
