// From what the YAML says to the frozen snapshot: names in house style, units resolved, files absolute.
// Nothing is checked here any more; whoever calls has no problem left.
import { createHash } from 'node:crypto';
import { getServers } from 'node:dns';
import type { LegalBasis } from '../mail/index.ts';
import type { TreeFiles } from './files.ts';
import type { ServerInput, TenantInput } from './schema.ts';
import { pngSize } from './png.ts';
import type { ApiToken, Brand, Credential, Listen, Policy, Server, Stream, Tenant } from './settings.ts';

const DAY_MS = 86_400_000;

/** postern.yaml as the rooms read it. */
export function buildServer(input: ServerInput, files: TreeFiles): Server {
  const { limits, listeners, resolver } = input;
  return deepFreeze({
    hostname: input.hostname,
    dataDir: files.resolve(input.data_dir),
    masterKeyFile: files.resolve(input.master_key_file),
    sandbox: input.sandbox,
    tls: { certificateFile: files.resolve(input.tls.certificate_file), keyFile: files.resolve(input.tls.key_file) },
    listeners: {
      submissions: listeners.submissions,
      submission: listeners.submission,
      inbound: listeners.inbound,
      pages: listeners.pages,
      pagesTls: listeners.pages_tls,
      api: listeners.api,
      metrics: listeners.metrics,
    },
    limits: {
      messageBytes: limits.message_size,
      recipientsPerMessage: limits.recipients_per_message,
      connections: limits.connections,
      connectionsPerAddress: limits.connections_per_address,
      dataTimeoutMs: limits.data_timeout,
      idleTimeoutMs: limits.idle_timeout,
      authFailures: limits.auth_failures,
      diskReserveBytes: limits.disk_reserve,
      keepEventsMs: limits.keep_events,
    },
    resolver: {
      servers: resolver.servers.length > 0 ? resolver.servers : systemResolvers(),
      timeoutMs: resolver.timeout,
      trustAd: resolver.trust_ad,
    },
    tlsReports: input.tls_reports,
    log: input.log,
  });
}

/** What the system asks; Node writes a port only where it is not 53. */
function systemResolvers(): Listen[] {
  const servers = getServers().map((text): Listen => {
    const m = /^(?:\[([^\]]+)\]:(\d+)|([\d.]+):(\d+))$/.exec(text);
    return m === null ? { host: text, port: 53 } : { host: m[1] ?? m[3] ?? '', port: Number(m[2] ?? m[4]) };
  });
  return servers.length > 0 ? servers : [{ host: '127.0.0.1', port: 53 }];
}

/** One tenant file as the rooms read it; `texts` holds the policy texts by file name. */
export function buildTenant(id: string, input: TenantInput, files: TreeFiles, texts: ReadonlyMap<string, Buffer>): Tenant {
  const credentials = input.credentials.map((one): Credential => Object.freeze({
    username: one.username,
    tenant: id,
    secretHash: hashOctets(one.secret),
    stream: one.stream,
    from: Object.freeze(one.from),
    rate: one.rate,
  }));
  const streams = input.streams.map((one): readonly [string, Stream] => [one.id, Object.freeze({
    id: one.id,
    purpose: one.purpose,
    class: one.class,
    consentRequired: one.consent === 'required',
    retryForMs: one.retry_for ?? (one.class === 'marketing' ? 3 * DAY_MS : DAY_MS / 2),
    priority: one.priority,
    ...(one.campaign_header !== undefined && { campaignHeader: one.campaign_header }),
    legalBasis: basisOf(one.legal_basis ?? 'consent'),
    textLinks: one.text_links,
    thirdPartyTrackers: one.third_party_trackers,
    delayNoticeMs: one.delay_notice,
    bouncesTo: one.bounces_to,
  })]);
  return Object.freeze({
    id,
    contact: Object.freeze(input.contact),
    policies: Object.freeze(input.policies.map((one) => buildPolicy(one, texts.get(one.text) ?? Buffer.alloc(0))).sort((a, b) => a.effectiveAt - b.effectiveAt)),
    domains: deepFreeze(input.domains.map((one) => ({
      name: one.name,
      dkim: one.dkim.map((key) => ({ selector: key.selector, keyFile: files.resolve(key.key_file), canonicalization: key.canonicalization })),
      returnPath: one.return_path,
      pages: one.pages,
      ...(one.pages_tls !== undefined && { pagesTls: { certificateFile: files.resolve(one.pages_tls.certificate_file), keyFile: files.resolve(one.pages_tls.key_file) } }),
    }))),
    untrackedDomains: Object.freeze(input.untracked_domains.map((domain) => domain.toLowerCase())),
    streams: new Map(streams),
    credentials: Object.freeze(credentials),
    brand: buildBrand(input.brand, texts),
    softRefuse: input.soft_refuse,
    ...(input.jurisdiction === undefined ? {} : { jurisdiction: input.jurisdiction }),
    shadow: new Set(input.shadow),
    apiTokens: Object.freeze(input.api_tokens.map((one): ApiToken => Object.freeze({
      id: one.id,
      tenant: id,
      secretHash: hashOctets(one.secret),
      scopes: Object.freeze(one.scopes),
    }))),
    keepEvidenceMs: input.keep_evidence,
  });
}

function buildBrand({ color, logo_file: file }: TenantInput['brand'], texts: ReadonlyMap<string, Buffer>): Brand {
  const octets = file === undefined ? undefined : texts.get(file);
  return Object.freeze({
    ...(color !== undefined && { color: color.toLowerCase() }),
    ...(octets !== undefined && { logo: Object.freeze({ octets, hash: createHash('sha256').update(octets).digest('hex'), ...pngSize(octets) ?? { width: 0, height: 0 } }) }),
  });
}

const hashOctets = (secret: string): Buffer => Buffer.from(secret.slice('sha256:'.length), 'hex');

type StreamBasis = NonNullable<TenantInput['streams'][number]['legal_basis']>;

/** The basis a plain word stands for. */
function basisOf(written: StreamBasis): LegalBasis {
  switch (written) {
    case 'consent': return 'gdpr_6_1_a';
    case 'contract': return 'gdpr_6_1_b';
    case 'legal-obligation': return 'gdpr_6_1_c';
    default: return written;
  }
}

function buildPolicy(input: TenantInput['policies'][number], text: Buffer): Policy {
  return deepFreeze({
    version: input.version,
    hash: hashPolicy(text, input),
    text: text.toString('utf8'),
    effectiveAt: input.effective,
    purposes: input.purposes,
    tracking: input.tracking,
  });
}

interface Permissions {
  readonly purposes: readonly string[];
  readonly tracking: { readonly opens: string; readonly clicks: string };
}

/** SHA-256 of a policy's octets and permissions, hex: the same text and permissions have the same hash for ever. */
export function hashPolicy(text: Buffer, permissions: Permissions): string {
  // Canonical: keys and purposes in one order, so that re-ordering a list is no new policy.
  const canonical = JSON.stringify({
    purposes: [...new Set(permissions.purposes)].sort(),
    tracking: { clicks: permissions.tracking.clicks, opens: permissions.tracking.opens },
  });
  return createHash('sha256').update(text).update('\0').update(canonical).digest('hex');
}

export function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const inner of Object.values(value)) deepFreeze(inner);
  }
  return value;
}
