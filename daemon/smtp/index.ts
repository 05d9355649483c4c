export {
  connectSession, OutboundSession, DEFAULT_TIMEOUTS,
  type ConnectOptions, type Connected, type DsnParameters, type Letter, type SendPhase, type SendResult, type SessionTimeouts,
} from './session.ts';
