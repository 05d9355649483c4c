// A message of a hundred million octets, through the whole relay and back byte for byte, and what it took of
// memory: so many copies of it and no more, and none that stays.
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { connect } from 'node:tls';
import { once } from 'node:events';
import t from 'tap';
import { eventually, makeGrounds, spawnDaemon } from '../lib/daemon.ts';
import { startMx } from '../lib/mx.ts';

t.setTimeout(120_000);
const READER = 'reader@example.com';
const OCTETS = 100_000_000;
const LINE = `${'QUJD'.repeat(19)}\r\n`;

/** Most memory the process has had at once, octets (proc(5)). */
const peakOf = (pid: number): number => Number(/^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1] ?? 0) * 1_024;

t.test('a hundred megabytes', { skip: process.platform === 'linux' ? false : 'memory is read from /proc' }, async (t) => {
  const mx = await startMx({ extensions: ['PIPELINING', 'SIZE 200000000', '8BITMIME'] });
  const grounds = await makeGrounds(mx.port);
  grounds.edit('postern.yaml', (text) => text.replace('limits:\n', 'limits:\n  message_size: 110MiB\n'));
  await grounds.consent({ [READER]: 'individual' });
  const { child, kill } = await spawnDaemon(grounds.root);
  t.teardown(async () => {
    await kill('SIGTERM');
    await mx.close();
    grounds.remove();
  });
  const before = peakOf(child.pid ?? 0);
  const block = Buffer.from(LINE.repeat(2_000));
  const blocks = Math.ceil(OCTETS / block.length);
  const content = createHash('sha256');
  const client = await login(grounds.ports.submissions, grounds.username, grounds.secret);
  t.match(await client.say(`MAIL FROM:<news@demo.example> SIZE=${blocks * block.length + 1_000}`), /^250/);
  t.match(await client.say(`RCPT TO:<${READER}>`), /^250/);
  t.match(await client.say('DATA'), /^354/);
  await client.write(Buffer.from(`From: news@demo.example\r\nTo: ${READER}\r\nSubject: large\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n<a href="https://shop.example/">x</a>\r\n--b\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\nContent-Disposition: attachment; filename=a.bin\r\n\r\n`));
  for (let i = 0; i < blocks; i++) {
    content.update(block);
    await client.write(block);
  }
  const reply = await client.say('\r\n--b--\r\n.');
  t.match(reply, /^250 .*queued as/);
  t.ok(await eventually(() => mx.messages.length === 1, 60_000), 'delivered');
  const body = mx.messages[0]?.body ?? Buffer.alloc(0);
  const start = body.indexOf('filename=a.bin\r\n\r\n') + 'filename=a.bin\r\n\r\n'.length;
  t.equal(createHash('sha256').update(body.subarray(start, start + blocks * block.length)).digest('hex'), content.digest('hex'), 'byte for byte');
  t.match(body.toString('latin1', 0, start), /\/c\/[\w-]+">x<\/a>/, 'the link in it was rewritten');
  const peak = peakOf(child.pid ?? 0);
  const copies = (peak - before) / OCTETS;
  t.comment(`${(before / 1e6).toFixed(0)} MB before, ${(peak / 1e6).toFixed(0)} MB at most: ${copies.toFixed(1)} copies`);
  t.ok(copies < 6, `${copies.toFixed(1)} copies at most`);
});

interface Client {
  say(line: string): Promise<string>;
  write(octets: Buffer): Promise<void>;
}

/** An authenticated session; replies are one line each but for EHLO's. */
async function login(port: number, user: string, pass: string): Promise<Client> {
  const socket = connect({ host: '127.0.0.1', port, rejectUnauthorized: false });
  let held = '';
  const waiting: (() => void)[] = [];
  socket.on('data', (chunk: Buffer) => {
    held += chunk.toString('latin1');
    for (const wake of waiting.splice(0)) wake();
  });
  const reply = async (): Promise<string> => {
    for (;;) {
      const found = /^(?:\d{3}-.*\r\n)*\d{3} .*\r\n/.exec(held)?.[0];
      if (found !== undefined) {
        held = held.slice(found.length);
        return found;
      }
      await new Promise<void>((done) => waiting.push(done));
    }
  };
  const write = async (octets: Buffer): Promise<void> => {
    if (!socket.write(octets)) await once(socket, 'drain');
  };
  const say = async (line: string): Promise<string> => {
    await write(Buffer.from(`${line}\r\n`));
    return reply();
  };
  await reply();
  await say('EHLO client.example');
  const said = await say(`AUTH PLAIN ${Buffer.from(`\0${user}\0${pass}`).toString('base64')}`);
  if (!said.startsWith('235')) throw new Error(said);
  return { say, write };
}
