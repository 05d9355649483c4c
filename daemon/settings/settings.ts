// The frozen snapshot every room reads: what the YAML tree says once it has been checked. Units are in
// the names. One snapshot is never changed; a reload makes a new one (reload.ts) and everybody asks
// `current()` anew for each message, so that a change reaches the next message and not half of one.
import type { BasisFact, BounceRules, ClickMode, LegalBasis, OpenMode, Priority, Tracking } from '../mail/index.ts';

export interface Settings {
  /** SHA-256 over the whole tree, hex: two snapshots with one hash say the same. */
  readonly hash: string;
  /** The folder the tree was read from; relative paths in it are already resolved. */
  readonly root: string;
  readonly server: Server;
  readonly tenants: ReadonlyMap<string, Tenant>;
  /** By username: usernames are unique over all tenants. */
  readonly credentials: ReadonlyMap<string, Credential>;
  readonly shaping: Shaping;
  /** `profiles.yaml`, by id; the shipped ones where the tree has no such file. */
  readonly profiles: ReadonlyMap<string, Profile>;
  /** `bounces.yaml`: what receivers' words mean. */
  readonly bounces: BounceRules;
  /** What holds where the jurisdiction is unknown: of every rule the strictest of all profiles. */
  readonly strictest: Profile;
}

/** `postern.yaml`. Keys that need a restart are marked so in the schema. */
export interface Server {
  /** What we call ourselves in EHLO, the greeting and Received. */
  readonly hostname: string;
  readonly dataDir: string;
  readonly masterKeyFile: string;
  /** `true`: no target but the routes of shaping.yaml is ever connected to. */
  readonly sandbox: boolean;
  readonly tls: { readonly certificateFile: string; readonly keyFile: string };
  readonly listeners: {
    /** Implicit TLS (RFC 8314), `[]` to close. */
    readonly submissions: readonly Listen[];
    /** STARTTLS (RFC 6409). */
    readonly submission: readonly Listen[];
    /** Mail that comes back, without a login. */
    readonly inbound: readonly Listen[];
    /** Recipients' pages. */
    readonly pages: readonly Listen[];
    /** Pages over TLS: false when a proxy in front of us does it. */
    readonly pagesTls: boolean;
    /** The tenants' HTTP API, always over TLS. */
    readonly api: readonly Listen[];
    readonly metrics: readonly Listen[];
  };
  readonly limits: {
    readonly messageBytes: number;
    readonly recipientsPerMessage: number;
    readonly connections: number;
    readonly connectionsPerAddress: number;
    /** Whole DATA phase of one message, ms. */
    readonly dataTimeoutMs: number;
    readonly idleTimeoutMs: number;
    /** Failed logins an address or an account may make in ten minutes before it is refused unheard. */
    readonly authFailures: number;
    /** Room kept free on the data disk: below it mail is refused with 452 while deliveries and withdrawals go on. */
    readonly diskReserveBytes: number;
    /** How long the event journal is kept, ms. */
    readonly keepEventsMs: number;
  };
  readonly resolver: { readonly servers: readonly Listen[]; readonly timeoutMs: number; readonly trustAd: boolean };
  readonly tlsReports: { readonly tenant: string; readonly organization: string; readonly contact: string } | undefined;
  readonly log: { readonly level: 'debug' | 'info' | 'warn' | 'error' };
}

export interface Listen {
  readonly host: string;
  readonly port: number;
}

/** `tenants/<id>.yaml`. */
export interface Tenant {
  readonly id: string;
  readonly contact: { readonly name: string; readonly email: string; readonly postal: string; readonly url: string };
  /** In order of `effective`. */
  readonly policies: readonly Policy[];
  readonly domains: readonly SendingDomain[];
  /** Links that lead there or below are left as they are; lower case. */
  readonly untrackedDomains?: readonly string[];
  readonly streams: ReadonlyMap<string, Stream>;
  readonly credentials: readonly Credential[];
  /** 5xx that we originate become 4xx while a policy is tried out; each use is logged. */
  readonly softRefuse: boolean;
  /** Profile of recipients of whom nothing nearer is known; undefined: the strictest. */
  readonly jurisdiction?: string;
  /** Rules among SHADOWABLE that are judged and recorded but not enforced. */
  readonly shadow?: ReadonlySet<string>;
  readonly apiTokens?: readonly ApiToken[];
  /** How the tenant's pages look; absent: as they come. */
  readonly brand?: Brand;
  /** How long consent evidence outlives the erasure of its person (GDPR Art. 17(3)(e)), 0: not at all. */
  readonly keepEvidenceMs?: number;
}

/** What recipients know a tenant by. */
export interface Brand {
  /** `#rrggbb`, lower case; the pages make it darker or lighter until text on it can be read. */
  readonly color?: string;
  /** A PNG. */
  readonly logo?: { readonly octets: Buffer; readonly hash: string; readonly width: number; readonly height: number };
}

/**
 * Rules of the gate that may stand in a tenant's `shadow`: those about the form of a message and those of a
 * jurisdiction. In whose name mail goes, who consented and who is suppressed is never tried out.
 */
export const SHADOWABLE = [
  'message-duplicate-field', 'message-visible-recipients', 'message-to-mismatch', 'message-unsubscribe', 'message-third-party-tracker',
  'profile-basis', 'profile-double-opt-in', 'profile-obtained-in-sale', 'profile-own-similar-products', 'profile-opt-out-offered',
  'profile-tracking-consent-apart', 'profile-undated', 'profile-expired', 'profile-header',
  'profile-footer-sender', 'profile-footer-postal', 'profile-footer-contact', 'profile-footer-unset',
] as const;

/** A login of the tenant's HTTP API. */
export interface ApiToken {
  readonly id: string;
  readonly tenant: string;
  /** SHA-256 of the secret, 32 octets. */
  readonly secretHash: Buffer;
  readonly scopes: readonly ApiScope[];
}

/** What a token may do; each includes nothing of the others. */
export const API_SCOPES = ['consents:read', 'consents:write', 'suppressions:read', 'suppressions:write', 'receipts', 'subjects', 'export', 'tracking:read'] as const;
export type ApiScope = (typeof API_SCOPES)[number];

/** One jurisdiction of `profiles.yaml`: data, each value with its source beside it there. */
export interface Profile {
  readonly id: string;
  /** Top-level domains, lower case without a dot, whose mailboxes are taken to live there. */
  readonly tlds: readonly string[];
  /** Legal bases marketing mail may rest on. */
  readonly bases: readonly LegalBasis[];
  /** Facts that must be on record for a basis. */
  readonly basisFacts: Readonly<Partial<Record<LegalBasis, readonly BasisFact[]>>>;
  /** How long a permission on this basis lasts from its collection, ms; absent: until withdrawn. */
  readonly basisExpiresMs: Readonly<Partial<Record<LegalBasis, number>>>;
  /** The most that may be tracked, and the most where the tracking choice was asked for by itself. */
  readonly tracking: Tracking;
  readonly trackingApart: Tracking;
  /** Header fields marketing mail must carry, beside those Postern adds. */
  readonly headers: readonly string[];
  /** What the text of marketing mail must show. */
  readonly footer: readonly FooterElement[];
  /** How long nobody may be asked again after a refusal, ms; 0: no such rule. */
  readonly reaskMs: number;
  /** How long the unsubscribe link must work after the mail, ms. */
  readonly unsubscribeForMs: number;
}

/** `sender`: contact.name; `postal`: contact.postal; `contact`: contact.email or contact.url. */
export const FOOTER_ELEMENTS = ['sender', 'postal', 'contact'] as const;
export type FooterElement = (typeof FOOTER_ELEMENTS)[number];

/** One immutable version of the tenant's privacy policy (design §4). */
export interface Policy {
  readonly version: string;
  /** SHA-256 of the text and the permissions below, hex: this is what consent records point to. */
  readonly hash: string;
  readonly text: string;
  readonly effectiveAt: number;
  readonly purposes: readonly string[];
  readonly tracking: { readonly opens: OpenMode; readonly clicks: ClickMode };
}

export interface SendingDomain {
  readonly name: string;
  readonly dkim: readonly { readonly selector: string; readonly keyFile: string; readonly canonicalization: 'relaxed/simple' | 'relaxed/relaxed' }[];
  /** The domain of our reverse-paths (VERP). */
  readonly returnPath: string;
  /** Base of recipients' links, `https://news.acme.example` (http only in a sandbox). */
  readonly pages: string;
  /** The certificate for the host of `pages`, where it is not the listeners' own. */
  readonly pagesTls?: { readonly certificateFile: string; readonly keyFile: string };
}

export interface Stream {
  readonly id: string;
  readonly purpose: string;
  readonly class: 'marketing' | 'transactional';
  readonly consentRequired: boolean;
  readonly retryForMs: number;
  readonly priority: Priority;
  /** The field that names a message's campaign; absent: the usual ones. */
  readonly campaignHeader?: string;
  readonly legalBasis: LegalBasis;
  /** Plain-text links are rewritten too. */
  readonly textLinks: boolean;
  /** What becomes of others' trackers in copies of who does not allow individual opens; refused mail is emptied of them too, should somebody change their mind later. */
  readonly thirdPartyTrackers: 'strip' | 'report' | 'refuse';
  /** How long a recipient waits before it is told, to who asked for that (RFC 3461). */
  readonly delayNoticeMs: number;
  /** Where failure notices go; '' means the envelope sender. */
  readonly bouncesTo: string;
}

export interface Credential {
  readonly username: string;
  readonly tenant: string;
  /** SHA-256 of the secret, 32 octets. The secret holds at least 128 random bits, so no slow hash is needed. */
  readonly secretHash: Buffer;
  readonly stream: string;
  /** Allowed in MAIL FROM and header From: `acme.example` (a whole domain) or `news@acme.example`. */
  readonly from: readonly string[];
  readonly rate: Rate | undefined;
}

/** `600/min`: `count` in each `perMs`, with bursts of at most `burst`. */
export interface Rate {
  readonly count: number;
  readonly perMs: number;
  readonly burst: number;
}

/** `shaping.yaml`. */
export interface Shaping {
  readonly defaults: LaneLimits;
  readonly providers: readonly Provider[];
  /** First match wins. */
  readonly routes: readonly Route[];
  readonly retry: { readonly firstMs: number; readonly maxMs: number };
  readonly egress: readonly EgressSource[];
  readonly pools: ReadonlyMap<string, readonly PooledSource[]>;
  /** First match wins; what is absent fits everything. */
  readonly use: readonly PoolUse[];
  readonly automation: readonly AutomationRule[];
  /** So much (0 to 1) of its limits a lane gets back at each step. */
  readonly recovery: { readonly add: number; readonly everyMs: number; readonly holdMs: number };
  /** What a tenant may send in all, by tenant id. */
  readonly tenants: ReadonlyMap<string, TotalLimits>;
}

export interface PooledSource {
  readonly id: string;
  readonly weight: number;
}

export interface PoolUse {
  readonly tenant?: string;
  readonly stream?: string;
  readonly provider?: string;
  readonly pool: string;
}

export const AUTOMATION_ACTIONS = ['suspend', 'slow', 'halve', 'single', 'suspend-tenant'] as const;
export type AutomationAction = (typeof AUTOMATION_ACTIONS)[number];

/** What receivers say, and what follows for `forMs`. Either `reply` or `share` is there. */
export interface AutomationRule {
  readonly id: string;
  /** Absent: every lane. */
  readonly provider?: string;
  readonly reply?: { readonly pattern: RegExp; readonly count: number; readonly perMs: number };
  readonly share?: { readonly of: 'deferred' | 'failed'; readonly above: number; readonly least: number; readonly withinMs: number };
  readonly action: AutomationAction;
  /** With `slow`. */
  readonly rate?: Rate;
  readonly forMs: number;
}

export interface EgressSource {
  readonly id: string;
  readonly address: string;
  readonly helo: string;
  /** From `since` on (ms since the epoch) a lane of this source sends so many messages on the first day, the second, ...; then as many as it likes. */
  readonly warmup?: { readonly since: number; readonly perDay: readonly number[] };
  readonly says: LimitLayer;
  readonly total: TotalLimits;
}

export interface Provider {
  readonly id: string;
  /** Suffixes with a leading dot, or whole host names; every MX host of a domain must match one. */
  readonly match: readonly string[];
  /** `apart`: each set of MX hosts has a lane of its own. */
  readonly sites: 'together' | 'apart';
  readonly says: LimitLayer;
  /** Of all its lanes together. */
  readonly total: TotalLimits;
  /** What holds from one egress source, by its id. */
  readonly egress: ReadonlyMap<string, LimitLayer>;
}

/** What one lane may do; undefined: no limit of that kind. */
export interface LaneLimits {
  readonly connections: number;
  readonly connectionRate: Rate | undefined;
  readonly messageRate: Rate | undefined;
  readonly deliveriesPerConnection: number | undefined;
  readonly tls: 'opportunistic' | 'required' | 'off';
  readonly idleMs: number;
  /** Of one tenant on the lane. */
  readonly tenantConnections: number | undefined;
  readonly tenantMessageRate: Rate | undefined;
}

/** What a layer says: a key that is there counts, also where it is undefined (`unset`). */
export type LimitLayer = Partial<LaneLimits>;

/** A limit that several lanes share. */
export interface TotalLimits {
  readonly connections?: number;
  readonly connectionRate?: Rate;
  readonly messageRate?: Rate;
}

/** Sends some domains to given hosts instead of their MX. Only a route may lead to loopback or a private address. */
export interface Route {
  /** `example.com`, `*.example.com` or `*`. */
  readonly domain: string;
  readonly via: readonly Listen[];
  /** Port on which MX hosts on loopback are reached, in a sandbox; then `via` is empty. */
  readonly loopbackMx?: number;
  readonly tls: 'opportunistic' | 'required' | 'off';
}
