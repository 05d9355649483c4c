// The tenants' HTTP API: fastify behind the house's own listener, always over TLS. A request passes, in
// this order: token, scope, rate, size and JSON, shape, Idempotency-Key, the route. Callers may rely on:
// no body is read of somebody unknown; everything that is not done is a problem of the closed list; what is
// logged and counted names routes, statuses, tenants and tokens, never a person. No cookies, no CORS: this
// is for servers. RFC 9110, RFC 9457, draft-ietf-httpapi-ratelimit-headers.
import { createHash } from 'node:crypto';
import { Readable } from 'node:stream';
import { fastify, type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify';
import type { z } from 'zod';
import { isMailError } from '../../mail/index.ts';
import type { Metrics } from '../../runtime/index.ts';
import { listen, type Listening } from '../../web/index.ts';
import { CONSENT_ROUTES } from './consents.ts';
import { Counters, type Count } from './counters.ts';
import { describeApi, schemaOf } from './document.ts';
import { InvalidInput, Problem } from './problem.ts';
import { PROOF_ROUTES } from './proofs.ts';
import { Replays, type Answer } from './replays.ts';
import type { ApiDesk, Call, Route } from './route.ts';
import { SUBJECT_ROUTES } from './subjects.ts';
import { SUPPRESSION_ROUTES } from './suppressions.ts';
import { Tokens, type Access } from './tokens.ts';
import { TRACKING_ROUTES } from './tracking.ts';

export interface ApiOptions extends ApiDesk {
  readonly metrics: Metrics;
}

/** Every route that needs a token. */
export const API_ROUTES: readonly Route[] = [...CONSENT_ROUTES, ...SUPPRESSION_ROUTES, ...SUBJECT_ROUTES, ...PROOF_ROUTES, ...TRACKING_ROUTES];

// A thousand consents of a kibioctet, and the brackets around them: one with every member filled in has
// 900 octets.
const BODY_OCTETS = 1_049_600;
// Ten requests a second are more than people sign up anywhere. A thousand consents cost the thread 60 ms:
// counted as eleven requests, they leave one token a fifteenth of it, and a list of a million takes 19 minutes.
export const REQUESTS_PER_MINUTE = 600;
const ITEMS_PER_REQUEST = 100;
const WINDOW_MS = 60_000;
// More tokens than an operator writes down by hand; past it the one idle longest starts anew.
const TOKENS = 100_000;
// The store is back after a restart of the daemon or of its disk, or somebody has to look.
const STORE_RETRY_S = 5;

/** Opens `listeners.api`; without addresses there nothing listens. @throws MailError E_IN_USE, E_KEY_UNREADABLE */
export async function openApi(options: ApiOptions): Promise<Listening> {
  const { settings } = options;
  const app = await buildApi(options);
  const listening = await listen({
    name: 'listeners.api', at: settings().server.listeners.api, tls: () => settings().server.tls,
    answer: (request, response) => app.routing(request, response),
  });
  return {
    addresses: listening.addresses,
    renewTls: () => listening.renewTls(),
    async close() {
      await listening.close();
      await app.close();
    },
  };
}

async function buildApi(options: ApiOptions): Promise<FastifyInstance> {
  const { log, metrics } = options;
  const app = fastify({
    bodyLimit: BODY_OCTETS,
    exposeHeadRoutes: false,
    // Zod checks; were ajv ever asked, it should neither drop nor convert anything.
    ajv: { customOptions: { removeAdditional: false, coerceTypes: false } },
    // A path that cannot be read names nothing.
    frameworkErrors: (_error, _request, reply) => void send(reply, new Problem('not-found')),
  });
  // The body is JSON or it is nothing.
  app.removeContentTypeParser('text/plain');
  app.setValidatorCompiler(({ schema, httpPart }) => (data: unknown) => {
    const read = (schema as z.ZodType).safeParse(data);
    return read.success ? { value: read.data } : { error: new InvalidInput(httpPart ?? '', read.error.issues) };
  });
  app.setSerializerCompiler(() => (data) => JSON.stringify(data));
  app.setErrorHandler((error, _request, reply) => send(reply, problemOf(error, options)));
  app.setNotFoundHandler((_request, reply) => send(reply, new Problem('not-found')));
  app.addHook('onRequest', async (_request, reply) => {
    void reply.headers({ 'Cache-Control': 'no-store', 'X-Content-Type-Options': 'nosniff' });
  });
  const door = new Door(options);
  app.addHook('onResponse', async (request, reply) => {
    const { url } = request.routeOptions;
    const route = url === undefined ? 'unknown' : `${request.method} ${url}`;
    metrics.apiRequests.inc({ route, status: String(reply.statusCode) });
    const { tenant, token } = door.accessOf(request) ?? {};
    log.info({ route, status: reply.statusCode, duration_ms: Math.round(reply.elapsedTime), ...(tenant && { tenant: tenant.id }), ...(token && { token: token.id }) }, 'api request');
  });
  await describeApi(app);
  for (const route of API_ROUTES) door.addRoute(app, route);
  // Written once: anybody may ask for it.
  let document: string | undefined;
  app.get('/openapi.json', { schema: { hide: true } }, async (_request, reply) => reply.type('application/json').send(document ??= JSON.stringify(app.swagger())));
  await app.ready();
  return app;
}

/** What stands before every route: token, scope, rate and replay. */
class Door {
  readonly #desk: ApiOptions;
  readonly #tokens: Tokens;
  readonly #rates = new Counters(WINDOW_MS, TOKENS);
  readonly #replays: Replays;
  readonly #access = new WeakMap<FastifyRequest, Access>();

  constructor(desk: ApiOptions) {
    this.#desk = desk;
    this.#tokens = new Tokens(desk);
    this.#replays = new Replays(desk.clock);
  }

  /** undefined for who was not let in. */
  accessOf(request: FastifyRequest): Access | undefined {
    return this.#access.get(request);
  }

  addRoute(app: FastifyInstance, route: Route): void {
    app.route({
      method: route.method,
      url: route.url,
      schema: schemaOf(route),
      onRequest: async (request, reply) => {
        const refused = await this.#enter(route, request, reply);
        return refused === undefined ? undefined : send(reply, refused);
      },
      handler: (request, reply) => this.#answer(route, request, reply),
    });
  }

  async #enter(route: Route, request: FastifyRequest, reply: FastifyReply): Promise<Problem | undefined> {
    const access = await this.#tokens.check(request.headers.authorization, request.ip);
    if (access instanceof Problem) return access;
    this.#access.set(request, access);
    const { used, resetMs } = this.#charge(access, reply, 1);
    if (used > REQUESTS_PER_MINUTE) return new Problem('rate-limit', { retryAfterS: Math.ceil(resetMs / 1_000) });
    return route.scope !== undefined && !access.token.scopes.includes(route.scope) ? new Problem('scope') : undefined;
  }

  #charge({ tenant, token }: Access, reply: FastifyReply, requests: number): Count {
    const count = this.#rates.add(`${tenant.id} ${token.id}`, this.#desk.clock.now(), requests);
    void reply.headers({
      'RateLimit-Policy': `"token";q=${REQUESTS_PER_MINUTE};w=${WINDOW_MS / 1_000}`,
      RateLimit: `"token";r=${Math.max(0, REQUESTS_PER_MINUTE - count.used)};t=${Math.ceil(count.resetMs / 1_000)}`,
    });
    return count;
  }

  async #answer(route: Route, request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
    const access = this.#access.get(request);
    if (access === undefined) throw new Error('a request reached its route without a token');
    const items = route.items?.(request.body) ?? 0;
    if (items >= ITEMS_PER_REQUEST) this.#charge(access, reply, Math.floor(items / ITEMS_PER_REQUEST));
    const call: Call = { ...access, body: request.body, query: request.query, path: request.params };
    const key = route.changes === true ? request.headers['idempotency-key'] : undefined;
    if (key === undefined) {
      const said = await route.run(this.#desk, call);
      return said instanceof Readable ? reply.type('application/x-ndjson').send(said) : sendAnswer(reply, answerOf(said));
    }
    if (typeof key !== 'string' || !/^[\x21-\x7e]{1,255}$/.test(key)) return send(reply, new Problem('idempotency-key'));
    const fingerprint = createHash('sha256').update(`${route.url}\0${JSON.stringify(call.body)}`).digest('base64');
    const answer = await this.#replays.once(access.tenant.id, `${access.token.id} ${key}`, fingerprint, async () => answerOf(await route.run(this.#desk, call)));
    return typeof answer === 'string' ? send(reply, new Problem(answer)) : sendAnswer(reply, answer);
  }
}

function answerOf(said: object): Answer {
  if (said instanceof Problem) return { status: said.status, type: 'application/problem+json', text: said.toString() };
  return { status: 200, type: 'application/json; charset=utf-8', text: JSON.stringify(said) };
}

function sendAnswer(reply: FastifyReply, { status, type, text }: Answer): FastifyReply {
  return reply.code(status).type(type).send(text);
}

function send(reply: FastifyReply, problem: Problem): FastifyReply {
  // RFC 6750 §3: without an error code, which would tell a wrong token from a dead one.
  if (problem.status === 401) void reply.header('WWW-Authenticate', 'Bearer realm="postern"');
  if (problem.retryAfterS !== undefined) void reply.header('Retry-After', problem.retryAfterS);
  return sendAnswer(reply, answerOf(problem));
}

function problemOf(error: unknown, { log, metrics }: ApiOptions): Problem {
  // A path that names nothing that could be is answered as one that names nothing.
  if (error instanceof InvalidInput) return error.inPath ? new Problem('not-found') : new Problem('invalid', { faults: error.faults });
  if (isMailError(error) && (error.code === 'E_STORE' || error.code === 'E_KEY_UNREADABLE')) {
    log.error({ error: error.message }, 'the API could not ask the store');
    return new Problem('unavailable', { retryAfterS: STORE_RETRY_S });
  }
  // What fastify refuses carries the status; its text may quote the request.
  const status = error instanceof Error && 'statusCode' in error ? error.statusCode : undefined;
  if (status === 413) return new Problem('too-large');
  if (status === 415) return new Problem('media-type');
  if (status === 404) return new Problem('not-found');
  if (typeof status === 'number' && status >= 400 && status < 500) return new Problem('malformed');
  log.error({ error: error instanceof Error ? error.stack : String(error) }, 'an API request failed unexpectedly');
  metrics.bugs.inc({ room: 'admin' });
  return new Problem('unexpected');
}
