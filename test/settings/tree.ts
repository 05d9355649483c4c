// A copy of a configuration tree in a temporary folder, with key files made: what is under test writes
// to it, and keys are never committed.
import { chmodSync, cpSync, mkdirSync, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

const KEYS = ['master.key', 'tls.crt', 'tls.key', 'acme.pem', 'dkim/acme-rsa.pem', 'dkim/acme-ed25519.pem'];

export const REPOSITORY = join(import.meta.dirname, '../..');
export const CASES = join(REPOSITORY, 'test/config');

/** Copies a tree and makes its keys; `open.pem` is one that others may read. */
export function copyTree(from: string): string {
  const root = mkdtempSync(join(tmpdir(), 'postern-settings-'));
  cpSync(from, root, { recursive: true });
  makeKeys(root);
  return root;
}

export function makeKeys(root: string): void {
  for (const name of [...KEYS, 'open.pem']) {
    const file = join(root, 'keys', name);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, 'only looked at\n', { mode: 0o600 });
  }
  chmodSync(join(root, 'keys/open.pem'), 0o644);
}
