export {
  connectSession, OutboundSession, DEFAULT_TIMEOUTS,
  type ConnectOptions, type Connected, type DsnParameters, type Letter, type SendPhase, type SendResult, type SessionTimeouts,
} from './session.ts';
export { DoorServer, type SmtpServerOptions } from './server.ts';
export type { Door, Login, ServerSession } from './door.ts';
export type { MailCommand } from './path.ts';
