// What the API says when it does not do what it was asked: RFC 9457 problem details, one closed list.
// Callers may rely on: no problem repeats what the request said, save the names of its members; and two
// causes that the caller must not tell apart (a foreign object and none, a wrong token and a dead one)
// are one problem, octet for octet.
import type { core } from 'zod';

/** Code -> status and title. A code is the last part of the problem's `type` and never changes its meaning. */
export const PROBLEMS = {
  unauthorized: { status: 401, title: 'No valid token', detail: 'send Authorization: Bearer with a token of this API' },
  'too-many-failures': { status: 429, title: 'Too many failed logins', detail: 'too many wrong tokens came from this address' },
  scope: { status: 403, title: 'Not allowed to this token', detail: 'the token lacks the scope this route needs' },
  purpose: { status: 403, title: 'Not for this purpose', detail: 'the policy does not name the purpose this is asked for; it was noted' },
  'rate-limit': { status: 429, title: 'Too many requests', detail: 'the token has used up its requests of this minute' },
  'not-found': { status: 404, title: 'Not found', detail: 'there is no such object' },
  invalid: { status: 400, title: 'Invalid request', detail: 'the request does not have the shape this route takes' },
  malformed: { status: 400, title: 'Unreadable request', detail: 'the body is not JSON' },
  'idempotency-key': { status: 400, title: 'Bad Idempotency-Key', detail: 'the key is 1 to 255 visible ASCII characters' },
  'too-large': { status: 413, title: 'Body too large', detail: 'send fewer items in one request' },
  'media-type': { status: 415, title: 'Not JSON', detail: 'send Content-Type: application/json' },
  'key-busy': { status: 409, title: 'Still under way', detail: 'the first request with this Idempotency-Key has not been answered yet' },
  'key-reused': { status: 422, title: 'Idempotency-Key used before', detail: 'this Idempotency-Key came with another request' },
  unavailable: { status: 503, title: 'Cannot tell now', detail: 'the store does not answer; ask again later, what was recorded already is kept' },
  unexpected: { status: 500, title: 'Unexpected failure', detail: 'the operator finds it in the log' },
} as const;
export type ProblemCode = keyof typeof PROBLEMS;

/** One fault of a request; `pointer` is a JSON Pointer as a URI fragment (RFC 6901 §6) into its body. */
export interface Fault {
  readonly pointer?: string;
  /** A query or path parameter. */
  readonly parameter?: string;
  readonly detail: string;
}

/** A request that was not carried out, as a value. */
export class Problem {
  readonly status: number;
  readonly retryAfterS: number | undefined;
  readonly #code: ProblemCode;
  readonly #faults: readonly Fault[];

  constructor(code: ProblemCode, more: { readonly faults?: readonly Fault[]; readonly retryAfterS?: number } = {}) {
    this.#code = code;
    this.status = PROBLEMS[code].status;
    this.retryAfterS = more.retryAfterS;
    this.#faults = more.faults ?? [];
  }

  /** The body. */
  toString(): string {
    const { status, title, detail } = PROBLEMS[this.#code];
    return JSON.stringify({ type: `urn:problem-type:postern:${this.#code}`, title, status, detail, ...(this.#faults.length > 0 && { errors: this.#faults }) });
  }
}

/** The JSON Schema of a problem, for the OpenAPI document. */
export const PROBLEM_SCHEMA = {
  type: 'object',
  required: ['type', 'title', 'status', 'detail'],
  properties: {
    type: { type: 'string', enum: Object.keys(PROBLEMS).map((code) => `urn:problem-type:postern:${code}`) },
    title: { type: 'string' },
    status: { type: 'integer' },
    detail: { type: 'string' },
    errors: {
      type: 'array',
      items: { type: 'object', required: ['detail'], properties: { pointer: { type: 'string' }, parameter: { type: 'string' }, detail: { type: 'string' } } },
    },
  },
};

/** What a validator found. */
export class InvalidInput extends Error {
  readonly faults: readonly Fault[];
  /** A path parameter: such an object cannot exist. */
  readonly inPath: boolean;

  constructor(part: string, issues: readonly core.$ZodIssue[]) {
    super('invalid input');
    this.inPath = part === 'params';
    this.faults = issues.flatMap((issue) => faultsOf(part, issue)).slice(0, FAULTS);
  }
}

// Enough to see the pattern; a thousand items with one wrong name would be told a thousand times.
const FAULTS = 20;

function faultsOf(part: string, issue: core.$ZodIssue): readonly Fault[] {
  const fault = (path: readonly PropertyKey[], detail: string): Fault =>
    (part === 'body' ? { pointer: `#${path.map((key) => `/${escaped(key)}`).join('')}`, detail } : { parameter: String(path[0] ?? ''), detail });
  if (issue.code === 'unrecognized_keys') return issue.keys.map((key) => fault([...issue.path, key], 'there is no such member'));
  return [fault(issue.path, issue.message)];
}

// RFC 6901 §3, §6
const escaped = (key: PropertyKey): string => encodeURIComponent(String(key).replaceAll('~', '~0').replaceAll('/', '~1'));
