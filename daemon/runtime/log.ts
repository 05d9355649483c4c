// The operational log: one JSON line on standard output, for people who run the daemon. What happens to
// mail is not logged here but is an event (events/); no address, subject or URL is ever written here.
import { pino } from 'pino';

export interface Log {
  debug(fields: object, text: string): void;
  info(fields: object, text: string): void;
  warn(fields: object, text: string): void;
  error(fields: object, text: string): void;
}

/** A log at this level, on standard output or into the given file. */
export function openLog(level: 'debug' | 'info' | 'warn' | 'error' | 'silent', file?: string): Log {
  const target = pino.destination(file === undefined ? { dest: 1, sync: false } : { dest: file, sync: false, mkdir: true });
  return pino({ level, base: null, timestamp: pino.stdTimeFunctions.isoTime, formatters: { level: (label) => ({ level: label }) } }, target);
}
