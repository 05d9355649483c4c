// How the CLI prints results for people: a table where rows are alike, `key  value` lines otherwise.
// Nothing here decides anything; --json prints the same data.

/** Rows as aligned columns; columns that are empty everywhere are left out. */
export function table(rows: readonly Readonly<Record<string, unknown>>[]): string {
  if (rows.length === 0) return '(nothing)';
  const keys = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((key) => rows.some((row) => cell(row[key], key) !== ''));
  const lines = [keys, ...rows.map((row) => keys.map((key) => cell(row[key], key)))];
  const widths = keys.map((_, i) => Math.max(...lines.map((line) => line[i]?.length ?? 0)));
  return lines.map((line) => line.map((text, i) => (i === line.length - 1 ? text : text.padEnd(widths[i] ?? 0))).join('  ').trimEnd()).join('\n');
}

/** Any result: objects as `key  value`, lists of objects as tables below their name. */
export function show(value: unknown, indent = ''): string {
  if (Array.isArray(value)) return value.every(isRecord) ? indented(table(value), indent) : indented(value.map((item) => cell(item)).join('\n'), indent);
  if (!isRecord(value)) return `${indent}${cell(value)}`;
  const entries = Object.entries(value).filter(([, item]) => item !== undefined);
  const width = Math.max(0, ...entries.map(([key]) => key.length));
  return entries.map(([key, item]) =>
    (typeof item === 'object' && item !== null && Object.keys(item).length > 0
      ? `${indent}${key}\n${show(item, `${indent}  `)}`
      : `${indent}${key.padEnd(width)}  ${cell(item, key)}`)).join('\n');
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function indented(text: string, indent: string): string {
  return text.split('\n').map((line) => indent + line).join('\n');
}

/** Times are fields named `at`, `since`, `until` or `...At`, `..._at`. */
function cell(value: unknown, key = ''): string {
  if (value === undefined || value === null) return '';
  if (typeof value === 'number' && value > 1e11 && /(^(at|since|until)$|At$|_at$|Until$)/.test(key)) return new Date(value).toISOString();
  return typeof value === 'object' ? JSON.stringify(value) : String(value);
}
