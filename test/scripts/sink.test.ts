// The sink as the sandbox and other tests use it: answers by local part, keeps the newest, loopback only.
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createTransport } from 'nodemailer';
import t from 'tap';
import { startSink, type Sink } from '../../scripts/sink.ts';

async function send(sink: Sink, to: string, subject = 'hello'): Promise<string> {
  const transport = createTransport({ host: sink.host, port: sink.port, secure: false, ignoreTLS: true });
  try {
    return (await transport.sendMail({ from: 'app@acme.example', to, subject, text: '.dot\n..two\nend' })).response;
  } catch (error) {
    return error instanceof Error && 'response' in error ? String(error.response) : String(error);
  } finally {
    transport.close();
  }
}

t.test('accepts everything and keeps the newest', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'postern-sink-'));
  t.teardown(() => rmSync(dir, { recursive: true }));
  const seen: string[] = [];
  const sink = await startSink({ port: 0, dir, keep: 2, onMessage: (message) => seen.push(message.to.join()) });
  t.teardown(() => sink.close());
  t.match(await send(sink, 'anyone@anywhere.example'), /^250/);
  await new Promise((done) => setTimeout(done, 2)); // ids of one millisecond are unordered
  t.match(await send(sink, 'two@anywhere.example'), /^250/);
  await new Promise((done) => setTimeout(done, 2));
  t.match(await send(sink, 'three@anywhere.example', 'the last'), /^250/);
  t.same(seen, ['anyone@anywhere.example', 'two@anywhere.example', 'three@anywhere.example']);
  const files = readdirSync(dir).sort();
  t.equal(files.length, 2);
  const newest = readFileSync(join(dir, files[1] ?? ''), 'latin1');
  t.match(newest, /Subject: the last\r\n/);
  t.match(newest, /\r\n\.dot\r\n\.\.two\r\n/, 'dots are unstuffed once');
  t.match(sink.messages.at(-1), { from: 'app@acme.example', to: ['three@anywhere.example'], tls: false });
});

t.test('answers what it is asked for', async (t) => {
  const sink = await startSink({ port: 0, script: (to) => (to.startsWith('busy') ? { code: 421, text: '4.3.2 later' } : undefined) });
  t.teardown(() => sink.close());
  t.match(await send(sink, '450-x@a.example'), /^450 4\.2\.0/);
  t.match(await send(sink, '550-x@a.example'), /^550 5\.1\.1/);
  t.match(await send(sink, 'data451-x@a.example'), /^451 4\.2\.0/);
  t.match(await send(sink, 'data554-x@a.example'), /^554 5\.7\.1/);
  t.match(await send(sink, 'busy@a.example'), /^421 4\.3\.2/);
  t.equal(sink.received, 0);
});

t.test('listens on loopback only', async (t) => {
  await t.rejects(startSink({ port: 0, host: '0.0.0.0' }), /loopback only/);
  const sink = await startSink({ port: 0 });
  t.teardown(() => sink.close());
  await t.rejects(startSink({ port: sink.port }), { code: 'EADDRINUSE' });
});
