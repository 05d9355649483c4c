// What the benches that send mail share: the generator as a process of its own, a receiver that counts, a
// daemon that is ready, and people who said yes.
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { openStores } from '../../daemon/main.ts';
import { parseAddress } from '../../daemon/mail/index.ts';
import { openLog } from '../../daemon/runtime/index.ts';
import type { Sandbox } from '../sandbox.ts';
import type { Load, Sent } from './generator.ts';

/** Everybody has said yes, tracking included. */
export async function consentAll(sandbox: Sandbox, recipients: readonly string[]): Promise<void> {
  const stores = await openStores(sandbox.root, openLog('silent'));
  const tenant = stores.live.current().tenants.get('demo');
  const policy = tenant?.policies[0];
  if (policy === undefined) throw new Error('the sandbox has no policy');
  const now = Date.now();
  await stores.ledger.giveAll('demo', recipients.map((recipient) => ({
    hashes: stores.ledger.hashes('demo', parseAddress(recipient)), purpose: 'newsletter', state: 'given' as const, legalBasis: 'gdpr_6_1_a',
    policyHash: policy.hash, method: 'form', evidence: { source: 'bench', time: now }, tracking: { opens: 'individual' as const, clicks: 'individual' as const }, by: 'bench',
  })));
  await stores.close();
}

/** Resolves when the daemon whose metrics are on this port takes mail. */
export async function ready(metricsPort: number): Promise<void> {
  for (let i = 0; i < 600; i++) {
    const up = await fetch(`http://127.0.0.1:${metricsPort}/readyz`).then((answer) => answer.ok, () => false);
    if (up) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error('the daemon did not become ready');
}

/** Runs the generator as a process of its own. @throws Error when a message was refused */
export function drive(load: Load): Promise<Sent> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', join(import.meta.dirname, 'generator.ts')], { stdio: ['pipe', 'pipe', 'inherit'] });
    let out = '';
    child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()));
    child.once('exit', (code) => {
      const result = code === 0 ? JSON.parse(out) as Sent : { seconds: 0, sent: 0, refused: 0, p99Ms: 0 };
      if (result.sent === load.messages) resolve(result);
      else reject(new Error(`the generator sent ${result.sent} of ${load.messages}, ${result.refused} were refused`));
    });
    child.stdin.end(JSON.stringify(load));
  });
}

export interface Counter {
  reached(count: number): Promise<void>;
  stop(): void;
}

/** Postfix's smtp-sink, which throws everything away and counts. */
export async function startCounter(port: number): Promise<Counter> {
  const child = spawn('/usr/sbin/smtp-sink', ['-c', '-u', 'nobody', `127.0.0.1:${port}`, '1000'], { stdio: ['ignore', 'pipe', 'inherit'] });
  let count = 0;
  // "sess=1 quit=0 mesg=123"
  child.stdout.on('data', (chunk: Buffer) => {
    for (const [, messages] of chunk.toString('latin1').matchAll(/mesg=(\d+)/g)) count = Number(messages);
  });
  await new Promise((resolve) => setTimeout(resolve, 200));
  return {
    async reached(wanted) {
      let last = -1;
      for (let still = 0; still < 3_000; still++) {
        if (count >= wanted) return;
        if (count !== last) still = 0;
        last = count;
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
      throw new Error(`the sink has ${count} of ${wanted} and nothing more comes`);
    },
    stop: () => void child.kill(),
  };
}
