// Which of two statements about one person stands. A no stands against every yes that is not later; an
// older statement never undoes a later one, in whatever order they are told; of one moment there is one
// choice, and the lesser holds. Pure functions of the two.
import { CLICK_MODES, OPEN_MODES, type Tracking } from '../mail/index.ts';
import type { ConsentRecord, Suppression } from './records.ts';

/** What is on record says more than `fresh` and is left alone. */
export function mustKeep(record: ConsentRecord, fresh: ConsentRecord): boolean {
  // A no stands against every yes that is not later than it.
  if ((record.state === 'withdrawn' || record.state === 'refused') && fresh.state !== 'refused') return fresh.givenAt <= record.changedAt;
  if (record.state === 'given' && fresh.state === 'pending' && (record.expiresAt === undefined || record.expiresAt > fresh.changedAt)) return true;
  if (agrees(record, fresh)) return true;
  // Of one moment there is one choice: told otherwise it may be less than it was, for more they must say so anew.
  if (fresh.givenAt === record.givenAt && widens(record.tracking, fresh.tracking)) return true;
  // Importing last year's list again must not bring back last year's choices, nor what was withdrawn
  // before somebody asked anew (pending stands where the withdrawal stood).
  return fresh.givenAt < record.givenAt;
}

function widens(before: Tracking, after: Tracking): boolean {
  return OPEN_MODES.indexOf(after.opens) > OPEN_MODES.indexOf(before.opens) || CLICK_MODES.indexOf(after.clicks) > CLICK_MODES.indexOf(before.clicks);
}

/** The same said again adds nothing, so that a list may be imported twice. */
function agrees(record: ConsentRecord, fresh: ConsentRecord): boolean {
  return record.givenAt === fresh.givenAt && record.state === fresh.state && record.policyHash === fresh.policyHash && record.legalBasis === fresh.legalBasis
    && record.expiresAt === fresh.expiresAt && record.tracking.opens === fresh.tracking.opens && record.tracking.clicks === fresh.tracking.clicks
    && record.jurisdiction === fresh.jurisdiction && (fresh.facts ?? []).every((fact) => record.facts?.includes(fact));
}

/** Of two suppressions of one scope and cause, the one that ends later; the first beginning stays. */
export function longer(known: Suppression, fresh: Suppression): Suppression {
  if (known.until === undefined || (fresh.until !== undefined && fresh.until <= known.until)) return known;
  return { ...fresh, id: known.id, since: known.since };
}
