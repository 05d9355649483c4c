export { RULES, ruleSentence, type RuleId } from './rules.ts';
export type { CannotTell, Grounds, No, Step, Verdict, Yes } from './verdict.ts';
export {
  judgeSender, judgeRecipient, judgeMessage, judgeText, judgeAttempt, judgeInvitation, policyInForce,
  type AttemptQuestion, type MessageQuestion, type RecipientQuestion, type SenderQuestion, type TextQuestion,
} from './judge.ts';
export { profileOf, profilesNamed, type Profiles } from './profile.ts';
export { admit, clear } from './stamp.ts';
export { verdictReply } from './replies.ts';
