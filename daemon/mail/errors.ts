// The operational errors of the house, one catalogue. Expected outcomes (a refused recipient, a
// deferred attempt) are values, not errors; anything thrown that is not a MailError is a bug.
// Transient unless proven permanent.

/** Code -> what it means and what to do. A retired code is moved to RETIRED and never used again. */
export const ERRORS = {
  E_CONFIG: { transient: false, says: 'the configuration is not usable; the message lists every fault with file, line and column' },
  E_KEY_UNREADABLE: { transient: false, says: 'a key file is missing, unreadable, or open to others; fix the file or its mode' },
  E_KEY_WRONG: { transient: false, says: 'sealed data does not open with this master key; restore the key that wrote it' },
  E_STORE: { transient: true, says: 'the store did not answer; nothing is accepted or sent until it does' },
  E_STORE_LOCKED: { transient: true, says: 'another process holds the data directory; talk to it through its control socket' },
  E_SPOOL_FULL: { transient: true, says: 'the disk is nearly full; free space and mail is taken again' },
  E_SPOOL_CORRUPT: { transient: false, says: 'a stored body does not match its seal; the message is held for inspection' },
  E_ADDRESS: { transient: false, says: 'not an address that can be mailed' },
  E_DNS: { transient: true, says: 'the resolver did not answer or answered with a failure' },
  E_SESSION: { transient: true, says: 'an SMTP session with a remote host broke' },
  E_SIGN: { transient: true, says: 'no signature could be made; nothing is sent unsigned' },
  E_TOKEN: { transient: false, says: 'not a token of ours' },
  E_CONTROL: { transient: false, says: 'a request on the control socket could not be carried out' },
  E_IN_USE: { transient: false, says: 'a port is already taken; the message names the setting that moves it' },
} as const satisfies Record<string, { transient: boolean; says: string }>;

export const RETIRED: readonly string[] = [];

export type ErrorCode = keyof typeof ERRORS;

/** An operational error: `code` is from the catalogue, `message` says what happened here. */
export class MailError extends Error {
  readonly code: ErrorCode;
  readonly transient: boolean;
  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'MailError';
    this.code = code;
    this.transient = ERRORS[code].transient;
  }
}

/** True for a MailError, with this code if one is given. */
export function isMailError(error: unknown, code?: ErrorCode): error is MailError {
  return error instanceof MailError && (code === undefined || error.code === code);
}
