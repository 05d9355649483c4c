// The process that spool.test.ts kills or starves of disk: stores and settles without pause and says on
// standard output what has been acknowledged, one line a fact, written synchronously.
import { createHash } from 'node:crypto';
import { writeSync } from 'node:fs';
import { isMailError } from '../../daemon/mail/index.ts';
import { composed, openIn } from '../spool/room.ts';

// Past RLIMIT_FSIZE the kernel sends this as well, and would kill a process that does not expect it.
process.on('SIGXFSZ', () => undefined);

const [, , dir = '', mode = 'kill'] = process.argv;
const FAR = Date.now() + 86_400_000;
const say = (line: string): void => {
  writeSync(1, `${line}\n`);
};

const spool = await openIn(dir);
say('open');
const MANY = Array.from({ length: 200 }, (_, i) => `p${i}@one.example`);
let refused = 0;

async function work(): Promise<void> {
  // Many recipients of a small body fill the rows' file long before the segment.
  const m = mode === 'rows' ? composed(MANY, 100) : composed(['ann@one.example', 'bob@two.example'], 1_000 + Math.floor(Math.random() * 200_000));
  try {
    await spool.store(m, { expiresAt: FAR });
  } catch (error) {
    if (!isMailError(error)) throw error;
    say(`refused ${m.id} ${error.code}`);
    refused++;
    return;
  }
  say(`stored ${m.id} ${createHash('sha256').update(m.raw).digest('hex')}`);
  if (Math.random() < (mode === 'kill' ? 0.85 : 0.02)) await finish(m.id);
}

async function finish(id: string): Promise<void> {
  say(`settling ${id}`);
  const shown = spool.show(id);
  if (shown === undefined) throw new Error(`acknowledged ${id} is not there`);
  for (const { index, ...recipient } of shown.recipients) await spool.settle({ id, index, message: shown.meta, recipient }, { kind: 'done' });
  say(`settled ${id}`);
}

async function lane(): Promise<void> {
  while (refused < 40) await work();
}

await Promise.all(Array.from({ length: 16 }, lane));
// Reached on the starved disk only: what was taken can still be delivered there.
for (const { id } of await spool.list({ limit: 5 })) if (spool.show(id) !== undefined) await finish(id);
say(`end ${JSON.stringify(spool.counts())}`);
await spool.close();
say('closed');
