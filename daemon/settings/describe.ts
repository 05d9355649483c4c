// What can be configured, told from the schemas: JSON Schema for editors, the table of keys for
// config/README.md, and the lines of `postern config show`. No secret is ever printed, hashed or not.
import { z } from 'zod';
import { isShipped, writtenValues } from './load.ts';
import { bouncesSchema } from './bounces.ts';
import { profilesSchema, serverSchema, shapingSchema, tenantSchema } from './schema.ts';
import type { Settings } from './settings.ts';

/** A JSON Schema as far as we read it. */
interface Described {
  readonly type?: string;
  readonly description?: string;
  readonly default?: unknown;
  readonly enum?: readonly unknown[];
  readonly anyOf?: readonly Described[];
  readonly properties?: Readonly<Record<string, Described>>;
  readonly items?: Described;
  readonly required?: readonly string[];
  readonly pattern?: string;
  readonly 'x-reload'?: string;
  readonly 'x-reason'?: string;
}

const SCHEMAS = { 'postern.yaml': serverSchema, 'tenants/*.yaml': tenantSchema, 'shaping.yaml': shapingSchema, 'profiles.yaml': profilesSchema, 'bounces.yaml': bouncesSchema } as const;
type SchemaFile = keyof typeof SCHEMAS;

/** One key as declared; `default` is undefined where there is none. */
export interface DeclaredKey {
  readonly file: string;
  readonly key: string;
  readonly type: string;
  readonly required: boolean;
  readonly default: unknown;
  readonly reason: string;
  readonly reload: string;
  readonly says: string;
}

/** One key and its value in a snapshot. */
export interface KeyValue {
  /** `postern.yaml limits.message_size`: file and path. */
  readonly key: string;
  readonly value: unknown;
  readonly isDefault: boolean;
  /** What the key means. */
  readonly doc: string;
}

/** JSON Schema (draft 2020-12) of a file, for editors. */
export function jsonSchema(file: SchemaFile): Readonly<Record<string, unknown>> {
  return { title: `postern ${file}`, ...z.toJSONSchema(SCHEMAS[file], { io: 'input', target: 'draft-2020-12' }) };
}

const described = new Map<SchemaFile, Described>();
function describedSchema(file: SchemaFile): Described {
  const known = described.get(file) ?? (jsonSchema(file) as Described);
  described.set(file, known);
  return known;
}

/** Every key of every file with its default and what it means. */
export function explainDefaults(): readonly DeclaredKey[] {
  return (Object.keys(SCHEMAS) as SchemaFile[]).flatMap((file) => declaredKeys(file, describedSchema(file), ''));
}

function declaredKeys(file: string, schema: Described, prefix: string): DeclaredKey[] {
  return Object.entries(schema.properties ?? {}).flatMap(([name, inner]) => {
    // A name in a map, as a legal basis is: the key above says what it is for.
    if (inner.description === undefined) return [];
    const key = prefix === '' ? name : `${prefix}.${name}`;
    const below = inner.properties === undefined ? declaredKeys(file, inner.items ?? {}, `${key}[]`) : declaredKeys(file, inner, key);
    return [{
      file,
      key,
      type: typeName(inner),
      required: schema.required?.includes(name) ?? false,
      default: inner.properties === undefined ? inner.default : undefined,
      reason: inner['x-reason'] ?? '',
      reload: inner['x-reload'] ?? '',
      says: inner.description ?? '',
    }, ...below];
  });
}

function typeName(schema: Described): string {
  if (schema.anyOf?.some((one) => one.type === 'integer') === true) return 'number, unset';
  if (schema.enum !== undefined) return schema.enum.map(String).join(', ');
  if (schema.type === 'array') return schema.items?.properties === undefined ? 'list' : 'list of maps';
  if (schema.type === 'object') return 'map';
  if (schema.type === 'boolean') return 'true, false';
  if (schema.type === 'integer') return 'number';
  if (schema.pattern?.includes('KiB') === true) return 'size';
  if (schema.pattern?.includes('ms|s|m|min') === true) return 'duration';
  return schema.pattern?.includes('unset') === true ? 'rate' : 'text';
}

/**
 * The keys of a snapshot: `defaults` as declared, `changed` what was written and differs from its
 * default, `effective` everything in force. Secrets are shown as `(hidden)`. Only `defaults` needs no snapshot.
 */
export function describeSettings(settings: Settings | undefined, mode: 'defaults' | 'changed' | 'effective'): readonly KeyValue[] {
  if (mode === 'defaults') {
    return explainDefaults().flatMap((one) => (one.default === undefined ? [] : [{ key: `${one.file} ${one.key}`, value: one.default, isDefault: true, doc: one.says }]));
  }
  const all = settings === undefined ? [] : [...writtenValues(settings)].flatMap(([file, value]) => keyValues(file, describedSchema(schemaFile(file)), value, ''));
  return mode === 'effective' ? all : all.filter((one) => !one.isDefault);
}

function schemaFile(file: string): SchemaFile {
  return (['postern.yaml', 'shaping.yaml', 'profiles.yaml', 'bounces.yaml'] as const).find((name) => file.startsWith(name)) ?? 'tenants/*.yaml';
}

function keyValues(file: string, schema: Described, value: unknown, key: string): KeyValue[] {
  // A map that may be left out, and was, says nothing: its keys' defaults are not in force.
  if (schema.properties !== undefined && (key === '' || (value ?? schema.default) !== undefined)) {
    const map = (value ?? {}) as Readonly<Record<string, unknown>>;
    return Object.entries(schema.properties).flatMap(([name, inner]) => keyValues(file, inner, map[name], key === '' ? name : `${key}.${name}`));
  }
  if (schema.items?.properties !== undefined && Array.isArray(value) && value.length > 0) {
    const items = schema.items;
    return value.flatMap((item: unknown, i) => keyValues(file, items, item, `${key}[${i}]`));
  }
  const isDefault = value === undefined || isShipped(file) || JSON.stringify(value) === JSON.stringify(schema.default);
  const effective = value ?? schema.default;
  if (effective === undefined) return [];
  return [{ key: `${file} ${key}`, value: /(?:^|\.)secret$/.test(key) ? '(hidden)' : effective, isDefault, doc: schema.description ?? '' }];
}

/** Keys of a file whose effective value differs between two trees. */
export function changedKeys(file: string, before: unknown, after: unknown): string[] {
  const schema = describedSchema(schemaFile(file));
  const list = (value: unknown): Map<string, string> => new Map(keyValues(file, schema, value, '').map((one) => [one.key.slice(file.length + 1), JSON.stringify(one.value)]));
  const [old, fresh] = [list(before), list(after)];
  return [...new Set([...old.keys(), ...fresh.keys()])].filter((key) => old.get(key) !== fresh.get(key));
}

/** config/README.md: every key in a table. */
export function keysAsMarkdown(): string {
  const parts = [
    '# Configuration',
    '',
    'Copy this folder to `/etc/postern`, change what is yours, run `postern check`. Paths are relative to',
    'this folder; a key file written as `credential:NAME` is looked up among the systemd credentials of the',
    'service. Quantities carry their unit: `3d`, `25MiB`, `600/min` (also `600/min burst 60`). Unknown keys are errors.',
    '`postern.yaml` is read at start; the rest is reloaded when a file changes or on SIGHUP, whole or not at all.',
    '`shaping.yaml`, `profiles.yaml` and `bounces.yaml` may be left out: then the defaults hold, and the profiles and rules shipped here.',
    'A limit of `shaping.yaml` is looked for in this order, the later over the earlier, key by key: `defaults`, the egress',
    'source, the provider, the provider from that source; `unset` drops what was inherited, and totals hold beside all that.',
    'The tables below and `schema/` are made from the declarations in `daemon/settings/schema.ts` by',
    '`scripts/node scripts/generate.ts`.',
  ];
  const keys = explainDefaults();
  for (const file of Object.keys(SCHEMAS)) {
    parts.push('', `## ${file}`, '', '| Key | Type | Default | Change takes effect | Meaning |', '|---|---|---|---|---|');
    for (const one of keys.filter((key) => key.file === file)) {
      const preset = one.default === undefined ? (one.required ? 'must be given' : '') : `\`${JSON.stringify(one.default)}\``;
      const reason = one.reason === '' ? '' : ` (${one.reason})`;
      const cells = [`\`${one.key}\``, one.type, `${preset}${reason}`, one.reload === 'live' ? 'at once' : 'at restart', one.says];
      parts.push(`| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`);
    }
  }
  return `${parts.join('\n')}\n`;
}
