// The listener recipients touch: clicks, opens, unsubscribing, policy texts, security.txt. No cookies,
// no sessions, no scripts; GET and HEAD never change anything. It asks the tenant of no one: the token
// names it. It does not ask whether a tenant is suspended: these pages outlive that (design §7). Anything
// unknown, forged or foreign is one constant 404; a bug is a 500, logged and counted, never a crash.
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Listen, Settings } from '../settings/index.ts';
import { mtaStsPolicy } from '../sign/index.ts';
import type { PairFiles } from './certificates.ts';
import { Hits } from './hits.ts';
import { listen } from './listen.ts';
import type { PagesOptions } from './touch.ts';
import { answerConfirm } from './confirm.ts';
import { answerPolicies } from './policies.ts';
import { answerPreferences } from './preferences.ts';
import { answerUnsubscribe } from './unsubscribe.ts';

const NOT_FOUND = Buffer.from('Not found\n');
// RFC 9116 §2.5.5: less than a year ahead; a month, for the text is made anew at each request.
const SECURITY_TXT_MS = 30 * 86_400_000;

export interface Pages {
  /** Where it listens, port 0 resolved. */
  readonly addresses: readonly Listen[];
  /** Takes the certificate and key on disk for new connections. @throws MailError E_KEY_UNREADABLE; the old pair stays. */
  renewTls(): void;
  /** Resolves when every hit answered so far has been recorded or left unrecorded. */
  settled(): Promise<void>;
  close(): Promise<void>;
}

/** Opens the pages on `listeners.pages`. @throws MailError E_IN_USE, E_KEY_UNREADABLE */
export async function openPages(options: PagesOptions): Promise<Pages> {
  const hits = new Hits(options);
  const { listeners } = options.settings().server;
  const listening = await listen({
    name: 'listeners.pages',
    at: listeners.pages,
    tls: listeners.pagesTls ? () => options.settings().server.tls : undefined,
    hosts: () => pairsOf(options.settings()),
    answer: (request, response) => {
      answer(options, hits, request, response).catch((error: unknown) => {
        options.metrics.bugs.inc({ room: 'web' });
        options.log.error({ error: error instanceof Error ? error.stack : String(error) }, 'a page failed');
        if (response.headersSent) response.destroy();
        else response.writeHead(500, { 'Content-Length': 0, Connection: 'close' }).end();
      });
    },
  });
  return {
    addresses: listening.addresses,
    renewTls: () => listening.renewTls(),
    settled: () => hits.settled(),
    async close() {
      await listening.close();
      await hits.settled();
    },
  };
}

const PAIRS = new WeakMap<Settings, ReadonlyMap<string, PairFiles>>();

/** The certificates of the tenants' own hosts; one table for each snapshot. */
function pairsOf(settings: Settings): ReadonlyMap<string, PairFiles> {
  let pairs = PAIRS.get(settings);
  if (pairs === undefined) {
    pairs = new Map([...settings.tenants.values()].flatMap(({ domains }) => domains.flatMap(({ pages, pagesTls }) => (pagesTls === undefined ? [] : [[new URL(pages).hostname, pagesTls] as const]))));
    PAIRS.set(settings, pairs);
  }
  return pairs;
}

async function answer(options: PagesOptions, hits: Hits, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { method = '', url = '' } = request;
  const path = url.split('?', 1)[0] ?? '';
  const [, room = '', token = ''] = /^\/([a-z.-]+)\/([A-Za-z0-9._-]*)$/.exec(path) ?? [];
  const reading = method === 'GET' || method === 'HEAD';
  if (room === 'o' && reading) return hits.open(token.replace(/\.gif$/, ''), request, response);
  if (room === 'c' && reading && hits.click(token, request, response)) return undefined;
  if (room === 'f' && (reading || method === 'POST') && hits.form(token, request, response)) return undefined;
  if (room === 'u' && (reading || method === 'POST')) return answerUnsubscribe(options, token, request, response);
  if (room === 'p' && (reading || method === 'POST')) return answerPreferences(options, token, request, response);
  if (room === 'confirm' && (reading || method === 'POST')) return answerConfirm(options, token, request, response);
  if (room === 'policy' && reading && answerPolicies(options, token, request, response)) return undefined;
  const logo = room === 'brand' && reading ? logoAt(options, token) : undefined;
  if (logo !== undefined) return picture(request, response, logo);
  const text = reading ? documentAt(options, room, token, request.headers.host ?? '') : undefined;
  if (text !== undefined) return plain(request, response, 200, Buffer.from(text));
  return plain(request, response, 404, NOT_FOUND);
}

/** A tenant's logo, by the hash of its octets. */
function logoAt({ settings }: PagesOptions, hash: string): Buffer | undefined {
  for (const { brand } of settings().tenants.values()) if (brand?.logo?.hash === hash) return brand.logo.octets;
  return undefined;
}

function picture(request: IncomingMessage, response: ServerResponse, octets: Buffer): undefined {
  response.writeHead(200, {
    'Content-Type': 'image/png', 'Content-Length': octets.length, 'Cache-Control': 'public, max-age=31536000, immutable',
    'Referrer-Policy': 'no-referrer', 'X-Content-Type-Options': 'nosniff', 'Content-Security-Policy': "default-src 'none'",
  });
  response.end(request.method === 'HEAD' ? undefined : octets);
  return undefined;
}

/** The published text at this place, if there is one. */
function documentAt(options: PagesOptions, room: string, name: string, host: string): string | undefined {
  if (room === '.well-known' && name === 'security.txt') {
    const expires = new Date(options.clock.now() + SECURITY_TXT_MS).toISOString();
    // RFC 9116 §2.5.3, RFC 9116 §2.5.5
    return `Contact: mailto:${contactOf(options, host.toLowerCase())}\nExpires: ${expires}\nPreferred-Languages: en\n`;
  }
  // RFC 8461 §3.3: for the domains of our reverse-paths, whose MX we are.
  if (room === '.well-known' && name === 'mta-sts.txt' && returnsTo(options, host.toLowerCase())) return mtaStsPolicy(options.settings().server.hostname).text;
  return undefined;
}

/** Is this the policy host of a reverse-path's domain of ours? */
function returnsTo({ settings }: PagesOptions, host: string): boolean {
  const name = host.replace(/:\d+$/, '');
  return name.startsWith('mta-sts.') && [...settings().tenants.values()].some(({ domains }) => domains.some(({ returnPath }) => name === `mta-sts.${returnPath}`));
}

/** The contact of the tenant whose pages stand under this host name, else the postmaster of ours. */
function contactOf(options: PagesOptions, host: string): string {
  const { tenants, server } = options.settings();
  for (const tenant of tenants.values()) {
    if (tenant.domains.some((domain) => URL.parse(domain.pages)?.host === host)) return tenant.contact.email;
  }
  return `postmaster@${server.hostname}`;
}

function plain(request: IncomingMessage, response: ServerResponse, status: number, text: Buffer): undefined {
  response.writeHead(status, {
    'Content-Type': 'text/plain; charset=utf-8', 'Content-Length': text.length, 'Cache-Control': 'no-store',
    'Referrer-Policy': 'no-referrer', 'X-Content-Type-Options': 'nosniff', 'Content-Security-Policy': "default-src 'none'",
    // A body nobody reads (a POST to nowhere) is not waited for.
    ...(request.method === 'GET' || request.method === 'HEAD' ? {} : { Connection: 'close' }),
  });
  response.end(request.method === 'HEAD' ? undefined : text);
  return undefined;
}
