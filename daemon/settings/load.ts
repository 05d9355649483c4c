// Reads a whole tree and answers with one frozen snapshot or with every problem at once. Nothing is
// half-loaded: one fault anywhere and there are no settings. `postern check`, the start and each reload
// all come through here, so that what the check passes the daemon takes.
import { buildServer, buildTenant } from './build.ts';
import { checkServer, checkServerTenants, checkShaping, checkShapingTenants, checkTenants, type TenantFile } from './check.ts';
import { TreeFiles } from './files.ts';
import { bouncesSchema, buildBounces, checkBounces } from './bounces.ts';
import { buildProfiles, checkProfiles, strictestOf } from './profiles.ts';
import { sortProblems, type Problem } from './problem.ts';
import { profilesSchema, serverSchema, shapingSchema, tenantSchema } from './schema.ts';
import { buildShaping } from './shaping.ts';
import type { Credential, Settings, Tenant } from './settings.ts';
import { applySchema, readSource, type Source } from './source.ts';
import { isOperatorId } from './values.ts';
import type { z } from 'zod';

// Where systemd mounts what systemd/postern.service loads; root sees it while the service runs.
const SERVICE_CREDENTIALS = '/run/credentials/postern.service';

/** What a file is called where the tree has none and that of this package holds. */
const SHIPPED = ' (shipped)';
export const isShipped = (file: string): boolean => file.endsWith(SHIPPED);

/** What loading a tree came to; `hash` and `folders` are known even when it failed. */
export type Loaded = { readonly hash: string; readonly folders: readonly string[]; readonly warnings: readonly Problem[] } & (
  | { readonly ok: true; readonly settings: Settings }
  | { readonly ok: false; readonly problems: readonly Problem[] }
);

export interface LoadOptions {
  /** Where `credential:NAME` is looked up; $CREDENTIALS_DIRECTORY if left out, else that of the running service. */
  readonly credentialsDir?: string | undefined;
  /** Files as they would be, by name relative to the root. */
  readonly overlay?: ReadonlyMap<string, Buffer>;
}

/** What an operator wrote, by file, as plain YAML values; for `config show`. */
const written = new WeakMap<Settings, ReadonlyMap<string, unknown>>();

/** The plain YAML values a snapshot was made from, by file name. */
export const writtenValues = (settings: Settings): ReadonlyMap<string, unknown> => written.get(settings) ?? new Map<string, unknown>();

/** Puts a snapshot together with another's server part (whose keys need a restart). */
export function withServerOf(settings: Settings, old: Settings): Settings {
  const merged = Object.freeze({ ...settings, server: old.server });
  written.set(merged, new Map([...writtenValues(settings), ['postern.yaml', writtenValues(old).get('postern.yaml')]]));
  return merged;
}

/** What is read in place of a file the tree does not have, and what it is called in problems and listings. */
interface Lacking {
  readonly file: string;
  readonly found: Buffer | string;
}

interface Read<T> {
  readonly source: Source;
  readonly value: T | undefined;
}

/** Reads and checks the tree at `root`. Never throws for what stands in the files. */
export function loadSettings(root: string, options: LoadOptions = {}): Loaded {
  const files = new TreeFiles(root, options.credentialsDir ?? process.env['CREDENTIALS_DIRECTORY'] ?? SERVICE_CREDENTIALS, options.overlay ?? new Map());
  const problems: Problem[] = [];
  const warnings: Problem[] = [];
  const values = new Map<string, unknown>();

  const read = <T>(name: string, schema: z.ZodType<T>, ifMissing?: () => Lacking): Read<T> | undefined => {
    const own = files.read(name);
    const { file, found } = own === 'no such file' && ifMissing !== undefined ? ifMissing() : { file: name, found: own };
    if (typeof found === 'string') {
      problems.push({ file, line: 1, column: 1, path: '', message: found });
      return undefined;
    }
    const source = readSource(file, found);
    if (!('document' in source)) {
      problems.push(...source);
      return undefined;
    }
    const { value, problems: faults } = applySchema(source, schema);
    problems.push(...faults);
    values.set(file, source.value ?? {});
    return { source, value };
  };

  const server = read('postern.yaml', serverSchema);
  const shaping = read('shaping.yaml', shapingSchema, () => ({ file: 'shaping.yaml', found: Buffer.alloc(0) }));
  const shipped = (name: string) => (): Lacking => ({ file: `${name}${SHIPPED}`, found: files.shipped(name) });
  const profiles = read('profiles.yaml', profilesSchema, shipped('profiles.yaml'));
  const bounces = read('bounces.yaml', bouncesSchema, shipped('bounces.yaml'));
  const tenants: TenantFile[] = [];
  const named = tenantFiles(files, problems, warnings);
  for (const name of named) {
    const found = read(`tenants/${name}.yaml`, tenantSchema);
    if (found?.value !== undefined) tenants.push({ id: name, source: found.source, value: found.value });
  }

  if (server?.value !== undefined) problems.push(...checkServer(server.source, server.value, files));
  if (shaping?.value !== undefined) problems.push(...checkShaping(shaping.source, shaping.value, server?.value));
  // A tenant whose file is broken is told of there.
  if (tenants.length === named.length) {
    if (server?.value !== undefined) problems.push(...checkServerTenants(server.source, server.value, tenants));
    if (shaping?.value !== undefined) problems.push(...checkShapingTenants(shaping.source, shaping.value, tenants));
  }
  if (profiles?.value !== undefined) problems.push(...checkProfiles(profiles.source, profiles.value));
  if (bounces?.value !== undefined) problems.push(...checkBounces(bounces.source, bounces.value));
  const texts = new Map<string, Buffer>();
  problems.push(...checkTenants(tenants, { sandbox: server?.value?.sandbox ?? false, profiles: profiles?.value?.profiles }, files, texts));
  if (server?.value?.sandbox === true && shaping?.value?.routes.length === 0) {
    warnings.push(server.source.problem(['sandbox'], 'a sandbox without a route delivers nothing', 'key'));
  }

  for (const name of files.unseen) {
    warnings.push({ file: 'postern.yaml', line: 1, column: 1, path: '', message: `${name} is not checked: credentials are seen by the service only` });
  }

  const known = { hash: files.hash(), folders: Object.freeze([...files.folders]), warnings: sortProblems(warnings) };
  if (problems.length > 0 || server?.value === undefined || shaping?.value === undefined || profiles?.value === undefined || bounces?.value === undefined) {
    return { ok: false, problems: sortProblems(problems), ...known };
  }
  const built = tenants.map(({ id, value }): readonly [string, Tenant] => [id, buildTenant(id, value, files, texts)]);
  const jurisdictions = buildProfiles(profiles.value);
  const settings: Settings = Object.freeze({
    hash: known.hash,
    root: files.root,
    server: buildServer(server.value, files),
    tenants: new Map(built),
    credentials: new Map(built.flatMap(([, tenant]) => tenant.credentials.map((one): readonly [string, Credential] => [one.username, one]))),
    shaping: buildShaping(shaping.value),
    profiles: jurisdictions,
    bounces: buildBounces(bounces.value),
    strictest: strictestOf([...jurisdictions.values()]),
  });
  written.set(settings, values);
  return { ok: true, settings, ...known };
}

/** Ids of the tenants that have a file; other files in the folder are pointed out. */
function tenantFiles(files: TreeFiles, problems: Problem[], warnings: Problem[]): string[] {
  const ids: string[] = [];
  for (const name of files.list('tenants')) {
    const file = `tenants/${name}`;
    // Editors' drafts and Kubernetes' ..data links are no tenants.
    if (name.startsWith('.') || name.endsWith('~')) continue;
    const id = name.replace(/\.yaml$/, '');
    if (id === name) warnings.push({ file, line: 1, column: 1, path: '', message: 'not read: its name does not end in .yaml' });
    else if (!isOperatorId(id)) problems.push({ file, line: 1, column: 1, path: '', message: 'expected a file name of lower-case letters, digits and hyphens: it is the tenant id' });
    else ids.push(id);
  }
  if (ids.length === 0) warnings.push({ file: 'tenants', line: 1, column: 1, path: '', message: 'no tenant: nobody can submit mail' });
  return ids;
}

