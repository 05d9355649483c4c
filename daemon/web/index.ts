export { openPages, type Pages } from './pages.ts';
export { listen, type Listening } from './listen.ts';
export { html, type Html } from './html.ts';
export { LINK_BOUND } from './hits.ts';
export { MACHINES, machineOf, type MachineRule } from './machines.ts';
export { LANGUAGES, isLanguage, languageOf, say, type Language } from './texts.ts';
export { contrast, readable, styleOf } from './look.ts';
export { nameOfPurpose } from './layout.ts';
export type { PagesOptions } from './touch.ts';
