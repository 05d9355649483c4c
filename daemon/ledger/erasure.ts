// Forgetting a person. Three steps, each of which may be repeated: (1) one transaction records the erasure
// suppression, the leaf that says it happened, and which secrets must go; (2) the secrets are overwritten
// on disk; (3) the rows and the note of step 1 are removed. A crash between them leaves the note, and the
// next opening goes on from there. With evidence kept, its secret stays until its time is over, found by
// the leaf number alone (GDPR Art. 17(3)(e)).
import type { AddressHashes } from '../mail/index.ts';
import { newId, type Clock } from '../runtime/index.ts';
import type { LedgerStore } from '../store/index.ts';
import { notePayload, suppressionPayload } from './payload.ts';
import type { PersonKeys } from './person-keys.ts';
import { decodeSuppressions, encodeSuppressions, slotOf, type Suppression } from './records.ts';
import { TABLE, consentKey, namedKey, rowKey } from './row-keys.ts';
import type { Turn } from './stored-ledger.ts';
import { lastOpenKeyOf } from './tracking.ts';

interface Parts {
  readonly store: LedgerStore;
  readonly people: PersonKeys;
  readonly clock: Clock;
  readonly change: (tenant: string, keys: readonly Buffer[], decide: (turn: Turn) => void) => Promise<void>;
}

/** What step 1 leaves for the steps after it. */
interface Pending {
  readonly tenant: string;
  /** Keys of the rows, base64. */
  readonly rows: readonly string[];
  readonly slots: readonly number[];
  /** 0: the evidence goes as well. */
  readonly keepUntil: number;
}

export class Erasures {
  readonly #parts: Parts;

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  async erase(tenant: string, hashes: AddressHashes, by: string, keepEvidenceMs: number): Promise<number> {
    const { store, clock, change } = this.#parts;
    const rows: Buffer[] = [];
    const slots: number[] = [];
    for await (const { key, value } of store.scan(consentKey(tenant, hashes))) {
      rows.push(key);
      slots.push(slotOf(value));
    }
    const now = clock.now();
    const pending: Pending = { tenant, rows: rows.map((row) => row.toString('base64')), slots, keepUntil: keepEvidenceMs === 0 ? 0 : now + keepEvidenceMs };
    const noteKey = rowKey(TABLE.erasing, tenant, hashes.family);
    const suppressedKey = rowKey(TABLE.suppressed, tenant, hashes.family);
    await change(tenant, [suppressedKey], (turn) => {
      const octets = turn.get(suppressedKey);
      const list = octets === undefined ? [] : decodeSuppressions(octets);
      if (!list.some(({ cause, scope, until }) => cause === 'erasure' && scope === 'all' && until === undefined)) {
        const made: Suppression = { id: newId(now), scope: 'all', cause: 'erasure', since: now, by };
        turn.put(suppressedKey, encodeSuppressions([...list, made]));
        turn.log.append(suppressionPayload('suppression', made, hashes.family, by, now));
      }
      turn.log.append(notePayload('erasure', by, now, { pii_principal_id: hashes.family.toString('hex'), records: rows.length, evidence_kept_until: keepEvidenceMs === 0 ? undefined : new Date(pending.keepUntil).toISOString() }));
      turn.put(noteKey, Buffer.from(JSON.stringify(pending)));
    });
    await this.#complete(noteKey, pending);
    return rows.length;
  }

  /** Goes on with what a crash left. */
  async finish(): Promise<void> {
    for await (const { key, value } of this.#parts.store.scan(Buffer.of(TABLE.erasing))) {
      await this.#complete(key, JSON.parse(value.toString('utf8')) as Pending);
    }
  }

  async #complete(noteKey: Buffer, { tenant, rows, slots, keepUntil }: Pending): Promise<void> {
    const { people, change } = this.#parts;
    await people.destroy(tenant, slots, keepUntil === 0 ? ['person', 'evidence'] : ['person']);
    await change(tenant, [], (turn) => {
      for (const row of rows) {
        const key = Buffer.from(row, 'base64');
        turn.put(key, undefined);
        turn.put(lastOpenKeyOf(key), undefined);
      }
      if (keepUntil > 0 && slots.length > 0) turn.put(namedKey(TABLE.retained, tenant, newId(keepUntil)), Buffer.from(JSON.stringify({ tenant, slots, until: keepUntil })));
      turn.put(noteKey, undefined);
    });
  }

  async sweep(): Promise<number> {
    const { store, people, clock, change } = this.#parts;
    let swept = 0;
    for await (const { key, value } of store.scan(Buffer.of(TABLE.retained))) {
      const { tenant, slots, until } = JSON.parse(value.toString('utf8')) as { readonly tenant: string; readonly slots: readonly number[]; readonly until: number };
      if (until > clock.now()) continue;
      await people.destroy(tenant, slots, ['evidence']);
      await change(tenant, [], (turn) => {
        turn.put(key, undefined);
        turn.log.append(notePayload('evidence-destroyed', 'retention', clock.now(), { records: slots.length }));
      });
      swept += slots.length;
    }
    return swept;
  }
}
