// What a PNG says of itself: enough to know that it is one and how large it is shown. It is not decoded:
// that is for the reader's browser. PNG (ISO/IEC 15948) §5.2, §11.2.2.

const SIGNATURE = Buffer.from('89504e470d0a1a0a', 'hex');

/** Width and height in pixels; undefined when the octets are no PNG. */
export function pngSize(octets: Buffer): { readonly width: number; readonly height: number } | undefined {
  if (octets.length < 33 || !octets.subarray(0, 8).equals(SIGNATURE) || octets.toString('latin1', 12, 16) !== 'IHDR') return undefined;
  const [width, height] = [octets.readUInt32BE(16), octets.readUInt32BE(20)];
  return width > 0 && height > 0 ? { width, height } : undefined;
}
