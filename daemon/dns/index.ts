export { openResolver, type Resolver, type ResolverOptions } from './resolver.ts';
export type { Answer, MxRecord, TlsaRecord } from './answer.ts';
export { isPublicAddress } from './public-address.ts';
