// Every key of the configuration, declared once: type, default with its reason, unit, sentence, reload
// class. Nothing else in the house names a key or a default. postern.yaml is read at start; tenants/,
// shaping.yaml and profiles.yaml are reloaded live. Unknown keys are errors everywhere.
import { z } from 'zod';
import { BASIS_FACTS, CLICK_MODES, LEGAL_BASES, OPEN_MODES, PRIORITIES, type LegalBasis } from '../mail/index.ts';
import { API_SCOPES, AUTOMATION_ACTIONS, FOOTER_ELEMENTS, SHADOWABLE } from './settings.ts';
import * as v from './values.ts';
import { declare } from './values.ts';

const { needed, preset, choice } = declare('restart');
const live = declare('live');
const TLS_MODES = ['opportunistic', 'required', 'off'] as const;

const limits = z.strictObject({
  message_size: preset(v.size, '25MiB', { says: 'Largest message taken.', reason: 'what the large mailbox providers take' }),
  // RFC 5321 §4.5.3.1.8
  recipients_per_message: preset(v.count(1, 100_000), 1_000, { says: 'Most recipients of one message.', reason: 'ten times what every server must take' }),
  connections: preset(v.count(1, 100_000), 1_000, { says: 'Most open submission sessions.', reason: 'below the usual limit of 1024 open files with room for deliveries' }),
  connections_per_address: preset(v.count(1, 100_000), 50, { says: 'Most open submission sessions from one IP address.', reason: 'a busy application pools fewer' }),
  // RFC 5321 §4.5.3.2.5
  data_timeout: preset(v.duration, '10m', { says: 'Longest whole DATA phase of one message.', reason: '25 MiB at 45 KiB/s' }),
  // RFC 5321 §4.5.3.2.7
  idle_timeout: preset(v.duration, '5m', { says: 'Longest silence of a client between commands.', reason: 'the least the standard asks of a server' }),
  auth_failures: preset(v.count(1, 1_000), 10, { says: 'Failed logins an address or an account may make in ten minutes before it is refused unheard.', reason: 'a person mistypes thrice, a program with an old secret is noticed' }),
  disk_reserve: preset(v.size, '1GiB', { says: 'Room kept free on the data disk; below it new mail is refused with 452 while deliveries and withdrawals go on.', reason: 'withdrawals must always be recordable' }),
  keep_events: preset(v.duration, '30d', { says: 'How long the event journal is kept.', reason: 'long enough to answer a complaint, short enough for data minimisation' }),
});

/** `postern.yaml`. */
export const serverSchema = z.strictObject({
  hostname: needed(v.hostname, { says: 'What we call ourselves in EHLO, the greeting and Received; the reverse DNS of our addresses should say the same.' }),
  data_dir: preset(v.file, '/var/lib/postern', { says: 'Where queue, ledger, keys and journal lie.', reason: 'the state directory of the systemd unit' }),
  master_key_file: preset(v.file, 'master.key', { says: '64 hex digits that wrap every key; outside data_dir, or `credential:NAME` for a systemd credential.', reason: 'beside this file, until it is moved to a credential' }),
  sandbox: preset(v.yes, false, { says: 'true: nothing but the routes of shaping.yaml is ever connected to.', reason: 'an MTA delivers' }),
  tls: needed(z.strictObject({
    certificate_file: needed(v.file, { says: 'Certificate chain in PEM, or `credential:NAME`.' }),
    key_file: needed(v.file, { says: 'Its private key in PEM, or `credential:NAME`; not readable by others.' }),
  }), { says: 'The certificate of the listeners.' }),
  listeners: preset(z.strictObject({
    // RFC 8314 §3.3
    submissions: preset(z.array(v.listen), ['[::]:465'], { says: 'Submission under TLS from the first octet; `[]` closes it.', reason: 'the registered port' }),
    // RFC 6409 §3.1
    submission: preset(z.array(v.listen), ['[::]:587'], { says: 'Submission with STARTTLS; `[]` closes it.', reason: 'the registered port' }),
    // RFC 5321 §4.5.4.2: the null reverse-path's mail comes to port 25 of the return path's MX
    inbound: preset(z.array(v.listen), [], { says: 'Mail that comes back: bounces, complaints, unsubscriptions, postmaster and abuse; port 25 of the MX of every return_path. `[]` closes it, and then nobody is offered to unsubscribe by mail.', reason: 'a door nobody asked for stays shut' }),
    pages: preset(z.array(v.listen), ['127.0.0.1:8080'], { says: "Recipients' pages: clicks, opens, unsubscribe, preferences.", reason: 'for a proxy on this machine' }),
    pages_tls: preset(v.yes, false, { says: 'Whether the pages speak TLS themselves, with the certificate above.', reason: 'a proxy in front usually does' }),
    api: preset(z.array(v.listen), [], { says: "The tenants' HTTP API, always over TLS with the certificate above; `[]` closes it.", reason: 'a door nobody asked for stays shut' }),
    metrics: preset(z.array(v.listen), ['127.0.0.1:9464'], { says: 'Prometheus metrics; `[]` closes it.', reason: 'never open to the world by default' }),
  }), {}, { says: 'Where we listen.' }),
  limits: preset(limits, {}, { says: 'What a submission may cost us.' }),
  resolver: preset(z.strictObject({
    servers: preset(z.array(v.listen), [], { says: 'DNS servers to ask; `[]` takes those of the system.', reason: 'what the machine already uses' }),
    timeout: preset(v.duration, '5s', { says: 'How long one question to one server may take.', reason: 'the usual time-out of a stub resolver' }),
    trust_ad: preset(v.yes, false, { says: 'Believe the AD bit: only with a validating resolver reached over a path nobody can forge, such as loopback. DANE needs it.', reason: 'a forged bit would break DANE silently' }),
  }), {}, { says: 'How names are looked up.' }),
  tls_reports: choice(z.strictObject({
    tenant: needed(v.id, { says: "Whose mail the reports are: they come from tls-reports@ the first of its domains. The operator's own, for every receiver reads it." }),
    organization: needed(v.words, { says: 'Who reports.' }),
    contact: needed(v.email, { says: 'Where the reader of a report reaches us.' }),
  }), { says: 'Tell receivers who ask for it (`_smtp._tls`) each day how TLS went with their hosts (RFC 8460): hosts and numbers of sessions of all tenants together. Left out: nothing is counted, kept or sent.' }),
  log: preset(z.strictObject({
    level: preset(z.enum(['debug', 'info', 'warn', 'error']), 'info', { says: 'Least severe line written.', reason: 'start, stop, reload and trouble' }),
  }), {}, { says: 'The operational log on standard output.' }),
});

const contact = z.strictObject({
  name: live.needed(v.words, { says: 'Who sends: the controller, as shown to recipients.' }),
  email: live.needed(v.email, { says: 'Where a recipient reaches the sender about their data.' }),
  postal: live.preset(v.line, '', { says: 'Postal address, shown on the pages.', reason: 'not every law asks for one' }),
  url: live.preset(v.url, '', { says: 'Web page of the sender.', reason: 'may not exist' }),
});

const policy = z.strictObject({
  version: live.needed(v.version, { says: 'Name of this version; consent records point to it, so it never changes meaning.' }),
  effective: live.needed(v.day, { says: 'From when it holds: a day in UTC, or a time such as 2026-01-15T12:00Z.' }),
  text: live.needed(v.file, { says: 'The published text: a file inside this folder.' }),
  purposes: live.needed(z.array(v.id).min(1), { says: 'What mail may be sent for under this version.' }),
  tracking: live.preset(z.strictObject({
    opens: live.preset(z.enum(OPEN_MODES), 'none', { says: 'The most that may be learned of opens.', reason: 'nothing is measured that the text does not announce' }),
    clicks: live.preset(z.enum(CLICK_MODES), 'none', { says: 'The most that may be learned of clicks.', reason: 'nothing is measured that the text does not announce' }),
  }), {}, { says: "Ceiling of tracking; a person's own choice can only lower it." }),
});

const domain = z.strictObject({
  name: live.needed(v.hostname, { says: 'Domain in the From of messages.' }),
  dkim: live.needed(z.array(z.strictObject({
    selector: live.needed(v.selector, { says: 'Selector of the public key in DNS.' }),
    key_file: live.needed(v.file, { says: 'Private key in PEM (RSA or Ed25519), or `credential:NAME`; not readable by others.' }),
    canonicalization: live.preset(z.enum(['relaxed/simple', 'relaxed/relaxed']), 'relaxed/simple', { says: 'How header and body are canonicalized.', reason: 'simple body costs less, and no hop may change a body anyway' }),
  })).min(1), { says: 'Signatures put on every message; at least one, for nothing is sent unsigned.' }),
  return_path: live.needed(v.hostname, { says: 'Domain of the reverse-path, whose MX is this server: bounces come back here.' }),
  pages: live.needed(v.origin, { says: "Base of recipients' links; https, or http in a sandbox." }),
  pages_tls: live.choice(z.strictObject({
    certificate_file: live.needed(v.file, { says: 'Certificate chain in PEM, or `credential:NAME`.' }),
    key_file: live.needed(v.file, { says: 'Its private key in PEM, or `credential:NAME`; not readable by others.' }),
  }), { says: 'Certificate for the host of `pages`, used where `listeners.pages_tls` is on; the files may be renewed at any time. Left out: the certificate of the listeners.' }),
});

// What most people write; the rest of the list has no plain name.
const PLAIN_BASES = ['consent', 'contract', 'legal-obligation'] as const;

const stream = z.strictObject({
  id: live.needed(v.id, { says: 'Name of the stream.' }),
  purpose: live.needed(v.id, { says: 'The one purpose its messages serve; a purpose of the policies above.' }),
  class: live.needed(z.enum(['marketing', 'transactional']), { says: 'marketing gets one-click unsubscribe.' }),
  consent: live.preset(z.enum(['required', 'not-needed']), 'required', { says: 'Whether a recipient must have consented; not-needed asks for legal_basis.', reason: 'nobody is mailed by oversight' }),
  retry_for: live.choice(v.duration, { says: 'How long delivery is tried. Left out: 3d for marketing, because a receiver may be down over a weekend; 12h for transactional, because by then the sender must learn of it and use another way.' }),
  priority: live.preset(z.enum(PRIORITIES), 'normal', { says: "What goes first of the tenant's own mail to a site: high before normal before low; of eight turns one goes to what stands below. Tenants take turns whatever they say here.", reason: 'what matters most is for the tenant to say' }),
  campaign_header: live.choice(v.fieldName, { says: "Header field that names a message's campaign, for `postern queue --campaign`. Left out: X-Campaign-ID, else X-Campaign, else the first part of Feedback-ID." }),
  legal_basis: live.choice(z.enum([...PLAIN_BASES, ...LEGAL_BASES]), { says: 'What its mail rests on; consent, contract and legal-obligation are plain words for gdpr_6_1_a, gdpr_6_1_b and gdpr_6_1_c. Left out: consent.' }),
  text_links: live.preset(v.yes, false, { says: 'Rewrite links in plain-text parts too.', reason: 'readers see those links as they are' }),
  third_party_trackers: live.preset(z.enum(['strip', 'report', 'refuse']), 'strip', { says: 'Pictures by which others count opens, for recipients who do not allow individual opens: emptied, only counted in the event, or the whole message refused when one of its recipients is such.', reason: 'what somebody forbade to us they forbade to others' }),
  delay_notice: live.preset(v.someTime, '4h', { says: 'When a recipient who still waits is told of, for recipients submitted with NOTIFY=DELAY (RFC 3461).', reason: 'the time after which RFC 5321 §4.5.4.1 and most MTAs speak of a delay' }),
  bounces_to: live.preset(z.union([z.literal(''), v.email]), '', { says: "Where failure notices go; '' means the envelope sender.", reason: 'RFC 5321 §6.1' }),
});

const credential = z.strictObject({
  username: live.needed(v.username, { says: 'Unique over all tenants.' }),
  secret: live.needed(v.secret, { says: 'SHA-256 of a secret of at least 128 random bits; `postern credential create` makes one.' }),
  stream: live.needed(v.id, { says: 'The one stream it may send on.' }),
  from: live.needed(z.array(v.sender).min(1), { says: 'Senders allowed in MAIL FROM and From: a whole domain or an address, inside the sending domains.' }),
  rate: live.preset(v.rate, 'unset', { says: 'Most recipients it may submit, such as 600/min or 600/min burst 60.', reason: 'throttles towards receivers hold anyway' }),
});

const shadowable = z.enum(SHADOWABLE, 'expected a rule about the form of a message or of a jurisdiction that README.md lists here; in whose name mail goes, who consented and who is suppressed always holds');

const apiToken = z.strictObject({
  id: live.needed(v.id, { says: 'Name of the token in events; unique within the tenant.' }),
  secret: live.needed(v.tokenSecret, { says: 'SHA-256 of a secret of at least 128 random bits; `postern token create` makes one.' }),
  scopes: live.needed(z.array(z.enum(API_SCOPES)).min(1), { says: `What it may do: ${API_SCOPES.join(', ')}; none includes another.` }),
});

const brand = z.strictObject({
  color: live.choice(v.color, { says: 'Colour of buttons and links, such as #1a5fb4; the pages make it darker or lighter until text on it can be read. Left out: a quiet blue.' }),
  logo_file: live.choice(v.file, { says: 'Logo on the pages: a PNG inside this folder, at most 128 KiB and 2000 pixels a side. No SVG: it can hold scripts and links to elsewhere. Left out: the name alone.' }),
});

/** `tenants/<id>.yaml`. */
export const tenantSchema = z.strictObject({
  contact: live.needed(contact, { says: 'The sender, as recipients see them.' }),
  brand: live.preset(brand, {}, { says: "How recipients' pages look." }),
  jurisdiction: live.choice(v.id, { says: 'Profile of recipients of whom nothing nearer is known. Left out: of every rule the strictest of all profiles.' }),
  soft_refuse: live.preset(v.yes, false, { says: '5xx that we originate become 4xx while a policy is tried out; each use is logged.', reason: 'a refusal should reach the application' }),
  shadow: live.preset(z.array(shadowable), [], { says: `Rules that are judged and recorded but not enforced; only these can be: ${SHADOWABLE.join(', ')}.`, reason: 'a rule is enforced' }),
  keep_evidence: live.preset(v.duration, '0s', { says: 'How long the evidence of a consent outlives the erasure of its person, to answer claims (GDPR Art. 17(3)(e)).', reason: 'erased is erased, until a limitation period is named' }),
  policies: live.needed(z.array(policy).min(1), { says: 'Versions of the privacy policy.' }),
  domains: live.needed(z.array(domain).min(1), { says: 'Domains the tenant sends from.' }),
  untracked_domains: live.preset(z.array(v.hostname), [], { says: 'Links that lead there, or to a subdomain, are never rewritten.', reason: 'links are rewritten for who allows it' }),
  streams: live.needed(z.array(stream).min(1), { says: 'Kinds of mail, one purpose each.' }),
  credentials: live.preset(z.array(credential), [], { says: 'Logins of the applications.', reason: 'none until one is added' }),
  api_tokens: live.preset(z.array(apiToken), [], { says: 'Logins of the HTTP API.', reason: 'none until one is added' }),
});

const laneKeys = {
  connections: { says: 'Most open connections of a lane: one egress source towards one site.', reason: "KumoMTA's default; no large receiver minds" },
  connection_rate: { says: 'Most new connections of a lane.', reason: "KumoMTA's default" },
  message_rate: { says: 'Most messages of a lane; evenly spaced unless a burst is written.', reason: "KumoMTA's default" },
  deliveries_per_connection: { says: 'Most messages over one connection.', reason: "KumoMTA's default" },
  tls: { says: 'opportunistic: TLS where offered; required: mail waits rather than go in clear; off: never.', reason: 'RFC 7435: some protection most of the time' },
  idle: { says: 'How long an unused connection is kept.', reason: "KumoMTA's default, below the 5 min a server waits" },
  tenant_connections: { says: 'Most connections of a lane that one tenant may have at work.', reason: 'tenants take turns anyway' },
  tenant_message_rate: { says: 'Most messages of one tenant on a lane.', reason: 'tenants take turns anyway' },
} as const;
const connections = v.count(1, 10_000);
const deliveries = v.countOrUnset(1, 100_000);
const tenantConnections = v.countOrUnset(1, 10_000);

const defaults = z.strictObject({
  connections: live.preset(connections, 10, laneKeys.connections),
  connection_rate: live.preset(v.laneRate, '100/min', laneKeys.connection_rate),
  message_rate: live.preset(v.laneRate, '100/s', laneKeys.message_rate),
  deliveries_per_connection: live.preset(deliveries, 100, laneKeys.deliveries_per_connection),
  tls: live.preset(z.enum(TLS_MODES), 'opportunistic', laneKeys.tls),
  idle: live.preset(v.duration, '60s', laneKeys.idle),
  tenant_connections: live.preset(tenantConnections, 'unset', laneKeys.tenant_connections),
  tenant_message_rate: live.preset(v.laneRate, 'unset', laneKeys.tenant_message_rate),
});

const inherited = (key: keyof typeof laneKeys): { says: string } => ({ says: `${laneKeys[key].says} Left out: inherited.` });

/** What a layer above the defaults may say; every key may be left out. */
const layer = {
  connections: live.choice(connections, inherited('connections')),
  connection_rate: live.choice(v.laneRate, inherited('connection_rate')),
  message_rate: live.choice(v.laneRate, inherited('message_rate')),
  deliveries_per_connection: live.choice(deliveries, inherited('deliveries_per_connection')),
  tls: live.choice(z.enum(TLS_MODES), inherited('tls')),
  idle: live.choice(v.duration, inherited('idle')),
  tenant_connections: live.choice(tenantConnections, inherited('tenant_connections')),
  tenant_message_rate: live.choice(v.laneRate, inherited('tenant_message_rate')),
};

const total = (of: string): z.ZodPrefault<typeof totalKeys> => live.preset(totalKeys, {}, { says: `Limits of ${of} together; nothing in it: none.` });
const totalKeys = z.strictObject({
  connections: live.choice(connections, { says: 'Most open connections.' }),
  connection_rate: live.choice(v.laneRate, { says: 'Most new connections.' }),
  message_rate: live.choice(v.laneRate, { says: 'Most messages.' }),
});

const provider = z.strictObject({
  id: live.needed(v.id, { says: 'Name of the provider, a label in metrics.' }),
  match: live.needed(z.array(v.hostMatch).min(1), { says: 'Suffixes with a leading dot, or whole host names; every MX host of a domain must match one.' }),
  sites: live.preset(z.enum(['together', 'apart']), 'together', { says: 'together: all its domains share one lane; apart: each set of MX hosts has a lane of its own, within total.', reason: 'what is limited is the provider, not the domain' }),
  ...layer,
  total: total('all its lanes'),
  egress: live.preset(z.array(z.strictObject({
    id: live.needed(v.id, { says: 'An egress source.' }),
    ...layer,
  })), [], { says: 'What holds for this provider from one egress source.', reason: 'sources are alike' }),
});

const automationRule = z.strictObject({
  id: live.needed(v.id, { says: 'Name of the rule, in events and metrics.' }),
  provider: live.choice(v.id, { says: 'Only lanes of this provider. Left out: every lane.' }),
  reply: live.choice(v.words, { says: 'Regular expression for a reply as one line (421 4.7.0 text), capitals and small letters alike.' }),
  after: live.choice(v.someRate, { says: 'So many such replies on a lane within the time, such as 3/h. Left out: the first.' }),
  share: live.choice(z.strictObject({
    of: live.needed(z.enum(['deferred', 'failed']), { says: 'Which attempts are counted.' }),
    above: live.needed(v.percent, { says: 'The share that is too much.' }),
    least: live.preset(v.count(1, 1_000_000), 50, { says: 'Fewest attempts that say anything.', reason: 'one of two is no rate' }),
    within: live.preset(v.someTime, '10m', { says: 'Attempts of this time count.', reason: 'long enough for a rate, short enough to act' }),
  }), { says: 'In place of reply: the share of attempts on a lane that end badly; a stranger who is greylisted is not counted.' }),
  action: live.needed(z.enum(AUTOMATION_ACTIONS), { says: 'suspend: nothing goes on the lane; slow: at most rate; halve: half of connections and rate; single: one connection; suspend-tenant: nothing of the tenant concerned goes on the lane.' }),
  rate: live.choice(v.someRate, { says: 'With slow: the most messages.' }),
  for: live.needed(v.someTime, { says: 'For how long; afterwards the lane comes back step by step (recovery).' }),
  fixtures: live.needed(z.array(v.words).min(1), { says: 'Example replies the rule must answer to, or for a share numbers such as 30 of 100. A rule that does not answer to its examples is an error.' }),
});

/** `shaping.yaml`; the file may be missing. */
export const shapingSchema = z.strictObject({
  defaults: live.preset(defaults, {}, { says: 'Limits of a site that no provider matches.' }),
  providers: live.preset(z.array(provider), [], { says: 'Mailbox providers and what they bear; the first match wins.', reason: 'the defaults suit small receivers' }),
  routes: live.preset(z.array(z.strictObject({
    domain: live.needed(v.routeDomain, { says: 'example.com, *.example.com (its subdomains) or * (every domain).' }),
    via: live.preset(z.array(v.listen), [], { says: 'Hosts to use instead of the MX, in order. Only a route may lead to loopback or a private address.', reason: 'loopback_mx says where' }),
    loopback_mx: live.choice(v.count(1, 65_535), { says: 'Only in a sandbox, and in place of via: the MX of the domain is looked up as usual, its addresses must lie in 127.0.0.0/8, and this port is used. For the provider simulator.' }),
    tls: live.preset(z.enum(TLS_MODES), 'opportunistic', laneKeys.tls),
  })), [], { says: 'Domains that do not go to their MX; the first match wins.', reason: 'mail goes to the MX' }),
  retry: live.preset(z.strictObject({
    first: live.preset(v.duration, '5m', { says: 'Wait after the first deferral; it doubles each time.', reason: 'greylisting commonly lifts after five minutes' }),
    max: live.preset(v.duration, '4h', { says: 'Longest wait between two attempts.', reason: 'a recovered receiver is met within half a working day' }),
  }), {}, { says: 'When a deferred recipient is tried again.' }),
  egress: live.preset(z.array(z.strictObject({
    id: live.needed(v.id, { says: 'Name of the source, a label in metrics.' }),
    address: live.needed(v.address, { says: 'Local IP address to send from.' }),
    helo: live.needed(v.hostname, { says: 'EHLO name, equal to the reverse DNS of the address.' }),
    warmup: live.choice(z.strictObject({
      since: live.needed(v.day, { says: 'First day of sending.' }),
      per_day: live.needed(z.array(v.count(1, 1_000_000_000)).min(1), { says: 'Most messages to one site on the first day, the second, and so on; when the list ends, so does the warm-up.' }),
    }), { says: 'For a new address: so many messages a day to each site. Left out: it is known.' }),
    ...layer,
    total: total('all lanes of the source'),
  })), [], { says: "Addresses to send from; `[]` leaves the choice to the system and says hostname.", reason: 'one address needs no list' }),
  pools: live.preset(z.array(z.strictObject({
    id: live.needed(v.id, { says: 'Name of the pool; the one called default is used where nothing below fits.' }),
    sources: live.needed(z.array(z.strictObject({
      id: live.needed(v.id, { says: 'An egress source.' }),
      weight: live.preset(v.count(1, 1_000), 1, { says: 'Its share: a source of weight 2 sends twice what one of weight 1 does.', reason: 'sources are alike' }),
    })).min(1), { says: 'Sources mail may leave by.' }),
  })), [], { says: 'Egress sources used together.', reason: 'all sources are one pool' }),
  use: live.preset(z.array(z.strictObject({
    tenant: live.choice(v.id, { says: 'Only mail of this tenant.' }),
    stream: live.choice(v.id, { says: 'Only mail of streams of this name.' }),
    provider: live.choice(v.id, { says: 'Only mail to this provider.' }),
    pool: live.needed(v.id, { says: 'The pool it leaves by.' }),
  })), [], { says: 'Which mail leaves by which pool; the first that fits.', reason: 'all mail is alike' }),
  automation: live.preset(z.array(automationRule), [], { says: 'What receivers say, and what follows. Every rule that fits counts; where several hold, the strictest does.', reason: 'the shipped file has rules' }),
  recovery: live.preset(z.strictObject({
    add: live.preset(v.percent, '10%', { says: 'So much of its limits a lane gets back in one step.', reason: 'ten steps to the whole' }),
    every: live.preset(v.someTime, '1m', { says: 'Time between two steps.', reason: 'a receiver counts by the minute' }),
    hold: live.preset(v.someTime, '1d', { says: 'A lane that is told off again on its way back stays for so long at four fifths of what it had then.', reason: 'what a receiver bears changes with the days, and each try costs an action' }),
  }), {}, { says: 'How a lane comes back after an action has ended.' }),
  tenants: live.preset(z.array(z.strictObject({
    id: live.needed(v.id, { says: 'A tenant.' }),
    total: total('all its mail'),
  })), [], { says: 'What a tenant may send in all, to whomever.', reason: 'tenants take turns anyway' }),
});

const tracking = z.strictObject({
  opens: live.preset(z.enum(OPEN_MODES), 'none', { says: 'The most that may be learned of opens.', reason: 'nothing is measured that nobody allowed' }),
  clicks: live.preset(z.enum(CLICK_MODES), 'none', { says: 'The most that may be learned of clicks.', reason: 'nothing is measured that nobody allowed' }),
});

/** A map whose keys are legal bases; each key is a name and no key of its own. */
function perBasis<T extends z.ZodType>(type: T): z.ZodObject<Record<LegalBasis, z.ZodOptional<T>>, z.core.$strict> {
  return z.strictObject(Object.fromEntries(LEGAL_BASES.map((basis) => [basis, type.optional()])) as Record<LegalBasis, z.ZodOptional<T>>);
}

const profile = z.strictObject({
  id: live.needed(v.id, { says: 'Name of the jurisdiction, in consent records and as jurisdiction of a tenant.' }),
  tlds: live.preset(z.array(v.tld), [], { says: 'Top-level domains whose mailboxes are taken to live there.', reason: 'chosen by consent record or tenant only' }),
  bases: live.needed(z.array(z.enum(LEGAL_BASES)).min(1), { says: 'Legal bases marketing mail may rest on.' }),
  basis_facts: live.preset(perBasis(z.array(z.enum(BASIS_FACTS)).min(1)), {}, { says: `What must be on record for a basis, as lists of ${BASIS_FACTS.join(', ')}.`, reason: 'the basis by itself' }),
  basis_expires: live.preset(perBasis(v.someTime), {}, { says: 'How long a permission on a basis lasts from its collection.', reason: 'until it is withdrawn' }),
  tracking: live.preset(tracking, {}, { says: 'The most that may be tracked.' }),
  tracking_apart: live.choice(tracking, { says: 'The most where the tracking choice was asked for by itself. Left out: as tracking.' }),
  headers: live.preset(z.array(v.fieldName), [], { says: 'Header fields marketing mail must carry, beside those Postern adds.', reason: 'none of the shipped laws names one' }),
  footer: live.preset(z.array(z.enum(FOOTER_ELEMENTS)), [], { says: 'What the text of marketing mail must show: sender (contact.name), postal (contact.postal), contact (contact.email or contact.url).', reason: 'not every law asks for one' }),
  reask: live.preset(v.duration, '0s', { says: 'How long nobody may be asked again after a refusal.', reason: 'not every law says' }),
  unsubscribe: live.preset(v.someTime, '60d', { says: 'How long the unsubscribe link must work after the mail.', reason: 'the longest of the shipped laws (CASL)' }),
});

/** `profiles.yaml`; without it that of this package holds. */
export const profilesSchema = z.strictObject({
  profiles: live.needed(z.array(profile).min(1), { says: 'Jurisdictions. A file takes the place of all the shipped ones.' }),
});

export type ProfilesInput = z.output<typeof profilesSchema>;
export type ServerInput = z.output<typeof serverSchema>;
export type TenantInput = z.output<typeof tenantSchema>;
export type ShapingInput = z.output<typeof shapingSchema>;
