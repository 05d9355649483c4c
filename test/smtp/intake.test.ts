// The DATA intake: whatever the body and wherever the network cuts it, the octets come out as they were.
import * as fc from 'fast-check';
import t from 'tap';
import { Intake } from '../../daemon/smtp/intake.ts';

const LIMIT = 100_000;
// Lines of any octets but CR, LF and NUL; dots where they hurt; some longer than a first buffer holds.
const octet = fc.oneof({ weight: 1, arbitrary: fc.constant(0x2e) }, { weight: 3, arbitrary: fc.integer({ min: 1, max: 255 }).filter((n) => n !== 0x0a && n !== 0x0d) });
const line = fc.array(octet, { maxLength: 60 }).map((octets) => Buffer.from(octets));
const long = fc.integer({ min: 900, max: 998 }).map((n) => Buffer.alloc(n, '.'));
const body = fc.array(fc.oneof({ weight: 4, arbitrary: line }, { weight: 1, arbitrary: long }), { maxLength: 60 });
const cuts = fc.array(fc.integer({ min: 1, max: 4_000 }), { minLength: 1, maxLength: 20 });

function stuffed(lines: readonly Buffer[]): Buffer {
  return Buffer.concat([...lines.flatMap((text) => [Buffer.from(text[0] === 0x2e ? '.' : ''), text, Buffer.from('\r\n')]), Buffer.from('.\r\n')]);
}

/** Feeds the pieces the cuts make, over and over. @returns where it ended in the whole */
function feed(intake: Intake, wire: Buffer, sizes: readonly number[]): number {
  for (let at = 0, i = 0; at < wire.length; i++) {
    const piece = wire.subarray(at, at + (sizes[i % sizes.length] ?? 1));
    const end = intake.feed(piece);
    if (end >= 0) return at + end;
    at += piece.length;
  }
  return -1;
}

t.test('bodies come out octet for octet, wherever they are cut', async (t) => {
  fc.assert(fc.property(body, cuts, fc.nat(60_000), (lines, sizes, declaredBytes) => {
    const wire = stuffed(lines);
    const intake = new Intake(LIMIT, declaredBytes);
    const end = feed(intake, Buffer.concat([wire, Buffer.from('.\r\nNEXT\r\n')]), sizes);
    const got = intake.collected();
    return end === wire.length && got.kind === 'message' && got.raw.equals(Buffer.concat(lines.flatMap((text) => [text, Buffer.from('\r\n')])));
  }), { numRuns: 300 });
  t.pass();
});

t.test('one stray octet anywhere refuses it, and the end is still found', async (t) => {
  fc.assert(fc.property(body, cuts, fc.nat(), fc.constantFrom(0x00, 0x0a, 0x0d), (lines, sizes, where, stray) => {
    // Put into the text of a line that does not begin with it, so that it neither ends nor begins a CRLF.
    const index = where % (lines.length + 1);
    const marked = [...lines.slice(0, index), Buffer.from([0x61, stray, 0x61]), ...lines.slice(index)];
    const wire = stuffed(marked);
    const intake = new Intake(LIMIT);
    return feed(intake, wire, sizes) === wire.length && intake.collected().kind === 'refused';
  }), { numRuns: 300 });
  t.pass();
});

t.test('one octet more than allowed is refused, the limit itself is not', async (t) => {
  for (const [octets, kind] of [[1_000, 'message'], [1_001, 'refused']] as const) {
    const intake = new Intake(1_000);
    const wire = Buffer.concat([Buffer.from(`${'x'.repeat(498)}\r\n${'y'.repeat(octets - 502)}\r\n.\r\n`)]);
    t.equal(feed(intake, wire, [7]), wire.length);
    t.equal(intake.collected().kind, kind);
  }
});

t.test('a large size declared for a small message holds no memory once it is in', async (t) => {
  const intake = new Intake(1 << 21, 1 << 20);
  intake.feed(Buffer.from('small\r\n.\r\n'));
  const got = intake.collected();
  t.equal(got.kind === 'message' && got.raw.toString(), 'small\r\n');
  t.ok(got.kind === 'message' && got.raw.buffer.byteLength <= 1 << 16, 'not the room that was made for more');
});
