// What a new version of a privacy policy changes for people, in plain words: for whoever publishes it, and
// for the page that tells the difference. What narrows holds for everybody from its first day on; what
// widens reaches only people who consent anew, because the gate takes the least of the version a person
// consented to and the version in force, and each line that widens says so.
import { CLICK_MODES, OPEN_MODES, type ClickMode, type OpenMode } from '../mail/index.ts';
import type { Policy } from './settings.ts';

const OPENS: Readonly<Record<OpenMode, string>> = {
  none: 'opens are not measured',
  aggregate: 'opens are counted without noting who',
  lastOpenDate: 'the day of the last open is noted for each person',
  individual: 'each open is noted for each person',
};
const CLICKS: Readonly<Record<ClickMode, string>> = {
  none: 'clicks are not measured',
  individual: 'each click is noted for each person',
};

const ANEW = 'only for people who consent anew';
const AT_ONCE = 'for everybody, from the day the version takes effect';

/** What one version of a policy changes against another; empty lists: nobody is treated otherwise. */
export interface PolicyDiff {
  readonly narrows: readonly string[];
  readonly widens: readonly string[];
  readonly text: 'same' | 'changed';
}

/** The changes from one version to another, one sentence each, purposes in alphabetical order. */
export function diffPolicies(from: Policy, to: Policy): PolicyDiff {
  const added = to.purposes.filter((purpose) => !from.purposes.includes(purpose));
  const dropped = from.purposes.filter((purpose) => !to.purposes.includes(purpose));
  const narrows = unique(dropped).map((purpose) => `no mail for purpose ${purpose} any more: ${AT_ONCE}`);
  const widens = unique(added).map((purpose) => `mail for purpose ${purpose}: ${ANEW}`);
  const compare = <T extends string>(modes: readonly T[], words: Readonly<Record<T, string>>, before: T, after: T): void => {
    const step = modes.indexOf(after) - modes.indexOf(before);
    if (step < 0) narrows.push(`${words[after]}, where ${words[before]} until now: ${AT_ONCE}`);
    if (step > 0) widens.push(`${words[after]}, where ${words[before]} until now: ${ANEW}`);
  };
  compare(OPEN_MODES, OPENS, from.tracking.opens, to.tracking.opens);
  compare(CLICK_MODES, CLICKS, from.tracking.clicks, to.tracking.clicks);
  return Object.freeze({ narrows: Object.freeze(narrows), widens: Object.freeze(widens), text: from.text === to.text ? 'same' : 'changed' });
}

const unique = (purposes: readonly string[]): string[] => [...new Set(purposes)].sort();
