// Nobody waits for somebody else's backlog: beside 100,000 rows of another tenant to the same site, over one
// domain and over 5,000, a newcomer's first message starts after a handful of the other's attempts, and so
// does what matters among its own tenant's newsletters. Counted in attempts, not in time; POSTERN_FAIR_ROWS
// makes the backlog another size.
import t from 'tap';
import { composed } from '../spool/room.ts';
import { LIMITS, stage, type Stage } from './stage.ts';

const ROWS = Number(process.env['POSTERN_FAIR_ROWS'] ?? 100_000);
const PER_MESSAGE = 100;
const AT_ONCE = 20;
const CONNECTIONS = 4;
/** What is under way when it comes, one turn of each other tenant, and one for the share of the lower. */
const HANDFUL = CONNECTIONS + 2;

/** Half of it for one domain, half over 5,000. */
async function backlog({ spool, ran }: Stage): Promise<void> {
  for (const at of Array.from({ length: Math.ceil(ROWS / PER_MESSAGE / AT_ONCE) }, (_, i) => i * AT_ONCE)) {
    await Promise.all(Array.from({ length: AT_ONCE }, (_, message) => {
      const first = (at + message) * PER_MESSAGE;
      const to = Array.from({ length: PER_MESSAGE }, (_, i) => `p${i}@${(first + i) % 2 === 0 ? 'large.example' : `d${(first + i) % 5_000}.example`}`);
      return spool.store(composed(to, 200, 'big'), { expiresAt: Date.now() + 86_400_000 });
    }));
  }
  if (ran.length > CONNECTIONS) throw new Error(`${ran.length} attempts at ${CONNECTIONS} connections`);
}

/** How many other attempts begin before that of this message. */
async function before(on: Stage, store: () => Promise<string>): Promise<number> {
  const from = on.ran.length;
  const id = await store();
  for (let i = 0; i < 50; i++) {
    const at = on.ran.slice(from).findIndex((due) => due.id === id);
    if (at >= 0) return at;
    await on.finish();
  }
  return Infinity;
}

t.setTimeout(600_000);

t.test(`beside ${ROWS} rows of another tenant`, async (t) => {
  const on = await stage(t, { ...LIMITS, connections: CONNECTIONS }, 'done', {
    route: async (_tenant, domain) => ({ lane: { id: 'one/site', label: 'one/other', egress: 'one', provider: '' }, route: domain }),
  });
  await backlog(on);
  t.equal(on.schedule.lanes()[0]?.queues, 2_501);
  const known = await before(on, () => on.store('small', 'large.example'));
  t.ok(known <= HANDFUL, `a newcomer to a domain the other has mail for: after ${known}`);
  const fresh = await before(on, () => on.store('other', 'new.example'));
  t.ok(fresh <= HANDFUL, `and to one of its own at the same site: after ${fresh}`);
  const reset = await before(on, () => on.store('big', 'large.example', { priority: 'high' }));
  t.ok(reset <= HANDFUL, `a password reset in front of its own tenant's newsletters: after ${reset}`);
  const low = await before(on, () => on.store('small', 'large.example', { priority: 'low' }));
  t.ok(low <= HANDFUL, `a newcomer's low beside another's normal: after ${low}`);
  // A start finds everything at once: the newcomer is one of 2,502 queues whose way is looked up.
  const restarted = await before(on, async () => {
    const message = composed(['reader@late.example'], 100, 'late');
    await on.spool.store(message, { expiresAt: Date.now() + 86_400_000 });
    await on.again();
    return message.id;
  });
  t.ok(restarted <= HANDFUL + CONNECTIONS, `after a start: after ${restarted}`);
  t.comment(JSON.stringify({ rows: on.spool.counts().recipients, known, fresh, reset, low, restarted }));
});
