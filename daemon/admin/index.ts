export { callControl, serveControl, type ControlOptions, type Operation, type Operations, type Params } from './control.ts';
export { openObserve, type ObserveOptions } from './observe.ts';
export { show, table } from './show.ts';
export { operationsOf, type Desk } from './operations.ts';
export { watchPolicies } from './policy-watch.ts';
export { openApi, type ApiOptions } from './api/server.ts';
export { deleteTenant, exportTenant, importTenant } from './tenant-transfer.ts';
