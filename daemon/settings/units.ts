// The three quantities an operator writes, each with its unit: `3d`, `25MiB`, `600/min`. Every parser
// has its formatter beside it, and a bare number is never guessed at: it answers undefined, and the
// caller says where the unit is missing.
import type { Rate } from './settings.ts';

const DURATIONS = [['ms', 1], ['s', 1_000], ['m', 60_000], ['min', 60_000], ['h', 3_600_000], ['d', 86_400_000]] as const;
const SIZES = [['B', 1], ['KiB', 1_024], ['MiB', 1_048_576], ['GiB', 1_073_741_824], ['TiB', 1_099_511_627_776]] as const;

export const DURATION_PATTERN = /^(?:0|[1-9]\d{0,8})(?:ms|s|m|min|h|d)$/;
export const SIZE_PATTERN = /^(?:0|[1-9]\d{0,8})(?:B|KiB|MiB|GiB|TiB)$/;
export const RATE_PATTERN = /^(?:unset|[1-9]\d{0,8}\/(?:s|min|h|d)(?: burst [1-9]\d{0,8})?)$/;

type Unit = readonly [name: string, factor: number];

function parseQuantity(text: string, units: readonly Unit[]): number | undefined {
  const m = /^(\d{1,9})([A-Za-z]+)$/.exec(text);
  const unit = units.find(([name]) => name === m?.[2]);
  return m === null || unit === undefined ? undefined : Number(m[1]) * unit[1];
}

function formatQuantity(value: number, units: readonly Unit[]): string {
  const fits = units.findLast(([, factor]) => value >= factor && value % factor === 0) ?? units[0];
  return fits === undefined ? String(value) : `${value / fits[1]}${fits[0]}`;
}

/** `3d` as milliseconds; undefined when it is not a duration with its unit. */
export const parseDuration = (text: string): number | undefined => parseQuantity(text, DURATIONS);
/** Milliseconds as `3d`, in the largest unit that divides them. */
export const formatDuration = (ms: number): string => formatQuantity(ms, DURATIONS);
/** `25MiB` as octets; undefined when it is not a size with its unit. */
export const parseSize = (text: string): number | undefined => parseQuantity(text, SIZES);
/** Octets as `25MiB`, in the largest unit that divides them. */
export const formatSize = (bytes: number): string => formatQuantity(bytes, SIZES);

/**
 * `600/min` or `600/min burst 60` as a Rate; undefined when it is neither (`unset` is no rate). Without `burst`, a tenth of
 * the count may come at once: enough for a batch of pipelined messages, too little to look like a flood.
 */
export function parseRate(text: string): Rate | undefined {
  const m = /^([1-9]\d{0,8})\/(s|min|h|d)(?: burst ([1-9]\d{0,8}))?$/.exec(text);
  if (m === null) return undefined;
  const count = Number(m[1]);
  const perMs = parseDuration(`1${m[2]}`) ?? 0;
  return Object.freeze({ count, perMs, burst: m[3] === undefined ? Math.max(1, Math.ceil(count / 10)) : Number(m[3]) });
}

/** A Rate as parseRate reads it; `unset` for none. */
export function formatRate(rate: Rate | undefined): string {
  if (rate === undefined) return 'unset';
  return `${rate.count}/${formatDuration(rate.perMs).slice(1)} burst ${rate.burst}`;
}
