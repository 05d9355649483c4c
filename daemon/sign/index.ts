export { openSigner, type Signer } from './signer.ts';
export { generateKey, publicRecord } from './keys.ts';
export { dnsRecords, mtaStsPolicy, type DnsRecord } from './records.ts';
