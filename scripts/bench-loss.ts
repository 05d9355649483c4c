// What kill -9 under load costs: messages lost, messages twice, the time of a restart
//
// Twenty rounds on one data directory: a thousand messages from four sessions, a kill somewhere between a tenth
// and nine tenths of them, a new start, and a wait until the queue is empty. lost: answered 250 and never
// arrived. duplicates: the most of any round; in_flight_max is what may have been on its way at the kill.
//   npm run bench -- loss [--json] [--rounds 20] [--messages 1000]
import { parseArgs } from 'node:util';
import { LANE_CONNECTIONS, lossRounds, SESSIONS, type LossRound } from '../test/lib/loss.ts';

const { values } = parseArgs({ options: { json: { type: 'boolean', default: false }, rounds: { type: 'string', default: '20' }, messages: { type: 'string', default: '1000' } } });
const [rounds, messages] = [Number(values.rounds), Number(values.messages)];
const told: LossRound[] = [];
await lossRounds(rounds, messages, (one) => {
  told.push(one);
  if (!values.json) console.log(`round ${told.length} of ${rounds}: ${one.answered} answered, ${one.arrivedBefore} had arrived at the kill, ${one.missing.length} lost, ${one.duplicates} twice, ${one.unanswered} arrived without an answer, ready again in ${one.restartMs} ms`);
});
const most = (of: (one: LossRound) => number): number => Math.max(...told.map(of));
const figures = {
  lost: told.reduce((sum, { missing }) => sum + missing.length, 0), answered: told.reduce((sum, { answered }) => sum + answered, 0), duplicates: most(({ duplicates }) => duplicates), in_flight_max: LANE_CONNECTIONS,
  unanswered: most(({ unanswered }) => unanswered), sessions: SESSIONS, restart_ms: most(({ restartMs }) => restartMs),
};
const targets = { lost: 0, duplicates: LANE_CONNECTIONS };
if (values.json) console.log(JSON.stringify({ name: 'loss', ran: `${rounds} rounds of kill -9 amid ${messages} messages`, figures, targets }));
else console.table(figures);
if (figures.lost > 0 || figures.duplicates > LANE_CONNECTIONS) process.exitCode = 1;
