// npm start: the relay in its sandbox. Makes what is missing in var/sandbox (never over what is there),
// starts the bundled catch-all MX and the relay, and says where everything is. `--demo` does the same in
// a temporary folder, sends a campaign through it and exits. Nothing here can reach the internet: the
// sandbox refuses every target but the MX on loopback.
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { Command } from 'commander';
import { MailError, isMailError, parseAddress } from '../daemon/mail/index.ts';
import { openLog } from '../daemon/runtime/index.ts';
import { openStores, serve } from '../daemon/main.ts';
import { loadSettings } from '../daemon/settings/index.ts';
import { runDemo } from './demo.ts';
import { makeSandbox, PORTS, type Sandbox } from './sandbox.ts';
import { startSink, type Sink } from './sink.ts';

const FIRST_READER = 'reader@example.com';

const command = new Command('npm start --')
  .description('run the relay in its sandbox; Ctrl-C drains and stops')
  .option('--demo', 'send a sample campaign in a temporary folder, explain each outcome, and exit')
  .option('--json', 'with --demo: print the outcomes as JSON')
  .option('--dir <dir>', 'where the sandbox lives', resolve(import.meta.dirname, '../var/sandbox'))
  .parse();
const options = command.opts<{ demo?: boolean; json?: boolean; dir: string }>();

try {
  if (options.demo === true) process.exitCode = await runDemo({ json: options.json === true });
  else await runSandbox(options.dir);
} catch (error) {
  if (!isMailError(error)) throw error;
  console.error(`postern: ${error.message}`);
  process.exitCode = 1;
}

async function runSandbox(dir: string): Promise<void> {
  const fresh = !existsSync(join(dir, 'etc'));
  const sandbox = await makeSandbox(dir);
  if (fresh) await firstConsent(sandbox);
  const sink = await catchAll(sandbox.root, join(dir, 'delivered'));
  const daemon = await serve(sandbox.root).catch(async (error: unknown) => {
    await sink.close();
    throw error;
  });
  console.log(where(sandbox, dir));
  await new Promise<void>((done) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => done());
  });
  console.log('\npostern: draining');
  await stop(daemon, sink);
  console.log('postern: stopped');
}

/** The MX stands where the tree's route leads: whoever moves the route moves it. */
async function catchAll(root: string, dir: string): Promise<Sink> {
  const loaded = loadSettings(root);
  const port = (loaded.ok ? loaded.settings.shaping.routes[0]?.via[0]?.port : undefined) ?? PORTS.sink;
  return startSink({ port, dir }).catch((error: unknown) => {
    if (!(error instanceof Error && 'code' in error && error.code === 'EADDRINUSE')) throw error;
    throw new MailError('E_IN_USE', `port ${port} on 127.0.0.1 is taken (is another sandbox running?); change routes[0].via in ${join(root, 'shaping.yaml')}`);
  });
}

async function stop(daemon: Awaited<ReturnType<typeof serve>>, sink: Sink): Promise<void> {
  await daemon.stop();
  await sink.close();
}

/** So that the first message has somebody to go to. */
async function firstConsent(sandbox: Sandbox): Promise<void> {
  const stores = await openStores(sandbox.root, openLog('silent'));
  const policyHash = stores.live.current().tenants.get('demo')?.policies[0]?.hash ?? '';
  await stores.ledger.give('demo', {
    hashes: stores.ledger.hashes('demo', parseAddress(FIRST_READER)), purpose: 'newsletter', state: 'given', legalBasis: 'gdpr_6_1_a', policyHash,
    method: 'operator', evidence: { source: 'made with the sandbox', time: Date.now() }, tracking: { opens: 'individual', clicks: 'individual' }, by: 'cli',
  });
  await stores.close();
}

function where(sandbox: Sandbox, dir: string): string {
  return `
postern is ready (sandbox: every domain leads to a catch-all MX on this machine)

  submission     127.0.0.1:${PORTS.submissions} (TLS), 127.0.0.1:${PORTS.submission} (STARTTLS)
  login          ${sandbox.username}, secret in ${join(sandbox.root, 'demo.secret')}
  pages          http://127.0.0.1:${PORTS.pages}/
  metrics        http://127.0.0.1:${PORTS.metrics}/metrics
  configuration  ${sandbox.root} (edit it: it is read again at once)
  delivered      ${join(dir, 'delivered')} (what the recipients' MX got)

Send a first message, to somebody who has said yes and somebody who has not:

  scripts/send --to ${FIRST_READER}
  scripts/send --to stranger@example.com

Ask why:  scripts/postern explain --config ${sandbox.root} --tenant demo --stream newsletter --rcpt stranger@example.com
Ctrl-C drains and stops.
`;
}
