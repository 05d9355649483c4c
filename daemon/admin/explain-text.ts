// What `postern explain` prints for people about a list of them: how many by rule, and under a proposed
// configuration who would be treated otherwise, and how.
import { trackingOf, type Judged, type PersonJudged } from './explain.ts';
import { table } from './show.ts';

/** How many are answered alike, the most first. */
export interface Tally {
  readonly people: number;
  readonly answer: string;
  readonly rule: string;
  readonly says: string;
}

/** Counts of a list by answer and rule; addresses that are none are counted as `no address`. */
export function tally(people: readonly PersonJudged[]): readonly Tally[] {
  return counted(people.map(({ answer = 'no address', rule = '', reason = '' }) => ({ answer, rule, says: reason })));
}

/** One person who would be treated otherwise, `was yes (ok-consent) -> no (profile-double-opt-in)`. */
export interface Changed {
  readonly rcpt: string;
  readonly change: string;
}

/** Who would be treated otherwise under the proposed tree. */
export function changes(people: readonly PersonJudged[]): readonly Changed[] {
  return people.flatMap(({ rcpt, proposed, answer, rule, tracking }) => {
    if (proposed === undefined || answer === undefined || rule === undefined) return [];
    const now = { answer, rule, ...(tracking !== undefined && { tracking }) };
    const tracked = answer === 'yes' && proposed.answer === 'yes' && trackingOf(now) !== trackingOf(proposed);
    if (answer === proposed.answer && rule === proposed.rule && !tracked) return [];
    const name = (one: Pick<Judged, 'answer' | 'rule' | 'tracking'>): string => `${one.answer} (${one.rule}${tracked ? `; ${trackingOf(one)}` : ''})`;
    return [{ rcpt, change: `was ${name(now)} -> ${name(proposed)}` }];
  });
}

// Half a screen; who asks about more wants to know how many.
const EACH = 20;

/** The whole answer about a list; `dir` is the proposed tree. */
export function peopleText(people: readonly PersonJudged[], dir: string | undefined, coming: readonly { readonly version: string; readonly effectiveAt: number }[]): string {
  const each = people.length > EACH ? '' : `${table(people.map(({ rcpt, answer, rule, reason, error }) => ({ rcpt, answer: answer ?? 'no address', rule, says: reason ?? error })))}\n\n`;
  const now = `${each}${table(tally(people).map((one) => ({ ...one })))}${each === '' ? '\n--json prints each of them.' : ''}`;
  if (dir === undefined) return now;
  const otherwise = changes(people);
  return [
    'Now', now, '',
    otherwise.length === 0 ? `Under ${dir} nobody would be treated otherwise.` : `Under ${dir} ${otherwise.length} of ${people.length} would be treated otherwise`,
    ...(otherwise.length === 0 ? [] : [table(counted(otherwise.map(({ change }) => ({ change })))), '', table(otherwise.map((one) => ({ ...one })))]),
    ...coming.map(({ version, effectiveAt }) => `Version ${version} takes effect ${new Date(effectiveAt).toISOString()}: --at shows people as of then.`),
  ].join('\n');
}

function counted<T extends { readonly [key: string]: string }>(rows: readonly T[]): (T & { readonly people: number })[] {
  const groups = new Map<string, { readonly row: T; people: number }>();
  for (const row of rows) {
    const key = JSON.stringify(row);
    const group = groups.get(key) ?? { row, people: 0 };
    group.people++;
    groups.set(key, group);
  }
  return [...groups.values()].sort((a, b) => b.people - a.people).map(({ row, people }) => ({ people, ...row }));
}
