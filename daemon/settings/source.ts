// One YAML file with its positions. YAML is read strictly: version 1.2 core schema, no unknown tags, no
// duplicate keys, one document, few aliases. What the schema finds is told with the line and column of
// the value, of the unknown key, or of the map in which a key is missing.
import { isMap, isScalar, LineCounter, parseDocument, type Document, type Node } from 'yaml';
import type { z } from 'zod';
import { nearest } from './nearest.ts';
import { formatPath, type Path, type Problem } from './problem.ts';

// A tree of a thousand credentials is 200 KiB; more than this is not a configuration.
const FILE_OCTETS = 4 * 1_048_576;
// Aliases are a convenience for a handful of repeated values; a bomb needs many.
const ALIASES = 100;

/** A file that has been read as YAML; `at` and `problem` point into it. */
export interface Source {
  readonly file: string;
  readonly value: unknown;
  readonly document: Document.Parsed;
  problem(path: Path, message: string, where?: 'key' | 'value'): Problem;
}

const whole = (file: string, message: string): Problem => ({ file, line: 1, column: 1, path: '', message });

/** Reads YAML; a list of problems when it is not clean. */
export function readSource(file: string, bytes: Buffer): Source | readonly Problem[] {
  if (bytes.length > FILE_OCTETS) return [whole(file, 'larger than 4 MiB')];
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    return [whole(file, 'not UTF-8')];
  }
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, uniqueKeys: true, prettyErrors: false, version: '1.2', logLevel: 'error' });
  const faults = [...document.errors, ...document.warnings].map((fault): Problem => {
    const at = lines.linePos(fault.pos[0]);
    return { file, line: at.line, column: at.col, path: '', message: yamlMessage(fault.code, fault.message) };
  });
  if (faults.length > 0) return faults;
  const problem: Source['problem'] = (path, message, where = 'value') => {
    const at = lines.linePos(offset(document, path, where));
    return { file, line: Math.max(1, at.line), column: Math.max(1, at.col), path: formatPath(path), message };
  };
  try {
    return { file, document, problem, value: document.toJS({ maxAliasCount: ALIASES }) as unknown };
  } catch {
    // toJS throws for nothing else: the document has been parsed without a fault.
    return [whole(file, `more than ${ALIASES} uses of aliases`)];
  }
}

function yamlMessage(code: string, message: string): string {
  if (code === 'DUPLICATE_KEY') return 'this key stands here twice';
  if (code === 'TAG_RESOLVE_FAILED') return `${message.replace('Unresolved tag: ', 'tag ')} is not known here; leave it out`;
  if (code === 'MULTIPLE_DOCS') return 'a second document begins here; a file holds one';
  return `not YAML: ${message}`;
}

/** Offset of the value (or key) at the path, or of the nearest thing around it. */
function offset(document: Document.Parsed, path: Path, where: 'key' | 'value'): number {
  for (let depth = path.length; depth >= 0; depth--) {
    const inside = path.slice(0, depth);
    if (where === 'key' && depth === path.length) {
      const map = depth === 1 ? document.contents : document.getIn(path.slice(0, -1), true);
      const pair = isMap(map) ? map.items.find((item) => isScalar(item.key) && item.key.value === path.at(-1)) : undefined;
      const start = isScalar(pair?.key) ? pair.key.range?.[0] : undefined;
      if (start !== undefined) return start;
    }
    const node = (depth === 0 ? document.contents : document.getIn(inside, true)) as Node | null | undefined;
    const start = node?.range?.[0];
    if (start !== undefined) return start;
  }
  return 0;
}

/** Checks a source against a schema. `salvaged` is what is still usable for checks across files when something is wrong. */
export function applySchema<T>(source: Source, schema: z.ZodType<T>): { readonly value?: T; readonly problems: readonly Problem[] } {
  // An empty file says nothing, which is what an empty map says.
  const input = source.value ?? {};
  const first = schema.safeParse(input, { reportInput: true });
  if (first.success) return { value: first.data, problems: [] };
  const problems = first.error.issues.flatMap((issue) => describeIssue(source, input, issue, schema));
  // Unknown keys and wrong optional values are set aside so that the faults across files show in the same run.
  const rest = structuredClone(input);
  for (const issue of first.error.issues) setAside(rest, issue);
  const second = schema.safeParse(rest);
  return second.success ? { value: second.data, problems } : { problems };
}

function setAside(rest: unknown, issue: z.core.$ZodIssue): void {
  if (issue.code === 'unrecognized_keys') {
    for (const key of issue.keys) remove(rest, [...(issue.path as Path), key]);
  } else if (typeof issue.path.at(-1) === 'string') {
    remove(rest, issue.path as Path);
  }
}

function remove(from: unknown, path: Path): void {
  const parent = valueAt(from, path.slice(0, -1));
  const key = path.at(-1);
  if (typeof parent === 'object' && parent !== null && typeof key === 'string') Reflect.deleteProperty(parent, key);
}

/** The plain value at a path, undefined where there is none. */
export function valueAt(value: unknown, path: Path): unknown {
  let inner = value;
  for (const step of path) {
    if (typeof inner !== 'object' || inner === null || !Object.hasOwn(inner, step)) return undefined;
    inner = (inner as Record<string | number, unknown>)[step];
  }
  return inner;
}

function describeIssue(source: Source, input: unknown, issue: z.core.$ZodIssue, schema: z.ZodType): Problem[] {
  const path = issue.path as Path;
  if (issue.code === 'unrecognized_keys') {
    const known = keysAt(schema, path);
    return issue.keys.map((key) => {
      const near = nearest(key, known);
      const hint = near === undefined ? `expected one of ${known.join(', ')}` : `did you mean ${near}?`;
      return source.problem([...path, key], `unknown key; ${hint}`, 'key');
    });
  }
  const got = valueAt(input, path);
  if (got === undefined) return [source.problem(path, 'this key is missing')];
  // What stands where a secret's hash belongs may be the secret itself.
  const shown = path.at(-1) === 'secret' ? 'something else' : show(got);
  return [source.problem(path, `${expectation(issue)}; got ${shown}${suggestion(issue, got)}`)];
}

function expectation(issue: z.core.$ZodIssue): string {
  switch (issue.code) {
    case 'invalid_value':
      if (issue.message.startsWith('expected ')) return issue.message;
      return `expected ${issue.values.length > 1 ? 'one of ' : ''}${issue.values.map((value) => (value === '' ? "''" : String(value))).join(', ')}`;
    case 'invalid_type':
      // Our own sentence where the declaration has one: it names the unit.
      return issue.message.startsWith('expected ') ? issue.message : `expected ${TYPES[issue.expected] ?? issue.expected}`;
    case 'too_small':
      return issue.origin === 'array' ? 'expected at least one item' : `expected at least ${issue.minimum}`;
    case 'too_big':
      return `expected at most ${issue.maximum}`;
    case 'invalid_union': {
      if (issue.message.startsWith('expected ')) return issue.message;
      const last = issue.errors.at(-1)?.[0];
      return last === undefined ? issue.message : expectation(last as z.core.$ZodIssue);
    }
    default:
      return issue.message;
  }
}

const TYPES: Readonly<Record<string, string>> = {
  string: 'text', int: 'a whole number', number: 'a number', boolean: 'true or false', array: 'a list', object: 'a map of keys',
};

/** A value as a person wrote it, cut short. */
export function show(value: unknown): string {
  if (value === null) return 'nothing';
  if (Array.isArray(value)) return value.length === 0 ? 'an empty list' : 'a list';
  if (typeof value === 'object') return 'a map of keys';
  const text = JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 60)}...` : text;
}

function suggestion(issue: z.core.$ZodIssue, got: unknown): string {
  if (issue.code !== 'invalid_value' || typeof got !== 'string') return '';
  const near = nearest(got, issue.values.map(String));
  return near === undefined ? '' : `; did you mean ${near}?`;
}

/** The keys a schema knows at a path. */
function keysAt(schema: z.ZodType, path: Path): string[] {
  let inner: unknown = schema;
  for (const step of [...path, '']) {
    for (;;) {
      const def = (inner as z.core.$ZodType | undefined)?._zod.def as { innerType?: unknown } | undefined;
      if (def?.innerType === undefined) break;
      inner = def.innerType;
    }
    const def = (inner as z.core.$ZodType | undefined)?._zod.def as { shape?: Record<string, unknown>; element?: unknown } | undefined;
    if (step === '') return Object.keys(def?.shape ?? {});
    inner = typeof step === 'number' ? def?.element : def?.shape?.[step];
  }
  return [];
}
