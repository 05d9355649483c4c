// Rules by which what receivers say changes how we send: what counts, how often, and what follows for how
// long. They are data of shaping.yaml. Every rule brings an example that it must answer to; a rule that
// none of its examples reaches would never act and is refused at load. Pure.
import type { ShapingInput } from './schema.ts';
import type { AutomationRule } from './settings.ts';
import type { Problem } from './problem.ts';
import { show, type Source } from './source.ts';

type RuleInput = ShapingInput['automation'][number];

// A reply may be a book; what it means stands at its beginning. Also bounds what a slow pattern can cost.
export const REPLY_LOOKED_AT = 2_000;

/** Faults of the rules that their schema cannot see. */
export function checkAutomation(source: Source, shaping: ShapingInput): Problem[] {
  const providers = shaping.providers.map(({ id }) => id);
  return shaping.automation.flatMap((rule, i): Problem[] => {
    const at = (key: string | undefined, message: string): Problem => source.problem(key === undefined ? ['automation', i] : ['automation', i, key], message);
    const problems: Problem[] = [];
    if (shaping.automation.slice(0, i).some(({ id }) => id === rule.id)) problems.push(at('id', `${show(rule.id)} stands here twice`));
    if (rule.provider !== undefined && !providers.includes(rule.provider)) problems.push(at('provider', `no provider ${show(rule.provider)}; there are: ${providers.join(', ')}`));
    if ((rule.reply === undefined) === (rule.share === undefined)) problems.push(at(undefined, 'expected either reply or share'));
    if (rule.share !== undefined && rule.after !== undefined) problems.push(at('after', 'belongs to reply; a share has within'));
    if ((rule.action === 'slow') !== (rule.rate !== undefined)) problems.push(at(rule.rate === undefined ? 'action' : 'rate', 'rate and the action slow belong together'));
    return [...problems, ...checkFixtures(source, rule, i)];
  });
}

function checkFixtures(source: Source, rule: RuleInput, i: number): Problem[] {
  const pattern = patternOf(rule.reply);
  if (pattern === 'not a pattern') return [source.problem(['automation', i, 'reply'], 'not a regular expression')];
  return rule.fixtures.flatMap((fixture, j) => {
    const message = faultOf(rule, pattern, fixture);
    return message === '' ? [] : [source.problem(['automation', i, 'fixtures', j], message)];
  });
}

function faultOf(rule: RuleInput, pattern: RegExp | undefined, fixture: string): string {
  if (pattern !== undefined) {
    if (!/^[45]\d\d /.test(fixture)) return 'expected a reply, such as 421 4.7.0 too many connections';
    return pattern.test(fixture) ? '' : 'the rule does not answer to this reply: it would never act on it';
  }
  if (rule.share === undefined) return '';
  const [, hits, of] = /^(\d+) of (\d+)$/.exec(fixture) ?? [];
  if (hits === undefined || of === undefined) return 'expected numbers, such as 30 of 100';
  return isTooMany(Number(hits), Number(of), rule.share) ? '' : 'the rule does not answer to these numbers: it would never act on them';
}

/** Whether so many of so many are a reason to act. */
export function isTooMany(hits: number, of: number, share: { readonly above: number; readonly least: number }): boolean {
  return of >= share.least && hits > of * share.above;
}

function patternOf(text: string | undefined): RegExp | undefined | 'not a pattern' {
  if (text === undefined) return undefined;
  try {
    return new RegExp(text, 'iu');
  } catch {
    return 'not a pattern';
  }
}

/** The rules as the rooms read them. */
export function buildAutomation(rules: ShapingInput['automation']): AutomationRule[] {
  return rules.map((rule) => {
    const pattern = patternOf(rule.reply);
    return {
      id: rule.id, action: rule.action, forMs: rule.for,
      ...(rule.provider !== undefined && { provider: rule.provider }),
      ...(rule.rate !== undefined && { rate: rule.rate }),
      ...(pattern instanceof RegExp && { reply: { pattern, count: rule.after?.count ?? 1, perMs: rule.after?.perMs ?? 60_000 } }),
      ...(rule.share !== undefined && { share: { of: rule.share.of, above: rule.share.above, least: rule.share.least, withinMs: rule.share.within } }),
    };
  });
}
