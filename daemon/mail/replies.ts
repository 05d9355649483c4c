// Every reply the submission door says of its own, in the order of RFC 5321 §4.2.3. The gate's verdicts
// are replies too (gate/replies.ts), with a rule and a reference. Unauthenticated peers get a generic
// sentence; nothing here names a tenant, a host or an address.
import { reply, type Reply } from './reply.ts';

export const REPLIES = {
  tlsReady: reply(220, '0.0', 'ready to start TLS'),
  bye: reply(221, '0.0', 'closing'),
  authenticated: reply(235, '7.0', 'authentication succeeded'),
  flushed: reply(250, '0.0', 'flushed'),
  noop: reply(250, '0.0', 'nothing done'),
  senderOk: reply(250, '1.0', 'sender ok'),
  recipientOk: reply(250, '1.5', 'recipient ok'),
  tooManyErrors: reply(421, '7.0', 'too many errors, closing'),
  tooManySessions: reply(421, '3.2', 'too many sessions, try again later'),
  tooManyFromAddress: reply(421, '7.0', 'too many sessions from your address, try again later'),
  draining: reply(421, '3.2', 'shutting down, try again later'),
  idleTimeout: reply(421, '4.2', 'idle for too long, closing'),
  dataTimeout: reply(421, '4.2', 'the message took too long'),
  unreadableLine: reply(421, '5.2', 'a command must be one line that ends with CRLF, and not that long'),
  suspended: reply(421, '7.0', 'access suspended'),
  localError: reply(451, '3.0', 'local error, try again later'),
  // RFC 5321 §4.5.3.1.10
  tooManyRecipients: reply(452, '5.3', 'too many recipients for one message, send the rest in another'),
  authSlow: reply(454, '7.0', 'too many failed logins, try again later'),
  unknownCommand: reply(500, '5.2', 'command not recognised'),
  // RFC 4954 §4: not base64, or cancelled by `*`
  badSasl: reply(501, '5.2', 'credentials not understood'),
  authAborted: reply(501, '7.0', 'authentication cancelled'),
  badArguments: reply(501, '5.4', 'arguments not understood'),
  badSender: reply(501, '1.7', 'not a sender address'),
  badRecipient: reply(501, '1.3', 'not a recipient address'),
  notVerified: reply(252, '1.5', 'recipients are judged at RCPT'),
  notImplemented: reply(502, '5.1', 'command not offered here'),
  badSequence: reply(503, '5.1', 'bad sequence of commands'),
  ehloFirst: reply(503, '5.1', 'send EHLO first'),
  unknownMechanism: reply(504, '5.4', 'authentication mechanism not offered'),
  // RFC 4954 §4
  authFirst: reply(530, '7.0', 'authentication required'),
  tlsFirst: reply(530, '7.0', 'issue STARTTLS first'),
  badCredentials: reply(535, '7.8', 'authentication credentials invalid'),
  // RFC 4954 §4: encryption required for the requested mechanism
  authNeedsTls: reply(538, '7.11', 'authentication needs TLS, issue STARTTLS first'),
  // RFC 1870 §6.1
  tooBig: reply(552, '3.4', 'message larger than allowed'),
  // RFC 6531 §3.5
  needsUtf8: reply(553, '6.7', 'a non-ASCII address needs SMTPUTF8'),
  noSourceRoutes: reply(553, '1.3', 'source routes are not accepted'),
  // RFC 2920 §3.1: whoever does not wait for the greeting is no mail client
  earlyTalker: reply(554, '5.0', 'you spoke out of turn'),
  noRecipients: reply(554, '5.1', 'no valid recipients'),
  // RFC 5321 §2.3.8; CVE-2023-51764 and its kin
  bareLineEnding: reply(554, '6.0', 'bare CR or LF is not allowed, end lines with CRLF'),
  nulOctet: reply(554, '6.0', 'NUL is not allowed'),
  // RFC 5321 §4.5.3.1.6
  longLine: reply(554, '6.0', 'a line is longer than 998 octets'),
  // RFC 5321 §4.1.1.11
  unknownParameter: reply(555, '5.4', 'MAIL or RCPT parameter not known here'),
} as const satisfies Record<string, Reply>;
