// Asks about any number of people, as the command line does: in portions a request can hold, then about the
// letter with the profiles of all of them. Callers may rely on: all portions were judged under one and the
// same proposed tree.
import { MailError } from '../mail/index.ts';
import type { Judged, PersonJudged } from './explain.ts';

/** Carries out an operation, in the daemon or on opened stores. */
export type Ask = (op: string, params: Record<string, unknown>, onProgress?: (p: Record<string, unknown>) => void) => Promise<unknown>;

export interface PeopleQuestion {
  readonly tenant: string;
  readonly stream: string;
  readonly rcpts: readonly string[];
  /** Absolute path of a proposed tree. */
  readonly proposed?: string;
  readonly at?: number;
  /** A letter, base64. */
  readonly message?: string;
}

/** A verdict about a letter as the operations tell it. */
export interface LetterJudged {
  readonly answer: string;
  readonly rule: string;
  readonly steps?: readonly { readonly rule: string; readonly result: string; readonly says: string }[];
}

export interface PeopleAnswer {
  readonly people: readonly PersonJudged[];
  /** Versions of the proposed tree that do not hold yet. */
  readonly coming: readonly { readonly version: string; readonly effectiveAt: number }[];
  readonly letter?: { readonly message: LetterJudged; readonly proposed?: LetterJudged };
}

/** Addresses in one request: 2,000 of the longest are two thirds of what it may hold. */
const PEOPLE_AT_ONCE = 2_000;

/** @throws MailError of the operations; E_CONTROL when the proposed tree changed meanwhile */
export async function askPeople(ask: Ask, { rcpts, at, message, ...place }: PeopleQuestion): Promise<PeopleAnswer> {
  const people: PersonJudged[] = [];
  const trees = new Set<string>();
  let coming: PeopleAnswer['coming'] = [];
  for (let from = 0; from === 0 || from < rcpts.length; from += PEOPLE_AT_ONCE) {
    const some = await ask('explain.people', { ...place, at, rcpts: rcpts.slice(from, from + PEOPLE_AT_ONCE) }) as { readonly people: readonly PersonJudged[]; readonly tree?: string; readonly coming?: PeopleAnswer['coming'] };
    people.push(...some.people);
    ({ coming = [] } = some);
    if (trees.add(some.tree ?? '').size > 1) throw new MailError('E_CONTROL', `${place.proposed ?? ''} was changed meanwhile; ask again`);
  }
  if (message === undefined) return { people, coming };
  const letter = await ask('explain.letter', {
    ...place, message, profiles: known(people.map(({ profile }) => profile)), proposedProfiles: known(people.map(({ proposed }) => proposed?.profile)),
    individual: people.every(allowsIndividual), proposedIndividual: people.every(({ proposed }) => proposed === undefined || allowsIndividual(proposed)),
  }) as PeopleAnswer['letter'];
  return { people, coming, ...(letter !== undefined && { letter }) };
}

/** Who is not mailed has no say in how the letter looks. */
const allowsIndividual = ({ answer, tracking }: Partial<Judged>): boolean => answer !== 'yes' || tracking?.opens === 'individual';

const known = (ids: readonly (string | undefined)[]): string[] => [...new Set(ids)].filter((id) => id !== undefined);
