// Jurisdictions: from what profiles.yaml says to profiles, and the strictest of them all, which holds for
// people of whom no jurisdiction is known. The shipped values are the file config/profiles.yaml of this
// package itself, read where the tree has none: they stand in one place, with their sources beside them.
// What the schema cannot see is told here too: a file whose strictest profile would allow no mail at all,
// rules for bases that are not accepted, one top-level domain in two profiles.
import { CLICK_MODES, OPEN_MODES, type BasisFact, type LegalBasis, type Tracking } from '../mail/index.ts';
import type { Path, Problem } from './problem.ts';
import type { ProfilesInput } from './schema.ts';
import type { Profile } from './settings.ts';
import { show, type Source } from './source.ts';

type ProfileInput = ProfilesInput['profiles'][number];

/** The id of the profile that holds where the jurisdiction is unknown; no other may have it. */
export const STRICTEST_ID = 'strictest';

/** Faults of profiles.yaml that its schema cannot see. */
export function checkProfiles(source: Source, { profiles }: ProfilesInput): Problem[] {
  const problems: Problem[] = [];
  const say = (path: Path, message: string): void => void problems.push(source.problem(['profiles', ...path], message));
  const owners = new Map<string, string>();
  let common: readonly LegalBasis[] = profiles[0]?.bases ?? [];
  for (const [i, profile] of profiles.entries()) {
    if (profile.id === STRICTEST_ID) say([i, 'id'], `${STRICTEST_ID} is what holds where no jurisdiction is known; choose another id`);
    if (profiles.slice(0, i).some((earlier) => earlier.id === profile.id)) say([i, 'id'], `${show(profile.id)} stands here twice`);
    for (const [j, tld] of profile.tlds.entries()) {
      const owner = owners.get(tld);
      if (owner !== undefined) say([i, 'tlds', j], `${show(tld)} is already a top-level domain of profile ${owner}`);
      else owners.set(tld, profile.id);
    }
    for (const key of ['basis_facts', 'basis_expires'] as const) {
      for (const basis of Object.keys(profile[key])) {
        if (!profile.bases.includes(basis as LegalBasis)) say([i, key, basis], `${basis} is not among the bases of this profile`);
      }
    }
    const apart = profile.tracking_apart;
    if (apart !== undefined && !atLeast(apart, profile.tracking)) say([i, 'tracking_apart'], 'less than tracking: who was asked by itself has agreed to no less');
    const left = common.filter((basis) => profile.bases.includes(basis));
    if (left.length === 0 && common.length > 0) {
      say([i, 'bases'], 'no basis here is shared with all profiles above: nobody whose jurisdiction is unknown could be mailed; gdpr_6_1_a is one every law accepts');
    }
    common = left;
  }
  return problems;
}

const atLeast = (a: Tracking, b: Tracking): boolean =>
  OPEN_MODES.indexOf(a.opens) >= OPEN_MODES.indexOf(b.opens) && CLICK_MODES.indexOf(a.clicks) >= CLICK_MODES.indexOf(b.clicks);

/** profiles.yaml as the rooms read it, by id and in its order. */
export function buildProfiles({ profiles }: ProfilesInput): ReadonlyMap<string, Profile> {
  return new Map(profiles.map((one) => [one.id, buildProfile(one)]));
}

function buildProfile(one: ProfileInput): Profile {
  return freeze({
    id: one.id,
    tlds: one.tlds,
    bases: one.bases,
    basisFacts: one.basis_facts,
    basisExpiresMs: one.basis_expires,
    tracking: one.tracking,
    trackingApart: one.tracking_apart ?? one.tracking,
    headers: one.headers,
    footer: one.footer,
    reaskMs: one.reask,
    unsubscribeForMs: one.unsubscribe,
  });
}

/** Of every rule the strictest over all profiles: who keeps it keeps each of them. */
export function strictestOf(profiles: readonly Profile[]): Profile {
  const bases = (profiles[0]?.bases ?? []).filter((basis) => profiles.every((profile) => profile.bases.includes(basis)));
  const facts: Partial<Record<LegalBasis, readonly BasisFact[]>> = {};
  const expires: Partial<Record<LegalBasis, number>> = {};
  for (const basis of bases) {
    const asked = [...new Set(profiles.flatMap((profile) => profile.basisFacts[basis] ?? []))];
    if (asked.length > 0) facts[basis] = asked;
    const least = Math.min(...profiles.map((profile) => profile.basisExpiresMs[basis] ?? Infinity));
    if (least !== Infinity) expires[basis] = least;
  }
  const headers = new Map(profiles.flatMap((profile) => profile.headers).map((name) => [name.toLowerCase(), name]));
  return freeze({
    id: STRICTEST_ID,
    tlds: [],
    bases,
    basisFacts: facts,
    basisExpiresMs: expires,
    tracking: leastTracking(profiles.map((profile) => profile.tracking)),
    trackingApart: leastTracking(profiles.map((profile) => profile.trackingApart)),
    headers: [...headers.values()],
    footer: [...new Set(profiles.flatMap((profile) => profile.footer))],
    reaskMs: Math.max(...profiles.map((profile) => profile.reaskMs)),
    unsubscribeForMs: Math.max(...profiles.map((profile) => profile.unsubscribeForMs)),
  });
}

const leastTracking = (all: readonly Tracking[]): Tracking => ({
  opens: OPEN_MODES.find((mode) => all.some((one) => one.opens === mode)) ?? 'none',
  clicks: CLICK_MODES.find((mode) => all.some((one) => one.clicks === mode)) ?? 'none',
});

function freeze(profile: Profile): Profile {
  for (const part of [...Object.values(profile.basisFacts), ...Object.values(profile)] as readonly unknown[]) Object.freeze(part);
  return Object.freeze(profile);
}
