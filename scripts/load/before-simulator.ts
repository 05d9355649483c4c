// A relay as a process of its own before the provider simulator, for benches that judge from the receivers'
// side: the simulator runs in the bench's process, the generator in a third, so that none waits for another.
// stop() ends all and removes the folder.
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { callControl } from '../../daemon/admin/index.ts';
import { controlSocket } from '../../daemon/main.ts';
import { freePorts, spawnDaemon } from '../../test/lib/daemon.ts';
import { makeSandbox } from '../sandbox.ts';
import { startSimulator, type ProviderModel, type Simulator } from '../simulator/simulator.ts';
import type { Load } from './generator.ts';

export interface Stage {
  readonly simulator: Simulator;
  /** The relay's process. */
  readonly pid: number;
  control(op: string, params?: Record<string, unknown>): Promise<unknown>;
  /** Submits to these recipients, each its message, as fast as they are taken. @returns how many were taken */
  submit(recipients: readonly string[], sessions?: number): Promise<number>;
  stop(): Promise<void>;
}

/** `shaping`: shaping.yaml without its routes. */
export async function startBeforeSimulator(providers: readonly ProviderModel[], shaping: string): Promise<Stage> {
  const dir = mkdtempSync(join(tmpdir(), 'postern-bench-'));
  const ports = { ...(await freePorts()), sink: 9 };
  const sandbox = await makeSandbox(dir, ports);
  const file = (name: string): string => join(sandbox.root, name);
  const simulator = await startSimulator({ providers, tls: { cert: readFileSync(file('tls.crt')), key: readFileSync(file('tls.key')) } });
  writeFileSync(file('postern.yaml'), `${readFileSync(file('postern.yaml'), 'utf8')}resolver: { servers: ["${simulator.dns.host}:${simulator.dns.port}"] }\n`);
  writeFileSync(file('shaping.yaml'), `${shaping}\nroutes: [{ domain: "*", loopback_mx: ${simulator.port} }]\n`);
  const daemon = await spawnDaemon(sandbox.root).catch(async (error: unknown) => {
    await simulator.close();
    rmSync(dir, { recursive: true, force: true });
    throw error;
  });
  const socket = controlSocket({ server: { dataDir: sandbox.dataDir } });
  return {
    simulator,
    pid: daemon.child.pid ?? 0,
    control: (op, params = {}) => callControl(socket, op, params),
    submit: (recipients, sessions = 8) => generate({
      port: ports.submissions, messages: recipients.length, sessions, login: { username: 'demo-receipts', secret: sandbox.secret }, from: 'shop@demo.example', recipients,
      message: 'From: shop@demo.example\r\nTo: you@example.com\r\nSubject: receipt @@\r\n\r\nThank you.',
    }),
    async stop() {
      await daemon.kill('SIGTERM');
      await simulator.close();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

function generate(load: Load): Promise<number> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', join(import.meta.dirname, 'generator.ts')], { stdio: ['pipe', 'pipe', 'inherit'] });
    let out = '';
    child.stdout.on('data', (chunk: Buffer) => (out += chunk.toString()));
    child.once('exit', (code) => {
      if (code === 0) resolve((JSON.parse(out) as { sent: number }).sent);
      else reject(new Error('the generator failed'));
    });
    child.stdin.end(JSON.stringify(load));
  });
}
