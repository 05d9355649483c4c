export { openPages, type Pages } from './pages.ts';
export { listen, type Listening } from './listen.ts';
export { html, page, PAGE_POLICY, type Html } from './html.ts';
export { LINK_BOUND } from './hits.ts';
export { MACHINES, machineOf, type MachineRule } from './machines.ts';
export type { PagesOptions } from './touch.ts';
