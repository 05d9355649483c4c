// The OpenAPI 3.1 document, made from the very routes and shapes that are in force: what it says is what
// is checked. Served without a token, for it says nothing of anybody.
import swagger from '@fastify/swagger';
import type { FastifyInstance, FastifySchema } from 'fastify';
import { z } from 'zod';
import { PROBLEM_SCHEMA } from './problem.ts';
import type { Route } from './route.ts';

/** What fastify is told of a route; the shapes are zod, for its validator and for the document alike. */
export function schemaOf(route: Route): FastifySchema {
  const { summary, scope, body, query, path, answer, lines = false, changes = false } = route;
  return {
    summary,
    security: [{ token: scope === undefined ? [] : [scope] }],
    ...(body !== undefined && { body }), ...(query !== undefined && { querystring: query }), ...(path !== undefined && { params: path }),
    ...(changes && { description: 'Heeds an Idempotency-Key header: the same key with the same request is carried out once in 24 hours.' }),
    response: {
      200: { description: lines ? 'One such object a line.' : 'Done.', content: { [lines ? 'application/x-ndjson' : 'application/json']: { schema: answer } } },
      default: { description: 'A problem (RFC 9457).', content: { 'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } } } },
    },
  };
}

/** Prepares the document; to be called before the routes are added. */
export async function describeApi(app: FastifyInstance): Promise<void> {
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'Postern',
        version: '1',
        description: 'Consents, suppressions and their proofs. The tenant is the token\'s; requests and answers are JSON; what was not done is a problem (RFC 9457).',
        license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
      },
      components: {
        securitySchemes: { token: { type: 'http', scheme: 'bearer', description: 'A secret made by `postern token create`; each route names the scope it needs.' } },
        schemas: { Problem: PROBLEM_SCHEMA as object },
      },
    },
    transform: ({ schema, url }) => ({ schema: written(schema), url }),
  });
}

/** The same schema with every zod shape as JSON Schema: of requests as they are sent, of answers as they come. */
function written(schema: FastifySchema): FastifySchema {
  const shown = Object.fromEntries(Object.entries(schema).map(([name, value]: [string, unknown]) => [name, value instanceof z.ZodType ? jsonSchema(value, 'input') : value]));
  const { response } = schema as { readonly response?: Readonly<Record<string, Shown>> };
  if (response === undefined) return shown;
  const answers = Object.entries(response).map(([status, { description, content }]) => [status, {
    description,
    content: Object.fromEntries(Object.entries(content).map(([type, media]) => [type, { schema: media.schema instanceof z.ZodType ? jsonSchema(media.schema, 'output') : media.schema }])),
  }]);
  return { ...shown, response: Object.fromEntries(answers) };
}

interface Shown {
  readonly description: string;
  readonly content: Readonly<Record<string, { readonly schema: unknown }>>;
}

function jsonSchema(shape: z.ZodType, io: 'input' | 'output'): object {
  const { $schema: _dialect, ...schema } = z.toJSONSchema(shape, {
    io,
    // `date-time` says it; the expression behind it is 400 characters that nobody reads. A number in a query is digits.
    override: ({ jsonSchema: made }) => {
      if (made.format === 'date-time' || made.type === 'integer') delete made.pattern;
    },
  });
  return schema;
}
