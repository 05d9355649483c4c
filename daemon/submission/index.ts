export { openSubmission, type Submission, type SubmissionContext, type SubmissionHooks, type SubmissionOptions } from './submission.ts';
export { makeInvitation, makeNotice, makeSubmitted, receivedField } from './submitted.ts';
