export { openDeliverer, type Deliverer, type DelivererParts } from './attempt.ts';
export { resolveRoute, type HostsRoute, type RouteContext, type RouteResult, type TargetHost } from './route.ts';
export { TlsResults, type TlsDay, type StsUnread, type TlsSeen } from './tls-results.ts';
export { classify, type BounceClass, type Classified } from './classify.ts';
