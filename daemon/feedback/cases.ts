// What people write to postmaster@ and abuse@: filed, sealed, for the operator to read, and never passed
// on. Callers may rely on: a case is on disk when file() resolves, a folder that is full is an answer and
// not an error, and no octet of the mail stands in clear in the folder. A case of a tenant's domain lies
// under that tenant's payload key, one of our host name under a key of its own. RFC 2142 §4, RFC 5321 §4.5.1.
import { mkdirSync, readFileSync, readdirSync } from 'node:fs';
import { open, rename } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { newId, seal, unseal, type Clock, type Keyring } from '../runtime/index.ts';

/** What is filed of one mail. */
export interface Case {
  readonly at: number;
  readonly role: 'abuse' | 'postmaster';
  /** Whose domain was written to; '' for our own host name. */
  readonly tenant: string;
  /** The client's address. */
  readonly from: string;
  readonly mailFrom: string;
  readonly raw: Buffer;
}

export interface Cases {
  /** Files it durably. @returns its id; undefined when there are as many as may be. @throws Error when the disk refuses */
  file(filed: Case): Promise<string | undefined>;
}

// With mail of at most a MiB, a GiB: somebody must read them anyway, and an attacker must not fill the disk.
const MOST = 1_000;
/** The name of the key for cases of nobody's domain. */
const HOST_KEY = 'postern-host';

export function openCases(dataDir: string, { keyring, clock }: { readonly keyring: Keyring; readonly clock: Clock }): Cases {
  const dir = join(dataDir, 'cases');
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  return {
    async file(filed) {
      if (readdirSync(dir).length >= MOST) return undefined;
      const id = newId(clock.now());
      const { raw, ...head } = filed;
      const clear = Buffer.concat([Buffer.from(`${JSON.stringify(head)}\n`), raw]);
      // The name tells whose key opens it.
      const name = `${id}.${filed.tenant === '' ? HOST_KEY : filed.tenant}`;
      const sealed = seal(keyring.tenant(filed.tenant === '' ? HOST_KEY : filed.tenant).payload, clear, `case/${name}`);
      const draft = join(dir, `.${name}`);
      const file = await open(draft, 'wx', 0o600);
      try {
        await file.writeFile(sealed);
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(draft, join(dir, name));
      const folder = await open(dir, 'r');
      try {
        await folder.sync();
      } finally {
        await folder.close();
      }
      return id;
    },
  };
}

/** Opens a case file; undefined when it is none or its key is another. */
export function readCase(keyring: Keyring, path: string): Case | undefined {
  const name = basename(path);
  const key = name.slice(name.indexOf('.') + 1);
  const clear = unseal(keyring.tenant(key).payload, readFileSync(path), `case/${name}`);
  const end = clear?.indexOf(10) ?? -1;
  if (clear === undefined || end < 0) return undefined;
  return { ...JSON.parse(clear.toString('utf8', 0, end)) as Omit<Case, 'raw'>, raw: clear.subarray(end + 1) };
}
