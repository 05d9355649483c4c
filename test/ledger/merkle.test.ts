// The tree of the log against the definition in RFC 6962 §2.1, written here as it stands there, and
// checkpoints against what they must not accept.
import { createHash, createPublicKey, generateKeyPairSync, sign, type KeyObject } from 'node:crypto';
import * as fc from 'fast-check';
import t from 'tap';
import { ed25519FromSeed, readCheckpoint, signCheckpoint, verifierKey } from '../../daemon/ledger/checkpoint.ts';
import {
  CompactRange, EMPTY_ROOT, consistencyProof, inclusionProof, isConsistent, leafHash, nodeHash, rootFromInclusion, subtreeReader, type SubtreeReader,
} from '../../daemon/ledger/merkle.ts';

const SIZES = 300;

function sha256(...parts: readonly Buffer[]): Buffer {
  const made = createHash('sha256');
  for (const part of parts) made.update(part);
  return made.digest();
}

const ZERO = Buffer.of(0);
const ONE = Buffer.of(1);

function counter(n: number): Buffer {
  const data = Buffer.alloc(32);
  data.writeUInt32BE(n, 28);
  return data;
}

const LEAVES = Array.from({ length: SIZES }, (_, i) => sha256(ZERO, counter(i)));

/** k of RFC 6962 §2.1: the largest power of two below n. */
function kOf(n: number): number {
  let k = 1;
  while (k << 1 < n) k <<= 1;
  return k;
}

const roots = new Map<string, Buffer>(); // of ranges of LEAVES

/** MTH(D[from:to]). */
function mth(from: number, to: number): Buffer {
  const key = `${from}:${to}`;
  const before = roots.get(key);
  if (before !== undefined) return before;
  const n = to - from;
  const root = n === 0 ? sha256() : n === 1 ? (LEAVES[from] ?? ZERO) : sha256(ONE, mth(from, from + kOf(n)), mth(from + kOf(n), to));
  roots.set(key, root);
  return root;
}

/** PATH(m, D[from:to]). */
function path(m: number, from: number, to: number): Buffer[] {
  const n = to - from;
  if (n <= 1) return [];
  const k = kOf(n);
  return m < k ? [...path(m, from, from + k), mth(from + k, to)] : [...path(m - k, from + k, to), mth(from, from + k)];
}

/** SUBPROOF(m, D[from:to], whole). */
function subproof(m: number, from: number, to: number, whole: boolean): Buffer[] {
  const n = to - from;
  if (m === n) return whole ? [] : [mth(from, to)];
  const k = kOf(n);
  return m <= k ? [...subproof(m, from, from + k, whole), mth(from + k, to)] : [...subproof(m - k, from + k, to, false), mth(from, from + k)];
}

const none: SubtreeReader = () => { throw new Error('nothing to read'); };
const read = subtreeReader((from, to) => LEAVES.slice(from, to), () => undefined);

function rangeOf(leaves: readonly Buffer[]): CompactRange {
  const range = CompactRange.decode(undefined);
  for (const leaf of leaves) range.append(leaf);
  return range;
}

function hexes(list: readonly Buffer[]): string {
  return list.map((one) => one.toString('hex')).join(' ');
}

/** The same with one bit of one of them the other way round. */
function* flips(list: readonly Buffer[], everyBit = true): Generator<Buffer[]> {
  for (const [i, one] of list.entries()) {
    for (let bit = 0; bit < one.length * 8; bit += everyBit ? 1 : 37) {
      const flipped = Buffer.from(one);
      flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      yield list.with(i, flipped);
    }
  }
}

t.test('hashes are those of RFC 6962', (t) => {
  t.equal(EMPTY_ROOT.toString('hex'), 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855');
  // The test data of certificate transparency: a leaf of nothing.
  t.equal(leafHash(Buffer.alloc(0)).toString('hex'), '6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d');
  for (const length of [0, 1, 31, 32, 33, 4_000]) {
    const data = Buffer.alloc(length, 7);
    t.same(leafHash(data), sha256(ZERO, data), `a leaf of ${length}`);
  }
  const [a, b] = [sha256(ZERO), sha256(ONE)];
  t.same(nodeHash(a, b), sha256(ONE, a, b));
  const first = leafHash(counter(1));
  leafHash(counter(2));
  nodeHash(a, b);
  t.same(first, sha256(ZERO, counter(1)), 'a hash given out is not written over');
  t.end();
});

t.test('the roots of the certificate transparency test data', (t) => {
  const inputs = ['', '00', '10', '2021', '3031', '40414243', '5051525354555657', '606162636465666768696a6b6c6d6e6f'];
  const expected = [
    '6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d', 'fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125',
    'aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77', 'd37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7',
    '4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4', '76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef',
    'ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c', '5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328',
  ];
  const range = CompactRange.decode(undefined);
  for (const [i, input] of inputs.entries()) {
    range.append(leafHash(Buffer.from(input, 'hex')));
    t.equal(range.root().toString('hex'), expected[i], `${i + 1} leaves`);
  }
  t.end();
});

t.test('every size to 300: roots, the edge stored and read, inclusion and consistency', (t) => {
  const range = CompactRange.decode(undefined);
  const wrong: string[] = [];
  const must = (right: boolean, what: string): void => { if (!right) wrong.push(what); };
  for (let size = 0; size <= SIZES; size++) {
    const root = mth(0, size);
    const edge = range.encode();
    const again = CompactRange.decode(edge);
    must(range.size === size && range.root().equals(root), `root of ${size}`);
    must(again.size === size && again.root().equals(root) && again.encode().equals(edge), `edge of ${size}`);
    for (let i = 0; i < size; i++) {
      const proof = inclusionProof(i, size, read);
      must(hexes(proof) === hexes(path(i, 0, size)), `path ${i} of ${size}`);
      // Verifying hashes all of it again: every place of the small trees, some of the large ones.
      if (size <= 70 || (i * 7 + size) % 23 === 0) must(rootFromInclusion(i, size, LEAVES[i] ?? ZERO, proof)?.equals(root) === true, `inclusion ${i} of ${size}`);
    }
    for (let first = 0; first <= size; first++) {
      const proof = consistencyProof(first, size, read);
      if (first > 0) must(hexes(proof) === hexes(subproof(first, 0, size, true)), `subproof ${first} of ${size}`);
      if (size <= 70 || (first * 7 + size) % 23 === 0 || first === 0) must(isConsistent(first, size, mth(0, first), root, proof), `consistency ${first} of ${size}`);
    }
    if (size < SIZES) range.append(LEAVES[size] ?? ZERO);
  }
  t.same(wrong, []);
  t.end();
});

t.test('one bit the other way round, a hash more or less, another place: no proof', (t) => {
  const wrong: string[] = [];
  for (const size of [1, 2, 3, 7, 8, 13, 257]) {
    const root = mth(0, size);
    for (const i of new Set([0, size >> 1, size - 1])) {
      const proof = inclusionProof(i, size, read);
      const holds = (list: readonly Buffer[], at = i, among = size): boolean => {
        const [claimed = ZERO, leaf = ZERO, ...steps] = list;
        return rootFromInclusion(at, among, leaf, steps)?.equals(claimed) === true;
      };
      const whole = [root, LEAVES[i] ?? ZERO, ...proof];
      if (!holds(whole)) wrong.push(`inclusion ${i} of ${size} should hold`);
      for (const other of flips(whole, size < 257)) if (holds(other)) wrong.push(`inclusion ${i} of ${size}`);
      for (const other of [[...whole, root], whole.slice(0, -1), whole.with(whole.length - 1, Buffer.alloc(31)), whole.with(whole.length - 1, Buffer.alloc(33))]) if (holds(other)) wrong.push(`length, inclusion ${i} of ${size}`);
      for (let at = 0; at < size; at++) if (at !== i && holds(whole, at)) wrong.push(`place ${at} for ${i} of ${size}`);
      for (const at of [-1, size, 0.5, Number.NaN, 2 ** 60]) if (holds(whole, at)) wrong.push(`place ${at}`);
      for (const among of [0, -1, size * 4 + 1, Number.NaN, Infinity]) if (holds(whole, i, among)) wrong.push(`size ${among} for ${size}`);
    }
    for (let first = 1; first <= Math.min(size, 20); first++) {
      const whole = [mth(0, first), root, ...consistencyProof(first, size, read)];
      const holds = (list: readonly Buffer[], older = first, newer = size): boolean => {
        const [a = ZERO, b = ZERO, ...steps] = list;
        return isConsistent(older, newer, a, b, steps);
      };
      if (!holds(whole)) wrong.push(`consistency ${first} of ${size} should hold`);
      for (const other of flips(whole, size < 13)) if (holds(other)) wrong.push(`consistency ${first} of ${size}`);
      if (holds([...whole, root]) || holds(whole.slice(0, -1))) wrong.push(`length, consistency ${first} of ${size}`);
      for (const older of [0, first + size, -1, 0.5]) if (holds(whole, older)) wrong.push(`consistency ${older} for ${first} of ${size}`);
    }
  }
  t.same(wrong, []);
  t.notOk(isConsistent(0, 0, EMPTY_ROOT, mth(0, 1), []), 'two empty trees have one root');
  t.notOk(isConsistent(0, 1, mth(0, 1), mth(0, 1), []), 'the empty tree has its root');
  t.notOk(isConsistent(0, 1, EMPTY_ROOT, mth(0, 1), [EMPTY_ROOT]), 'and needs no proof');
  t.throws(() => inclusionProof(3, 3, none), RangeError);
  t.throws(() => inclusionProof(0, 0, none), RangeError);
  t.throws(() => consistencyProof(4, 3, none), RangeError);
  t.end();
});

t.test('a rewritten history is not consistent', (t) => {
  t.doesNotThrow(() => fc.assert(fc.property(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 0, max: 40 }), fc.nat(), (first, more, at) => {
    const before = LEAVES.slice(0, first);
    const after = LEAVES.slice(0, first + more).with(at % first, sha256(Buffer.from('another')));
    const proof = consistencyProof(first, first + more, subtreeReader((from, to) => after.slice(from, to), () => undefined));
    return !isConsistent(first, first + more, rangeOf(before).root(), rangeOf(after).root(), proof);
  }), { numRuns: 60 }));
  t.end();
});

t.test('subtrees to keep, and proofs from them over 65,536 leaves', (t) => {
  const size = 65_536 + 256 + 3;
  const leaves = Array.from({ length: size }, (_, i) => leafHash(counter(i)));
  const kept = new Map<string, Buffer>();
  const rootAt = new Map<number, Buffer>();
  const range = CompactRange.decode(undefined);
  for (const leaf of leaves) {
    range.append(leaf, (level, index, hash) => {
      t.equal((index + 1) * 2 ** level, range.size, `level ${level} is told when it is complete`);
      kept.set(`${level}/${index}`, hash);
    });
    if ([255, 256, 257, 65_535, 65_536, 65_537].includes(range.size)) rootAt.set(range.size, range.root());
  }
  t.same([...kept.keys()].filter((key) => key.startsWith('16/')), ['16/0']);
  t.equal(kept.size, 257 + 1);
  for (const index of [0, 1, 255, 256]) t.same(kept.get(`8/${index}`), rangeOf(leaves.slice(index * 256, (index + 1) * 256)).root(), `subtree ${index} of 256`);
  t.same(kept.get('16/0'), rootAt.get(65_536));

  let most = 0;
  const readers = {
    kept: (): SubtreeReader => subtreeReader((from, to) => {
      most = Math.max(most, to - from);
      return leaves.slice(from, to);
    }, (level, index) => kept.get(`${level}/${index}`)),
  };
  for (const index of [0, 255, 256, 40_000, 65_535, 65_536, 65_791, 65_792, size - 1]) {
    const proof = inclusionProof(index, size, readers.kept());
    t.same(rootFromInclusion(index, size, leaves[index] ?? ZERO, proof), range.root(), `leaf ${index}`);
  }
  const reader = readers.kept();
  for (const [first, root] of rootAt) t.ok(isConsistent(first, size, root, range.root(), consistencyProof(first, size, reader)), `from ${first}`);
  t.ok(most <= 256, 'at most 256 leaves at once');

  let asked = 0;
  const counted = subtreeReader((from, to) => {
    asked++;
    return leaves.slice(from, to);
  }, (level, index) => kept.get(`${level}/${index}`));
  inclusionProof(40_000, size, counted);
  const once = asked;
  inclusionProof(40_000, size, counted);
  t.equal(asked, once, 'what was read is remembered');
  t.same(subtreeReader((from, to) => leaves.slice(from, to), () => undefined)(16, 0), kept.get('16/0'), 'what is not kept is computed');
  t.throws(() => subtreeReader((from, to) => leaves.slice(from, to), () => undefined)(8, 300), { code: 'E_STORE' });
  t.end();
});

t.test('the edge: what is no edge, and how fast it grows', (t) => {
  const edge = rangeOf(LEAVES.slice(0, 7)).encode();
  t.equal(edge.length, 6 + 3 * 32);
  for (const octets of [Buffer.alloc(0), Buffer.alloc(5), Buffer.alloc(7), edge.subarray(0, -1), Buffer.concat([edge, ZERO]), Buffer.alloc(6, 255), edge.subarray(6)]) {
    t.throws(() => CompactRange.decode(octets), { code: 'E_STORE' }, `${octets.length} octets`);
  }
  t.equal(CompactRange.decode(CompactRange.decode(undefined).encode()).size, 0);
  t.throws(() => CompactRange.decode(undefined).append(Buffer.alloc(31)), RangeError);
  const full = CompactRange.decode(Buffer.concat([Buffer.alloc(6, 255), Buffer.alloc(48 * 32)]));
  t.equal(full.size, 2 ** 48 - 1);
  t.throws(() => full.append(Buffer.alloc(32)), RangeError, 'no size is written that cannot be read');
  const large = CompactRange.decode(Buffer.concat([Buffer.from('fffffffffffe', 'hex'), Buffer.alloc(47 * 32)]));
  large.append(Buffer.alloc(32));
  t.equal(CompactRange.decode(large.encode()).size, 2 ** 48 - 1, 'sizes past 32 bits');

  const broken = rangeOf(LEAVES.slice(0, 255));
  t.throws(() => broken.append(LEAVES[255] ?? ZERO, () => { throw new Error('disk'); }), /disk/);
  t.same(broken.root(), mth(0, 256), 'whole although the callback threw');

  const range = CompactRange.decode(undefined);
  const startedAt = process.hrtime.bigint();
  for (let i = 0; i < 100_000; i++) range.append(LEAVES[0] ?? ZERO);
  t.comment(`append: ${Number(process.hrtime.bigint() - startedAt) / 100_000} ns a leaf`);
  t.end();
});

const ORIGIN = 'mx.acme.example/ledger/00112233445566aa';
const pair = ed25519FromSeed(Buffer.alloc(32, 9));
const checkpoint = { origin: ORIGIN, size: 123_456, root: mth(0, 9) };
const note = signCheckpoint(checkpoint, pair.privateKey);

/** A note as anybody could sign it, whatever it says. */
function signed(text: string, key: KeyObject = pair.privateKey, line = note.slice(note.lastIndexOf('\u2014'))): string {
  const octets = Buffer.from(line.split(' ')[2] ?? '', 'base64').subarray(0, 4);
  return `${text}\n\u2014 ${ORIGIN} ${Buffer.concat([octets, sign(null, Buffer.from(text), key)]).toString('base64')}\n`;
}

t.test('a checkpoint is a C2SP signed note', (t) => {
  t.same(readCheckpoint(note, pair.publicKey, ORIGIN), checkpoint);
  const [origin, size, root, blank, signature, end, ...rest] = note.split('\n');
  t.same([origin, size, root, blank, end, rest], [ORIGIN, '123456', checkpoint.root.toString('base64'), '', '', []]);
  const raw = Buffer.from(pair.publicKey.export({ format: 'jwk' }).x ?? '', 'base64url');
  const id = sha256(Buffer.from(`${ORIGIN}\n`), ONE, raw).subarray(0, 4);
  t.equal(verifierKey(ORIGIN, pair.publicKey), `${ORIGIN}+${id.toString('hex')}+${Buffer.concat([ONE, raw]).toString('base64')}`);
  t.match(signature, `\u2014 ${ORIGIN} `);
  t.same(Buffer.from(signature?.split(' ')[2] ?? '', 'base64').subarray(0, 4), id);
  t.equal(note, signCheckpoint(checkpoint, pair.privateKey), 'Ed25519 is deterministic');
  t.same(ed25519FromSeed(Buffer.from('9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60', 'hex')).publicKey.export({ format: 'jwk' }).x,
    Buffer.from('d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a', 'hex').toString('base64url'), 'RFC 8032 §7.1, test 1');
  // The example key of Go's sumdb/note, which the C2SP format comes from.
  const example = createPublicKey({ key: Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), Buffer.from('ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW', 'base64').subarray(1)]), format: 'der', type: 'spki' });
  t.equal(verifierKey('PeterNeumann', example), 'PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW');
  const nothing = { origin: ORIGIN, size: 0, root: EMPTY_ROOT };
  t.same(readCheckpoint(signCheckpoint(nothing, pair.privateKey), pair.publicKey, ORIGIN), nothing);
  t.same(readCheckpoint(signed(`${ORIGIN}\n5\n${checkpoint.root.toString('base64')}\nan extension\n`), pair.publicKey, ORIGIN)?.size, 5);
  t.equal(readCheckpoint(signed(`${ORIGIN}\n5\n${checkpoint.root.toString('base64')}\n\ud800\n`), pair.publicKey, ORIGIN), undefined, 'half a character');
  t.throws(() => ed25519FromSeed(Buffer.alloc(31)), RangeError);
  for (const bad of ['', 'a b', 'a+b', 'a\nb', 'a\u0000']) t.throws(() => signCheckpoint({ ...checkpoint, origin: bad }, pair.privateKey), RangeError, JSON.stringify(bad));
  t.throws(() => signCheckpoint({ ...checkpoint, size: -1 }, pair.privateKey), RangeError);
  t.throws(() => signCheckpoint({ ...checkpoint, root: ZERO }, pair.privateKey), RangeError);
  t.throws(() => verifierKey(ORIGIN, generateKeyPairSync('x25519').publicKey), TypeError);
  t.end();
});

t.test('lines signed by others are passed over', (t) => {
  const line = note.slice(note.lastIndexOf('\u2014'));
  const body = note.slice(0, note.lastIndexOf('\u2014'));
  const witness = `\u2014 witness.example/w1 ${Buffer.alloc(76, 5).toString('base64')}\n`;
  const namesake = `\u2014 ${ORIGIN} ${Buffer.alloc(68, 5).toString('base64')}\n`;
  for (const lines of [witness + line, line + witness, witness + namesake + line + witness, line + line]) t.same(readCheckpoint(body + lines, pair.publicKey, ORIGIN), checkpoint);
  t.equal(readCheckpoint(body + witness + namesake, pair.publicKey, ORIGIN), undefined, 'others only');
  t.equal(readCheckpoint(`${body}${line}rubbish\n`, pair.publicKey, ORIGIN), undefined);
  t.equal(readCheckpoint(`${body}${line}- witness.example AAAAAAAA\n`, pair.publicKey, ORIGIN), undefined, 'a hyphen is no dash');
  t.equal(readCheckpoint(`${body}${line}\u2014 witness.example AAA\n`, pair.publicKey, ORIGIN), undefined);
  t.equal(readCheckpoint(body + witness.repeat(100) + line, pair.publicKey, ORIGIN), undefined, 'too many');
  t.end();
});

t.test('what is no checkpoint of this log', (t) => {
  const root = checkpoint.root.toString('base64');
  const other = ed25519FromSeed(Buffer.alloc(32, 8));
  t.equal(readCheckpoint(note, other.publicKey, ORIGIN), undefined, 'another key');
  t.equal(readCheckpoint(note, pair.publicKey, 'mx.acme.example/ledger/00112233445566ab'), undefined, 'another log');
  t.equal(readCheckpoint(signed(`mx.other.example\n5\n${root}\n`), pair.publicKey, ORIGIN), undefined, 'another log under our signature');
  t.equal(readCheckpoint(signed(`${ORIGIN}\n5\n${root}\n`, other.privateKey), pair.publicKey, ORIGIN), undefined, 'signed by another under our key hash');
  t.equal(readCheckpoint(note.replace('123456', '123457'), pair.publicKey, ORIGIN), undefined, 'another size');
  t.equal(readCheckpoint(note.replaceAll('\n', '\r\n'), pair.publicKey, ORIGIN), undefined, 'CRLF');
  const wrong: number[] = [];
  for (let length = 0; length < note.length; length++) if (readCheckpoint(note.slice(0, length), pair.publicKey, ORIGIN) !== undefined) wrong.push(length);
  for (let i = 0; i < note.length; i++) {
    const altered = note.slice(0, i) + String.fromCharCode(note.charCodeAt(i) ^ 1) + note.slice(i + 1);
    if (readCheckpoint(altered, pair.publicKey, ORIGIN) !== undefined) wrong.push(i);
  }
  t.same(wrong, [], 'cut anywhere, or one character another');
  for (const text of [
    `${ORIGIN}\n05\n${root}\n`, `${ORIGIN}\n-5\n${root}\n`, `${ORIGIN}\n5.0\n${root}\n`, `${ORIGIN}\n9007199254740993\n${root}\n`, `${ORIGIN}\n\n${root}\n`,
    `${ORIGIN}\n5\n${root.slice(0, -1)}\n`, `${ORIGIN}\n5\n${Buffer.alloc(31).toString('base64')}\n`, `${ORIGIN}\n5\n`, `${ORIGIN}\n`, '\n', `${ORIGIN}\n5\n${root}\n\nmore\n`, `\n${ORIGIN}\n5\n${root}\n`,
  ]) t.equal(readCheckpoint(signed(text), pair.publicKey, ORIGIN), undefined, JSON.stringify(text));
  t.doesNotThrow(() => fc.assert(fc.property(fc.string({ unit: 'binary' }), (text) => readCheckpoint(text, pair.publicKey, ORIGIN) === undefined)));
  t.end();
});
