// What the gate's answers look like on the wire. The authenticated tenant is told the rule, for it is its
// own data; the detail is policy (7.1) or, where the author made a mistake in the text, content (6.0), never
// 1.x, which would read as a dead address. RFC 3463 §3.7 and §3.8.
import { reply, type Reply } from '../mail/index.ts';
import type { CannotTell, No } from './verdict.ts';

/** The reply for a verdict that is not a yes; `ref` is the event's id. */
export function verdictReply(verdict: No | CannotTell, ref: string): Reply {
  // Purposes and streams are the operator's words; what is not ASCII in them must not break the reply.
  const text = `${verdict.reason.slice(0, 300)} (rule ${verdict.rule}, ref ${ref})`.replace(/[^\x20-\x7e]/g, '?');
  if (verdict.answer === 'cannot-tell') return reply(451, '7.1', text);
  return verdict.rule.startsWith('message-placeholder') ? reply(554, '6.0', text) : reply(550, '7.1', text);
}
