// What a monitoring system asks: /metrics for Prometheus, /healthz (the process answers) and /readyz
// (it can take mail: 503 and the reasons when it cannot). Meant for a private address: there is no
// login, and nothing here names a person or a domain (test I-8). It changes nothing.
import { listen, type Listening } from '../web/index.ts';
import type { Metrics } from '../runtime/index.ts';
import type { Settings } from '../settings/index.ts';

export interface ObserveOptions {
  readonly settings: () => Settings;
  readonly metrics: Metrics;
  /** Whether mail can be taken now, and if not, why: a plain sentence without addresses. */
  readonly ready: () => { readonly ok: boolean; readonly why: string };
}

/** Opens `listeners.metrics`. @throws MailError E_IN_USE */
export function openObserve(options: ObserveOptions): Promise<Listening> {
  return listen({
    name: 'listeners.metrics',
    at: options.settings().server.listeners.metrics,
    answer: (request, response) => {
      const say = (status: number, type: string, text: string): void => {
        response.writeHead(status, { 'Content-Type': type, 'Content-Length': Buffer.byteLength(text), 'Cache-Control': 'no-store' });
        response.end(request.method === 'HEAD' ? undefined : text);
      };
      const plain = 'text/plain; charset=utf-8';
      const path = request.method === 'GET' || request.method === 'HEAD' ? (request.url ?? '').split('?', 1)[0] : undefined;
      if (path === '/metrics') {
        const { registry } = options.metrics;
        registry.metrics().then(
          (text) => say(200, registry.contentType, text),
          (error: unknown) => say(500, plain, `metrics could not be collected: ${String(error)}\n`),
        );
      } else if (path === '/healthz') {
        say(200, plain, 'ok\n');
      } else if (path === '/readyz') {
        const { ok, why } = options.ready();
        say(ok ? 200 : 503, plain, ok ? 'ready\n' : `not ready: ${why}\n`);
      } else {
        say(404, plain, 'Not found\n');
      }
    },
  });
}
