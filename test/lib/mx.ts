// A scripted receiving MX on loopback: it answers each phase as told, breaks where told, and keeps what it
// received byte for byte (dots removed). It checks nothing and knows no policy; Postfix is for that.
import { createServer, type AddressInfo, type Socket } from 'node:net';
import { TLSSocket, createSecureContext } from 'node:tls';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export type MxPhase = 'connect' | 'ehlo' | 'helo' | 'starttls' | 'mail' | 'rcpt' | 'data' | 'final' | 'rset' | 'quit';
/**
 * A reply text without the last CRLF, or a fault: `close` ends the connection, `stall` says nothing, `reset` sends
 * RST. `raw` goes as it is, `slowly` too, one octet at a time, `endless` again and again for as long as it is read.
 */
export type Answer = string | { readonly fault: 'close' | 'stall' | 'reset' } | { readonly raw: string } | { readonly slowly: string; readonly everyMs: number } | { readonly endless: string };
export interface MxScript {
  readonly answers?: Partial<Record<MxPhase, Answer | ((n: number, line: string) => Answer | undefined)>>;
  readonly extensions?: readonly string[];
  readonly name?: string;
  /** Offers STARTTLS. */
  readonly tls?: boolean;
  /** With this pair in place of testCertificate()'s. */
  readonly certificate?: { readonly key: Buffer; readonly cert: Buffer };
  /** Answers STARTTLS with 220 and then garbage instead of a handshake. */
  readonly brokenTls?: boolean;
}
export interface Received { readonly from: string; readonly to: string; readonly body: Buffer; readonly tls: boolean }
export interface Mx {
  readonly port: number;
  readonly host: string;
  readonly messages: Received[];
  /** Every command line, in order. */
  readonly lines: string[];
  /** How many commands had come in the read that brought this one: proof of pipelining. */
  readonly reads: string[];
  readonly connections: () => number;
  readonly open: () => number;
  script: MxScript;
  readonly dropAll: () => void;
  /** Says this on every connection, unasked. */
  readonly say: (raw: string) => void;
  /** Takes no more octets from any connection. */
  readonly stopReading: () => void;
  /** How many messages ended, refused ones and empty ones too. */
  readonly finals: () => number;
  readonly close: () => Promise<void>;
}

const DEFAULTS: Record<MxPhase, string> = {
  connect: '220 mx.example ESMTP', ehlo: '', helo: '250 mx.example', starttls: '220 2.0.0 go ahead', mail: '250 2.1.0 ok', rcpt: '250 2.1.5 ok',
  data: '354 go on', final: '250 2.0.0 taken', rset: '250 2.0.0 ok', quit: '221 2.0.0 bye',
};

let pair: { key: Buffer; cert: Buffer } | undefined;
/** A self-signed certificate, made once a process. */
export function testCertificate(): { readonly key: Buffer; readonly cert: Buffer } {
  if (pair !== undefined) return pair;
  const dir = mkdtempSync(join(tmpdir(), 'postern-mx-'));
  try {
    execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2', '-subj', '/CN=mx.example',
      '-keyout', join(dir, 'k'), '-out', join(dir, 'c')], { stdio: 'ignore' });
    pair = { key: readFileSync(join(dir, 'k')), cert: readFileSync(join(dir, 'c')) };
  } finally {
    rmSync(dir, { recursive: true });
  }
  return pair;
}

export async function startMx(script: MxScript = {}, host = '127.0.0.1'): Promise<Mx> {
  const sockets = new Set<Socket>();
  let connections = 0;
  const mx = { script, host, port: 0, messages: [] as Received[], lines: [] as string[], reads: [] as string[], ended: 0 };
  const counts = new Map<MxPhase, number>();
  const answerOf = (phase: MxPhase, line: string): Answer => {
    const n = counts.get(phase) ?? 0;
    counts.set(phase, n + 1);
    const told = mx.script.answers?.[phase];
    const answer = typeof told === 'function' ? told(n, line) : told;
    if (answer !== undefined) return answer;
    if (phase !== 'ehlo') return DEFAULTS[phase];
    const all = [mx.script.name ?? 'mx.example', ...(mx.script.extensions ?? ['PIPELINING', 'SIZE 50000000', '8BITMIME', 'SMTPUTF8', 'DSN']), ...(mx.script.tls === true || mx.script.brokenTls === true ? ['STARTTLS'] : [])];
    return all.map((text, i) => `250${i === all.length - 1 ? ' ' : '-'}${text}`).join('\r\n');
  };
  const server = createServer({ noDelay: true }, (plain) => {
    connections++;
    sockets.add(plain);
    plain.on('close', () => sockets.delete(plain));
    converse(plain, mx, answerOf);
  });
  await new Promise<void>((resolve) => server.listen(0, host, resolve));
  mx.port = (server.address() as AddressInfo).port;
  return Object.assign(mx, {
    connections: () => connections,
    open: () => sockets.size,
    dropAll: () => { for (const s of sockets) s.destroy(); },
    say: (raw: string) => { for (const s of sockets) s.write(Buffer.from(raw, 'latin1')); },
    stopReading: () => { for (const s of sockets) s.pause(); },
    finals: () => mx.ended,
    close: () => new Promise<void>((resolve) => {
      for (const s of sockets) s.destroy();
      server.close(() => resolve());
    }),
  });
}

function trickle(socket: Socket, octets: Buffer, everyMs: number): void {
  if (octets.length === 0 || socket.destroyed) return;
  socket.write(octets.subarray(0, 1));
  setTimeout(() => trickle(socket, octets.subarray(1), everyMs), everyMs);
}

function flood(socket: Socket, octets: Buffer): void {
  const block = Buffer.alloc(64 * 1024, octets);
  const more = (): void => {
    while (!socket.destroyed && socket.write(block));
  };
  socket.on('drain', more);
  more();
}

function converse(plain: Socket, mx: { script: MxScript; messages: Received[]; lines: string[]; reads: string[]; ended: number }, answerOf: (phase: MxPhase, line: string) => Answer): void {
  let socket: Socket = plain;
  let buffered = Buffer.alloc(0);
  const parts: Buffer[] = [];
  let tail: Buffer = Buffer.alloc(0);
  let inData = false;
  let secure = false;
  let dead = false;
  let from = '';
  let to = '';
  let willing = false;
  const say = (phase: MxPhase, line: string): string => {
    const answer = answerOf(phase, line);
    if (typeof answer === 'string') {
      socket.write(`${answer}\r\n`);
      if (answer.startsWith('421')) { dead = true; socket.end(); }
      return answer;
    }
    if ('slowly' in answer) { trickle(socket, Buffer.from(answer.slowly, 'latin1'), answer.everyMs); return answer.slowly; }
    if ('endless' in answer) { dead = true; flood(socket, Buffer.from(answer.endless, 'latin1')); return ''; }
    if ('raw' in answer) { dead ||= !answer.raw.endsWith('\n'); socket.write(Buffer.from(answer.raw, 'latin1')); return answer.raw; }
    dead = true;
    if (answer.fault === 'close') socket.destroy();
    if (answer.fault === 'reset') plain.resetAndDestroy();
    return '';
  };
  const command = (line: string): void => {
    mx.lines.push(line);
    const verb = line.slice(0, 4).toUpperCase();
    if (verb === 'EHLO') say('ehlo', line);
    else if (verb === 'HELO') say('helo', line);
    else if (verb === 'STAR') {
      if (!say('starttls', line).startsWith('220') || dead) return;
      if (mx.script.brokenTls === true) { dead = true; socket.write('this is no handshake at all\r\n'); return; }
      upgrade();
    } else if (verb === 'MAIL') { from = /<(.*?)>/.exec(line)?.[1] ?? ''; willing = say('mail', line).startsWith('25'); }
    else if (verb === 'RCPT') { to = /<(.*?)>/.exec(line)?.[1] ?? ''; willing = say('rcpt', line).startsWith('25') && willing; }
    else if (verb === 'DATA') inData = say('data', line).startsWith('354');
    else if (verb === 'RSET') say('rset', line);
    else if (verb === 'QUIT') { say('quit', line); dead = true; socket.end(); }
    else socket.write('502 5.5.1 what?\r\n');
  };
  const upgrade = (): void => {
    plain.removeAllListeners('data');
    const tls = new TLSSocket(plain, { isServer: true, secureContext: createSecureContext(mx.script.certificate ?? testCertificate()) });
    tls.on('error', () => undefined);
    socket = tls;
    secure = true;
    buffered = Buffer.alloc(0);
    tls.on('data', take);
  };
  const take = (chunk: Buffer): void => {
    if (dead) return;
    // Of a large message only the seam to what came before is looked at.
    const seam = Buffer.concat([tail, chunk]);
    tail = seam.subarray(-4);
    if (inData && buffered.length > 4 && !seam.includes('\r\n.\r\n')) {
      parts.push(chunk);
      return;
    }
    buffered = Buffer.concat([buffered, ...parts.splice(0), chunk]);
    if (!inData) mx.reads.push(chunk.toString('latin1'));
    for (;;) {
      if (dead) return;
      if (inData) {
        const end = buffered.subarray(0, 3).equals(Buffer.from('.\r\n')) ? -2 : buffered.indexOf('\r\n.\r\n');
        if (end === -1) return;
        const stuffed = end === -2 ? '' : buffered.subarray(0, end + 2).toString('latin1');
        buffered = buffered.subarray(end + 5);
        inData = false;
        mx.ended++;
        if (!willing) { socket.write('554 5.5.1 no valid recipients\r\n'); continue; }
        const answer = say('final', '.');
        if (answer.startsWith('250 2')) mx.messages.push({ from, to, tls: secure, body: Buffer.from(stuffed.replace(/(^|\r\n)\./g, '$1'), 'latin1') });
        continue;
      }
      const end = buffered.indexOf('\r\n');
      if (end === -1) return;
      const line = buffered.subarray(0, end).toString('utf8');
      buffered = buffered.subarray(end + 2);
      command(line);
    }
  };
  plain.on('error', () => undefined);
  plain.on('data', take);
  say('connect', '');
}
