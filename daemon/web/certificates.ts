// The certificates of a listener: its own pair, and one for each host that has its own (SNI, RFC 6066 §3).
// Callers may rely on: files that were renewed are noticed at the first handshake more than ten seconds
// later, and at once by renew(); a pair that cannot be read or does not fit never takes the place of one that
// could; a host without a pair of its own gets that of the listener.
import { readFileSync, statSync } from 'node:fs';
import { createSecureContext, type SecureContext } from 'node:tls';
import { MailError } from '../mail/index.ts';

/** Certificate chain and private key, PEM files. */
export interface PairFiles {
  readonly certificateFile: string;
  readonly keyFile: string;
}

/** Where the pairs are; asked anew, for a reload may name others. */
export interface PairSource {
  readonly own: () => PairFiles;
  /** By host name, lower case. */
  readonly hosts?: () => ReadonlyMap<string, PairFiles>;
}

// Renewed weeks before the old one ends: seconds do not matter, a stat for each handshake would.
const LOOK_MS = 10_000;

interface Held {
  readonly context: SecureContext;
  /** Names and times of the files it was read from. */
  readonly stamp: string;
  lookedAt: number;
}

export class Certificates {
  readonly #source: PairSource;
  readonly #now: () => number;
  readonly #held = new Map<string, Held>();

  /** @throws MailError E_KEY_UNREADABLE when the listener's own pair cannot be used */
  constructor(source: PairSource, now: () => number = Date.now) {
    this.#source = source;
    this.#now = now;
    this.#read('', source.own());
  }

  /** The context for a name a client asked for; '' is the listener's own. */
  contextOf(host: string): SecureContext | undefined {
    const name = host.toLowerCase();
    const files = this.#source.hosts?.().get(name);
    if (files === undefined) return name === '' ? this.#fresh('', this.#source.own()) : this.contextOf('');
    return this.#fresh(name, files) ?? this.contextOf('');
  }

  /** Reads every pair again. @throws MailError E_KEY_UNREADABLE; each that could not be read stays as it was */
  renew(): void {
    const faults: unknown[] = [];
    for (const [name, files] of [['', this.#source.own()] as const, ...this.#source.hosts?.() ?? []]) {
      try {
        this.#read(name, files);
      } catch (error) {
        faults.push(error);
      }
    }
    if (faults.length > 0) throw faults[0];
  }

  #fresh(name: string, files: PairFiles): SecureContext | undefined {
    const held = this.#held.get(name);
    const now = this.#now();
    if (held !== undefined && now - held.lookedAt < LOOK_MS && held.stamp.startsWith(namesOf(files))) return held.context;
    try {
      if (held === undefined || held.stamp !== stampOf(files)) return this.#read(name, files);
    } catch {
      // Half-written, or gone for a moment: the old pair stays, renew() tells the operator.
    }
    if (held !== undefined) held.lookedAt = now;
    return held?.context;
  }

  #read(name: string, files: PairFiles): SecureContext {
    try {
      const stamp = stampOf(files);
      const context = createSecureContext({ cert: readFileSync(files.certificateFile), key: readFileSync(files.keyFile), minVersion: 'TLSv1.2' });
      this.#held.set(name, { context, stamp, lookedAt: this.#now() });
      return context;
    } catch (cause) {
      throw new MailError('E_KEY_UNREADABLE', `tls${name === '' ? '' : ` of ${name}`}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
    }
  }
}

const namesOf = ({ certificateFile, keyFile }: PairFiles): string => `${certificateFile}\0${keyFile}\0`;

function stampOf(files: PairFiles): string {
  const [certificate, key] = [files.certificateFile, files.keyFile].map((file) => statSync(file));
  return `${namesOf(files)}${certificate?.mtimeMs} ${certificate?.ino} ${key?.mtimeMs} ${key?.ino}`;
}
