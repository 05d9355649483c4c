// `postern top` on a terminal: draws what the daemon answers, over and over, in the terminal's other screen,
// and leaves the terminal as it was however it ends. Where the output is no terminal it prints once, as
// text; as JSON it goes on, a line a look. Everything a lane is called is printed as plain ASCII.
import type { TopLane, TopView } from './top.ts';

export interface TopOptions {
  /** Seconds between two looks. */
  readonly every: number;
  readonly once?: boolean;
  readonly json?: boolean;
}

interface Terminal {
  readonly stdin: NodeJS.ReadStream;
  readonly stdout: NodeJS.WriteStream;
}

const ENTER = '\u001B[?1049h\u001B[?25l';
const LEAVE = '\u001B[?25h\u001B[?1049l';
const HOME = '\u001B[H';
const TO_LINE_END = '\u001B[K';
const TO_SCREEN_END = '\u001B[J';
// The usual terminal, for one that does not say.
const SIZE = { columns: 80, rows: 24 };
const HEAD_LINES = 5;

/** Shows what `look` answers until somebody quits. Rejects as `look` does, with the terminal as it was. */
export async function runTop(look: (lanes: number) => Promise<TopView>, { every, once = false, json = false }: TopOptions, { stdin, stdout }: Terminal): Promise<void> {
  const screen = stdout.isTTY && !once && !json;
  let end: () => void = () => undefined;
  const ended = new Promise<undefined>((resolve) => (end = () => resolve(undefined)));
  let wake: () => void = () => undefined;
  const restore = screen ? takeScreen({ stdin, stdout }, end, () => wake()) : () => undefined;
  // Whoever read it may go away (`| head`).
  stdout.on('error', end);
  try {
    for (;;) {
      const { columns, rows } = sizeOf(stdout);
      // Who quits does not wait for a daemon that does not answer.
      const view = await Promise.race([ended, look(screen ? rows - HEAD_LINES : 100)]);
      if (view === undefined) return;
      if (screen) stdout.write(frame(topText(view, columns).slice(0, rows)));
      else stdout.write(`${json ? JSON.stringify(view) : topText(view, stdout.isTTY ? columns : 160).join('\n')}\n`);
      if (once || (!screen && !json)) return;
      const timer = new Promise<true>((next) => {
        const waiting = setTimeout(next, every * 1_000, true);
        wake = () => {
          clearTimeout(waiting);
          next(true);
        };
      });
      if (await Promise.race([ended, timer]) === undefined) return wake();
    }
  } finally {
    stdout.off('error', end);
    restore();
  }
}

/** A terminal that was never given a size says 0. */
const sizeOf = ({ columns, rows }: NodeJS.WriteStream): { readonly columns: number; readonly rows: number } => ({ columns: columns || SIZE.columns, rows: Math.max(rows || SIZE.rows, HEAD_LINES + 1) });

const frame = (lines: readonly string[]): string => `${HOME}${lines.map((line) => `${line}${TO_LINE_END}`).join('\r\n')}${TO_SCREEN_END}`;

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** The other screen, keys one by one, no cursor. @returns what gives the terminal back */
function takeScreen({ stdin, stdout }: Terminal, end: () => void, redraw: () => void): () => void {
  const keys = (typed: Buffer): void => {
    // q, Q, and Ctrl-C and Ctrl-D, which a terminal in this mode hands on as they are; any other key looks at once.
    if (/[qQ\u0003\u0004]/.test(typed.toString('latin1'))) end();
    else redraw();
  };
  const raw = stdin.isTTY;
  if (raw) {
    stdin.setRawMode(true);
    stdin.on('data', keys);
  }
  stdout.on('resize', redraw);
  for (const signal of SIGNALS) process.on(signal, end);
  stdout.write(ENTER);
  return () => {
    for (const signal of SIGNALS) process.off(signal, end);
    stdout.off('resize', redraw);
    if (raw) {
      stdin.off('data', keys);
      stdin.setRawMode(false);
      stdin.pause();
    }
    stdout.write(LEAVE);
  };
}

/** The lines for a terminal of this width: three of totals, an empty one, a heading, one a lane. */
export function topText(view: TopView, columns: number): string[] {
  const { rates } = view;
  const head = [
    `postern ${clock(view.at, view.at)} UTC  a second: ${rate(rates.accepted)} in, ${rate(rates.delivered)} delivered, ${rate(rates.deferred)} deferred, ${rate(rates.failed)} failed`,
    `queue ${count(view.recipients)} recipients, ${count(view.messages)} messages; disk ${size(view.disk_free_bytes)} free`,
    `spool ${size(view.segment_bytes)}, ${size(view.live_bytes)} live; ${count(view.lanes_in_all)} lanes, ${count(view.active)} attempts at work`,
  ];
  return [...head, '', ...laneLines(view, columns)].map((line) => line.replaceAll(/[^\x20-\x7E]/g, '?').slice(0, columns).trimEnd());
}

interface Column {
  readonly name: string;
  readonly cell: (lane: TopLane, view: TopView) => string;
}

const COLUMNS: readonly Column[] = [
  { name: 'ACTIVE', cell: ({ active, connections }) => `${active}/${connections}` },
  { name: 'DUE', cell: ({ due }, { counted_to: most }) => (due >= most ? `${most}+` : String(due)) },
  { name: 'SENT/S', cell: ({ delivered }) => rate(delivered) },
  { name: 'DEFER/S', cell: ({ deferred }) => rate(deferred) },
  { name: 'FAIL/S', cell: ({ failed }) => rate(failed) },
  { name: 'QUEUES', cell: ({ queues }) => String(queues) },
];
// Less than that of a lane's name or of what holds it says nothing.
const NAME_LEAST = 16;
const HELD_LEAST = 16;
const NAME_SHARE = 0.4;

/** On a narrow terminal the last of the numbers go first, then what holds the lane. */
function laneLines(view: TopView, columns: number): string[] {
  if (view.lanes.length === 0) return ['no lane has anything to do'];
  const cells = COLUMNS.map(({ name, cell }) => [name, ...view.lanes.map((lane) => cell(lane, view))]);
  const widths = cells.map((column) => Math.max(...column.map((text) => text.length)) + 2);
  let kept = COLUMNS.length;
  const rest = (): number => columns - widths.slice(0, kept).reduce((a, b) => a + b, 0);
  while (kept > 2 && rest() < NAME_LEAST + HELD_LEAST + 2) kept--;
  const longest = Math.max(4, ...view.lanes.map(({ lane }) => lane.length));
  const nameWidth = Math.max(NAME_LEAST, Math.min(longest, Math.floor(rest() * NAME_SHARE)));
  return ['LANE', ...view.lanes.map(({ lane }) => lane)].map((name, row) => [
    shortened(name, nameWidth).padEnd(nameWidth), ...cells.slice(0, kept).map((column, i) => (column[row] ?? '').padStart(widths[i] ?? 0)),
    '  ', row === 0 ? 'HELD BY' : holdText(view.lanes[row - 1], view.at),
  ].join(''));
}

function holdText(lane: TopLane | undefined, now: number): string {
  if (lane?.held === undefined) return '';
  const { what, until } = lane.held;
  return until > now ? `until ${clock(until, now)}: ${what}` : what;
}

/** The middle goes: a lane begins with its source and ends with the domain of its hosts. */
function shortened(text: string, width: number): string {
  if (text.length <= width) return text;
  const front = Math.floor((width - 2) / 2);
  return `${text.slice(0, front)}..${text.slice(text.length - (width - 2 - front))}`;
}

/** The time of day; with the date where it is more than a day from now. */
function clock(at: number, now: number): string {
  const iso = new Date(at).toISOString();
  return Math.abs(at - now) < 86_400_000 ? iso.slice(11, 19) : iso.slice(0, 16).replace('T', ' ');
}

const rate = (value: number): string => (value === 0 ? '0' : value < 100 ? value.toFixed(1) : String(Math.round(value)));
const count = (value: number): string => value.toLocaleString('en-US');

function size(octets: number): string {
  const unit = Math.min(4, Math.max(0, Math.floor(Math.log2(Math.max(1, octets)) / 10)));
  return `${(octets / 1_024 ** unit).toFixed(unit === 0 ? 0 : 1)} ${['B', 'KiB', 'MiB', 'GiB', 'TiB'][unit] ?? ''}`;
}
