// The postern command. Commands about the configuration work on the tree alone; commands about people
// and the queue talk to the running daemon through its socket, or open the stores themselves when none
// runs. Exit status: 0 done, 1 the answer is no or something is wrong, 2 the command line is off.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { Command, Option } from 'commander';
import {
  askPeople, callControl, changes, describeImport, holdsText, importFile, operationsOf, peopleText, queueText, runTop, shapingText, show, table, tally,
  type Ask, type Decision, type ImportFileOptions, type ShownHolds, type ShownShaping, type TopView,
} from './admin/index.ts';
import { messagesIn, readBounce } from './feedback/index.ts';
import { MailError, printable } from './mail/index.ts';
import { openLog, systemClock } from './runtime/index.ts';
import { controlSocket, openStores, serve } from './main.ts';
import { addApiToken, addCredential, API_SCOPES, describeSettings, diffPolicies, formatProblem, loadSettings, shippedBounces, type Settings, type Tenant } from './settings/index.ts';
import { dnsRecords, generateKey } from './sign/index.ts';

interface Common {
  readonly config?: string;
  readonly json?: boolean;
}

const root = new Command('postern')
  .description('A self-hosted MTA with a compliance gateway.')
  .showHelpAfterError('(--help lists what is possible)')
  .configureOutput({ outputError: (text, write) => write(`postern: ${text}`) })
  .exitOverride((error) => process.exit(error.exitCode === 0 ? 0 : 2));

/** A command with the two options every command has. */
function command(parent: Command, name: string, about: string): Command {
  return parent.command(name).description(about)
    .option('--config <dir>', 'configuration tree (default /etc/postern, else ./config)')
    .option('--json', 'print JSON');
}

function group(name: string, about: string): Command {
  return root.command(name).description(about);
}

function configDir(options: Common): string {
  if (options.config !== undefined) return resolve(options.config);
  return existsSync('/etc/postern/postern.yaml') ? '/etc/postern' : resolve('config');
}

function settingsOf(options: Common): Settings {
  const dir = configDir(options);
  const loaded = loadSettings(dir);
  if (loaded.ok) return loaded.settings;
  throw new MailError('E_CONFIG', `${dir} has ${loaded.problems.length} problem(s):\n${loaded.problems.map(formatProblem).join('\n')}`);
}

/** Prints a result as JSON or for people, on whose terminals nothing of a stranger's words works. */
function print(options: Common, result: unknown, text: () => string): void {
  process.stdout.write(`${options.json === true ? JSON.stringify(result) : printable(text())}\n`);
}

/** Writes a file for its owner alone, never over one that is there. */
function writeNew(file: string, content: string): void {
  try {
    writeFileSync(file, content, { mode: 0o600, flag: 'wx' });
  } catch (cause) {
    throw new MailError('E_CONTROL', existsSync(file) ? `${file} exists already; choose another --out` : `${file} cannot be written: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

/** Reads a file, or standard input for `-`. */
function readInput(file: string): Buffer {
  try {
    return readFileSync(file === '-' ? 0 : file);
  } catch (cause) {
    throw new MailError('E_CONTROL', `${file} cannot be read: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

/** Runs an operation in the daemon, or on the stores when no daemon runs. */
async function ask(options: Common, ...[op, params, onProgress]: Parameters<Ask>): Promise<unknown> {
  return (await asker(options))(op, params, onProgress);
}

/** The same for what may take long: at a terminal a line tells how far it is. */
async function askAndWatch(options: Common, op: string, params: Record<string, unknown>, line: (progress: Record<string, unknown>) => string): Promise<unknown> {
  const tty = process.stderr.isTTY && options.json !== true;
  try {
    return await ask(options, op, params, (progress) => void (tty && process.stderr.write(`\r${line(progress)}`)));
  } finally {
    if (tty) process.stderr.write('\r\x1b[K');
  }
}

/** The same for several calls: the stores, where needed, are opened once and closed at exit. */
async function asker(options: Common): Promise<Ask> {
  const socket = controlSocket(settingsOf(options));
  if ((await callControl(socket, 'status', {})) !== 'not-running') {
    return (op, params, onProgress) => callControl(socket, op, params, (line) => 'progress' in line && onProgress?.(line.progress as Record<string, unknown>));
  }
  const stores = await openStores(configDir(options), openLog('silent'));
  closers.push(() => stores.close());
  const operations = operationsOf({ ...stores, settings: () => stores.live.current(), clock: systemClock, lanes: () => [], expel: () => undefined });
  return async (op, params, onProgress) => {
    const operation = operations[op];
    if (operation === undefined) throw new MailError('E_CONTROL', `${op} needs a running daemon`);
    return operation(params, (p) => onProgress?.({ ...p }));
  };
}

const closers: (() => Promise<void>)[] = [];

/** Wraps an action: operational errors become one line and exit status 1. */
function run<A extends unknown[]>(action: (...args: A) => Promise<void> | void): (...args: A) => Promise<void> {
  return async (...args) => {
    try {
      await action(...args);
    } catch (error) {
      if (!(error instanceof MailError)) throw error;
      process.stderr.write(`postern: ${printable(error.message)}\n`);
      process.exitCode = 1;
    } finally {
      for (const close of closers.splice(0)) await close();
    }
  };
}

// ---- the daemon and its configuration ------------------------------------------------------------

command(root, 'serve', 'run the relay in the foreground until SIGTERM or SIGINT; SIGHUP reloads').action(run(async (options: Common) => {
  const daemon = await serve(configDir(options));
  await new Promise<void>((done) => {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => done());
  });
  await daemon.stop();
}));

command(root, 'check', 'check the configuration tree; exit status 0 when it can be used').action((options: Common) => {
  const dir = configDir(options);
  const loaded = loadSettings(dir);
  const problems = loaded.ok ? loaded.warnings : loaded.problems;
  print(options, { ok: loaded.ok, problems }, () =>
    [...problems.map(formatProblem), loaded.ok ? `${dir}: no errors` : `${dir}: ${problems.length} error(s)`].join('\n'));
  process.exitCode = loaded.ok ? 0 : 1;
});

command(group('config', 'look at settings'), 'show', 'print settings: all in force, only those changed, or the defaults')
  .addOption(new Option('--defaults', 'every key with its default and meaning').conflicts(['changed', 'effective']))
  .addOption(new Option('--changed', 'keys that differ from their default').conflicts('effective'))
  .option('--effective', 'every key as it is in force (the default)')
  .action(run((options: Common & { defaults?: boolean; changed?: boolean }) => {
    const mode = options.defaults === true ? 'defaults' : options.changed === true ? 'changed' : 'effective';
    const lines = describeSettings(mode === 'defaults' ? undefined : settingsOf(options), mode);
    print(options, lines, () => table(lines.map((line) => ({ key: line.key, value: line.value, meaning: line.doc }))));
  }));

command(group('credential', 'SMTP AUTH credentials'), 'create', 'make a credential; its secret is printed once and only its hash is kept')
  .requiredOption('--tenant <id>')
  .requiredOption('--stream <id>')
  .requiredOption('--username <name>')
  .requiredOption('--from <address-or-domain...>', 'what it may send as')
  .option('--rate <rate>', 'messages, such as 600/min')
  .action(run((options: Common & { tenant: string; stream: string; username: string; from: string[]; rate?: string }) => {
    const made = addCredential(configDir(options), options.tenant, options);
    print(options, { username: options.username, secret: made.secret }, () => `username  ${options.username}\nsecret    ${made.secret}\nThe secret is not kept anywhere: store it now.`);
  }));

command(group('token', 'tokens of the HTTP API'), 'create', 'make a token; its secret is printed once and only its hash is kept')
  .requiredOption('--tenant <id>').requiredOption('--id <name>', 'what the token is called in the log and in the configuration')
  .addOption(new Option('--scope <scope...>', 'what it may do').choices(API_SCOPES).makeOptionMandatory())
  .action(run(async (options: Common & { tenant: string; id: string; scope: readonly string[] }) => {
    const { secret } = addApiToken(configDir(options), options.tenant, { id: options.id, scopes: options.scope });
    // Before anything else can fail: it is kept nowhere.
    print(options, { id: options.id, scopes: options.scope, secret }, () => [
      `token   ${options.id}`, `secret  ${secret}`, 'The secret is not kept anywhere: store it now. Requests carry it in a header field:', `  Authorization: Bearer ${secret}`,
    ].join('\n'));
    await ask(options, 'token.created', { tenant: options.tenant, id: options.id, scopes: options.scope });
  }));

command(group('dkim', 'signing keys'), 'keygen', 'make a DKIM key; prints the TXT record to publish')
  .addOption(new Option('--kind <kind>', 'algorithm').choices(['rsa', 'ed25519']).default('rsa'))
  .requiredOption('--out <file>', 'where the private key goes (mode 0600, never overwritten)')
  .action(run((options: Common & { kind: 'rsa' | 'ed25519'; out: string }) => {
    const { pem, record } = generateKey(options.kind);
    writeNew(options.out, pem);
    print(options, { file: options.out, record }, () => `${options.out} written. Publish at SELECTOR._domainkey.DOMAIN:\n${record}`);
  }));

command(group('dns', 'DNS records'), 'records', 'print everything the sending domains must publish')
  .option('--tenant <id>', 'only this tenant')
  .option('--domain <name>', 'only this domain')
  .action(run((options: Common & { tenant?: string; domain?: string }) => {
    const settings = settingsOf(options);
    const domains = [...settings.tenants.values()].filter(({ id }) => options.tenant === undefined || id === options.tenant)
      .flatMap((tenant) => tenant.domains).filter(({ name }) => options.domain === undefined || name === options.domain);
    if (domains.length === 0) throw new MailError('E_CONTROL', 'no sending domain of that name is configured');
    const addresses = settings.shaping.egress.map(({ address }) => address);
    const records = domains.flatMap((domain) => dnsRecords({ domain, hostname: settings.server.hostname, addresses }));
    print(options, records, () => records.map(({ name, type, value, why }) => `; ${why}\n${name}. ${type} ${value}`).join('\n'));
  }));

// ---- people --------------------------------------------------------------------------------------

const person = (parent: Command, name: string, about: string): Command =>
  command(parent, name, about).requiredOption('--tenant <id>').requiredOption('--rcpt <address>', 'the person');

const STEP_WORD: Readonly<Record<string, string>> = { passed: 'does not apply', decided: 'decides', shadowed: 'only tried out' };

interface ExplainOptions extends Common {
  readonly tenant?: string;
  readonly stream?: string;
  readonly rcpt?: readonly string[];
  readonly list?: string;
  readonly message?: string;
  readonly messageId?: string;
  readonly policy?: string;
  readonly at?: string;
}

command(root, 'explain', 'say whether people may be mailed on a stream, and why; exit status 0 when all may (with --policy: when nobody is treated otherwise)')
  .option('--tenant <id>').option('--stream <id>').option('--rcpt <address...>', 'a person; may be given several times')
  .option('--list <file>', 'many people, one address a line, - for standard input').option('--message <file>', 'judge this message too')
  .addOption(new Option('--message-id <id>', 'what was decided about a message that was taken, and what that relied on').conflicts(['stream', 'rcpt', 'list', 'message', 'policy', 'at']))
  .option('--policy <dir>', 'a proposed configuration tree, readable by the daemon: who would be treated otherwise under it').option('--at <time>', 'as of then, such as 2027-01-01 (default: now)')
  .action(run(async (options: ExplainOptions) => {
    if (options.messageId !== undefined) return explainSent(options, options.messageId);
    const { tenant: id, stream, rcpt = [], list } = options;
    if (id === undefined || stream === undefined || (rcpt.length === 0 && list === undefined)) return offLine('explain needs --tenant, --stream and --rcpt or --list; or --message-id');
    const message = options.message === undefined ? undefined : readLetter(options.message);
    if (rcpt.length > 1 || list !== undefined || options.policy !== undefined || options.at !== undefined) return explainMany(options, message);
    const result = await ask(options, 'explain', { tenant: id, stream, rcpt: rcpt[0], message }) as { recipient: { answer: string } & Steps; message?: Steps };
    print(options, result, () => show({ ...result, recipient: readable(result.recipient), ...(result.message !== undefined && { message: readable(result.message) }) }));
    process.exitCode = result.recipient.answer === 'yes' ? 0 : 1;
  }));

interface Steps {
  readonly steps?: readonly { readonly rule: string; readonly result: string; readonly says: string }[];
}

/** A verdict with its steps in words. */
function readable({ steps = [], ...verdict }: Steps): object {
  return { ...verdict, steps: steps.map(({ rule, result, says }) => ({ rule, '': STEP_WORD[result] ?? result, says })) };
}

/** The command line is off: says so, with exit status 2. */
function offLine(text: string): never {
  return root.error(`error: ${text}`);
}

// A request holds a megabyte, and base64 makes four octets of three.
const LETTER_OCTETS = 700_000;

function readLetter(file: string): string {
  const raw = readInput(file);
  if (raw.length > LETTER_OCTETS) throw new MailError('E_CONTROL', `${file} is larger than ${LETTER_OCTETS} octets, which is what can be asked about: leave its attachments out`);
  return raw.toString('base64');
}

async function explainMany(options: ExplainOptions, message: string | undefined): Promise<void> {
  const at = options.at === undefined ? undefined : Date.parse(options.at);
  if (Number.isNaN(at)) offLine(`--at: expected a time such as 2027-01-01 or 2027-01-01T12:00:00Z, got ${JSON.stringify(options.at)}`);
  const listed = options.list === undefined ? [] : readInput(options.list).toString('utf8').split('\n').map((line) => line.trim()).filter((line) => line !== '');
  const { people, coming, letter } = await askPeople(await asker(options), {
    tenant: options.tenant ?? '', stream: options.stream ?? '', rcpts: [...options.rcpt ?? [], ...listed],
    ...(options.policy !== undefined && { proposed: resolve(options.policy) }), ...(at !== undefined && { at }), ...(message !== undefined && { message }),
  });
  const otherwise = changes(people);
  if (options.json === true) {
    for (const one of people) process.stdout.write(`${JSON.stringify(one)}\n`);
    process.stdout.write(`${JSON.stringify({ summary: tally(people), ...(options.policy !== undefined && { changed: otherwise.length, coming }), ...letter })}\n`);
  } else {
    process.stdout.write(`${peopleText(people, options.policy, coming)}\n`);
    for (const [name, verdict] of Object.entries(letter ?? {})) process.stdout.write(`\nmessage${name === 'proposed' ? `, under ${String(options.policy)}` : ''}\n${show(readable(verdict), '  ')}\n`);
  }
  const same = otherwise.length === 0 && (letter?.proposed === undefined || (letter.proposed.answer === letter.message.answer && letter.proposed.rule === letter.message.rule));
  process.exitCode = (options.policy === undefined ? people.every(({ answer }) => answer === 'yes') : same) ? 0 : 1;
}

async function explainSent(options: Common, id: string): Promise<void> {
  const result = await ask(options, 'explain.decision', { id }) as { recipients: readonly Decision[] };
  const { recipients, ...message } = result;
  print(options, result, () => [show(message), ...recipients.map((one) => `\n${show(one)}`)].join('\n'));
}

const consent = group('consent', 'who said yes');
person(consent, 'add', 'record a consent given outside')
  .requiredOption('--purpose <name>').requiredOption('--source <text>', 'where it was given: form, counter, contract')
  .option('--policy <version>', 'policy version it was given under (default: the one in force)')
  .option('--opens <mode>', 'none, aggregate, lastOpenDate or individual', 'none').option('--clicks <mode>', 'none or individual', 'none')
  .option('--basis <basis>', 'legal basis', 'gdpr_6_1_a').option('--method <method>', 'how', 'operator')
  .action(simple('consent.add'));
person(consent, 'withdraw', 'record a withdrawal; it holds for mail that waits, too').option('--purpose <name>', 'only this purpose').action(simple('consent.withdraw'));
person(consent, 'show', 'print what is on record').action(simple('consent.show'));
person(consent, 'invite', 'ask a person by mail to confirm a consent that is pending').requiredOption('--purpose <name>')
  .option('--lang <language>', 'of the letter and its page', 'en').action(simple('consent.invite'));
importing(command(consent, 'import <file>', 'import consents from CSV (header line) or NDJSON; - for standard input'), 'consent.import');

command(root, 'classify <file...>', 'say what mail that came back means: bounces, complaints, automatic answers; an mbox holds several, - is standard input')
  .action(run(async (files: string[], options: Common) => {
    // Without a configuration the rules shipped here hold.
    const rules = options.config === undefined ? shippedBounces() : settingsOf(options).bounces;
    // One by one: a file that cannot be read is told of, and the others still have their answers.
    for (const file of files) await run(async () => {
      for (const raw of messagesIn(readInput(file))) {
        const found = await readBounce(raw, rules);
        print(options, { file, ...found }, () => `${file}: ${found.kind}\n${table(found.recipients.map((one) => ({ ...one, hard: one.hard ? 'the address is no good' : '' })))}`);
      }
    })();
  }));

const keys = group('keys', 'keys of the tokens in recipients\' links');
command(keys, 'rotate', 'make a new key: it seals from now on, older ones still open').requiredOption('--tenant <id>').action(simple('keys.rotate'));
command(keys, 'retire', 'forget an older key: links it sealed lead nowhere any more').requiredOption('--tenant <id>')
  .requiredOption('--key <id>', 'as rotate prints it').option('--yes', 'really').action(simple('keys.retire'));

const suppression = group('suppress', 'who must not be mailed');
person(suppression, 'add', 'suppress an address').option('--cause <cause>', 'manual, objection, complaint, ...', 'manual')
  .option('--scope <scope>', 'all, purpose:NAME or stream:NAME', 'all').action(simple('suppress.add'));
person(suppression, 'remove', 'lift an address\'s suppressions').action(simple('suppress.remove'));
command(suppression, 'list', 'list suppressions (by keyed hash: addresses are not stored)').requiredOption('--tenant <id>').option('--limit <n>', 'rows', Number)
  .action(simple('suppress.list'));
importing(command(suppression, 'import <file>', 'import suppressions from CSV (header line) or NDJSON; - for standard input'), 'suppress.import');

const subject = group('subject', 'what a person may ask of a tenant');
person(subject, 'export', 'print everything that is held of a person, as JSON: consents, suppressions, log, events, waiting mail').option('--out <file>', 'write it there (never over a file)')
  .action(run(async (options: Common & { out?: string }) => {
    const result = await ask(options, 'subject.export', { ...options });
    const document = JSON.stringify(result, undefined, options.json === true ? 0 : 2);
    if (options.out === undefined) process.stdout.write(`${document}\n`);
    else {
      writeNew(options.out, `${document}\n`);
      print(options, { file: options.out }, () => `written to ${options.out ?? ''}`);
    }
  }));
person(subject, 'erase', 'forget a person for good; a suppression stays, so that nobody mails them again').option('--yes', 'really').action(simple('subject.erase'));
person(subject, 'restrict', 'do not use a person\'s data: no mail until it is lifted').option('--off', 'lift it').action(simple('subject.restrict'));

const policy = group('policy', 'versions of a tenant\'s privacy policy');
command(policy, 'list', 'list the versions: which is in force, and what others wait for').requiredOption('--tenant <id>').action(run(async (options: Common) => {
  const result = await ask(options, 'policy.list', { ...options }) as { policies: Record<string, unknown>[] };
  print(options, result, () => table(result.policies));
}));
command(policy, 'diff <from> <to>', 'say in words what one version changes against another').requiredOption('--tenant <id>')
  .action(run((from: string, to: string, options: Common & { tenant: string }) => {
    const known = settingsOf(options).tenants.get(options.tenant);
    if (known === undefined) throw new MailError('E_CONTROL', `no tenant ${JSON.stringify(options.tenant)}; there are: ${[...settingsOf(options).tenants.keys()].join(', ')}`);
    const diff = diffPolicies(versionOf(known, from), versionOf(known, to));
    print(options, diff, () => [
      ...diff.narrows.map((line) => `- ${line}`), ...diff.widens.map((line) => `+ ${line}`), ...(diff.narrows.length + diff.widens.length === 0 ? ['nobody is treated otherwise'] : []),
      diff.text === 'same' ? 'the text is the same' : 'the text is another',
    ].join('\n'));
  }));
command(policy, 'publish <version>', 'say that a version\'s page is published, where the daemon cannot see it').requiredOption('--tenant <id>')
  .action(run(async (version: string, options: Common) => {
    const result = await ask(options, 'policy.publish', { ...options, version });
    print(options, result, () => show(result));
  }));

// ---- the ledger ----------------------------------------------------------------------------------

const ledger = group('ledger', 'the tenants\' logs, which prove what was said');
command(ledger, 'verify', 'check that the logs are whole and agree with the journal; exit status 1 when one does not').option('--tenant <id>', 'only this tenant')
  .action(run(async (options: Common & { tenant?: string }) => {
    const result = await askAndWatch(options, 'ledger.verify', { ...options }, ({ tenant: id, leaves, of }) => `${String(id)}: ${String(leaves)} of ${String(of)} leaves`) as { ok: boolean; tenants: { tenant: string; ok: boolean; first_bad?: number; journal: { compared: number; gone: number } }[] };
    print(options, result, () => table(result.tenants.map(({ ok, journal, tenant: id, first_bad: bad, ...rest }) => ({
      tenant: id, '': ok ? 'good' : 'BAD', ...rest, first_bad: bad, 'journal files': `${journal.compared} ${ok ? 'agree' : 'compared'}${journal.gone === 0 ? '' : `, ${journal.gone} gone`}`,
    }))));
    process.exitCode = result.ok ? 0 : 1;
  }));
command(ledger, 'receipt', 'print what proves one entry, for scripts/verify-receipt: the last of a person and purpose, or a leaf by number').requiredOption('--tenant <id>')
  .option('--rcpt <address>', 'the person').option('--purpose <name>').addOption(new Option('--leaf <n>').argParser(Number).conflicts(['rcpt', 'purpose'])).option('--out <file>', 'write it there (never over a file)')
  .action(run(async (options: Common & { tenant: string; out?: string }) => {
    const receipt = await ask(options, 'ledger.receipt', { ...options }) as { leaf: number; size: number; verifier_key: string };
    if (options.out === undefined) process.stdout.write(`${JSON.stringify(receipt, undefined, options.json === true ? 0 : 2)}\n`);
    else {
      writeNew(options.out, `${JSON.stringify(receipt, undefined, 2)}\n`);
      print(options, { file: options.out, leaf: receipt.leaf, size: receipt.size }, () => `leaf ${receipt.leaf} of ${receipt.size} written to ${options.out}. Check it with\n  scripts/verify-receipt ${options.out} --key ${receipt.verifier_key}`);
    }
  }));
command(ledger, 'checkpoint', 'print the signed state of a log and the key that verifies it: keep both apart').requiredOption('--tenant <id>')
  .action(run(async (options: Common & { tenant: string }) => {
    const result = await ask(options, 'ledger.checkpoint', { ...options }) as { checkpoint: string; verifier_key: string };
    print(options, result, () => `${result.checkpoint}\nverifier key  ${result.verifier_key}`);
  }));

// ---- the queue -----------------------------------------------------------------------------------

const queue = group('queue', 'what waits to be delivered');
command(queue, 'list', 'list waiting recipients').option('--tenant <id>').option('--domain <name>').option('--campaign <name>', "of one tenant, by its application's header").option('--limit <n>', 'rows', Number).option('--after <cursor>', 'go on behind this row')
  .action(run(async (options: Common) => {
    const result = await ask(options, 'queue.list', { ...options });
    print(options, result, () => queueText(result));
  }));
command(queue, 'show <id>', 'show one message and its recipients').action(run(async (id: string, options: Common) => {
  const result = await ask(options, 'queue.show', { id });
  print(options, result, () => show(result));
}));
for (const [name, about] of [
  ['retry', 'try now what waits'], ['hold', 'keep messages where they are'], ['release', 'let held messages go'], ['drop', 'throw messages away; nobody is told'],
] as const) {
  command(queue, `${name} [id]`, about).option('--tenant <id>').option('--domain <name>').option('--campaign <name>', "of one tenant, by its application's header").option('--all', 'the whole queue')
    .action(run(async (id: string | undefined, options: Common) => {
      const result = await askAndWatch(options, `queue.${name}`, { ...options, id }, ({ recipients }) => `${String(recipients)} recipients`);
      print(options, result, () => show(result));
    }));
}

/** `2026-... delivered  lane=... reply="250 ..."`: what differs from event to event, on one line. */
function eventLine({ at, event, id: _id, tenant: _tenant, stream: _stream, message_id: _message, sealed: _sealed, ...fields }: Record<string, unknown>): string {
  const pairs = Object.entries(fields).map(([key, value]) => `${key}=${typeof value === 'string' && !/[ ,]/.test(value) ? value : JSON.stringify(value)}`);
  return `${new Date(Number(at)).toISOString()} ${String(event).padEnd(10)} ${pairs.join(' ')}`;
}

command(root, 'trace <id>', 'print everything that happened to a message').action(run(async (id: string, options: Common) => {
  const result = await ask(options, 'trace', { id }) as { events: Record<string, unknown>[] };
  print(options, result, () => result.events.length === 0 ? 'no events: the journal does not reach back that far, or the id is not ours' : result.events.map(eventLine).join('\n'));
}));

const tenant = group('tenant', 'tenants');
command(tenant, 'suspend <id>', 'stop a tenant: logins, sessions and its queue; recipients can still unsubscribe').requiredOption('--cause <text>', 'why, for the record')
  .action(run(async (id: string, options: Common) => {
    const result = await ask(options, 'suspend', { ...options, tenant: id });
    print(options, result, () => show(result));
  }));
command(tenant, 'resume <id>', 'let a suspended tenant go on').action(run(async (id: string, options: Common) => {
  const result = await ask(options, 'resume', { tenant: id });
  print(options, result, () => show(result));
}));

command(tenant, 'export <id>', 'write everything of a tenant to one file, sealed with a passphrase: it holds the tenant\'s keys').requiredOption('--out <file>', 'where to (never over a file)')
  .option('--passphrase-file <file>', 'what it is sealed with; - for standard input')
  .addOption(new Option('--clear', 'do not seal it: whoever reads the file can read everything').conflicts('passphraseFile'))
  .action(run((id: string, options: Common & { out: string; passphraseFile?: string; clear?: boolean }) => {
    if (options.clear !== true && options.passphraseFile === undefined) return offLine('tenant export needs --passphrase-file, or --clear');
    return transfer('tenant.export', options, { tenant: id, file: resolve(options.out), ...(options.clear === true && { clear: true }) });
  }));
command(tenant, 'import <file>', 'bring in a tenant from what an export wrote').option('--passphrase-file <file>', 'what it was sealed with; - for standard input')
  .action(run((file: string, options: Common & { passphraseFile?: string }) => transfer('tenant.import', options, { file: resolve(file) })));
command(tenant, 'delete <id>', 'destroy a suspended tenant that is not configured any more: its keys, records and mail').option('--yes', 'really')
  .action(run((id: string, options: Common & { yes?: boolean }) => transfer('tenant.delete', options, { tenant: id, yes: options.yes === true })));

const shaping = group('shaping', 'what receivers bear, and what holds mail to them');
command(shaping, 'show <domain>', 'print the limits in force on the way to a domain, and the layer that said each').action(run(async (domain: string, options: Common) => {
  const result = await ask(options, 'shaping.show', { domain }) as ShownShaping;
  print(options, result, () => shapingText(result, table));
}));
command(shaping, 'why <domain>', 'print what holds mail to a domain now, since when and until when').action(run(async (domain: string, options: Common) => {
  const result = await ask(options, 'shaping.why', { domain }) as ShownHolds;
  print(options, result, () => holdsText(result));
}));

const automation = group('automation', 'what receivers\' replies have brought about');
command(automation, 'list', 'print the actions in force, and lanes on their way back').option('--domain <name>', 'only the lanes of this domain').action(run(async (options: Common) => {
  const result = await ask(options, 'automation.list', { ...options }) as { actions: Record<string, unknown>[] };
  print(options, result, () => table(result.actions));
}));
command(automation, 'lift', 'end actions at once: the lane has all its limits again').option('--lane <lane>', 'of this lane, as list prints it').option('--domain <name>', 'of the lanes of this domain')
  .option('--rule <id>', 'that this rule began').option('--all', 'all of them').action(simple('automation.lift'));

command(root, 'status', 'show what the daemon is doing').action(simple('status'));

command(root, 'top', 'show the lanes live, those that matter first; q quits. Prints once where output is no terminal, with --json a line a look')
  .option('--every <seconds>', 'time between two looks', Number, 2).option('--once', 'print once')
  .action(run(async (options: Common & { every: number; once?: boolean }) => {
    if (!(options.every >= 0.2)) return offLine('--every: expected seconds, at least 0.2');
    const asking = await asker(options);
    await runTop((lanes) => asking('top', { lanes }) as Promise<TopView>, options, process);
  }));

function versionOf({ id, policies }: Tenant, version: string): Tenant['policies'][number] {
  const found = policies.find((known) => known.version === version);
  if (found === undefined) throw new MailError('E_CONTROL', `tenant ${id} has no policy version ${JSON.stringify(version)}; it has: ${policies.map((known) => known.version).join(', ')}`);
  return found;
}

/** A whole tenant on its way: long enough to tell how far it is. */
async function transfer(op: string, options: Common & { readonly passphraseFile?: string }, params: Record<string, unknown>): Promise<void> {
  // An editor ends the line; nobody means that to be part of it.
  const passphrase = options.passphraseFile === undefined ? undefined : readInput(options.passphraseFile).toString('utf8').replace(/\r?\n$/, '');
  const result = await askAndWatch(options, op, { ...params, ...(passphrase !== undefined && { passphrase }) }, ({ lines }) => `${String(lines)} lines`);
  print(options, result, () => show(result));
}

function simple(op: string): (options: Common & Record<string, unknown>) => Promise<void> {
  return run(async (options: Common & Record<string, unknown>) => {
    const result = await ask(options, op, { ...options });
    print(options, result, () => show(result));
  });
}

function importing(parent: Command, op: 'consent.import' | 'suppress.import'): void {
  parent.requiredOption('--tenant <id>')
    .addOption(new Option('--format <format>', 'csv or ndjson (default: by the name of the file)').choices(['csv', 'ndjson']))
    .option('--report <file>', 'write every refused row\'s line and reason here, as CSV')
    .option('--from-start', 'begin anew where an earlier import of this file was ended')
    .option('--dry-run', 'check every row and write nothing')
    .option('--window <rows>', 'rows written in one go (default 65536): fewer take less memory and longer', Number)
    .action(run(async (file: string, options: Common & ImportFileOptions) => {
      const result = await importFile(op, file, { ...options, quiet: options.json === true }, await asker(options));
      print(options, result, () => describeImport(file, result, options));
      process.exitCode = result.errors === 0 ? 0 : 1;
    }));
}

await root.parseAsync();
