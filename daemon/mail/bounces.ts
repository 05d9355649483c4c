// What a receiver's words mean, by the rules of bounces.yaml: a class, which has a reason in the field's
// words, says whether the address is no good, and whether the mail is worth trying again. Pure. Callers may
// rely on: the first rule that fits counts and something always does (`other`); no text costs more than its
// first two thousand characters times the rules; and no rule can run away, for a pattern is words with gaps
// of a limited length. RFC 3463, RFC 5248.
import type { Phase } from './stages.ts';

export interface BounceClass {
  readonly id: string;
  /** The field's word for it: userunknown, mailboxfull, ... */
  readonly reason: string;
  /** The address is no good. */
  readonly hard: boolean;
  /** It becomes a suppression, where the words came at or after RCPT and no policy spoke. */
  readonly dead: boolean;
  /** Tried again even after a 5yz. */
  readonly waits: boolean;
}

/** Conditions; empty lists ask for nothing. */
export interface BounceRule {
  readonly class: string;
  /** Words with `*` for up to 80 characters; any of them. */
  readonly text: readonly string[];
  /** None of these may stand in the text. */
  readonly not: readonly string[];
  /** `1.1`, `7.*`, or `none`. */
  readonly status: readonly string[];
  readonly code: readonly number[];
  readonly phase: readonly Phase[];
}

/** What was said. `code` 0 and `status` '' where there was none. */
export interface Said {
  readonly phase?: Phase;
  readonly code: number;
  readonly status: string;
  readonly text: string;
}

// A reply has some lines; what a report adds below is not about the reason any more.
const MAX_TEXT_CHARS = 2_000;
const NOTHING_KNOWN: BounceClass = Object.freeze({ id: 'other', reason: 'undefined', hard: false, dead: false, waits: false });

interface Compiled {
  readonly of: BounceClass;
  readonly text: RegExp | undefined;
  readonly not: RegExp | undefined;
  readonly status: RegExp | undefined;
  readonly code: readonly number[];
  readonly phase: readonly Phase[];
}

export class BounceRules {
  readonly classes: ReadonlyMap<string, BounceClass>;
  readonly #rules: readonly Compiled[];

  /** @throws RangeError for a rule of a class that is not there */
  constructor(classes: ReadonlyMap<string, BounceClass>, rules: readonly BounceRule[]) {
    this.classes = classes;
    this.#rules = rules.map((rule) => {
      const of = classes.get(rule.class);
      if (of === undefined) throw new RangeError(`no class ${rule.class}`);
      return { of, text: wordsOf(rule.text), not: wordsOf(rule.not), status: statusOf(rule.status), code: rule.code, phase: rule.phase };
    });
  }

  /** The class of what was said; undefined where `words` are asked for and none tells. */
  classOf(said: Said): BounceClass;
  classOf(said: Said, words: 'words'): BounceClass | undefined;
  classOf(said: Said, words?: 'words'): BounceClass | undefined {
    return this.#rules[this.ruleFor(said, words)]?.of ?? (words === undefined ? this.named('other') : undefined);
  }

  /** Which rule decides: its place in the file, -1 for none. With `words` only those that look at the text. */
  ruleFor({ phase, code, status, text: whole }: Said, words?: 'words'): number {
    const text = whole.slice(0, MAX_TEXT_CHARS).replaceAll(/\s+/g, ' ');
    const detail = status.slice(2);
    return this.#rules.findIndex((rule) => (words === undefined || rule.text !== undefined) && (rule.code.length === 0 || rule.code.includes(code))
      && (rule.phase.length === 0 || (phase !== undefined && rule.phase.includes(phase)))
      && (rule.status === undefined || rule.status.test(detail))
      && (rule.text === undefined || rule.text.test(text))
      && (rule.not === undefined || !rule.not.test(text)));
  }

  /** The class of this name; `other` where there is none. */
  named(id: string): BounceClass {
    return this.classes.get(id) ?? this.classes.get('other') ?? NOTHING_KNOWN;
  }
}

function wordsOf(patterns: readonly string[]): RegExp | undefined {
  if (patterns.length === 0) return undefined;
  const escaped = patterns.map((pattern) => pattern.split('*').map((words) => words.trim().replaceAll(/[.+?^${}()|[\]\\]/g, '\\$&')).join('.{0,80}?'));
  return new RegExp(escaped.join('|'), 'i');
}

function statusOf(patterns: readonly string[]): RegExp | undefined {
  if (patterns.length === 0) return undefined;
  return new RegExp(`^(?:${patterns.map((pattern) => (pattern === 'none' ? '|\\d\\.0' : pattern.replaceAll('.', '\\.').replace('*', '\\d{1,3}'))).join('|')})$`);
}
