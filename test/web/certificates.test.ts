// Certificates by name over real TLS: who asks for a tenant's host gets its pair, everybody else the
// listener's; renewed files are served without a restart, and broken ones are not.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect } from 'node:tls';
import t from 'tap';
import { Certificates } from '../../daemon/web/certificates.ts';
import { listen } from '../../daemon/web/listen.ts';

const dir = mkdtempSync(join(tmpdir(), 'postern-sni-'));
t.teardown(() => rmSync(dir, { recursive: true }));

function pair(name: string, host = name): { readonly certificateFile: string; readonly keyFile: string } {
  const files = { certificateFile: join(dir, `${name}.pem`), keyFile: join(dir, `${name}.key`) };
  execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', `/CN=${host}`, '-keyout', files.keyFile, '-out', files.certificateFile], { stdio: 'pipe' });
  return files;
}

/** Common name of the certificate a client gets that asks for `servername`, '' asks for none. */
function served(port: number, servername: string): Promise<string> {
  return new Promise((done, fail) => {
    const socket = connect({ host: '127.0.0.1', port, rejectUnauthorized: false, ...(servername !== '' && { servername }) }, () => {
      done(String(socket.getPeerCertificate().subject.CN));
      socket.destroy();
    });
    socket.on('error', fail);
  });
}

t.test('by name, over real TLS', async (t) => {
  const own = pair('own.example');
  const acme = pair('news.acme.example');
  let hosts = new Map([['news.acme.example', acme]]);
  const listening = await listen({ name: 'listeners.pages', at: [{ host: '127.0.0.1', port: 0 }], tls: () => own, hosts: () => hosts, answer: (_request, response) => response.end() });
  t.teardown(() => listening.close());
  const port = listening.addresses[0]?.port ?? 0;
  const all = async (): Promise<readonly string[]> => Promise.all(['news.acme.example', 'NEWS.acme.example', 'other.example', ''].map((name) => served(port, name)));
  t.same(await all(), ['news.acme.example', 'news.acme.example', 'own.example', 'own.example']);
  pair('news.acme.example', 'renewed.example');
  listening.renewTls();
  t.same(await all(), ['renewed.example', 'renewed.example', 'own.example', 'own.example'], 'renewed');
  writeFileSync(acme.certificateFile, 'half a certif');
  t.throws(() => listening.renewTls(), { code: 'E_KEY_UNREADABLE', message: /tls of news\.acme\.example: / });
  t.same(await all(), ['renewed.example', 'renewed.example', 'own.example', 'own.example'], 'the old pair stays');
  hosts = new Map([['shop.bravo.example', pair('shop.bravo.example')]]);
  t.same(await Promise.all(['shop.bravo.example', 'news.acme.example'].map((name) => served(port, name))), ['shop.bravo.example', 'own.example'], 'a reload names other hosts');
  t.notMatch(await served(port, '../../etc/passwd').catch(() => 'own.example'), /passwd/);
});

t.test('files are looked at every ten seconds, and a pair that does not fit is never taken', async (t) => {
  const own = pair('a.example');
  let now = 0;
  const certificates = new Certificates({ own: () => own }, () => now);
  const first = certificates.contextOf('');
  // Written beside and put in its place, as certificate programs do.
  const next = pair('b.example');
  renameSync(next.certificateFile, own.certificateFile);
  now += 9_000;
  t.equal(certificates.contextOf(''), first, 'not yet');
  now += 2_000;
  t.equal(certificates.contextOf(''), first, 'a certificate without its key');
  renameSync(next.keyFile, own.keyFile);
  now += 11_000;
  t.not(certificates.contextOf(''), first, 'both');
  t.throws(() => new Certificates({ own: () => ({ certificateFile: join(dir, 'none'), keyFile: join(dir, 'none') }) }), { code: 'E_KEY_UNREADABLE' });
});
