// Which hits come from machines, as data: one rule a line, the first that fits names the hit. Only what a
// request says of itself is looked at (its method and two or three headers), never where it comes from, so
// that no address has to be kept or compared. A scanner that passes itself off as a browser is not found
// here, and no list would find it. Every rule has a fixture in test/web/machines.json that only it meets.
import type { IncomingMessage } from 'node:http';

/** `proxy`: fetches an image in a person's place, though not always when they look; the others, unasked. */
export type MachineKind = 'prefetch' | 'proxy' | 'scanner' | 'preview' | 'robot';

export interface MachineRule {
  /** The `class` of events; for ever. */
  readonly id: string;
  readonly kind: MachineKind;
  /** `:method` is the method; of several headers any may fit. An absent one is ''. */
  readonly headers: readonly string[];
  readonly pattern: RegExp;
  /** Who says that it calls itself so. */
  readonly source: string;
}

const AGENT = ['user-agent'] as const;

export const MACHINES: readonly MachineRule[] = [
  { id: 'head-request', kind: 'robot', headers: [':method'], pattern: /^HEAD$/, source: 'RFC 9110 §9.3.2: no mail program shows an image or a page of which it asks only the header' },
  // Prefetchers: a browser that guesses where its person goes next.
  { id: 'prefetch', kind: 'prefetch', headers: ['sec-purpose', 'purpose', 'x-purpose', 'x-moz'], pattern: /prefetch|prerender|preview/i, source: 'Fetch standard, Sec-Purpose; Purpose (WebKit, Chromium) and X-moz (Gecko) before it' },
  { id: 'apple-mail-privacy', kind: 'prefetch', headers: AGENT, pattern: /^Mozilla\/5\.0$/, source: 'Apple Mail Privacy Protection (iOS 15, macOS 12, 2021) fetches every image when mail arrives, under this name alone' },
  // Image proxies.
  { id: 'gmail-image-proxy', kind: 'proxy', headers: AGENT, pattern: /GoogleImageProxy|ggpht\.com/, source: 'Gmail since December 2013: "(via ggpht.com GoogleImageProxy)"' },
  { id: 'yahoo-mail-proxy', kind: 'proxy', headers: AGENT, pattern: /YahooMailProxy/, source: 'help.yahoo.com/kb/yahoo-mail-proxy-SLN28749.html, which stands in its own name' },
  // Security scanners, where they say what they are.
  { id: 'outlook-safelinks', kind: 'scanner', headers: AGENT, pattern: /SafeLinks|Microsoft-URLAnalyzer|BingPreview\//i, source: 'Microsoft Defender for Office 365; outlook.com opens links as BingPreview' },
  { id: 'office-discovery', kind: 'scanner', headers: AGENT, pattern: /Microsoft Office (?:Existence|Protocol) Discovery/, source: 'Office asks a link what it is before it opens a browser' },
  { id: 'barracuda', kind: 'scanner', headers: AGENT, pattern: /Barracuda/i, source: 'Barracuda Sentinel (EE), Link Protection' },
  { id: 'proofpoint', kind: 'scanner', headers: AGENT, pattern: /proofpoint|urldefense/i, source: 'Proofpoint URL Defense, where it does not pass for a browser' },
  { id: 'mimecast', kind: 'scanner', headers: AGENT, pattern: /mimecast/i, source: 'Mimecast URL Protect, where it does not pass for a browser' },
  { id: 'cisco', kind: 'scanner', headers: AGENT, pattern: /IronPort|CiscoSecureEmail/i, source: 'Cisco Secure Email, formerly IronPort' },
  { id: 'other-scanner', kind: 'scanner', headers: AGENT, pattern: /TrendMicro|TMES|Symantec|FireEye|Trellix|Forti(?:Guard|Mail)|Sophos|Kaspersky|SonicWALL|urlscan/i, source: 'the names of further mail gateways and sandboxes' },
  // Link previews in chats: somebody passed the link on, nobody has clicked it yet.
  { id: 'slack-preview', kind: 'preview', headers: AGENT, pattern: /Slackbot|Slack-ImgProxy/, source: 'api.slack.com/robots' },
  { id: 'teams-preview', kind: 'preview', headers: AGENT, pattern: /SkypeUriPreview|MicrosoftPreview\/|Teams\/.*\bPreview\b/, source: 'Microsoft Teams and Skype: "SkypeUriPreview Preview/0.5"' },
  { id: 'chat-preview', kind: 'preview', headers: AGENT, pattern: /facebookexternalhit|Facebot|WhatsApp\/|TelegramBot|Twitterbot|LinkedInBot|Discordbot|Mastodon\/|Iframely/i, source: 'each one\'s own page for webmasters' },
  // Programs.
  { id: 'program', kind: 'robot', headers: AGENT, pattern: /^(?:curl|Wget|python|Java|Go-http-client|libwww-perl|okhttp|axios|node|undici|Apache-HttpClient|Ruby|PHP|aiohttp|Dart|PostmanRuntime|HTTPie|Deno|Bun)\b|HeadlessChrome|PhantomJS|python-(?:requests|urllib)/i, source: 'the default name of each library' },
  { id: 'robot', kind: 'robot', headers: AGENT, pattern: /bot\b|crawl|spider|\bscan|archiver|\bpreview\b|monitor/i, source: 'what robots are asked to call themselves, RFC 9309 §2.2.1' },
  { id: 'nameless', kind: 'robot', headers: AGENT, pattern: /^\s*$/, source: 'RFC 9110 §10.1.5: every browser and mail program sends its name' },
];

/** The rule a request meets; undefined for what looks like a person's program. */
export function machineOf(request: Pick<IncomingMessage, 'method' | 'headers'>): MachineRule | undefined {
  return MACHINES.find(({ headers, pattern }) => headers.some((name) => says(request, name, pattern)));
}

function says({ method = '', headers }: Pick<IncomingMessage, 'method' | 'headers'>, name: string, pattern: RegExp): boolean {
  if (name === ':method') return pattern.test(method);
  const value = headers[name];
  // Names of a kibioctet and more are nobody's; the bound keeps a hostile one cheap.
  return pattern.test(typeof value === 'string' ? value.slice(0, 1_024) : '');
}
