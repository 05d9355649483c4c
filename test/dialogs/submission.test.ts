// Plays every dialog of dialogs/submission against the real door, and sees to it that every reply of the
// catalogue is said somewhere.
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { REPLIES, replyLine } from '../../daemon/mail/index.ts';
import { Client, playDialog } from '../lib/dialog.ts';
import { openRoom, type Limits } from '../submission/room.ts';

const folder = join(import.meta.dirname, 'submission');
/** Said where a dialog cannot: a drain and an expulsion begin on our side; only the door for bounces has no AUTH. */
const ELSEWHERE: readonly string[] = [replyLine(REPLIES.draining), replyLine(REPLIES.suspended), replyLine(REPLIES.notImplemented)];
const heard = new Set<string>();

const header = (text: string, name: string): string | undefined => new RegExp(`^# ${name}: (.*)$`, 'm').exec(text)?.[1];

for (const file of readdirSync(folder).filter((name) => name.endsWith('.smtp')).sort()) {
  t.test(file, async (t) => {
    const text = readFileSync(join(folder, file), 'utf8');
    const room = await openRoom(JSON.parse(header(text, 'with') ?? '{}') as Limits);
    const suspended = header(text, 'suspend');
    if (suspended !== undefined) room.hooks.suspendedTenants.add(suspended);
    const clear = header(text, 'port') === 'submission';
    const client = await Client.open(clear ? room.starttls : room.tls, clear ? 'plain' : 'tls');
    try {
      await playDialog(text, client);
      t.pass();
    } finally {
      for (const line of client.transcript) if (line.startsWith('S ')) heard.add(line.slice(2));
      client.close();
      await room.close();
    }
    t.notOk(room.hooks.senders.some((from) => /^(evil|smuggled)@/.test(from)), 'nothing was smuggled');
  });
}

t.test('every reply of the catalogue is said', async (t) => {
  const missing = Object.entries(REPLIES).filter(([, reply]) => !heard.has(replyLine(reply)) && !ELSEWHERE.includes(replyLine(reply))).map(([name]) => name);
  t.same(missing, []);
});
