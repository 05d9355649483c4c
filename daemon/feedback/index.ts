export { openFeedback, type Feedback } from './door.ts';
export { openSentCopies, type SentCopies, type SentCopy } from './sent.ts';
export { readCase, type Case } from './cases.ts';
export type { FeedbackOptions } from './returned.ts';
export { messagesIn, readBounce, type BouncedMail, type BouncedRecipient, type BounceKind } from './bounce-mail.ts';
