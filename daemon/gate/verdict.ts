// What the gate answers, and the notes it keeps while it looks for the answer. Callers may rely on: a
// verdict is plain data; the notes cost nothing when nobody asked for them; and a rule a tenant only
// tries out (`shadow`) is judged like any other, but the verdict goes on without it and names it. Only
// rules about a message's form and about jurisdictions can be tried out: who has said no is never mailed.
import type { Tracking } from '../mail/index.ts';
import { ruleSentence, type RuleId } from './rules.ts';

/** One rule as it was asked, for `postern explain`. */
export interface Step {
  readonly rule: RuleId;
  /** `passed`: it had nothing against it. `decided`: it gave the answer. `shadowed`: it would have, but is only tried out. */
  readonly result: 'passed' | 'decided' | 'shadowed';
  readonly says: string;
  /** Id of the consent record or suppression it looked at. */
  readonly evidence?: string;
  /** Hash of the policy version it looked at. */
  readonly policy?: string;
}

interface Explained {
  readonly rule: RuleId;
  /** Only when asked for. */
  readonly steps?: readonly Step[];
}

/** What a yes is made of. */
export interface Grounds {
  /** The consent record relied on; '' where none was needed. */
  readonly evidence: string;
  /** Hash of the policy it rests on: that of the consent, or else the one in force; '' for a notice. */
  readonly policy: string;
  readonly tracking: Tracking;
  /** The mail must offer a way out. */
  readonly unsubscribable: boolean;
}

export interface Yes extends Explained, Grounds {
  readonly answer: 'yes';
  /** Id of the recipient's profile; '' where none was asked. */
  readonly profile: string;
  /** Rules that said no and are only tried out. */
  readonly shadowed: readonly RuleId[];
}

export interface No extends Explained {
  readonly answer: 'no';
  readonly reason: string;
}

export interface CannotTell extends Explained {
  readonly answer: 'cannot-tell';
  readonly reason: string;
}

export type Verdict = Yes | No | CannotTell;

const NONE: readonly RuleId[] = Object.freeze([]);

// The same rules as SHADOWABLE in the settings (a test compares): whoever writes the settings, nothing
// else is taken out of force here.
const MAY_SHADOW = /^(?:profile-|message-(?!from-|sender-|placeholder))/;

/** Makes verdicts, and keeps the steps when they are wanted. */
export class Notes {
  readonly #steps: Step[] | undefined;
  readonly #shadow: ReadonlySet<string> | undefined;
  #shadowed: RuleId[] | undefined;

  constructor(explain: boolean | undefined, shadow?: ReadonlySet<string>) {
    this.#steps = explain === true ? [] : undefined;
    this.#shadow = shadow;
  }

  pass(rule: RuleId, about = '', evidence = '', policy = ''): void {
    this.#steps?.push(step(rule, 'passed', about, evidence, policy));
  }

  yes(rule: RuleId, found: Grounds, about = '', profile = ''): Yes {
    const { evidence, policy, tracking, unsubscribable } = found;
    const yes: Yes = { answer: 'yes', rule, evidence, policy, tracking, unsubscribable, profile, shadowed: this.#shadowed ?? NONE };
    return this.#decided(yes, about, evidence, policy);
  }

  no(rule: RuleId, about = '', evidence = '', policy = ''): No {
    return this.#decided({ answer: 'no', rule, reason: ruleSentence(rule, about) }, about, evidence, policy);
  }

  /** The no of a rule that may be tried out: undefined, and noted, where it is. */
  against(rule: RuleId, about = '', evidence = '', policy = ''): No | undefined {
    if (this.#shadow?.has(rule) !== true || !MAY_SHADOW.test(rule)) return this.no(rule, about, evidence, policy);
    this.#shadowed ??= [];
    if (!this.#shadowed.includes(rule)) this.#shadowed.push(rule);
    this.#steps?.push(step(rule, 'shadowed', about, evidence, policy));
    return undefined;
  }

  /** Asks one rule that may be tried out: passed when `holds`, else as against(). */
  ask(holds: boolean, rule: RuleId, about = '', evidence = '', policy = ''): No | undefined {
    if (!holds) return this.against(rule, about, evidence, policy);
    this.pass(rule, about, evidence, policy);
    return undefined;
  }

  cannotTell(rule: RuleId): CannotTell {
    return this.#decided({ answer: 'cannot-tell', rule, reason: ruleSentence(rule, '') }, '', '', '');
  }

  #decided<V extends Verdict>(verdict: V, about: string, evidence: string, policy: string): V {
    if (this.#steps === undefined) return verdict;
    return { ...verdict, steps: [...this.#steps, step(verdict.rule, 'decided', about, evidence, policy)] };
  }
}

function step(rule: RuleId, result: Step['result'], about: string, evidence: string, policy: string): Step {
  return { rule, result, says: ruleSentence(rule, about), ...(evidence !== '' && { evidence }), ...(policy !== '' && { policy }) };
}
