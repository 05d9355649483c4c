export { compose, planText, type ComposeContext } from './compose.ts';
export { render, type RenderContext } from './render.ts';
export { sealToken, openSealer, openToken, sealReturnPath, openReturnPath, sealMailto, openMailto, NOBODY, NO_MESSAGE, type Claim, type MailToken } from './token.ts';
