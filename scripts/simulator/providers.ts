// The receivers the simulator plays: their domains and MX names, what they bear and how they say no. A
// limit here is a fact of the model, to be found out or kept to by a sender; it need not be the one a
// sender is configured with. Names of MX hosts are the real ones, so that a sender recognises them; they
// mean addresses of 127.0.0.0/8 in the simulator's own zone and nothing anywhere else. Figures and phrases
// are those senders publish about these receivers (KumoMTA's shaping table and automation rules).

/** A limit of one receiver: so many in each window of so many ms. */
export interface Cap {
  readonly count: number;
  readonly perMs: number;
}

/** What a receiver answers when something is too much. */
export interface Refusals {
  readonly connections: string;
  readonly connectionRate: string;
  readonly messageRate: string;
  readonly perConnection: string;
  readonly greylist: string;
}

/** One receiver as it behaves. */
export interface ProviderModel {
  readonly id: string;
  readonly domains: readonly string[];
  /** MX hosts with their preference; each has an address of its own. */
  readonly mx: readonly (readonly [preference: number, host: string])[];
  /** Connections at once from one sender address, over all hosts. */
  readonly connections: number;
  readonly connectionRate: Cap | undefined;
  readonly messageRate: Cap | undefined;
  readonly messagesPerConnection: number;
  /** MAIL in clear is refused. */
  readonly tls: boolean;
  /** A stranger (sender and recipient) is told to come back, and taken after this many ms; 0: nobody is. */
  readonly greylistMs: number;
  readonly refusals: Refusals;
  /** Share of a sender's mail that goes here, in parts of the whole mix. */
  readonly weight: number;
}

const SECOND = 1_000;
const MINUTE = 60_000;

const plain: Refusals = {
  connections: '421 4.7.0 too many connections from your address',
  connectionRate: '421 4.7.0 connecting too fast, slow down',
  messageRate: '451 4.7.1 too many messages, try again later',
  perConnection: '421 4.7.0 too many messages over this connection',
  greylist: '450 4.2.0 greylisted, try again later',
};

/** Every receiver but the long tail. */
export const PROVIDERS: readonly ProviderModel[] = [
  {
    id: 'google', domains: ['gmail.com', 'googlemail.com'], weight: 45,
    mx: [[5, 'gmail-smtp-in.l.google.com'], [10, 'alt1.gmail-smtp-in.l.google.com'], [20, 'alt2.gmail-smtp-in.l.google.com']],
    connections: 5, connectionRate: { count: 100, perMs: MINUTE }, messageRate: { count: 100, perMs: SECOND }, messagesPerConnection: 50, tls: true, greylistMs: 0,
    refusals: {
      ...plain,
      connections: '421-4.7.0 Too many concurrent connections from your address\r\n421 4.7.0 gsmtp',
      connectionRate: '421 4.7.28 Our system has detected an unusual rate of connections. gsmtp',
      messageRate: '421-4.7.28 Our system has detected an unusual rate of unsolicited mail originating from your IP address.\r\n421 4.7.28 To protect our users, mail has been temporarily rate limited. gsmtp',
    },
  },
  {
    id: 'outlook', domains: ['outlook.com', 'hotmail.com', 'live.com'], weight: 18, mx: [[5, 'outlook-com.olc.protection.outlook.com']],
    connections: 5, connectionRate: { count: 100, perMs: MINUTE }, messageRate: { count: 60, perMs: SECOND }, messagesPerConnection: 50, tls: false, greylistMs: 0,
    refusals: {
      ...plain,
      connections: '421 4.3.2 The maximum number of concurrent connections has exceeded a limit; exceeded max connections',
      messageRate: '451 4.7.650 The mail server has been temporarily rate limited due to IP reputation',
      perConnection: '421 4.3.2 exceeded max messages per connection',
    },
  },
  {
    id: 'yahoo', domains: ['yahoo.com', 'aol.com'], weight: 12,
    mx: [[1, 'mta5.am0.yahoodns.net'], [1, 'mta6.am0.yahoodns.net'], [1, 'mta7.am0.yahoodns.net']],
    connections: 10, connectionRate: { count: 100, perMs: MINUTE }, messageRate: { count: 50, perMs: SECOND }, messagesPerConnection: 20, tls: false, greylistMs: 0,
    refusals: {
      ...plain,
      messageRate: '421 4.7.0 [TSS04] Messages from your address temporarily deferred due to unexpected volume or user complaints',
      perConnection: '421 4.7.0 Max message per connection reached, closing transmission channel',
    },
  },
  {
    id: 'apple', domains: ['icloud.com', 'me.com'], weight: 5, mx: [[10, 'mx01.mail.icloud.com'], [10, 'mx02.mail.icloud.com']],
    connections: 10, connectionRate: { count: 100, perMs: MINUTE }, messageRate: { count: 50, perMs: SECOND }, messagesPerConnection: 5, tls: false, greylistMs: 0,
    refusals: { ...plain, connections: '421 4.7.0 Service unavailable, too many connections', messageRate: '450 4.7.0 [HCM1] Message deferred, see the postmaster pages' },
  },
  {
    id: 'orange', domains: ['orange.fr', 'wanadoo.fr'], weight: 4, mx: [[10, 'smtp-in.orange.fr']],
    connections: 2, connectionRate: { count: 60, perMs: MINUTE }, messageRate: { count: 20, perMs: SECOND }, messagesPerConnection: 100, tls: true, greylistMs: 0,
    refusals: {
      ...plain,
      connections: '421 4.7.0 Trop de connexions, veuillez verifier votre configuration. OFR004_104',
      messageRate: '421 4.7.0 Service refuse. Veuillez essayer plus tard. OFR005_105',
    },
  },
  {
    id: 'gmx', domains: ['gmx.net', 'gmx.de'], weight: 4, mx: [[10, 'mx00.gmx.net'], [10, 'mx01.gmx.net']],
    connections: 4, connectionRate: { count: 60, perMs: MINUTE }, messageRate: { count: 20, perMs: SECOND }, messagesPerConnection: 20, tls: true, greylistMs: 2_000,
    refusals: {
      ...plain,
      connections: '421 4.7.0 Too many connections from your address',
      messageRate: '450 4.7.0 Requested mail action not taken: mailbox unavailable, policy restrictions',
    },
  },
];

/** A hoster of the long tail: small, alike, and one of many. */
export function hoster(number: number, domains: readonly string[], weight: number): ProviderModel {
  return {
    id: `hoster${number}`, domains, mx: [[10, `mx${number}.hosting.example`]], weight,
    connections: 10, connectionRate: { count: 100, perMs: MINUTE }, messageRate: { count: 100, perMs: SECOND }, messagesPerConnection: 100, tls: false,
    // Every fifth of them asks strangers to come back.
    greylistMs: number % 5 === 4 ? 1_000 : 0,
    refusals: plain,
  };
}

/** The whole cast: the large ones and a hosted long tail of so many domains on so many hosters. */
export function cast(tail: { readonly domains: number; readonly hosters: number }): readonly ProviderModel[] {
  const hosters = Math.min(tail.hosters, tail.domains);
  const named = Array.from({ length: tail.domains }, (_, i) => `d${i}.example`);
  return [...PROVIDERS, ...Array.from({ length: hosters }, (_, n) => hoster(n, named.filter((_name, i) => i % hosters === n), 12 / hosters))];
}

/** Recipients drawn from the mix by weight, the same for the same seed; each is another person. */
export function* mix(providers: readonly ProviderModel[], seed = 1): Generator<{ readonly address: string; readonly provider: string }, undefined> {
  const total = providers.reduce((sum, one) => sum + one.weight, 0);
  // A linear congruential generator: repeatable, and good enough to draw lots with.
  let state = seed >>> 0;
  const lot = (): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
  for (let i = 0; ; i++) {
    let at = lot() * total;
    const chosen = providers.find((one) => (at -= one.weight) < 0) ?? providers[0];
    if (chosen === undefined) return undefined;
    yield { address: `reader${i}@${chosen.domains[Math.floor(lot() * chosen.domains.length)] ?? ''}`, provider: chosen.id };
  }
}
