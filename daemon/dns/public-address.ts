// Which addresses mail may be sent to at all. A domain's owner chooses what its MX points to; were that
// our own loopback, the network behind us or a cloud's metadata service, mail would become a way to talk
// to them. So only addresses of the global unicast space pass, less what is set aside inside it.
// Anything that is no address is not public. IANA special-purpose registries, RFC 6890.
import { BlockList, isIPv4, isIPv6 } from 'node:net';

const reserved = new BlockList();
for (const [network, prefix] of [
  ['0.0.0.0', 8], // "this network", RFC 1122 §3.2.1.3
  ['10.0.0.0', 8], // private, RFC 1918
  ['100.64.0.0', 10], // carrier-grade NAT, RFC 6598
  ['127.0.0.0', 8], // loopback
  ['169.254.0.0', 16], // link-local, and the metadata service of most clouds, RFC 3927
  ['172.16.0.0', 12], // private
  ['192.0.0.0', 24], // protocol assignments, RFC 6890; some clouds keep metadata at 192.0.0.192
  ['192.0.2.0', 24], // documentation, RFC 5737
  ['192.88.99.0', 24], // 6to4 relays, withdrawn, RFC 7526
  ['192.168.0.0', 16], // private
  ['198.18.0.0', 15], // benchmarks, RFC 2544
  ['198.51.100.0', 24], // documentation
  ['203.0.113.0', 24], // documentation
  ['224.0.0.0', 3], // multicast, reserved and broadcast
] as const) reserved.addSubnet(network, prefix, 'ipv4');
for (const [network, prefix] of [
  ['2001::', 23], // protocol assignments, Teredo (it carries an IPv4 address) and ORCHID among them, RFC 2928
  ['2001:db8::', 32], // documentation, RFC 3849
  ['2002::', 16], // 6to4: carries an IPv4 address, RFC 3056
  ['3fff::', 20], // documentation, RFC 9637
] as const) reserved.addSubnet(network, prefix, 'ipv6');

// RFC 4291 §2.4: global unicast as handed out so far. Loopback, unspecified, link-local, ULA, multicast,
// IPv4-mapped, IPv4-compatible, NAT64 (64:ff9b::/96) and discard (100::/64) all lie outside.
const global6 = new BlockList();
global6.addSubnet('2000::', 3, 'ipv6');

/** True when `ip` is an address of the public Internet. */
export function isPublicAddress(ip: string): boolean {
  if (isIPv4(ip)) return !reserved.check(ip, 'ipv4');
  if (!isIPv6(ip) || ip.includes('%')) return false;
  return global6.check(ip, 'ipv6') && !reserved.check(ip, 'ipv6');
}
