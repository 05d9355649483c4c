export { RULES, ruleSentence, type RuleId } from './rules.ts';
export {
  judgeSender, judgeRecipient, judgeMessage, judgeAttempt, policyInForce,
  type AttemptQuestion, type CannotTell, type MessageQuestion, type No, type RecipientQuestion, type SenderQuestion, type Step, type Verdict, type Yes,
} from './judge.ts';
export { admit, clear } from './stamp.ts';
export { verdictReply } from './replies.ts';
