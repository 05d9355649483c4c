export { compose, type ComposeContext } from './compose.ts';
export { render, type RenderContext } from './render.ts';
export { sealToken, openSealer, openToken, sealReturnPath, openReturnPath, NOBODY, NO_MESSAGE, type Claim } from './token.ts';
