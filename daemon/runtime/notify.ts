// Tells systemd how we are (sd_notify(3)) by starting systemd-notify: Node has no datagram sockets of
// the Unix kind. Without NOTIFY_SOCKET it does nothing. It never throws and never makes the daemon
// wait: a supervisor that cannot be told is logged by the caller's choice, and mail goes on. The unit
// needs NotifyAccess=all, for the message comes from a child.
import { execFile } from 'node:child_process';

export type SupervisorState = 'READY=1' | 'RELOADING=1' | 'STOPPING=1' | `STATUS=${string}`;

/** Sends the states in one message; resolves to undefined when told or not needed, else to what went wrong. */
export function notify(...states: readonly SupervisorState[]): Promise<string | undefined> {
  if ((process.env['NOTIFY_SOCKET'] ?? '') === '') return Promise.resolve(undefined);
  const words = states.map((state) => state.replaceAll(/[\r\n]+/g, ' '));
  // sd_notify(3): RELOADING=1 has to say when it began, for services of Type=notify-reload.
  if (words.includes('RELOADING=1')) words.push(`MONOTONIC_USEC=${process.hrtime.bigint() / 1_000n}`);
  return new Promise((done) => {
    execFile('systemd-notify', words, { timeout: 5_000 }, (error) => done(error === null ? undefined : error.message));
  });
}
