// Loaded before a program (node --import): appends a line to the file $CONNECTS for every destination the program
// asks the system for, by TCP, by UDP, or as a name to look up.
import dgram from 'node:dgram';
import dns from 'node:dns';
import { appendFileSync } from 'node:fs';
import net from 'node:net';

const file = process.env['CONNECTS'] ?? '';
const note = (...words: readonly unknown[]): void => appendFileSync(file, `${words.join(' ')}\n`);

interface Wanted {
  readonly host?: string;
  readonly port?: number | string;
  readonly path?: string;
}

/** Calls `before` with the arguments of every call of a method. */
function watch(owner: object, method: string, before: (...args: unknown[]) => void): void {
  const own = Reflect.get(owner, method) as (...args: unknown[]) => unknown;
  Reflect.set(owner, method, function watched(this: unknown, ...args: unknown[]): unknown {
    before(...args);
    return own.apply(this, args);
  });
}

watch(net.Socket.prototype, 'connect', (first, second) => {
  // As net.connect hands them on: [options, callback].
  const wanted = (Array.isArray(first) ? first[0] : typeof first === 'object' ? first : { port: first, host: second }) as Wanted;
  note('tcp', wanted.path ?? `${wanted.host ?? 'localhost'}:${wanted.port ?? ''}`);
});
watch(dgram.Socket.prototype, 'connect', (port, host) => note('udp', `${String(host)}:${String(port)}`));
// On a connected socket no destination is given.
watch(dgram.Socket.prototype, 'send', (...args) => {
  if (args.some((arg) => typeof arg === 'number')) note('udp', args.filter((arg) => typeof arg !== 'object').join(':'));
});
watch(dns, 'lookup', (name) => {
  if (net.isIP(String(name)) === 0) note('name', name);
});
