// Where in the tree a policy version is declared, for faults that only show beside what is on record.
// Callers may rely on: the place is that of the file as it stands now; a file that has changed since, or
// cannot be read as YAML any more, still gets a problem, at its head.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Problem } from './problem.ts';
import { readSource, valueAt } from './source.ts';

/** A problem at the version's name in `tenants/<tenant>.yaml`; at the file's head when it is not found there any more. */
export function policyProblem(root: string, tenant: string, version: string, message: string): Problem {
  const file = `tenants/${tenant}.yaml`;
  const source = readSource(file, readFileSync(join(root, file)));
  if (!('problem' in source)) return { file, line: 1, column: 1, path: '', message };
  const policies = valueAt(source.value, ['policies']);
  const index = Array.isArray(policies) ? policies.findIndex((_, i) => valueAt(policies, [i, 'version']) === version) : -1;
  return index < 0 ? source.problem([], message) : source.problem(['policies', index, 'version'], message);
}
