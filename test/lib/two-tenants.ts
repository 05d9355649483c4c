// Two tenants, acme and bravo, on one relay in a sandbox of its own: each with its own domain, policy,
// stream, credential, signing key and host of pages, and nothing shared but the house. Tenant ids, login
// names and the client's name stand in no domain, so that a scan of what leaves the house can look for
// them. Callers may rely on: remove() takes everything away; record() is for while no daemon runs.
import { createHash, randomBytes } from 'node:crypto';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createTransport, type SendMailOptions } from 'nodemailer';
import type { SuppressionCause } from '../../daemon/ledger/index.ts';
import { openStores, type Stores } from '../../daemon/main.ts';
import { parseAddress } from '../../daemon/mail/index.ts';
import { openKeyring, openLog, readMasterKey, type Keyring } from '../../daemon/runtime/index.ts';
import { generateKey } from '../../daemon/sign/index.ts';
import { makeGrounds, type Grounds } from './daemon.ts';
import { Client } from './dialog.ts';

export const TENANTS = ['acme', 'bravo'] as const;
export type TenantId = (typeof TENANTS)[number];
/** What a client calls itself in EHLO, and where it comes from: neither may leave the house. */
export const CLIENT = { name: 'workstation.inside.example', address: '127.0.0.9' } as const;

export interface Side {
  readonly id: TenantId;
  readonly username: string;
  readonly secret: string;
  /** Sending domain; mail comes from `news@` it. */
  readonly domain: string;
  readonly from: string;
  /** Base of the recipients' links, on a loopback address of the tenant's own. */
  readonly pages: string;
  /** What every jurisdiction wants shown: who sends, from where, and where to write. */
  readonly footer: string;
}

/** What is known of people before the daemon starts: consents of a tenant, then its suppressions. */
export interface Known {
  readonly yes?: readonly string[];
  readonly no?: Readonly<Record<string, SuppressionCause>>;
}

export interface TwoTenants extends Omit<Grounds, 'send' | 'consent'> {
  readonly acme: Side;
  readonly bravo: Side;
  /** Submits one message. @returns the id, or '' with the reply that refused it */
  send(side: Side, mail: SendMailOptions): Promise<{ readonly id: string; readonly reply: string }>;
  /** A session that is logged in and has said MAIL FROM. */
  session(side: Side): Promise<Client>;
  record(known: Partial<Record<TenantId, Known>>): Promise<void>;
  stores(): Promise<Stores>;
  /** The keys on disk of these tenants only. */
  keyring(...tenants: readonly TenantId[]): Keyring;
}

/** A sandbox with two tenants whose mail all goes to `sink`; nothing runs in it yet. */
export async function makeTwoTenants(sink: number): Promise<TwoTenants> {
  const { send: _, consent: __, ...grounds } = await makeGrounds(sink);
  const { root, ports } = grounds;
  const sides = { acme: sideOf('acme', 'north.example', `http://127.0.0.1:${ports.pages}`), bravo: sideOf('bravo', 'south.example', `http://127.0.0.2:${ports.pages}`) };
  rmSync(join(root, 'tenants/demo.yaml'));
  for (const side of Object.values(sides)) {
    writeFileSync(join(root, 'dkim', `${side.domain}.pem`), generateKey('ed25519').pem, { mode: 0o600 });
    writeFileSync(join(root, 'policies', `${side.domain}.md`), `# Privacy notice of ${side.domain}\n\nWe mail you what you asked for.\n`);
    writeFileSync(join(root, 'tenants', `${side.id}.yaml`), tenantYaml(side));
  }
  grounds.edit('postern.yaml', (text) => text.replace(/pages: \[.*?\]/, `pages: ["127.0.0.1:${ports.pages}", "127.0.0.2:${ports.pages}"]`));
  const stores = (): Promise<Stores> => openStores(root, openLog('silent'));
  return {
    ...grounds, ...sides, stores,
    send: (side, mail) => send(ports.submissions, side, mail),
    async session(side) {
      const client = await Client.open(ports.submissions, 'tls');
      await client.reply();
      const login = Buffer.from(`\0${side.username}\0${side.secret}`).toString('base64');
      for (const line of [`EHLO ${CLIENT.name}`, `AUTH PLAIN ${login}`, `MAIL FROM:<${side.from}>`]) {
        const reply = await client.say(line);
        if (!reply.startsWith('2')) throw new Error(`${line.slice(0, 10)}: ${reply}`);
      }
      return client;
    },
    async record(known) {
      const opened = await stores();
      try {
        for (const id of TENANTS) await recordOne(opened, id, known[id] ?? {});
      } finally {
        await opened.close();
      }
    },
    keyring(...tenants) {
      const ring = openKeyring(join(grounds.dataDir, 'keys'), readMasterKey(join(root, 'master.key')));
      ring.load(tenants);
      return ring;
    },
  };
}

const nameOf = (domain: string): string => `The letters of ${domain}`;
const postalOf = (domain: string): string => `1 ${domain.split('.')[0]} Street, Example Town`;
const sideOf = (id: TenantId, domain: string, pages: string): Side => ({
  id, username: `${id}-app`, secret: randomBytes(24).toString('base64url'), domain, from: `news@${domain}`, pages,
  footer: `${nameOf(domain)}, ${postalOf(domain)}, privacy@${domain}`,
});

async function send(port: number, side: Side, mail: SendMailOptions): Promise<{ readonly id: string; readonly reply: string }> {
  const transport = createTransport({
    host: '127.0.0.1', port, secure: true, name: CLIENT.name, localAddress: CLIENT.address,
    auth: { user: side.username, pass: side.secret }, tls: { rejectUnauthorized: false },
  });
  try {
    const { response } = await transport.sendMail({ from: side.from, ...mail });
    return { id: /queued as (\S+)/.exec(response)?.[1] ?? '', reply: response };
  } catch (error) {
    return { id: '', reply: (error as { response?: string }).response ?? String(error) };
  } finally {
    transport.close();
  }
}

// Given an hour ago, so that whatever is said now is said later.
const CONSENT_AGE_MS = 3_600_000;

async function recordOne({ ledger, live }: Stores, tenant: TenantId, { yes = [], no = {} }: Known): Promise<void> {
  const policyHash = live.current().tenants.get(tenant)?.policies[0]?.hash ?? '';
  await ledger.giveAll(tenant, yes.map((address) => ({
    hashes: ledger.hashes(tenant, parseAddress(address)), purpose: 'newsletter', state: 'given' as const, legalBasis: 'gdpr_6_1_a' as const, policyHash,
    method: 'form', evidence: { source: 'test', time: Date.now() - CONSENT_AGE_MS }, tracking: { opens: 'individual' as const, clicks: 'individual' as const }, by: 'test',
  })));
  await ledger.suppressAll(tenant, Object.entries(no).map(([address, cause]) => ({
    hashes: ledger.hashes(tenant, parseAddress(address)), scope: 'all' as const, cause, by: 'test',
  })));
}

const tenantYaml = (side: Side): string => `contact:
  name: ${nameOf(side.domain)}
  email: privacy@${side.domain}
  postal: ${postalOf(side.domain)}
jurisdiction: eu
policies:
  - version: "1"
    effective: 2026-01-01
    text: policies/${side.domain}.md
    purposes: [newsletter]
    tracking: { opens: individual, clicks: individual }
domains:
  - name: ${side.domain}
    dkim: [{ selector: s1, key_file: dkim/${side.domain}.pem }]
    return_path: bounces.${side.domain}
    pages: ${side.pages}
streams:
  - { id: newsletter, purpose: newsletter, class: marketing }
credentials:
  - username: ${side.username}
    secret: "sha256:${createHash('sha256').update(side.secret).digest('hex')}"
    stream: newsletter
    from: [${side.domain}]
`;
