// Writes what is made from declarations: config/schema/*.json and config/README.md. With --check it
// writes nothing and exits 1 when a file on disk is not what would be written.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { jsonSchema, keysAsMarkdown } from '../daemon/settings/index.ts';

const root = join(import.meta.dirname, '..');
const json = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`;

const files: Readonly<Record<string, () => string>> = {
  'config/README.md': keysAsMarkdown,
  'config/schema/postern.json': () => json(jsonSchema('postern.yaml')),
  'config/schema/tenant.json': () => json(jsonSchema('tenants/*.yaml')),
  'config/schema/profiles.json': () => json(jsonSchema('profiles.yaml')),
  'config/schema/bounces.json': () => json(jsonSchema('bounces.yaml')),
  'config/schema/shaping.json': () => json(jsonSchema('shaping.yaml')),
};

function onDisk(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return ''; // a file that is not there yet has drifted like any other
  }
}

const check = process.argv.includes('--check');
let drifted = 0;
for (const [name, make] of Object.entries(files)) {
  const file = join(root, name);
  const text = make();
  if (onDisk(file) === text) continue;
  drifted++;
  if (check) {
    console.error(`${name} is not what the declarations say; run scripts/node scripts/generate.ts`);
  } else {
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, text);
    console.log(`wrote ${name}`);
  }
}
process.exitCode = check && drifted > 0 ? 1 : 0;
