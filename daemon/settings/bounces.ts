// bounces.yaml: what receivers' words mean, as data. The shipped rules are the file config/bounces.yaml of
// this package, read where the tree has none. What the schema cannot see is told here: a class that is not
// there, one that the house itself gives and is missing, and an example that another rule, or none, would
// decide: such a rule would never be reached.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { BounceRules, PHASES, parseReply, type BounceClass, type Said } from '../mail/index.ts';
import type { Problem } from './problem.ts';
import { applySchema, readSource, show, type Source } from './source.ts';
import * as v from './values.ts';
import { declare } from './values.ts';

const live = declare('live');

/** Classes that outcomes get without any reply: a file without one of them could not name them. */
const OWN_CLASSES = ['none', 'other', 'timeout', 'connection', 'dns', 'routing', 'tls', 'protocol', 'unsupported', 'sandbox', 'bad-domain', 'expired'] as const;

const bounceClass = z.strictObject({
  id: live.needed(v.id, { says: 'Name of the class, in events and metrics.' }),
  reason: live.needed(v.id, { says: "The field's word for it, such as userunknown or mailboxfull." }),
  hard: live.preset(v.yes, false, { says: 'The address is no good.', reason: 'most trouble passes' }),
  dead: live.preset(v.yes, false, { says: 'The address becomes a hard-bounce suppression; never at a 5.7.x, never before RCPT.', reason: 'a suppression is for long' }),
  waits: live.preset(v.yes, false, { says: 'The mail is tried again even after a 5yz.', reason: 'a 5yz is final' }),
});

const bounceRule = z.strictObject({
  class: live.needed(v.id, { says: 'One of classes.' }),
  text: live.preset(z.array(v.words), [], { says: 'Words that stand in the reply, in any case; any of them; * for up to 80 characters.', reason: 'any text' }),
  not: live.preset(z.array(v.words), [], { says: 'Words that do not stand there.', reason: 'any text' }),
  status: live.preset(z.array(v.words), [], { says: 'Enhanced status without its class: 1.1, 7.* for all that begin so, none where there is no telling one.', reason: 'any status' }),
  code: live.preset(z.array(v.count(200, 599)), [], { says: 'Reply codes.', reason: 'any code' }),
  phase: live.preset(z.array(z.enum(PHASES)), [], { says: 'Where in the session it was said.', reason: 'anywhere' }),
  example: live.needed(v.words, { says: 'A reply this very rule decides.' }),
});

/** `bounces.yaml`; without it that of this package holds. */
export const bouncesSchema = z.strictObject({
  classes: live.needed(z.array(bounceClass).min(1), { says: 'What replies may mean.' }),
  rules: live.needed(z.array(bounceRule).min(1), { says: 'How it is told; the first rule that fits decides.' }),
});

export type BouncesInput = z.output<typeof bouncesSchema>;

/** Faults of bounces.yaml that its schema cannot see. */
export function checkBounces(source: Source, input: BouncesInput): Problem[] {
  const problems: Problem[] = [];
  const ids = input.classes.map(({ id }) => id);
  for (const [i, { id }] of input.classes.entries()) if (ids.indexOf(id) < i) problems.push(source.problem(['classes', i, 'id'], `${show(id)} stands here twice`));
  for (const own of OWN_CLASSES) if (!ids.includes(own)) problems.push(source.problem(['classes'], `class ${own} is missing: outcomes without a reply have it`));
  for (const [i, rule] of input.rules.entries()) {
    if (!ids.includes(rule.class)) problems.push(source.problem(['rules', i, 'class'], `no class ${show(rule.class)}`));
    for (const [j, status] of rule.status.entries()) if (!/^(?:none|\d\.\*|\d{1,2}\.\d{1,3})$/.test(status)) problems.push(source.problem(['rules', i, 'status', j], `expected such as 1.1, 7.* or none; got ${show(status)}`));
  }
  if (problems.length > 0) return problems;
  const rules = buildBounces(input);
  for (const [i, rule] of input.rules.entries()) {
    const decides = rules.ruleFor(exampleOf(rule));
    if (decides === i) continue;
    problems.push(source.problem(['rules', i, 'example'], decides === -1 ? 'no rule decides this example, not this one either' : `rule ${decides + 1} (${input.rules[decides]?.class}) decides this example before this one, number ${i + 1}`));
  }
  return problems;
}

function exampleOf({ example, phase: [phase = 'rcpt'] }: BouncesInput['rules'][number]): Said {
  const reply = parseReply([example]);
  return reply === undefined ? { phase, code: 0, status: '', text: example } : { phase, code: reply.code, status: reply.enhanced, text: reply.lines.join(' ') };
}

export function buildBounces({ classes, rules }: BouncesInput): BounceRules {
  return new BounceRules(new Map(classes.map((one): readonly [string, BounceClass] => [one.id, Object.freeze({ ...one })])), rules);
}

/** The rules of this package, for who asks without a configuration. @throws Error when the package is damaged */
export function shippedBounces(): BounceRules {
  const source = readSource('bounces.yaml', readFileSync(join(import.meta.dirname, '../../config/bounces.yaml')));
  const { value } = 'document' in source ? applySchema(source, bouncesSchema) : { value: undefined };
  if (value === undefined) throw new Error('config/bounces.yaml of this package cannot be read');
  return buildBounces(value);
}
