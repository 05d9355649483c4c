// Opens one HTTP server on every address a listener names, and closes all of them together. Callers
// may rely on: either all addresses listen or none does, port 0 is reported as the port it became, and
// a taken port is a MailError that names the setting to change. Limits are those of a public page.
import { readFileSync } from 'node:fs';
import { createServer as createPlain, type RequestListener, type Server } from 'node:http';
import { createServer as createSecure, type Server as SecureServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { MailError } from '../mail/index.ts';
import type { Listen, Settings } from '../settings/index.ts';
import { Certificates, type PairFiles } from './certificates.ts';

export interface Listening {
  /** Where it listens, in the order given, with real ports. */
  readonly addresses: readonly Listen[];
  /** Reads certificate and key again; new connections get them. @throws MailError E_KEY_UNREADABLE; the old pair stays. */
  renewTls(): void;
  /** Stops listening, lets requests under way finish for at most two seconds, then cuts them off. */
  close(): Promise<void>;
}

/** Listens; `name` is the setting that errors quote. @throws MailError E_IN_USE, E_KEY_UNREADABLE */
export async function listen(options: {
  readonly name: string;
  readonly at: readonly Listen[];
  readonly tls?: (() => Settings['server']['tls']) | undefined;
  /** Pairs of hosts that have their own. */
  readonly hosts?: () => ReadonlyMap<string, PairFiles>;
  readonly answer: RequestListener;
}): Promise<Listening> {
  const servers: (Server | SecureServer)[] = [];
  const certificates = options.tls === undefined ? undefined : new Certificates({ own: options.tls, ...(options.hosts !== undefined && { hosts: options.hosts }) });
  const close = async (): Promise<void> => {
    await Promise.all(servers.map(closeServer));
  };
  const addresses: Listen[] = [];
  try {
    for (const at of options.at) {
      // Ten seconds for a header: a phone on a bad line needs three, a slow-loris wants for ever.
      const limits = { headersTimeout: 10_000, requestTimeout: 15_000, keepAliveTimeout: 5_000, connectionsCheckingInterval: 5_000 };
      const server = options.tls === undefined || certificates === undefined
        ? createPlain(limits, options.answer)
        // Who names no host, and so has no SNI, gets the pair the listener was opened or renewed with.
        : createSecure({ ...limits, ...readPair(options.tls()), minVersion: 'TLSv1.2', SNICallback: (host, done) => done(null, certificates.contextOf(host)) }, options.answer);
      server.maxConnections = 4_096; // a tenth of the descriptors a unit gets; the queue needs the rest
      servers.push(server);
      addresses.push({ host: at.host, port: await start(server, at, options.name) });
    }
  } catch (error) {
    await close();
    throw error;
  }
  return {
    addresses,
    renewTls() {
      if (options.tls === undefined) return;
      const pair = readPair(options.tls());
      certificates?.renew();
      for (const server of servers) if ('setSecureContext' in server) server.setSecureContext({ ...pair, minVersion: 'TLSv1.2' });
    },
    close,
  };
}

function start(server: Server | SecureServer, at: Listen, name: string): Promise<number> {
  return new Promise((done, fail) => {
    server.once('error', (cause) => {
      fail('code' in cause && (cause.code === 'EADDRINUSE' || cause.code === 'EACCES' || cause.code === 'EADDRNOTAVAIL')
        ? new MailError('E_IN_USE', `cannot listen on ${at.host}:${at.port} (${String(cause.code)}); change ${name}`, { cause })
        : cause);
    });
    server.listen({ host: at.host, port: at.port }, () => done((server.address() as AddressInfo).port));
  });
}

function readPair(tls: Settings['server']['tls']): { cert: Buffer; key: Buffer } {
  try {
    return { cert: readFileSync(tls.certificateFile), key: readFileSync(tls.keyFile) };
  } catch (cause) {
    throw new MailError('E_KEY_UNREADABLE', `tls: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

function closeServer(server: Server | SecureServer): Promise<void> {
  return new Promise((done) => {
    const timer = setTimeout(() => server.closeAllConnections(), 2_000);
    server.close(() => {
      clearTimeout(timer);
      done();
    });
    server.closeIdleConnections();
  });
}
