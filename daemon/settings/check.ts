// What one key cannot know by itself: that names lead somewhere, that nothing stands twice, that every
// provider and route can be reached, that files exist and keys are private. Each fault is one problem
// at the value that is wrong; none of these checks stops another.
import { checkAutomation } from './automation.ts';
import type { TreeFiles } from './files.ts';
import { nearest } from './nearest.ts';
import type { Path, Problem } from './problem.ts';
import type { ProfilesInput, ServerInput, ShapingInput, TenantInput } from './schema.ts';
import { pngSize } from './png.ts';
import type { Listen } from './settings.ts';
import { show, valueAt, type Source } from './source.ts';

export interface TenantFile {
  readonly id: string;
  readonly source: Source;
  readonly value: TenantInput;
}

const hint = (got: string, known: readonly string[]): string => {
  const near = nearest(got, known);
  return `expected one of ${known.join(', ')}; got ${show(got)}${near === undefined ? '' : `; did you mean ${near}?`}`;
};

/** Faults of postern.yaml that its schema cannot see. */
export function checkServer(source: Source, server: ServerInput, files: TreeFiles): Problem[] {
  const problems: Problem[] = [];
  const keyFile = (path: Path, name: string, isPrivate: boolean): void => {
    const fault = files.faultOfKeyFile(name, isPrivate);
    if (fault !== '') problems.push(source.problem(path, `${name}: ${fault}`));
  };
  keyFile(['master_key_file'], server.master_key_file, true);
  keyFile(['tls', 'certificate_file'], server.tls.certificate_file, false);
  keyFile(['tls', 'key_file'], server.tls.key_file, true);
  if (server.data_dir.startsWith('credential:')) problems.push(source.problem(['data_dir'], 'expected a folder; a credential cannot be written to'));
  else if (files.resolve(server.master_key_file).startsWith(`${files.resolve(server.data_dir)}/`)) {
    problems.push(source.problem(['master_key_file'], 'lies inside data_dir: a stolen copy of the data would open with it'));
  }
  const doors = listeners(server);
  for (const [i, door] of doors.entries()) {
    // Port 0 is chosen anew by the system for each listener.
    const twin = doors.slice(0, i).find((other) => other.at.port === door.at.port && other.at.host === door.at.host && door.at.port !== 0);
    if (twin !== undefined) problems.push(source.problem(door.path, `listeners.${twin.name} already takes ${formatListen(door.at)}`));
  }
  return problems;
}

interface Door {
  readonly name: string;
  readonly path: Path;
  readonly at: Listen;
}

function listeners(server: ServerInput): Door[] {
  return (['submissions', 'submission', 'inbound', 'pages', 'api', 'metrics'] as const).flatMap((name) =>
    server.listeners[name].map((at, i) => ({ name, path: ['listeners', name, i], at })));
}

const formatListen = (at: Listen): string => (at.host.includes(':') ? `[${at.host}]:${at.port}` : `${at.host}:${at.port}`);

/** Faults of shaping.yaml that its schema cannot see. */
export function checkShaping(source: Source, shaping: ShapingInput, server: ServerInput | undefined): Problem[] {
  const problems: Problem[] = [
    ...twice(source, shaping.providers, 'providers', 'id'),
    ...twice(source, shaping.egress, 'egress', 'id'),
    ...twice(source, shaping.egress, 'egress', 'address'),
    ...unreachableProviders(source, shaping),
  ];
  problems.push(...checkLayers(source, shaping), ...checkAutomation(source, shaping));
  for (const [i, route] of shaping.routes.entries()) {
    if (route.via.length === 0 && route.loopback_mx === undefined) problems.push(source.problem(['routes', i, 'via'], 'this key is missing, or an empty list'));
    if (route.loopback_mx !== undefined && route.via.length > 0) problems.push(source.problem(['routes', i, 'loopback_mx'], 'stands beside via; one of them leads there'));
    if (route.loopback_mx !== undefined && server?.sandbox === false) problems.push(source.problem(['routes', i, 'loopback_mx'], 'only a sandbox may look for MX hosts on loopback'));
    const above = shaping.routes.slice(0, i).find((earlier) => routeCovers(earlier.domain, route.domain));
    if (above !== undefined) problems.push(source.problem(['routes', i, 'domain'], `never reached: the route for ${above.domain} stands above it`));
    for (const [j, at] of route.via.entries()) {
      const path = ['routes', i, 'via', j];
      const door = server === undefined ? undefined : listeners(server).find((one) => leadsTo(at, one.at));
      if (at.port === 0) problems.push(source.problem(path, 'expected a port from 1 to 65535'));
      else if (at.host === '0.0.0.0' || at.host === '::') problems.push(source.problem(path, `${at.host} is not a host that can be connected to`));
      else if (door !== undefined) problems.push(source.problem(path, `leads back to our own listeners.${door.name}`));
    }
  }
  if (shaping.retry.first > shaping.retry.max) problems.push(source.problem(['retry', 'first'], 'longer than retry.max'));
  if (shaping.retry.first < 1_000) problems.push(source.problem(['retry', 'first'], 'expected at least 1s'));
  return problems;
}

type UseInput = ShapingInput['use'][number];
const covers = (earlier: UseInput, later: UseInput): boolean => (['tenant', 'stream', 'provider'] as const).every((key) => earlier[key] === undefined || earlier[key] === later[key]);

/** Tenants and streams that shaping.yaml names and nobody has. */
export function checkShapingTenants(source: Source, shaping: ShapingInput, tenants: readonly TenantFile[]): Problem[] {
  const ids = tenants.map(({ id }) => id);
  const streams = [...new Set(tenants.flatMap(({ value }) => value.streams.map(({ id }) => id)))];
  return [
    ...shaping.tenants.flatMap(({ id }, i) => (ids.includes(id) ? [] : [source.problem(['tenants', i, 'id'], hint(id, ids))])),
    ...shaping.use.flatMap(({ tenant, stream }, i) => [
      ...(tenant === undefined || ids.includes(tenant) ? [] : [source.problem(['use', i, 'tenant'], hint(tenant, ids))]),
      ...(stream === undefined || streams.includes(stream) ? [] : [source.problem(['use', i, 'stream'], hint(stream, streams))]),
    ]),
  ];
}

/** Names of tenants in postern.yaml that lead nowhere. */
export function checkServerTenants(source: Source, { tls_reports: reports }: ServerInput, tenants: readonly TenantFile[]): Problem[] {
  const ids = tenants.map(({ id }) => id);
  return reports === undefined || ids.includes(reports.tenant) ? [] : [source.problem(['tls_reports', 'tenant'], hint(reports.tenant, ids))];
}

/** What layers say of sources and tenants, and totals that a single lane could not even use. */
function checkLayers(source: Source, shaping: ShapingInput): Problem[] {
  const sources = shaping.egress.map((one) => one.id);
  return [
    ...twice(source, shaping.tenants, 'tenants', 'id'),
    ...twice(source, shaping.pools, 'pools', 'id'),
    ...shaping.pools.flatMap((pool, i) => pool.sources.flatMap((one, j) => {
      const path = ['pools', i, 'sources', j, 'id'];
      if (!sources.includes(one.id)) return [source.problem(path, sources.length === 0 ? 'no egress source is declared' : hint(one.id, sources))];
      return pool.sources.slice(0, j).some((earlier) => earlier.id === one.id) ? [source.problem(path, `${show(one.id)} stands here twice`)] : [];
    })),
    ...shaping.use.flatMap((one, i) => [
      ...(shaping.pools.some(({ id }) => id === one.pool) ? [] : [source.problem(['use', i, 'pool'], shaping.pools.length === 0 ? 'no pool is declared' : hint(one.pool, shaping.pools.map(({ id }) => id)))]),
      ...(one.provider === undefined || shaping.providers.some(({ id }) => id === one.provider) ? [] : [source.problem(['use', i, 'provider'], `no provider ${show(one.provider)}`)]),
      ...(shaping.use.slice(0, i).some((earlier) => covers(earlier, one)) ? [source.problem(['use', i], 'never reached: a rule above fits all it would')] : []),
    ]),
    ...shaping.providers.flatMap((provider, i) => provider.egress.flatMap((one, j) => {
      const path = ['providers', i, 'egress', j, 'id'];
      if (!sources.includes(one.id)) return [source.problem(path, sources.length === 0 ? 'no egress source is declared' : hint(one.id, sources))];
      return provider.egress.slice(0, j).some((earlier) => earlier.id === one.id) ? [source.problem(path, `${show(one.id)} stands here twice`)] : [];
    })),
  ];
}

function leadsTo(at: Listen, door: Listen): boolean {
  const local = at.host === 'localhost' || at.host === '::1' || at.host.startsWith('127.');
  return at.port === door.port && (at.host === door.host || (local && (door.host === '0.0.0.0' || door.host === '::')));
}

function routeCovers(earlier: string, later: string): boolean {
  if (earlier === '*' || earlier === later) return true;
  return earlier.startsWith('*.') && later.endsWith(earlier.slice(1)) && later !== earlier;
}

function unreachableProviders(source: Source, shaping: ShapingInput): Problem[] {
  const seen: { readonly match: string; readonly id: string }[] = [];
  const problems: Problem[] = [];
  for (const [i, provider] of shaping.providers.entries()) {
    for (const [j, match] of provider.match.entries()) {
      const above = seen.find((one) => one.match === match || (one.match.startsWith('.') && match.endsWith(one.match)));
      if (above !== undefined) problems.push(source.problem(['providers', i, 'match', j], `never reached: ${above.match} of provider ${above.id} stands above it`));
      seen.push({ match, id: provider.id });
    }
  }
  return problems;
}

/** Problems for items of a list that share what must be theirs alone. */
function twice<T, K extends keyof T & string>(source: Source, items: readonly T[], list: string, key: K): Problem[] {
  return items.flatMap((item, i) => (items.slice(0, i).some((earlier) => earlier[key] === item[key])
    ? [source.problem([list, i, key], `${show(item[key])} stands here twice`)]
    : []));
}

/** What tenants lean on in other files; `profiles` undefined: profiles.yaml is broken and told elsewhere. */
export interface Around {
  readonly sandbox: boolean;
  readonly profiles: ProfilesInput['profiles'] | undefined;
}

/** Faults within and across tenant files; fills `texts` with the policy texts by file name. */
export function checkTenants(tenants: readonly TenantFile[], { sandbox, profiles }: Around, files: TreeFiles, texts: Map<string, Buffer>): Problem[] {
  const problems = tenants.flatMap((tenant) => [
    ...checkPolicies(tenant, files, texts),
    ...checkDomains(tenant, sandbox, files),
    ...checkBrand(tenant, files, texts),
    ...checkStreams(tenant),
    ...checkCredentials(tenant),
    ...(profiles === undefined ? [] : checkJurisdiction(tenant, profiles)),
    ...twice(tenant.source, tenant.value.api_tokens, 'api_tokens', 'id'),
  ]);
  const tokens = new Map<string, string>();
  const usernames = new Map<string, string>();
  const domains = new Map<string, string>();
  for (const { id, source, value } of tenants) {
    for (const [i, { username }] of value.credentials.entries()) {
      const owner = usernames.get(username);
      if (owner !== undefined) problems.push(source.problem(['credentials', i, 'username'], `${show(username)} is already a username of tenant ${owner}`));
      else usernames.set(username, id);
    }
    for (const [i, { id: token, secret }] of value.api_tokens.entries()) {
      const owner = tokens.get(secret);
      // A request carries the secret alone: it must say whose it is, and how much it may do.
      if (owner !== undefined) problems.push(source.problem(['api_tokens', i, 'secret'], `the secret of token ${owner} too; each has its own`));
      else tokens.set(secret, `${token} of tenant ${id}`);
    }
    for (const [i, { name }] of value.domains.entries()) {
      const owner = domains.get(name);
      // Two tenants who sign for one domain could write in each other's name.
      if (owner !== undefined) problems.push(source.problem(['domains', i, 'name'], `${show(name)} is already a domain of tenant ${owner}`));
      else domains.set(name, id);
    }
  }
  return problems;
}

function checkJurisdiction({ source, value }: TenantFile, profiles: ProfilesInput['profiles']): Problem[] {
  if (value.jurisdiction === undefined) return [];
  const profile = profiles.find((one) => one.id === value.jurisdiction);
  if (profile === undefined) return [source.problem(['jurisdiction'], hint(value.jurisdiction, profiles.map((one) => one.id)))];
  if (!profile.footer.includes('postal') || value.contact.postal !== '') return [];
  // Then the gate would refuse every message: better told now than by the first refusal.
  if (!value.streams.some((stream) => stream.class === 'marketing') || value.shadow.includes('profile-footer-unset')) return [];
  return [source.problem(['contact'], `profile ${profile.id} asks marketing mail for a postal address, and contact.postal is empty`)];
}

function checkPolicies({ source, value }: TenantFile, files: TreeFiles, texts: Map<string, Buffer>): Problem[] {
  const problems = [...twice(source, value.policies, 'policies', 'version'), ...twice(source, value.policies, 'policies', 'effective')];
  for (const [i, policy] of value.policies.entries()) {
    const path = ['policies', i, 'text'];
    if (!files.inside(policy.text)) {
      problems.push(source.problem(path, `${policy.text}: expected a file inside this folder`));
      continue;
    }
    const text = texts.get(policy.text) ?? files.read(policy.text);
    if (typeof text === 'string') problems.push(source.problem(path, `${policy.text}: ${text}`));
    else if (text.toString('utf8').trim() === '') problems.push(source.problem(path, `${policy.text}: the text is empty`));
    else texts.set(policy.text, text);
  }
  return problems;
}

function checkDomains({ source, value }: TenantFile, sandbox: boolean, files: TreeFiles): Problem[] {
  const problems: Problem[] = [];
  for (const [i, domain] of value.domains.entries()) {
    for (const [j, key] of domain.dkim.entries()) {
      const fault = files.faultOfKeyFile(key.key_file, true);
      if (fault !== '') problems.push(source.problem(['domains', i, 'dkim', j, 'key_file'], `${key.key_file}: ${fault}`));
      if (domain.dkim.slice(0, j).some((earlier) => earlier.selector === key.selector)) {
        problems.push(source.problem(['domains', i, 'dkim', j, 'selector'], `${show(key.selector)} stands here twice`));
      }
    }
    for (const key of ['certificate_file', 'key_file'] as const) {
      const name = domain.pages_tls?.[key];
      const fault = name === undefined ? '' : files.faultOfKeyFile(name, key === 'key_file');
      if (fault !== '') problems.push(source.problem(['domains', i, 'pages_tls', key], `${String(name)}: ${fault}`));
    }
    if (!sandbox && domain.pages.startsWith('http:')) problems.push(source.problem(['domains', i, 'pages'], 'expected https; http is for a sandbox'));
  }
  return problems;
}

// It stands on every page and is kept in memory.
const LOGO_OCTETS = 128 * 1_024;
const LOGO_PIXELS = 2_000;

/** Takes the logo among the texts. */
function checkBrand({ source, value }: TenantFile, files: TreeFiles, texts: Map<string, Buffer>): Problem[] {
  const name = value.brand.logo_file;
  if (name === undefined) return [];
  const found = files.inside(name) ? files.read(name) : 'expected a file inside this folder';
  const size = typeof found === 'string' ? undefined : pngSize(found);
  const fault = typeof found === 'string' ? found
    : found.length > LOGO_OCTETS ? `larger than ${LOGO_OCTETS / 1_024} KiB`
      : size === undefined ? 'not a PNG'
        : Math.max(size.width, size.height) > LOGO_PIXELS ? `more than ${LOGO_PIXELS} pixels a side` : '';
  if (fault !== '') return [source.problem(['brand', 'logo_file'], `${name}: ${fault}`)];
  if (typeof found !== 'string') texts.set(name, found);
  return [];
}

function checkStreams({ source, value }: TenantFile): Problem[] {
  const problems = twice(source, value.streams, 'streams', 'id');
  const purposes = [...new Set(value.policies.flatMap((policy) => policy.purposes))];
  for (const [i, stream] of value.streams.entries()) {
    if (!purposes.includes(stream.purpose)) problems.push(source.problem(['streams', i, 'purpose'], hint(stream.purpose, purposes)));
    // A basis that stands there and is none has been told already.
    if (stream.consent === 'not-needed' && valueAt(source.value, ['streams', i, 'legal_basis']) === undefined) {
      problems.push(source.problem(['streams', i, 'consent'], 'not-needed asks for a legal_basis'));
    }
  }
  return problems;
}

function checkCredentials({ source, value }: TenantFile): Problem[] {
  const problems: Problem[] = [];
  const streams = value.streams.map((stream) => stream.id);
  const domains = value.domains.map((domain) => domain.name);
  for (const [i, credential] of value.credentials.entries()) {
    if (!streams.includes(credential.stream)) problems.push(source.problem(['credentials', i, 'stream'], hint(credential.stream, streams)));
    for (const [j, from] of credential.from.entries()) {
      if (!domains.includes(from.slice(from.lastIndexOf('@') + 1))) {
        problems.push(source.problem(['credentials', i, 'from', j], `${show(from)} is outside the sending domains ${domains.join(', ')}`));
      }
    }
  }
  return problems;
}

