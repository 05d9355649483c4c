// Bringing a tenant in. The lines are taken as they come, in batches, behind a mark that keeps the tenant
// from use; the head of its log, without which there is no log, and the end of its suspension are written
// last, in one transaction, once the checksum, the tree and the signature agree. What is wrong before that
// is E_CONTROL with the number of the line, and all that was written is taken away again.
import { createHash } from 'node:crypto';
import { BASIS_FACTS, CLICK_MODES, MailError, OPEN_MODES } from '../mail/index.ts';
import { isId } from '../runtime/index.ts';
import type { StoreWrite } from '../store/index.ts';
import { ed25519FromSeed, readCheckpoint } from './checkpoint.ts';
import { commitmentOf, encodeEntry, encodeVeiled, originOf } from './log.ts';
import { CompactRange, leafHash } from './merkle.ts';
import { notePayload } from './payload.ts';
import {
  CONSENT_STATES, SUPPRESSION_CAUSES, decodeConsent, encodeConsent, encodeSuppressions, encodeSuspension, parseScope, type ConsentRecord, type Suppression,
} from './records.ts';
import { TABLE, entryKey, logPrefix, namedKey, rowKey, subtreeKey, tenantOctets } from './row-keys.ts';
import { BATCH_ROWS, TRANSFER_FORMAT, hasKeys, markOf, standIn, wipe, writeMark, type TransferParts } from './transfer.ts';
import { DATE_OCTETS, countKey, encodeCounts, slotOfDate } from './tracking.ts';
import { SECRET_OCTETS } from './veil.ts';

export interface Imported {
  readonly tenant: string;
  /** Where it came from, and when it was taken out there. */
  readonly hostname: string;
  readonly at: number;
  readonly consents: number;
  /** Addresses that have any. */
  readonly suppressions: number;
  readonly leaves: number;
  /** What the configuration must have under these very hashes. */
  readonly policies: readonly { readonly version: string; readonly hash: string }[];
}

const ORDER = ['tenant', 'keys', 'policy', 'suspension', 'slots', 'consent', 'last-open', 'opens', 'suppressed', 'retained', 'entry', 'end'] as const;
type Kind = (typeof ORDER)[number];

const KEYS = ['address', 'payload', 'token', 'verp', 'people', 'evidence', 'log', 'tokenId'] as const;

type Members = Readonly<Record<string, unknown>>;

/** One line, told apart from the one it may not stand before. */
interface Line {
  readonly kind: Kind;
  readonly number: number;
  readonly members: Members;
}

/** Reads members of one line; what is not of its form is E_CONTROL with the line's number. */
class Fields {
  readonly #line: Line;
  readonly #members: Members;

  constructor(line: Line, members: unknown = line.members) {
    this.#line = line;
    this.#members = typeof members === 'object' && members !== null ? members as Members : this.wrong('not an object');
  }

  wrong(what: string): never {
    throw new MailError('E_CONTROL', `line ${this.#line.number} of the export (${this.#line.kind}): ${what}`);
  }

  text(name: string): string {
    const value = this.#members[name];
    return typeof value === 'string' ? value : this.wrong(`${name} is not a text`);
  }

  has(name: string): boolean {
    return this.#members[name] !== undefined;
  }

  flag(name: string): boolean {
    const value = this.#members[name];
    return typeof value === 'boolean' ? value : this.wrong(`${name} is not true or false`);
  }

  /** A whole number that six octets hold. */
  number(name: string): number {
    const value = this.#members[name];
    return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 && value < 2 ** 48 ? value : this.wrong(`${name} is not a number of ours`);
  }

  one<T extends string>(name: string, allowed: readonly T[]): T {
    const value = this.text(name);
    return allowed.find((known) => known === value) ?? this.wrong(`${name} is ${JSON.stringify(value)}, not one of ${allowed.join(', ')}`);
  }

  hex(name: string, octets: number): Buffer {
    const value = this.text(name);
    return value.length === 2 * octets && /^[0-9a-f]+$/.test(value) ? Buffer.from(value, 'hex') : this.wrong(`${name} is not ${octets} octets in hex`);
  }

  octets(name: string): Buffer {
    const value = this.text(name);
    const octets = Buffer.from(value, 'base64');
    return octets.toString('base64') === value ? octets : this.wrong(`${name} is not base64`);
  }

  list(name: string): readonly unknown[] {
    const value = this.#members[name];
    return Array.isArray(value) ? value : this.wrong(`${name} is not a list`);
  }

  under(name: string): Fields {
    return new Fields(this.#line, this.#members[name]);
  }

  fields(name: string): readonly Fields[] {
    return this.list(name).map((one) => new Fields(this.#line, one));
  }

  numbers(name: string): readonly number[] {
    return this.list(name).map((value) => (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 ? value : this.wrong(`${name} is not a list of numbers`)));
  }
}

export async function importTenant(parts: TransferParts, alone: <T>(tenant: string, work: () => Promise<T>) => Promise<T>, source: AsyncIterable<string>, onProgress?: (lines: number) => void): Promise<Imported> {
  const digest = createHash('sha256');
  const lines = read(source, digest)[Symbol.asyncIterator]();
  const next = async (kind: Kind): Promise<Fields> => {
    const { value, done } = await lines.next();
    if (done === true || value.kind !== kind) throw new MailError('E_CONTROL', `not an export of a tenant: its line "${kind}" is missing`);
    return new Fields(value);
  };
  try {
    const head = await next('tenant');
    if (head.text('format') !== TRANSFER_FORMAT) head.wrong(`the format is ${JSON.stringify(head.text('format'))}; this program reads ${TRANSFER_FORMAT}`);
    const tenant = head.text('tenant');
    tenantOctets(tenant); // refuses what cannot be a tenant id
    const keys = await next('keys');
    return await alone(tenant, async () => {
      await prepare(parts, tenant);
      let imported: Imported;
      try {
        imported = await takeAll(parts, new Arrival(parts, tenant, head), keys, lines, { tenant, digest: () => digest.digest('hex'), ...(onProgress !== undefined && { onProgress }) });
      } catch (error) {
        // If this fails as well the mark stays, and the next import or delete clears up; what was wrong first is what is told.
        await wipe(parts, tenant).catch(() => undefined);
        throw error;
      }
      // The log goes on here by saying where it comes from.
      const { hostname, leaves } = imported;
      await parts.change(tenant, [], (turn) => void turn.log.append(notePayload('imported', 'import', parts.clock.now(), { from: hostname, leaves })));
      await parts.log.checkpoint(tenant);
      return imported;
    });
  } finally {
    await lines.return?.(undefined);
  }
}

async function takeAll({ keyring, forget }: TransferParts, arrival: Arrival, keys: Fields, lines: AsyncIterator<Line, undefined>, { tenant, digest, onProgress }: {
  readonly tenant: string; readonly digest: () => string; readonly onProgress?: (lines: number) => void;
}): Promise<Imported> {
  keyring.adopt(tenant, Object.fromEntries(KEYS.map((kind) => [kind, keys.text(kind)])));
  await forget(tenant);
  for (let number = 2; ; number++) {
    const { value: line, done } = await lines.next();
    if (done === true) throw new MailError('E_CONTROL', `the export ends after line ${number}, before its last line: it was cut off`);
    if (line.kind === 'end') return arrival.finish(new Fields(line), digest(), lines);
    await arrival.take(line);
    if (number % 10_000 === 0) onProgress?.(number);
  }
}

/** The lines, parsed and in their order. The digest takes every line but the last. */
async function* read(source: AsyncIterable<string>, digest: { update(text: string): unknown }): AsyncGenerator<Line, undefined> {
  let place = 0;
  let number = 0;
  for await (const text of source) {
    number++;
    let members: unknown;
    try {
      members = JSON.parse(text);
    } catch {
      throw new MailError('E_CONTROL', `line ${number} of the export is not JSON`); // the parser's own words would quote it
    }
    const kind = ORDER.find((known) => known === (members as { readonly line?: unknown } | null)?.line);
    if (kind === undefined) throw new MailError('E_CONTROL', `line ${number} is not one of an export of a tenant`);
    if (ORDER.indexOf(kind) < place) throw new MailError('E_CONTROL', `line ${number} of the export (${kind}) stands behind a ${ORDER[place] ?? ''} line`);
    place = ORDER.indexOf(kind);
    if (kind !== 'end') digest.update(`${text}\n`);
    yield { kind, number, members: members as Members };
  }
  return undefined;
}

/** Sees that nothing of the tenant is here, and sets the mark. */
async function prepare(parts: TransferParts, tenant: string): Promise<void> {
  const { store, keyring, people, clock } = parts;
  const mark = await markOf(parts, tenant);
  // What an import left that a crash ended.
  if (mark?.state === 'importing') await wipe(parts, tenant);
  const refuse = (why: string): never => {
    throw new MailError('E_CONTROL', `tenant ${tenant} ${why}; an import takes the place of nothing. A tenant nobody was ever recorded for leaves its name when it is suspended, taken out of the configuration and deleted`);
  };
  if (mark !== undefined && mark.state !== 'importing') refuse('was deleted here');
  for (const table of Object.values(TABLE)) for await (const _ of store.scan(rowKey(table, tenant))) refuse('has records here already');
  for await (const _ of store.scan(logPrefix(tenant), 'log')) refuse('has a log here already');
  if (hasKeys(keyring, tenant) || people.slots(tenant) > 0) refuse('has keys here already');
  const now = clock.now();
  await store.commit([], () => [
    writeMark(tenant, { state: 'importing', at: now, by: 'import' }),
    { part: 'state', key: rowKey(TABLE.suspension, tenant), value: standIn(now, 'import') },
  ]);
}

class Arrival {
  readonly #parts: TransferParts;
  readonly #tenant: string;
  readonly #head: Fields;
  readonly #range = CompactRange.decode(undefined);
  readonly #policies: { readonly version: string; readonly hash: string }[] = [];
  #waiting: StoreWrite[] = [];
  /** What is of use to the ledger's own work at once: written last, when the mark goes. */
  readonly #last: StoreWrite[] = [];
  #suspension: Buffer | undefined;
  #consents = 0;
  #suppressions = 0;
  /** No record may speak of a leaf behind the end. */
  #lastLeaf = -1;

  constructor(parts: TransferParts, tenant: string, head: Fields) {
    this.#parts = parts;
    this.#tenant = tenant;
    this.#head = head;
  }

  async take(line: Line): Promise<void> {
    const fields = new Fields(line);
    switch (line.kind) {
      case 'policy': this.#policy(fields); break;
      case 'suspension':
        this.#suspension = encodeSuspension({ id: fields.text('id'), cause: fields.text('cause'), since: fields.number('since'), by: fields.text('by') });
        break;
      case 'slots': await this.#slots(fields); break;
      case 'consent': this.#consent(fields); break;
      case 'last-open': this.#lastOpen(fields); break;
      case 'opens': this.#opens(fields); break;
      case 'suppressed': this.#suppressed(fields); break;
      case 'retained':
        this.#last.push({
          part: 'state', key: namedKey(TABLE.retained, this.#tenant, String(this.#last.length)),
          value: Buffer.from(JSON.stringify({ tenant: this.#tenant, slots: fields.numbers('slots'), until: fields.number('until') })),
        });
        break;
      case 'entry': this.#entry(fields); break;
      case 'tenant':
      case 'keys':
      case 'end': fields.wrong('stands here twice'); break;
      default: line.kind satisfies never;
    }
    if (this.#waiting.length >= BATCH_ROWS) await this.#write();
  }

  async #write(): Promise<void> {
    const writes = this.#waiting;
    this.#waiting = [];
    await this.#parts.store.commit([], () => writes);
  }

  #policy(fields: Fields): void {
    const version = fields.text('version');
    const hash = fields.hex('hash', 32);
    this.#policies.push({ version, hash: hash.toString('hex') });
    this.#waiting.push({ part: 'state', key: namedKey(TABLE.policy, this.#tenant, version), value: Buffer.concat([Buffer.of(fields.flag('published') ? 1 : 0), hash]) });
  }

  async #slots(fields: Fields): Promise<void> {
    const { people } = this.#parts;
    const person = fields.octets('person');
    const evidence = fields.octets('evidence');
    if (person.length !== evidence.length || person.length % SECRET_OCTETS !== 0) fields.wrong('as many evidence secrets as secrets of persons, 16 octets each');
    if (fields.number('first') !== people.slots(this.#tenant)) fields.wrong('slots are missing before these');
    const at = (octets: Buffer, i: number): Buffer => octets.subarray(i * SECRET_OCTETS, (i + 1) * SECRET_OCTETS);
    await people.adopt(this.#tenant, Array.from({ length: person.length / SECRET_OCTETS }, (_, i) => ({ person: at(person, i), evidence: at(evidence, i) })));
  }

  #consent(fields: Fields): void {
    const slot = fields.number('slot');
    const leaf = fields.number('leaf');
    const secret = this.#parts.people.person(this.#tenant, slot) ?? fields.wrong(`slot ${slot} has no secret`);
    const record = recordOf(fields.under('record'));
    const key = this.#parts.keyring.tenant(this.#tenant).people;
    const value = encodeConsent({ record, slot, leaf }, key, secret);
    decodeConsent(value, record.purpose, key, secret);
    this.#lastLeaf = Math.max(this.#lastLeaf, leaf, Number(record.id));
    this.#consents++;
    this.#waiting.push({ part: 'state', key: rowKey(TABLE.consent, this.#tenant, fields.hex('hash', 16), record.purpose), value });
  }

  #lastOpen(fields: Fields): void {
    const value = fields.octets('octets');
    if (value.length !== DATE_OCTETS || this.#parts.people.person(this.#tenant, slotOfDate(value)) === undefined) fields.wrong('octets are not a date under the secret of a slot');
    this.#waiting.push({ part: 'state', key: rowKey(TABLE.lastOpen, this.#tenant, fields.hex('hash', 16), fields.text('purpose')), value });
  }

  #opens(fields: Fields): void {
    const count = { stream: fields.text('stream'), message: fields.text('message'), day: fields.number('day') };
    if (count.message !== '' && !isId(count.message)) fields.wrong('message is not a message id');
    if (count.day >= 100_000) fields.wrong('day is not one of this age');
    const opens = { people: fields.number('people'), proxies: fields.number('proxies'), machines: fields.number('machines') };
    this.#waiting.push({ part: 'state', key: countKey(this.#tenant, count), value: encodeCounts(opens) });
  }

  #suppressed(fields: Fields): void {
    const list = fields.fields('suppressions').map((one): Suppression => ({
      id: one.text('id'), scope: parseScope(one.text('scope')) ?? one.wrong('scope is not all, purpose:NAME or stream:NAME'), cause: one.one('cause', SUPPRESSION_CAUSES),
      since: one.number('since'), ...(one.has('until') && { until: one.number('until') }), by: one.text('by'),
    }));
    if (list.length === 0) fields.wrong('no suppression');
    this.#suppressions++;
    this.#waiting.push({ part: 'state', key: rowKey(TABLE.suppressed, this.#tenant, fields.hex('hash', 16)), value: encodeSuppressions(list) });
  }

  #entry(fields: Fields): void {
    const { people, keyring } = this.#parts;
    const tenant = this.#tenant;
    const leaf = fields.number('leaf');
    if (leaf !== this.#range.size) fields.wrong(`leaf ${this.#range.size} is missing`);
    const commitment = fields.octets('commitment');
    const slot = fields.has('slot') ? fields.number('slot') : undefined;
    const value = fields.has('payload')
      ? encodeEntry(keyring.tenant(tenant).evidence, leaf, fields.text('payload'), slot === undefined ? undefined : { slot, evidence: people.evidence(tenant, slot) ?? fields.wrong(`slot ${slot} has no secret`) })
      : encodeVeiled(slot ?? fields.wrong('an entry about no person is not veiled'), commitment, fields.octets('veiled'));
    if (!commitmentOf(value).equals(commitment)) fields.wrong(`leaf ${leaf} does not say what was committed to`);
    this.#waiting.push({ part: 'log', key: entryKey(tenant, leaf), value });
    this.#range.append(leafHash(commitment), (level, index, subtree) => this.#waiting.push({ part: 'log', key: subtreeKey(tenant, level, index), value: subtree }));
  }

  /** Holds everything against the last line, then lets the tenant be used. */
  async finish(end: Fields, digest: string, lines: AsyncIterator<Line, undefined>): Promise<Imported> {
    const { store, keyring, forget } = this.#parts;
    const tenant = this.#tenant;
    const hostname = this.#head.text('hostname');
    if (end.text('sha256') !== digest) end.wrong('the checksum is not that of the lines before: something was changed or left out');
    if ((await lines.next()).done !== true) end.wrong('there are lines behind the last');
    const told = { consents: this.#consents, suppressions: this.#suppressions, leaves: this.#range.size };
    for (const [name, count] of Object.entries(told)) if (end.number(name) !== count) end.wrong(`${end.number(name)} ${name} were written, ${count} are here`);
    if (this.#lastLeaf >= told.leaves) end.wrong(`a record speaks of leaf ${this.#lastLeaf}, the log ends at ${told.leaves}`);
    const checkpoint = readCheckpoint(end.text('checkpoint'), ed25519FromSeed(keyring.tenant(tenant).log).publicKey, originOf(hostname, tenant));
    if (checkpoint === undefined) end.wrong('the checkpoint is not signed with this tenant\'s key');
    else if (checkpoint.size !== told.leaves || !checkpoint.root.equals(this.#range.root())) end.wrong('the log is not the one the checkpoint was signed for');
    await this.#write();
    await store.commit([], () => [
      ...this.#last,
      { part: 'state', key: rowKey(TABLE.head, tenant), value: this.#range.encode() },
      { part: 'state', key: rowKey(TABLE.suspension, tenant), value: this.#suspension },
      { part: 'state', key: rowKey(TABLE.transfer, tenant), value: undefined },
    ]);
    await forget(tenant);
    return { tenant, hostname, at: this.#head.number('at'), ...told, policies: this.#policies };
  }
}

function recordOf(fields: Fields): ConsentRecord {
  const id = fields.text('id');
  if (!/^(0|[1-9][0-9]{0,14})$/.test(id)) fields.wrong('id is not the number of a leaf');
  const tracking = fields.under('tracking');
  const facts = fields.has('facts') ? fields.list('facts').map((fact) => BASIS_FACTS.find((known) => known === fact) ?? fields.wrong('a fact this program does not know')) : undefined;
  return {
    id, purpose: fields.text('purpose'), state: fields.one('state', CONSENT_STATES), legalBasis: fields.text('legalBasis'),
    policyHash: fields.hex('policyHash', 32).toString('hex'), givenAt: fields.number('givenAt'), changedAt: fields.number('changedAt'),
    tracking: { opens: tracking.one('opens', OPEN_MODES), clicks: tracking.one('clicks', CLICK_MODES) },
    ...(fields.has('expiresAt') && { expiresAt: fields.number('expiresAt') }), ...(facts !== undefined && { facts }),
    ...(fields.has('jurisdiction') && { jurisdiction: fields.text('jurisdiction') }),
  };
}
