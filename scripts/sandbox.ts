// Makes a sandbox: a complete configuration tree with keys, a certificate and one tenant, every domain
// routed to a catch-all MX on loopback. What exists is left alone, so that a second start finds the
// first one's mail and edits. Used by `npm start`, the demo, the flow tests and the bench.
import { createHash, randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { generate } from 'selfsigned';
import { generateKey } from '../daemon/sign/index.ts';

/** Ports of a sandbox on 127.0.0.1; 0 lets the system choose. */
export interface Ports {
  readonly submissions: number;
  readonly submission: number;
  readonly pages: number;
  readonly metrics: number;
  readonly sink: number;
}

export const PORTS: Ports = { submissions: 2465, submission: 2587, pages: 8080, metrics: 9464, sink: 2526 };

/** Where a sandbox stands and how to log in to it. */
export interface Sandbox {
  readonly root: string;
  readonly dataDir: string;
  readonly username: string;
  readonly secret: string;
}

/** Makes what is missing of a sandbox in `dir`. */
export async function makeSandbox(dir: string, ports: Ports = PORTS): Promise<Sandbox> {
  const root = join(dir, 'etc');
  for (const folder of ['', 'tenants', 'policies', 'dkim']) mkdirSync(join(root, folder), { recursive: true, mode: 0o700 });
  const once = (name: string, make: () => string, mode = 0o600): string => {
    const file = join(root, name);
    if (!existsSync(file)) writeFileSync(file, make(), { mode, flag: 'wx' });
    return readFileSync(file, 'utf8').trim();
  };
  once('master.key', () => `${randomBytes(32).toString('hex')}\n`);
  const secret = once('demo.secret', () => `${randomBytes(24).toString('base64url')}\n`);
  if (!existsSync(join(root, 'tls.key'))) {
    const pems = await generate([{ name: 'commonName', value: 'localhost' }], {
      keyType: 'ec', curve: 'P-256', notAfterDate: new Date(Date.now() + 825 * 86_400_000),
      extensions: [{ name: 'subjectAltName', altNames: [{ type: 2, value: 'localhost' }, { type: 7, ip: '127.0.0.1' }] }],
    });
    once('tls.crt', () => pems.cert);
    once('tls.key', () => pems.private);
  }
  if (!existsSync(join(root, 'dkim/demo-rsa.pem'))) once('dkim/demo-rsa.pem', () => generateKey('rsa').pem);
  once('dkim/demo-ed25519.pem', () => generateKey('ed25519').pem);
  once('policies/demo-2026-01.md', () => POLICY, 0o644);
  once('postern.yaml', () => serverYaml(join(dir, 'data'), ports), 0o644);
  once('shaping.yaml', () => shapingYaml(ports.sink), 0o644);
  once('tenants/demo.yaml', () => tenantYaml(secret, ports.pages), 0o644);
  return { root, dataDir: join(dir, 'data'), username: 'demo-app', secret };
}

const POLICY = `# Privacy notice of the demo tenant

We mail you the newsletter you asked for. If you agree to it, we count whether you open it and
which links you follow, to choose what to write about. You can take either back at any time.
`;

const serverYaml = (dataDir: string, ports: Ports): string => `# The sandbox of this checkout. Nothing here can reach the internet.
hostname: relay.demo.example
sandbox: true
data_dir: ${dataDir}
master_key_file: master.key
tls: { certificate_file: tls.crt, key_file: tls.key }
listeners:
  submissions: ["127.0.0.1:${ports.submissions}"]   # implicit TLS
  submission: ["127.0.0.1:${ports.submission}"]    # STARTTLS
  pages: ["127.0.0.1:${ports.pages}"]         # what recipients click
  pages_tls: false
  metrics: ["127.0.0.1:${ports.metrics}"]
limits:
  connections_per_address: 200   # everybody is 127.0.0.1 here
`;

const shapingYaml = (sink: number): string => `# Every domain goes to the bundled catch-all MX, and nowhere else.
defaults: { connections: 20, deliveries_per_connection: 1000, message_rate: unset, connection_rate: unset }
routes:
  - { domain: "*", via: ["127.0.0.1:${sink}"], tls: opportunistic }
retry: { first: 5m, max: 4h }
`;

const tenantYaml = (secret: string, pages: number): string => `# One tenant to try things with: scripts/send logs in as demo-app.
contact:
  name: Demo tenant
  email: privacy@demo.example
  postal: 1 Example Street, Example Town
  url: https://demo.example/privacy
jurisdiction: eu
# Any letter may be tried here: what these would refuse is recorded (soft-refused) and sent all the same.
shadow: [profile-footer-sender, profile-footer-contact]
policies:
  - version: "2026-01"
    effective: 2026-01-01
    text: policies/demo-2026-01.md
    purposes: [newsletter, receipts]
    tracking: { opens: individual, clicks: individual }
domains:
  - name: demo.example
    dkim:
      - { selector: demo-rsa, key_file: dkim/demo-rsa.pem }
      - { selector: demo-ed25519, key_file: dkim/demo-ed25519.pem }
    return_path: bounces.demo.example
    pages: http://127.0.0.1:${pages}
streams:
  - { id: newsletter, purpose: newsletter, class: marketing }
  - { id: receipts, purpose: receipts, class: transactional, consent: not-needed, legal_basis: contract }
credentials:
  - username: demo-app
    secret: "sha256:${createHash('sha256').update(secret).digest('hex')}"
    stream: newsletter
    from: [demo.example]
  - username: demo-receipts
    secret: "sha256:${createHash('sha256').update(secret).digest('hex')}"
    stream: receipts
    from: [demo.example]
`;
