// What is wrong with a tree, and where. A problem is a value: loading collects every one over all files
// and hands them back at once, in the order a person would walk through the files.

/** One fault. `file` is relative to the root; line and column count from 1; `path` is '' for a whole file. */
export interface Problem {
  readonly file: string;
  readonly line: number;
  readonly column: number;
  readonly path: string;
  readonly message: string;
}

/** `tenants/acme.yaml:12:7 streams[0].purpose: expected ...`, as editors and terminals link it. */
export function formatProblem(problem: Problem): string {
  return `${problem.file}:${problem.line}:${problem.column} ${problem.path === '' ? '' : `${problem.path}: `}${problem.message}`;
}

export type Path = readonly (string | number)[];

/** `['streams', 0, 'purpose']` as `streams[0].purpose`. */
export function formatPath(path: Path): string {
  let text = '';
  for (const step of path) text += typeof step === 'number' ? `[${step}]` : `${text === '' ? '' : '.'}${step}`;
  return text;
}

export function sortProblems(problems: readonly Problem[]): Problem[] {
  return [...problems].sort((a, b) => (a.file === b.file ? a.line - b.line || a.column - b.column : a.file < b.file ? -1 : 1));
}
