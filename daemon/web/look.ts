// How the pages look: one style sheet that needs no script, follows the reader's light or dark, reads from
// either side (logical properties only) and fits a phone. The tenant's colour is made darker for the light
// page and lighter for the dark one until text on it and in it can be read, so that no colour has to be
// refused. WCAG 2.2 §1.4.3, §1.4.11, §2.4.7, §2.5.8.

const LIGHT = { page: '#f4f5f7', card: '#ffffff', ink: '#1b1f24', quiet: '#59636e', line: '#d5dae0' };
const DARK = { page: '#101317', card: '#1a1f25', ink: '#e8ebef', quiet: '#a3adb8', line: '#37404a' };
const ACCENT = '#1f5fb0';
// WCAG asks for 4.5; what is rounded on its way to the screen must not fall below.
const CONTRAST = 4.6;

type Rgb = readonly [number, number, number];

const rgbOf = (hex: string): Rgb => [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16)) as unknown as Rgb;
const hexOf = (rgb: Rgb): string => `#${rgb.map((part) => Math.round(part).toString(16).padStart(2, '0')).join('')}`;

/** Relative luminance. WCAG 2.2, definitions. */
function luminance(hex: string): number {
  const [r, g, b] = rgbOf(hex).map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4)) as unknown as Rgb;
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** 1 to 21. */
export function contrast(a: string, b: string): number {
  const [one, other] = [luminance(a), luminance(b)];
  return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
}

/** The colour mixed with black or white, no more than it takes to be read on all of these. */
export function readable(color: string, on: readonly string[], towards: '#000000' | '#ffffff'): string {
  const end = rgbOf(towards);
  for (let part = 0; part < 1; part += 0.02) {
    const mixed = hexOf(rgbOf(color).map((value, i) => value + ((end[i] ?? 0) - value) * part) as unknown as Rgb);
    if (on.every((ground) => contrast(mixed, ground) >= CONTRAST)) return mixed;
  }
  return towards;
}

const variables = (palette: typeof LIGHT, accent: string, onAccent: string): string =>
  `${Object.entries(palette).map(([name, value]) => `--${name}:${value}`).join(';')};--accent:${accent};--on:${onAccent}`;

const RULES = `*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:1.0625rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Noto Sans Devanagari",sans-serif;overflow-wrap:break-word}
.wrap{max-inline-size:42rem;margin-inline:auto;padding-inline:1.25rem;padding-block:2rem 3rem}
header{margin-block-end:1.5rem;font-weight:600;font-size:1.0625rem}
header img{display:block;max-block-size:3.5rem;max-inline-size:14rem;block-size:auto;inline-size:auto}
h1{font-size:1.625rem;line-height:1.25;margin-block:0 .75rem;text-wrap:balance}
h2{font-size:1.1875rem;line-height:1.3;margin-block:0 .375rem}
p{margin-block:0 .875rem}
main>p{max-inline-size:36rem}
a{color:var(--accent);text-underline-offset:.2em}
.card{background:var(--card);border:1px solid var(--line);border-radius:.875rem;padding:1.25rem;margin-block:0 1rem}
.card>:last-child,.card form:last-child>:last-child{margin-block-end:0}
.state{display:flex;gap:.625rem;align-items:baseline}
.state::before{content:"";flex:none;inline-size:.625rem;block-size:.625rem;border-radius:50%;border:2px solid var(--quiet)}
.on::before{background:var(--accent);border-color:var(--accent)}
.note{color:var(--quiet);font-size:.9375rem}
.said{border-inline-start:.3125rem solid var(--accent);background:var(--card);padding:.875rem 1.125rem;border-radius:.5rem;margin-block-end:1.25rem;font-weight:600}
button{font:inherit;font-weight:600;min-block-size:2.75rem;padding:.5rem 1.125rem;border:2px solid var(--accent);border-radius:.625rem;background:transparent;color:var(--accent);cursor:pointer;text-align:center}
button.main{background:var(--accent);color:var(--on)}
button:hover{text-decoration:underline;text-underline-offset:.2em}
:focus-visible{outline:3px solid var(--accent);outline-offset:3px;border-radius:.25rem}
.row{display:flex;flex-wrap:wrap;gap:.75rem;margin-block-end:.875rem}
fieldset{border:0;padding:0;margin:0 0 1rem;min-inline-size:0}
legend{padding:0;font-weight:600;margin-block-end:.375rem}
label{display:flex;gap:.75rem;align-items:flex-start;padding-block:.5rem;cursor:pointer}
input[type=radio]{flex:none;inline-size:1.25rem;block-size:1.25rem;margin:.15rem 0 0;accent-color:var(--accent)}
details{border-block-start:1px solid var(--line);margin-block-start:1rem;padding-block-start:.25rem}
summary{cursor:pointer;padding-block:.625rem;font-weight:600;color:var(--accent)}
details form{padding-block-start:.5rem}
ul{padding-inline-start:1.25rem;margin-block:0 .875rem}
code{font-size:.8125rem;overflow-wrap:anywhere;color:var(--quiet)}
.text{white-space:pre-wrap}
footer{margin-block-start:2.5rem;padding-block-start:1.25rem;border-block-start:1px solid var(--line);color:var(--quiet);font-size:.9375rem}
nav ul{list-style:none;padding:0;margin:1rem 0 0;display:flex;flex-wrap:wrap;gap:.25rem 1.25rem}
nav li a,nav li b{display:inline-block;padding-block:.375rem}
nav b{color:var(--ink)}
@media(max-width:30rem){.wrap{padding-block-start:1.25rem}button{inline-size:100%}}
`;

const SHEETS = new Map<string, string>();

/** The whole style sheet for a tenant's colour. */
export function styleOf(color: string = ACCENT): string {
  let sheet = SHEETS.get(color);
  if (sheet === undefined) {
    const light = readable(color, [LIGHT.page, LIGHT.card], '#000000');
    const dark = readable(color, [DARK.page, DARK.card], '#ffffff');
    sheet = `:root{color-scheme:light dark;${variables(LIGHT, light, '#ffffff')}}
@media(prefers-color-scheme:dark){:root{${variables(DARK, dark, '#101317')}}}
${RULES}`;
    SHEETS.set(color, sheet);
  }
  return sheet;
}
