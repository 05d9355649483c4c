// kill -9 amid submissions: what was answered 250 arrives after a restart, and nothing comes twice but
// what was on its way at the moment of the kill. `npm run bench -- loss` is the long run.
import t from 'tap';
import { LANE_CONNECTIONS, lossRounds, SESSIONS } from '../lib/loss.ts';

const ROUNDS = Number(process.env['POSTERN_CRASH_ROUNDS'] ?? 3);
const MESSAGES = Number(process.env['POSTERN_CRASH_MESSAGES'] ?? 200);
t.setTimeout(60_000 + ROUNDS * (MESSAGES * 20 + 30_000));

t.test(`${ROUNDS} rounds of ${MESSAGES} messages`, async (t) => {
  let round = 0;
  await lossRounds(ROUNDS, MESSAGES, ({ answered, arrivedBefore, missing, duplicates, unanswered, restartMs }) => {
    t.comment(`round ${++round}: answered ${answered}, arrived before the kill ${arrivedBefore}, missing ${missing.length}, duplicates ${duplicates}, arrived though not answered ${unanswered}, restart ${restartMs} ms`);
    t.same(missing, [], 'every message answered 250 arrived');
    t.ok(duplicates <= LANE_CONNECTIONS, `${duplicates} duplicates, at most those in flight`);
    t.ok(unanswered <= SESSIONS, 'a message without its answer is at most the one each session was handing over');
  });
  t.equal(round, ROUNDS);
});
