// Signatures judged by a verifier that is not ours (mailauth) and by the vector of RFC 8463: what must
// verify, what must stop verifying once it is touched, which keys are refused, and the records to publish.
import { createPrivateKey, generateKeyPairSync } from 'node:crypto';
import { chmodSync, mkdtempSync, renameSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { dkimVerify } from 'mailauth/lib/dkim/verify.js';
import t from 'tap';
import type { Rendered, Signed } from '../../daemon/mail/index.ts';
import { systemClock } from '../../daemon/runtime/index.ts';
import type { SendingDomain } from '../../daemon/settings/index.ts';
import { bodyHash, fieldsOf, relaxedField } from '../../daemon/sign/canonical.ts';
import { dnsRecords, generateKey, mtaStsPolicy, openSigner, publicRecord } from '../../daemon/sign/index.ts';
import { COVERED } from '../../daemon/sign/signature.ts';
import { oneSignature } from '../../daemon/sign/signer.ts';

const dir = mkdtempSync(join(tmpdir(), 'postern-sign-'));
t.teardown(() => rmSync(dir, { recursive: true, force: true }));

function keyFile(name: string, pem: string, mode = 0o600): string {
  const file = join(dir, name);
  writeFileSync(file, pem);
  chmodSync(file, mode);
  return file;
}

const rsa = generateKey('rsa');
const ed = generateKey('ed25519');
const rsaFile = keyFile('rsa.pem', rsa.pem);
const edFile = keyFile('ed.pem', ed.pem);
const simple = domainWith('relaxed/simple');
const relaxed = domainWith('relaxed/relaxed');
const signer = openSigner({ clock: systemClock });

function domainWith(canonicalization: 'relaxed/simple' | 'relaxed/relaxed', files: readonly (readonly [string, string])[] = [['r1', rsaFile], ['e1', edFile]]): SendingDomain {
  return {
    name: 'acme.example', returnPath: 'bounce.acme.example', pages: 'https://news.acme.example',
    dkim: files.map(([selector, file]) => ({ selector, keyFile: file, canonicalization })),
  };
}

const rendered = (header: string | Buffer, ...body: (string | Buffer)[]): Rendered => ({
  header: Buffer.from(header as string), body: body.map((part) => Buffer.from(part as string)), returnPath: '', links: 0, pixel: false,
}) as unknown as Rendered;

const wire = (signed: Signed): Buffer => Buffer.concat([signed.head, ...signed.body]);

/** The verdict on each signature, in order, by the oracle. */
async function verdicts(message: Buffer, records: Record<string, string> = { r1: rsa.record, e1: ed.record }): Promise<string[]> {
  const { results } = await dkimVerify(message, {
    resolver: async (name: string) => {
      const record = records[name.split('.')[0] ?? ''];
      if (record === undefined || !name.endsWith('._domainkey.acme.example')) throw Object.assign(new Error('ENOTFOUND'), { code: 'ENOTFOUND' });
      return [record.match(/.{1,255}/g) ?? []];
    },
  });
  return (results as { status: { result: string } }[]).map((result) => result.status.result);
}

const HEADER = [
  'Received: from app.acme.example by mx.acme.example; Mon, 23 Nov 2026 04:00:00 +0000',
  'From: News <news@acme.example>', 'To: a@b.example', 'Cc: c@d.example', 'Subject: Hello', 'Date: Mon, 23 Nov 2026 04:00:00 +0000',
  'Message-ID: <1@acme.example>', 'Reply-To: r@acme.example', 'Sender: s@acme.example', 'In-Reply-To: <0@acme.example>', 'References: <0@acme.example>',
  'MIME-Version: 1.0', 'Content-Type: text/plain; charset=utf-8', 'Content-Transfer-Encoding: 8bit',
  'List-Unsubscribe: <https://news.acme.example/u/1>', 'List-Unsubscribe-Post: List-Unsubscribe=One-Click', 'List-Id: <n.acme.example>',
  'List-Help: <https://news.acme.example/p/1>', 'Feedback-ID: 1:acme', 'X-Other: not signed', '',
].join('\r\n');
const SHORT = 'From: a@acme.example\r\nSubject: x\r\n';

t.test('verifies', async (t) => {
  const cases: Record<string, Rendered> = {
    'ASCII': rendered(HEADER, 'Hello.\r\n'),
    'no CRLF at the end': rendered(HEADER, 'Hello.'),
    'UTF-8 body with a no-break space': rendered(HEADER, 'Grüße\u00a0\u00a0an alle \u00a0 \r\n'),
    'latin1 body': rendered(HEADER, Buffer.from('Gr\u00fc\u00dfe\u00a0\u0085 \r\n', 'latin1')),
    'empty body': rendered(HEADER),
    'a body of one empty buffer': rendered(HEADER, ''),
    'only empty lines': rendered(HEADER, '\r\n\r\n'),
    'only spaces': rendered(HEADER, '  \r\n\t\r\n'),
    'empty lines at the end': rendered(HEADER, 'Hello.\r\n\r\n\r\n'),
    'empty lines cut across buffers': rendered(HEADER, 'Hello.', '\r', '\n\r', '', '\n', '\r\n'),
    'spaces and tabs': rendered(HEADER, '  two \t  words  \t\r\n \t \r\n\r\nend\t \r\n \r\n'),
    'spaces across buffers': rendered(HEADER, 'a ', ' \t', 'b \r', '\n', ' \r\n', 'c'),
    'raw UTF-8 header': rendered('From: J\u00f6rg\u00a0 X <j@acme.example>\r\nSubject:  \u00a0 \u4f60\u597d  \r\n', 'x\r\n'),
    'latin1 header': rendered(Buffer.from('From: J\u00f6rg <j@acme.example>\r\nSubject: \u00a0x\u00a0\r\n', 'latin1'), 'x\r\n'),
    'duplicate fields': rendered(`${HEADER}To: second@b.example\r\nSubject: again\r\nReceived: x\r\n`, 'x\r\n'),
    'folded and odd fields': rendered('FROM :\t a@acme.example\r\nSubject:\r\n\t folded \t\r\n  twice\r\n \r\nTo:\r\nreferences:    <1@x>\r\n\t<2@x>\r\n', 'x\r\n'),
    'forty To fields': rendered(SHORT + 'To: x@b.example\r\n'.repeat(40), 'x\r\n'),
  };
  for (const [name, message] of Object.entries(cases)) {
    for (const domain of [simple, relaxed]) {
      const signed = await signer.sign(message, domain);
      t.same(await verdicts(wire(signed)), ['pass', 'pass'], `${name}, ${domain.dkim[0]?.canonicalization}`);
    }
  }
  // A verifier before us may have signed too: its field stays and is not ours to cover.
  const twice = await signer.sign(rendered(`DKIM-Signature: v=1; a=rsa-sha256; d=other.example\r\n${SHORT}`, 'x\r\n'), simple);
  t.same((await verdicts(wire(twice))).slice(0, 2), ['pass', 'pass']);
});

t.test('is laid out as it should be', async (t) => {
  const message = rendered(HEADER, 'Hello.\r\n');
  const signed = await signer.sign(message, simple);
  const head = signed.head.toString('latin1');
  t.ok(head.endsWith(`\r\n${HEADER}\r\n`), 'signatures, header as it was, empty line');
  t.ok(head.slice(0, head.indexOf('Received:')).split('\r\n').every((line) => line.length <= 78), 'no line above 78 columns');
  t.ok(head.startsWith('DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/simple;\r\n'));
  t.equal(signed.body, message.body, 'the body is not copied');
  t.same(signed.signatures, ['a=rsa-sha256; d=acme.example; s=r1', 'a=ed25519-sha256; d=acme.example; s=e1']);
  t.notOk('header' in signed);
  t.notMatch(head.slice(0, head.indexOf('Received:')), /\bl=/, 'no body length');
  const [, at, until] = /t=(\d+); x=(\d+);/.exec(head) ?? [];
  t.equal(Number(until) - Number(at), 14 * 86_400);
  const names = (/ h=([^;]+);/.exec(head)?.[1] ?? '').replace(/\s/g, '').split(':');
  for (const name of COVERED) t.equal(names.filter((one) => one === name).length, 2, `${name} is listed once more than it occurs`);
  t.notOk(names.includes('received'));
});

t.test('stops verifying once a signed part is touched', async (t) => {
  const message = wire(await signer.sign(rendered(HEADER, 'Hello.\r\n'), simple)).toString('latin1');
  const failing = async (text: string, name: string): Promise<void> => {
    const results = await verdicts(Buffer.from(text, 'latin1'));
    t.ok(results.length === 2 && results.every((result) => result !== 'pass'), name);
  };
  const start = message.indexOf('Received:');
  for (const line of HEADER.split('\r\n')) {
    const name = line.slice(0, line.indexOf(':')).toLowerCase();
    if (!(COVERED as readonly string[]).includes(name)) continue;
    await failing(message.slice(0, start) + message.slice(start).replace(line, `${line}x`), `changed ${name}`);
    await failing(message.slice(0, start) + message.slice(start).replace(`${line}\r\n`, ''), `removed ${name}`);
    await failing(`${line}\r\n${message}`, `${name} added above`);
    await failing(message.replace('X-Other: not signed', line), `${name} added below`);
  }
  await failing(message.replace('Hello.', 'Hello!'), 'body changed');
  await failing(`${message}more\r\n`, 'body lengthened');
  await failing(message.replaceAll(/ x=\d+/g, ' x=2000000000'), 'expiry changed');
  t.same(await verdicts(Buffer.from(message.replace('not signed', 'changed'), 'latin1')), ['pass', 'pass'], 'an unsigned field may change');
  const bare = wire(await signer.sign(rendered(SHORT, 'x\r\n'), simple)).toString('latin1');
  for (const name of COVERED) await failing(`${name}: evil@x.example\r\n${bare}`, `${name} added to a message without`);
});

t.test('any message', async (t) => {
  const eol = fc.constantFrom('\r\n', '\r\n', '\r\n\r\n', ' \r\n');
  const text = fc.string({ unit: fc.constantFrom('a', 'B', ' ', '\t', '\u00e9', '\u00a0', '.', '=', ':', ';'), maxLength: 20 });
  const body = fc.array(fc.tuple(text, eol).map((parts) => parts.join('')), { maxLength: 8 }).map((lines) => lines.join(''));
  const name = fc.constantFrom('To', 'subject', 'SENDER', 'List-Id', 'Content-Type', 'X-Any', 'Received');
  const value = fc.array(text.map((words) => `${words}x`), { minLength: 1, maxLength: 3 }).map((lines) => lines.join('\r\n '));
  const header = fc.array(fc.tuple(name, value).map(([one, other]) => `${one}: ${other}\r\n`), { maxLength: 8 });
  await fc.assert(fc.asyncProperty(header, body, fc.nat(80), fc.constantFrom(simple, relaxed), fc.boolean(), async (fields, content, cut, domain, utf8) => {
    const encoding = utf8 ? 'utf8' : 'latin1';
    const octets = Buffer.from(content, encoding);
    const at = Math.min(cut, octets.length);
    const signed = await signer.sign(rendered(Buffer.from(`${fields.join('')}From: a@acme.example\r\n`, encoding), octets.subarray(0, at), octets.subarray(at)), domain);
    const results = await verdicts(wire(signed));
    return results.length === 2 && results.every((result) => result === 'pass');
  }), { numRuns: 150 });
  t.pass('150 random messages verify');
});

t.test('body hashes do not depend on where the buffers are cut', async (t) => {
  const unit = fc.constantFrom('\r\n', '\r\n', ' ', '\t', 'a', '\r', '\n');
  fc.assert(fc.property(fc.string({ unit, maxLength: 40 }), fc.array(fc.nat(40), { maxLength: 6 }), fc.constantFrom('simple' as const, 'relaxed' as const), (content, cuts, form) => {
    const whole = Buffer.from(content);
    const at = [0, ...cuts.map((cut) => Math.min(cut, whole.length)).sort((a, b) => a - b), whole.length];
    const parts = at.slice(1).map((end, i) => whole.subarray(at[i], end));
    return bodyHash(parts, form) === bodyHash([whole], form);
  }), { numRuns: 2_000 });
  // RFC 6376 §3.4.3, §3.4.4: the hashes of nothing at all.
  t.equal(bodyHash([], 'simple'), 'frcCV1k9oG9oKj3dpUqdJg1PxRT2RSN/XKdLCPjaYaY=');
  t.equal(bodyHash([], 'relaxed'), '47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=');
});

t.test('RFC 8463 appendix A', async (t) => {
  const seed = Buffer.from('nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=', 'base64');
  const key = createPrivateKey({ key: Buffer.concat([Buffer.from('302e020100300506032b657004220420', 'hex'), seed]), format: 'der', type: 'pkcs8' });
  t.equal(publicRecord(key.export({ type: 'pkcs8', format: 'pem' }).toString()), 'v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=');
  const fields = fieldsOf([
    'From: Joe SixPack <joe@football.example.com>', 'To: Suzie Q <suzie@shopping.example.net>', 'Subject: Is dinner ready?',
    'Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)', 'Message-ID: <20030712040037.46341.5F8J@football.example.com>', '',
  ].join('\r\n'));
  const hash = bodyHash([Buffer.from('Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n')], 'relaxed');
  t.equal(hash, '2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=');
  const unsigned = [
    'DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;', ' d=football.example.com; i=@football.example.com;',
    ' q=dns/txt; s=brisbane; t=1528637909; h=from : to :', ' subject : date : message-id : from : subject : date;', ` bh=${hash};`, ' b=',
  ].join('\r\n');
  const made = await oneSignature({ algorithm: 'ed25519-sha256', key }, unsigned, { tag: '', text: fields.map((field) => `${relaxedField(field)}\r\n`).join('') });
  t.equal(made.slice(unsigned.length).replace(/\s/g, ''), '/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11BusFa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==');
});

t.test('never unsigned', async (t) => {
  const message = rendered(SHORT, 'x\r\n');
  const weak = generateKeyPairSync('rsa', { modulusLength: 1024 }).privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
  const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
  const bad: [string, string, RegExp][] = [
    ['missing', join(dir, 'missing.pem'), /ENOENT/],
    ['a folder', dir, /./],
    ['not a key', keyFile('not.pem', 'hello'), /./],
    ['a public key', keyFile('public.pem', '-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n'), /./],
    ['1024 bits', keyFile('weak.pem', weak), /1024 bits/],
    ['an EC key', keyFile('ec.pem', ec), /not ec/],
    ['open to others', keyFile('open.pem', ed.pem, 0o604), /chmod 0600/],
  ];
  for (const [name, file, says] of bad) {
    const domain = domainWith('relaxed/simple', [['r1', rsaFile], ['x', file]]);
    const expected = { code: 'E_KEY_UNREADABLE', message: says };
    await t.rejects(signer.sign(message, domain), expected, name);
    t.throws(() => signer.load(domain), expected, name);
  }
  await t.rejects(signer.sign(message, domainWith('relaxed/simple', [])), { code: 'E_SIGN' }, 'no key');
  await t.rejects(signer.sign(rendered('Subject: x\r\n', 'x'), simple), { code: 'E_SIGN', message: /From/ }, 'no From');
  t.throws(() => publicRecord('nonsense'), { code: 'E_KEY_UNREADABLE' });
});

t.test('a key that changes on disk is the next one used', async (t) => {
  let now = Date.now();
  const own = openSigner({ clock: { ...systemClock, now: () => now } });
  const file = keyFile('turn.pem', ed.pem);
  const domain = domainWith('relaxed/simple', [['e1', file]]);
  const message = rendered(SHORT, 'x\r\n');
  const next = generateKey('ed25519');
  t.same(await verdicts(wire(await own.sign(message, domain))), ['pass']);
  renameSync(keyFile('turn.new', next.pem), file);
  t.same(await verdicts(wire(await own.sign(message, domain))), ['pass'], 'within a second the file is not looked at');
  own.load(domain);
  t.same(await verdicts(wire(await own.sign(message, domain)), { e1: next.record }), ['pass'], 'load looks at once');
  writeFileSync(file, ed.pem);
  utimesSync(file, new Date(now), new Date(now + 5_000));
  now += 1_001;
  t.same(await verdicts(wire(await own.sign(message, domain))), ['pass']);
  rmSync(file);
  now += 1_001;
  await t.rejects(own.sign(message, domain), { code: 'E_KEY_UNREADABLE' }, 'a key that was taken away is not used on');
  writeFileSync(file, ed.pem, { mode: 0o600 });
  t.same(await verdicts(wire(await own.sign(message, domain))), ['pass'], 'and it is used again once it is back');
});

t.test('records to publish', async (t) => {
  t.match(rsa.record, /^v=DKIM1; k=rsa; p=[A-Za-z0-9+/=]{300,}$/);
  t.match(ed.record, /^v=DKIM1; k=ed25519; p=[A-Za-z0-9+/]{43}=$/);
  t.equal(publicRecord(rsa.pem), rsa.record);
  const records = dnsRecords({ domain: simple, hostname: 'mx.acme.example', addresses: ['8.8.4.4', '2a00:1450:4001::1:2', '127.0.0.1', '8.8.4.4'] });
  const value = (type: string, name: string): string | undefined => records.find((record) => record.type === type && record.name === name)?.value;
  t.equal(value('TXT', 'bounce.acme.example'), '"v=spf1 ip4:8.8.4.4 ip6:2a00:1450:4001::1:2 -all"');
  t.equal(value('TXT', 'mx.acme.example'), '"v=spf1 a -all"');
  t.equal(value('MX', 'bounce.acme.example'), '10 mx.acme.example.');
  t.equal(value('PTR', '4.4.8.8.in-addr.arpa'), 'mx.acme.example.');
  t.equal(value('PTR', '2.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.4.0.5.4.1.0.0.a.2.ip6.arpa'), 'mx.acme.example.');
  t.equal(value('A', 'mx.acme.example'), '8.8.4.4');
  t.equal(value('AAAA', 'mx.acme.example'), '2a00:1450:4001::1:2');
  t.match(value('TXT', '_dmarc.acme.example'), /^"v=DMARC1; p=none; rua=mailto:/);
  t.equal(value('TXT', '_mta-sts.bounce.acme.example'), `"v=STSv1; id=${mtaStsPolicy('mx.acme.example').id}"`);
  t.match(mtaStsPolicy('mx.acme.example').text, /^version: STSv1\r\nmode: enforce\r\nmx: mx.acme.example\r\nmax_age: \d+\r\n$/);
  t.equal(value('CNAME', 'mta-sts.bounce.acme.example'), 'mx.acme.example.');
  t.match(value('TXT', '_smtp._tls.bounce.acme.example'), /^"v=TLSRPTv1; rua=mailto:/);
  t.equal(value('CNAME', 'news.acme.example'), 'mx.acme.example.');
  const strings = (value('TXT', 'r1._domainkey.acme.example') ?? '').split(' "').map((part) => part.replaceAll('"', ''));
  t.equal(strings.join(''), rsa.record, 'the strings join to the record');
  t.ok(strings.every((part) => part.length <= 255));
  t.ok(records.every((record) => record.why.length > 20));
  const local = dnsRecords({ domain: { ...simple, pages: 'https://acme.example' }, hostname: 'mx.acme.example', addresses: ['127.0.0.1'] });
  t.match(local.find((record) => record.name === 'bounce.acme.example' && record.type === 'TXT')?.value, /a:mx\.acme\.example -all/);
  t.ok(local.some((record) => record.name === 'acme.example' && record.type === 'A'), 'no CNAME where other records stand');
  t.notOk(local.some((record) => record.value.includes('127.0.0.1')));
});
