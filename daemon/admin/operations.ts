// What an operator can ask for, one function each. The CLI calls them through the control socket of a
// running daemon, or on stores it opened itself when none runs: the same functions either way, so no
// command ever needs the daemon stopped. Parameters come from outside and are checked here; what is
// wrong is MailError E_CONTROL with a sentence that says what to do.
import type { Event, EventKind, Journal } from '../events/index.ts';
import { newEvent } from '../events/index.ts';
import { judgeMessage, judgeRecipient } from '../gate/index.ts';
import { importConsents, importSuppressions, parseScope, SUPPRESSION_CAUSES, type Ledger, type RowError, type SuppressionCause } from '../ledger/index.ts';
import { CLICK_MODES, indexHeader, MailError, messageFacts, NO_TRACKING, OPEN_MODES, parseAddress, type AddressHashes } from '../mail/index.ts';
import { isId, type Clock } from '../runtime/index.ts';
import type { LaneView } from '../schedule/index.ts';
import type { Settings, Stream, Tenant } from '../settings/index.ts';
import type { QueueFilter, Spool } from '../spool/index.ts';
import type { Operation } from './control.ts';

/** What the operations work on; main.ts or the CLI opens it. */
export interface Desk {
  readonly settings: () => Settings;
  readonly ledger: Ledger;
  readonly spool: Spool;
  readonly journal: Journal;
  readonly clock: Clock;
  /** Ends a tenant's open sessions. */
  readonly expel: (tenant: string) => void;
  /** Empty when no daemon runs. */
  readonly lanes: () => readonly LaneView[];
}

type Params = Readonly<Record<string, unknown>>;

/** Rows a listing returns unless asked otherwise: a screenful or two. */
const LIST_DEFAULT = 100;
const LIST_MAX = 10_000;

export function operationsOf(desk: Desk): Readonly<Record<string, Operation>> {
  return {
    status: async () => ({ hash: desk.settings().hash, ...desk.spool.counts(), lanes: desk.lanes() }),
    explain: (params) => explain(desk, params),
    'consent.add': (params) => addConsent(desk, params),
    'consent.import': (params, progress) => importRows(desk, params, progress, 'consent'),
    'consent.withdraw': (params) => withdraw(desk, params),
    'consent.show': async (params) => {
      const { tenant, hashes } = person(desk, params);
      return { records: await desk.ledger.show(tenant.id, hashes) };
    },
    'suppress.add': (params) => suppress(desk, params),
    'suppress.import': (params, progress) => importRows(desk, params, progress, 'suppression'),
    'suppress.remove': async (params) => {
      const { tenant, hashes } = person(desk, params);
      const lifted = await desk.ledger.lift(tenant.id, hashes, 'cli');
      record(desk, 'suppression', tenant, hashes, 'lifted');
      return { lifted };
    },
    'suppress.list': async (params) => {
      const limit = limitOf(params);
      const rows = [];
      for await (const row of desk.ledger.list(tenantOf(desk, params).id)) {
        if (rows.push(row) >= limit) break;
      }
      return { suppressions: rows, more: rows.length >= limit };
    },
    'queue.list': async (params) => {
      const rows = desk.spool.list({ ...filterOf(params), limit: limitOf(params), ...(typeof params['after'] === 'string' && { after: params['after'] }) });
      return { counts: desk.spool.counts(), rows: rows.map(({ recipient, ...row }) => ({ ...row, ...visible(recipient) })), lanes: desk.lanes() };
    },
    'queue.show': async (params) => {
      const shown = desk.spool.show(messageId(params));
      if (shown === undefined) throw wrong('no such message waits; `postern trace ID` tells what became of it');
      return { meta: shown.meta, recipients: shown.recipients.map((row) => visible(row)) };
    },
    'queue.retry': async (params) => ({ changed: await desk.spool.retry(someFilter(params)) }),
    'queue.hold': (params) => changeQueue(desk, params, 'held', (filter) => desk.spool.hold(filter)),
    'queue.release': (params) => changeQueue(desk, params, 'released', (filter) => desk.spool.release(filter)),
    'queue.drop': (params) => changeQueue(desk, params, 'dropped', (filter) => desk.spool.drop(filter)),
    suspend: async (params) => {
      const tenant = tenantOf(desk, params);
      const suspension = await desk.ledger.suspend(tenant.id, required(params, 'cause'), 'cli');
      desk.expel(tenant.id);
      record(desk, 'suspended', tenant, undefined, suspension.cause);
      return suspension;
    },
    resume: async (params) => {
      const tenant = tenantOf(desk, params);
      const resumed = await desk.ledger.resume(tenant.id, 'cli');
      if (resumed) record(desk, 'resumed', tenant, undefined, 'by the operator');
      return { resumed };
    },
    trace: async (params) => {
      const events: Event[] = [];
      for await (const event of desk.journal.trace(messageId(params))) events.push(event);
      return { events };
    },
  };
}

/** An operator's hand on the queue is an event: what was asked for and how many it met; a domain is not written down. */
async function changeQueue(desk: Desk, params: Params, kind: EventKind, change: (filter: QueueFilter) => Promise<number>): Promise<unknown> {
  const filter = someFilter(params);
  const changed = await change(filter);
  desk.journal.record(newEvent(kind, desk.clock, {
    by: 'cli', recipients: changed, ...(filter.id !== undefined && { message_id: filter.id }), ...(filter.tenant !== undefined && { tenant: filter.tenant }),
  }));
  return { changed };
}

async function explain(desk: Desk, params: Params): Promise<unknown> {
  const tenant = tenantOf(desk, params);
  const stream = streamOf(tenant, params);
  const address = addressOf(params);
  const hashes = desk.ledger.hashes(tenant.id, address);
  const now = desk.clock.now();
  const facts = await desk.ledger.facts(tenant.id, stream.purpose, stream.id, hashes);
  const verdict = judgeRecipient({ tenant, stream, now, facts, explain: true });
  const message = typeof params['message'] === 'string' ? explainMessage(tenant, stream, Buffer.from(params['message'], 'base64')) : undefined;
  return { tenant: tenant.id, stream: stream.id, purpose: stream.purpose, recipient: verdict, facts, ...(message !== undefined && { message }) };
}

function explainMessage(tenant: Tenant, stream: Stream, raw: Buffer): unknown {
  const credential = tenant.credentials.find((known) => known.stream === stream.id);
  if (credential === undefined) throw wrong(`stream ${stream.id} has no credential, so nobody can submit to it`);
  const crlf = Buffer.from(raw.toString('latin1').replaceAll(/\r\n|\r|\n/g, '\r\n'), 'latin1');
  const header = messageFacts(crlf, indexHeader(crlf));
  return judgeMessage({ tenant, stream, credential, envelope: { mailFrom: '', recipients: [], smtpUtf8: false, body: '7BIT' }, header });
}

async function addConsent(desk: Desk, params: Params): Promise<unknown> {
  const { tenant, hashes } = person(desk, params);
  const purpose = purposeOf(tenant, params);
  const now = desk.clock.now();
  const policy = policyOf(tenant, params, now);
  const opens = oneOf(params, 'opens', OPEN_MODES, NO_TRACKING.opens);
  const clicks = oneOf(params, 'clicks', CLICK_MODES, NO_TRACKING.clicks);
  const result = await desk.ledger.give(tenant.id, {
    hashes, purpose, state: 'given', policyHash: policy, tracking: { opens, clicks }, by: 'cli',
    legalBasis: text(params, 'basis') || 'gdpr_6_1_a', method: text(params, 'method') || 'operator',
    evidence: { source: required(params, 'source'), time: now },
    ...(typeof params['expiresAt'] === 'number' && { expiresAt: params['expiresAt'] }),
  });
  record(desk, 'consent', tenant, hashes, 'given', result.record.id);
  return result;
}

async function withdraw(desk: Desk, params: Params): Promise<unknown> {
  const { tenant, hashes } = person(desk, params);
  const purpose = text(params, 'purpose') === '' ? '*' : purposeOf(tenant, params);
  const withdrawn = await desk.ledger.withdraw(tenant.id, purpose, hashes, 'cli');
  record(desk, 'consent', tenant, hashes, 'withdrawn');
  return { withdrawn };
}

async function suppress(desk: Desk, params: Params): Promise<unknown> {
  const { tenant, hashes } = person(desk, params);
  const cause: SuppressionCause = oneOf(params, 'cause', SUPPRESSION_CAUSES, 'manual');
  const scope = parseScope(text(params, 'scope') || 'all');
  if (scope === undefined) throw wrong('scope: expected all, purpose:NAME or stream:NAME');
  const made = await desk.ledger.suppress(tenant.id, {
    hashes, scope, cause, by: 'cli', ...(typeof params['until'] === 'number' && { until: params['until'] }),
  });
  record(desk, 'suppression', tenant, hashes, cause);
  return made;
}

/** One chunk of a file: the CLI reads it and sends some thousand lines at a time, so progress is real. */
async function importRows(desk: Desk, params: Params, progress: (p: object) => void, what: 'consent' | 'suppression'): Promise<unknown> {
  const tenant = tenantOf(desk, params);
  const chunk = Buffer.from(required(params, 'text'), 'base64');
  const refused: RowError[] = [];
  const importer = what === 'consent' ? importConsents : importSuppressions;
  const result = await importer(desk.ledger, tenant, one(chunk), {
    format: oneOf(params, 'format', ['csv', 'ndjson'] as const, 'csv'), now: desk.clock.now(), by: 'import',
    onError: (error) => refused.push(error), onProgress: progress,
  });
  record(desk, what === 'consent' ? 'consent' : 'suppression', tenant, undefined, `${result.recorded} imported`);
  return { ...result, refused };
}

async function* one(chunk: Buffer): AsyncGenerator<Buffer> {
  yield chunk;
}

// ---- parameters --------------------------------------------------------------------------------

function wrong(message: string): MailError {
  return new MailError('E_CONTROL', message);
}

function text(params: Params, name: string): string {
  const value = params[name];
  return typeof value === 'string' ? value : '';
}

function required(params: Params, name: string): string {
  const value = text(params, name);
  if (value === '') throw wrong(`${name} is missing`);
  return value;
}

function oneOf<T extends string>(params: Params, name: string, allowed: readonly T[], otherwise: T): T {
  const value = text(params, name);
  if (value === '') return otherwise;
  const found = allowed.find((known) => known === value);
  if (found === undefined) throw wrong(`${name}: expected one of ${allowed.join(', ')}; got ${JSON.stringify(value)}`);
  return found;
}

function tenantOf(desk: Desk, params: Params): Tenant {
  const id = required(params, 'tenant');
  const tenant = desk.settings().tenants.get(id);
  if (tenant === undefined) throw wrong(`no tenant ${JSON.stringify(id)}; there are: ${[...desk.settings().tenants.keys()].join(', ')}`);
  return tenant;
}

function streamOf(tenant: Tenant, params: Params): Stream {
  const id = required(params, 'stream');
  const stream = tenant.streams.get(id);
  if (stream === undefined) throw wrong(`tenant ${tenant.id} has no stream ${JSON.stringify(id)}; it has: ${[...tenant.streams.keys()].join(', ')}`);
  return stream;
}

function purposeOf(tenant: Tenant, params: Params): string {
  const purpose = required(params, 'purpose');
  const known = new Set(tenant.policies.flatMap((policy) => policy.purposes));
  if (!known.has(purpose)) throw wrong(`purpose ${JSON.stringify(purpose)} is in no policy of ${tenant.id}; there are: ${[...known].join(', ')}`);
  return purpose;
}

function policyOf(tenant: Tenant, params: Params, now: number): string {
  const version = text(params, 'policy');
  const policy = version === '' ? tenant.policies.findLast(({ effectiveAt }) => effectiveAt <= now) : tenant.policies.find((known) => known.version === version);
  if (policy === undefined) throw wrong(`policy ${version || 'in force'} not found for ${tenant.id}; versions: ${tenant.policies.map((known) => known.version).join(', ')}`);
  return policy.hash;
}

function addressOf(params: Params): ReturnType<typeof parseAddress> {
  return parseAddress(required(params, 'rcpt'));
}

function person(desk: Desk, params: Params): { readonly tenant: Tenant; readonly hashes: AddressHashes } {
  const tenant = tenantOf(desk, params);
  return { tenant, hashes: desk.ledger.hashes(tenant.id, addressOf(params)) };
}

function messageId(params: Params): string {
  const id = required(params, 'id');
  if (!isId(id)) throw wrong(`${JSON.stringify(id)} is not a message id`);
  return id;
}

function limitOf(params: Params): number {
  const limit = params['limit'];
  return typeof limit === 'number' && limit > 0 ? Math.min(limit, LIST_MAX) : LIST_DEFAULT;
}

function filterOf(params: Params): QueueFilter {
  return {
    ...(text(params, 'id') !== '' && { id: messageId(params) }),
    ...(text(params, 'tenant') !== '' && { tenant: text(params, 'tenant') }),
    ...(text(params, 'domain') !== '' && { domain: text(params, 'domain').toLowerCase() }),
  };
}

/** A change to the queue names what it is for; everything at once has to be asked for by name. */
function someFilter(params: Params): QueueFilter {
  const filter = filterOf(params);
  if (Object.keys(filter).length === 0 && params['all'] !== true) throw wrong('say which: a message id, --tenant, --domain, or --all');
  return filter;
}

function visible<T extends { readonly hashes: AddressHashes }>({ hashes, ...row }: T): Omit<T, 'hashes'> & { person: string } {
  return { ...row, person: hashes.consent.toString('hex', 0, 6) };
}

function record(desk: Desk, kind: EventKind, tenant: Tenant, hashes: AddressHashes | undefined, reason: string, evidence?: string): void {
  desk.journal.record(newEvent(kind, desk.clock, {
    tenant: tenant.id, reason, by: 'cli', ...(hashes && { person: hashes.consent.toString('hex', 0, 6) }), ...(evidence !== undefined && { evidence }),
  }));
}
