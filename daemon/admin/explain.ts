// Whether a person may be mailed on a stream, and why: the gate's own code, asked beside the mail. Nothing
// is changed by asking.
import { judgeMessage, judgeRecipient, profileOf, type Verdict } from '../gate/index.ts';
import type { Facts } from '../ledger/index.ts';
import { indexHeader, messageFacts, shownText } from '../mail/index.ts';
import type { Profile, Stream, Tenant } from '../settings/index.ts';
import type { Operation } from './control.ts';
import type { Desk } from './desk.ts';
import { person, streamOf, text, wrong, type Params } from './params.ts';

export function explainOperations(desk: Desk): Readonly<Record<string, Operation>> {
  return { explain: (params) => explain(desk, params) };
}

async function explain(desk: Desk, params: Params): Promise<unknown> {
  const { tenant, address: { domain }, hashes } = person(desk, params);
  const stream = streamOf(tenant, params);
  const settings = desk.settings();
  const facts = await desk.ledger.facts(tenant.id, stream.purpose, stream.id, hashes);
  const recipient = judgeRecipient({ tenant, stream, now: desk.clock.now(), facts, profiles: settings, domain, explain: true });
  const raw = text(params, 'message');
  const message = raw === '' ? undefined : judgeLetter({ tenant, stream }, Buffer.from(raw, 'base64'), [profileOf(settings, tenant, domain, facts.consent)]);
  return { tenant: tenant.id, stream: stream.id, purpose: stream.purpose, recipient, facts: shownFacts(facts), ...(message !== undefined && { message }) };
}

/** The gate's facts as JSON can carry them. */
function shownFacts({ unpublished, ...facts }: Facts): unknown {
  return { ...facts, ...(unpublished !== undefined && { unpublished: [...unpublished] }) };
}

/** Judges a letter as at the end of DATA, were these the profiles of the people it is for. */
function judgeLetter({ tenant, stream }: { readonly tenant: Tenant; readonly stream: Stream }, raw: Buffer, profiles: readonly Profile[]): Verdict {
  const credential = tenant.credentials.find((known) => known.stream === stream.id);
  if (credential === undefined) throw wrong(`stream ${stream.id} has no credential, so nobody can submit to it`);
  const crlf = Buffer.from(raw.toString('latin1').replaceAll(/\r\n|\r|\n/g, '\r\n'), 'latin1');
  const index = indexHeader(crlf);
  return judgeMessage({
    tenant, stream, credential, envelope: { mailFrom: '', recipients: [], smtpUtf8: false, body: '7BIT' }, header: messageFacts(crlf, index),
    profiles, text: () => shownText(crlf, index), explain: true,
  });
}
