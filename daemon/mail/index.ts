export type * from './stages.ts';
export { OPEN_MODES, CLICK_MODES, NO_TRACKING, PHASES } from './stages.ts';
export { reply, formatReply, replyLine, parseReply, type Reply } from './reply.ts';
export { ERRORS, MailError, isMailError, type ErrorCode } from './errors.ts';
export { parseAddress, parseDomain, addressKeys, foldCase, CANON_VERSION, type Address, type AddressKeys } from './address.ts';
