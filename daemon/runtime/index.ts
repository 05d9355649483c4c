export { openKept, type Kept } from './kept.ts';
export { systemClock, type Clock } from './clock.ts';
export { newId, isId, idTime, randomOctets } from './ids.ts';
export { openKeyring, readMasterKey, seal, sealPieces, unseal, sealedLength, type Keyring, type TenantKeys } from './keys.ts';
export { openLog, type Log } from './log.ts';
export { Metrics } from './metrics.ts';
export { notify, type SupervisorState } from './notify.ts';
