// What we use of dns-packet 5.6.1, which comes without types of its own. Record data is `unknown` on
// purpose: it was written by a stranger, and answer.ts looks at it before anybody else does.
// RFC 1035 §4.1.
declare module 'dns-packet' {
  export interface Question {
    readonly name: string;
    readonly type: string;
    readonly class?: string;
  }
  export interface Resource {
    readonly name: string;
    readonly type: string;
    readonly class?: string | number;
    readonly ttl?: number;
    readonly data?: unknown;
    readonly udpPayloadSize?: number;
    readonly flags?: number;
  }
  export interface Packet {
    readonly id?: number;
    readonly type: 'query' | 'response';
    readonly flags: number;
    readonly rcode?: string;
    readonly flag_tc?: boolean;
    readonly flag_ad?: boolean;
    readonly flag_aa?: boolean;
    readonly questions: readonly Question[];
    readonly answers?: readonly Resource[];
    readonly authorities?: readonly Resource[];
    readonly additionals?: readonly Resource[];
  }
  const dnsPacket: {
    encode(packet: Packet): Buffer;
    decode(octets: Buffer): Packet;
    readonly AUTHORITATIVE_ANSWER: number;
    readonly TRUNCATED_RESPONSE: number;
    readonly RECURSION_DESIRED: number;
    readonly RECURSION_AVAILABLE: number;
    readonly AUTHENTIC_DATA: number;
    readonly DNSSEC_OK: number;
  };
  export default dnsPacket;
}
