// The provider simulator: large mailbox providers and a hosted long tail on addresses of 127.0.0.0/8, with
// a zone of their own, the limits and replies of `providers.ts`, faults where asked for, and a record of
// what a sender did, seen from the receiver's side. Callers may rely on: nothing listens where others can
// reach it; close() ends everything; a change to a receiver holds from its next command on.
import type { ProviderModel } from './providers.ts';
import { cast } from './providers.ts';
import { serveHost, type Fault, type MxHost, type Receiver } from './host.ts';
import { overLimit, peaksOf, SiteRecord, type Peaks } from './record.ts';
import { serveZone, type ZoneServer } from './zone.ts';

export { cast, mix, PROVIDERS, hoster, type Cap, type ProviderModel } from './providers.ts';
export { PHASES, type Fault } from './host.ts';
export { mostWithin, overLimit, SiteRecord, type Peaks } from './record.ts';

export interface SimulatorOptions {
  /** SMTP port of every host; 0 takes one that is free on all addresses. */
  readonly port?: number;
  readonly dnsPort?: number;
  readonly providers?: readonly ProviderModel[];
  /** STARTTLS is offered with this pair, PEM; without it nobody offers it, and nobody asks for it. */
  readonly tls?: { readonly cert: string | Buffer; readonly key: string | Buffer };
  readonly onMessage?: (provider: string, from: string, to: readonly string[], sizeBytes: number) => void;
}

export interface Simulator {
  readonly port: number;
  readonly dns: { readonly host: string; readonly port: number };
  readonly providers: readonly ProviderModel[];
  /** Messages taken by everybody together. */
  readonly accepted: number;
  peaks(): readonly Peaks[];
  record(provider: string): SiteRecord;
  /** Changes how a receiver behaves from now on. */
  change(provider: string, change: Partial<ProviderModel>): void;
  fault(provider: string, faults: readonly Fault[]): void;
  /** Transactions and connections that came over the limits of their receiver. */
  overLimits(provider: string): { readonly messages: number; readonly connections: number; readonly atOnce: number };
  close(): Promise<void>;
}

// 127.77.x.y: far from where tests put things of their own.
const NETWORK = '127.77';

/** Starts the cast. @throws the system's error when a port is taken */
export async function startSimulator(options: SimulatorOptions = {}): Promise<Simulator> {
  const models = (options.providers ?? cast({ domains: 100, hosters: 10 })).map((model) => (options.tls === undefined ? { ...model, tls: false } : model));
  const receivers = new Map<string, Receiver>();
  const hosts: MxHost[] = [];
  const names: { readonly name: string; readonly address: string }[] = [];
  let zone: ZoneServer | undefined;
  let port = options.port ?? 0;
  const close = async (): Promise<void> => {
    await Promise.all([...hosts.map((host) => host.close()), zone?.close()]);
  };
  try {
    for (const model of models) {
      const receiver: Receiver = {
        model, faults: [], record: new SiteRecord(), strangers: new Map(), passed: [],
        onMessage: options.onMessage === undefined ? undefined : (from, to, size) => options.onMessage?.(model.id, from, to, size),
      };
      receivers.set(model.id, receiver);
      for (const [, name] of model.mx) {
        const address = `${NETWORK}.${Math.floor(names.length / 250)}.${(names.length % 250) + 1}`;
        names.push({ name, address });
        const host = await serveHost(name, address, port, receiver, options.tls);
        // The first finds a free port, the others take the same: a domain's MX says no port.
        port = host.port;
        hosts.push(host);
      }
    }
    zone = await serveZone({
      mx: new Map(models.flatMap((model) => model.domains.map((domain) => [domain, model.mx.map(([preference, exchange]) => ({ preference, exchange }))] as const))),
      a: new Map(names.map(({ name, address }) => [name, [address]])),
    }, options.dnsPort);
  } catch (error) {
    await close();
    throw error;
  }
  const receiverOf = (provider: string): Receiver => {
    const receiver = receivers.get(provider);
    if (receiver === undefined) throw new RangeError(`no provider ${provider}; there are: ${[...receivers.keys()].join(', ')}`);
    return receiver;
  };
  return {
    port, dns: { host: zone.host, port: zone.port }, providers: models,
    get accepted() { return [...receivers.values()].reduce((sum, { record }) => sum + record.accepted, 0); },
    peaks: () => [...receivers].map(([id, { record }]) => peaksOf(id, record)),
    record: (provider) => receiverOf(provider).record,
    change: (provider, change) => {
      const receiver = receiverOf(provider);
      receiver.model = { ...receiver.model, ...change };
    },
    fault: (provider, faults) => void (receiverOf(provider).faults = faults),
    overLimits(provider) {
      const { record, model } = receiverOf(provider);
      return {
        messages: model.messageRate === undefined ? 0 : overLimit(record.mailTimes, model.messageRate),
        connections: model.connectionRate === undefined ? 0 : overLimit(record.connectTimes, model.connectionRate),
        atOnce: Math.max(0, record.mostOpen - model.connections),
      };
    },
    close,
  };
}
