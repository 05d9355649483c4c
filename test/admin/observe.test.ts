// The listener for monitoring: metrics, health, readiness with its reasons, and a taken port by name.
import t from 'tap';
import { openObserve } from '../../daemon/admin/observe.ts';
import { Metrics } from '../../daemon/runtime/index.ts';
import type { Settings } from '../../daemon/settings/index.ts';

t.test('observe', async (t) => {
  const metrics = new Metrics();
  let why = '';
  const at = { host: '127.0.0.1', port: 0 };
  const settings = { server: { listeners: { metrics: [at] } } } as unknown as Settings;
  const options = { settings: () => settings, metrics, ready: () => ({ ok: why === '', why }) };
  const observe = await openObserve(options);
  t.teardown(() => observe.close());
  const base = `http://127.0.0.1:${observe.addresses[0]?.port}`;
  metrics.hits.inc({ page: 'open', result: 'recorded' });
  const scraped = await fetch(`${base}/metrics`);
  const text = await scraped.text();
  t.match(scraped.headers.get('content-type'), /text\/plain.*version=0\.0\.4/);
  t.match(text, /postern_page_hits_total\{page="open",result="recorded"\} 1/);
  t.notMatch(text, /@/);
  t.equal((await fetch(`${base}/healthz`)).status, 200);
  t.equal((await fetch(`${base}/readyz`)).status, 200);
  why = 'the disk is nearly full';
  const unready = await fetch(`${base}/readyz`);
  t.equal(unready.status, 503);
  t.match(await unready.text(), /^not ready: the disk is nearly full\n$/);
  t.equal((await fetch(`${base}/`)).status, 404);
  t.equal((await fetch(`${base}/metrics`, { method: 'POST' })).status, 404);
  const head = await fetch(`${base}/healthz`, { method: 'HEAD' });
  t.equal(await head.text(), '');
  const taken = { server: { listeners: { metrics: observe.addresses } } } as unknown as Settings;
  await t.rejects(openObserve({ ...options, settings: () => taken }), { code: 'E_IN_USE', message: /listeners\.metrics/ });
});
