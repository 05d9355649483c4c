// Sends one message through a relay with SMTP AUTH, as an application would, and prints what the relay
// answered for each recipient. Exit status 0 when everybody was accepted, 1 otherwise.
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { Command } from 'commander';
import { createTransport } from 'nodemailer';

const home = resolve(import.meta.dirname, '../var/sandbox/etc');
const HTML = '<html><body><h1>It works</h1><p><a href="https://demo.example/first?from=mail">A first link</a></p></body></html>';

const command = new Command('scripts/send')
  .description('send one message through a relay; by default through the sandbox that npm start runs')
  .requiredOption('--to <address...>', 'recipients')
  .option('--from <address>', 'author', 'Demo <news@demo.example>')
  .option('--subject <text>', 'subject', 'A first message')
  .option('--html <file>', 'HTML body (a sample where none is given)')
  .option('--host <host>', 'relay', '127.0.0.1')
  .option('--port <port>', 'port: 2465 for implicit TLS, 2587 for STARTTLS', '2465')
  .option('--user <name>', 'SMTP AUTH username', 'demo-app')
  .option('--secret-file <file>', 'file with the secret', `${home}/demo.secret`)
  .option('--json', 'print the outcome as JSON')
  .parse();
const options = command.opts<{ to: string[]; from: string; subject: string; html?: string; host: string; port: string; user: string; secretFile: string; json?: boolean }>();

const transport = createTransport({
  host: options.host, port: Number(options.port), secure: options.port.endsWith('465'),
  auth: { user: options.user, pass: readFileSync(options.secretFile, 'utf8').trim() },
  tls: { rejectUnauthorized: false }, // the sandbox's certificate is its own
});
try {
  const html = options.html === undefined ? HTML : readFileSync(options.html, 'utf8');
  const info = await transport.sendMail({
    from: options.from, to: options.to.length === 1 ? options.to[0] : 'undisclosed-recipients:;', subject: options.subject, html, text: 'It works.',
    envelope: { from: /<(.*)>/.exec(options.from)?.[1] ?? options.from, to: options.to },
  });
  const rejected = (info.rejectedErrors ?? []).map((error) => error.response ?? error.message);
  if (options.json === true) console.log(JSON.stringify({ accepted: info.accepted, rejected, reply: info.response }));
  else for (const text of [info.response, ...rejected]) console.log(text);
  process.exitCode = rejected.length === 0 ? 0 : 1;
} catch (error) {
  const said = error instanceof Error && 'response' in error && typeof error.response === 'string' ? error.response : String(error);
  console.log(options.json === true ? JSON.stringify({ accepted: [], rejected: [said] }) : said);
  process.exitCode = 1;
}
