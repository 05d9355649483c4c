export type * from './settings.ts';
export { API_SCOPES, FOOTER_ELEMENTS, SHADOWABLE } from './settings.ts';
export { loadSettings, type Loaded, type LoadOptions } from './load.ts';
export { openSettings, type LiveSettings, type OpenOptions, type Reloaded } from './reload.ts';
export { addCredential, type NewCredential } from './credential.ts';
export { describeSettings, explainDefaults, jsonSchema, keysAsMarkdown, type DeclaredKey, type KeyValue } from './describe.ts';
export { formatProblem, type Problem } from './problem.ts';
export { formatDuration, formatRate, formatSize, parseDuration, parseRate, parseSize } from './units.ts';
export { hashPolicy } from './build.ts';
