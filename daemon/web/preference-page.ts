// The words and buttons of the preference page, and of the two about being forgotten. Every form posts to the
// page itself and names what it changes. Callers may rely on: nothing here reads or changes anything, and no
// page holds its own token.
import { CLICK_MODES, OPEN_MODES, type ClickMode, type OpenMode } from '../mail/index.ts';
import type { Policy } from '../settings/index.ts';
import { html, type Html } from './html.ts';
import { nameOfPurpose, type Desk, type Sheet } from './layout.ts';
import type { PurposeLine, PurposeState, Standing } from './person.ts';
import { dayIn } from './texts.ts';

const STATE_TEXT = {
  on: 'is_on', off: 'is_off', pending: 'is_pending', paused: 'is_paused', stopped: 'is_stopped', needed: 'is_needed',
} as const satisfies Record<PurposeState, string>;
const NOTHING: readonly Html[] = [];

export function preferencePage(desk: Desk, { policy, lines, pausedUntil }: Standing, said: string | undefined): Sheet {
  const choices = lines.filter(({ state }) => state !== 'needed');
  const isAnyOn = choices.some(({ state }) => state === 'on' || state === 'paused');
  return {
    title: desk.say('title'),
    body: html`${said === undefined ? NOTHING : html`<p class="said" role="status">${said}</p>
`}<p>${desk.say('intro')}</p>
${choices.map((line) => lineCard(desk, line, policy))}
${isAnyOn && choices.length > 1 ? form(desk, 'stop-all', html``, html`<div class="row"><button type="submit">${desk.say('stop_all')}</button></div>`) : NOTHING}
${lines.filter((line) => !choices.includes(line)).map((line) => lineCard(desk, line, policy))}
<section class="card" aria-labelledby="pause"><h2 id="pause">${desk.say('pause_title')}</h2>
${pausedUntil === undefined ? html`<p>${desk.say('pause')}${lines.some(({ state }) => state === 'needed') ? ` ${desk.say('pause_needed')}` : ''}</p>
${form(desk, 'pause', html``, html`<div class="row"><button type="submit" name="days" value="30">${desk.say('pause_30')}</button><button type="submit" name="days" value="90">${desk.say('pause_90')}</button></div>`)}`
    : html`<p class="state">${desk.say('is_paused', { date: dayIn(desk.language, pausedUntil) })}</p>
${form(desk, 'resume', html``, html`<div class="row"><button class="main" type="submit">${desk.say('resume')}</button></div>`)}`}</section>
<section class="card" aria-labelledby="erase"><h2 id="erase">${desk.say('erase_title')}</h2>
<p>${desk.say('erase')}</p>
<p><a href="?step=erase&amp;lang=${desk.language}">${desk.say('erase_go')}</a></p></section>`,
  };
}

/** One purpose: how it stands, the one button that changes it, and what may be measured. */
function lineCard(desk: Desk, line: PurposeLine, policy: Policy | undefined): Html {
  const { purpose, state, consent, until } = line;
  const id = `purpose-${purpose}`;
  const since = consent?.state === 'given' ? consent.givenAt : undefined;
  const text = state === 'on' && since !== undefined ? desk.say('is_on_since', { date: dayIn(desk.language, since) })
    : desk.say(STATE_TEXT[state], until === undefined ? {} : { date: dayIn(desk.language, until) });
  const isOn = state === 'on' || state === 'paused';
  return html`<section class="card" aria-labelledby="${id}"><h2 id="${id}">${nameOfPurpose(purpose)}</h2>
<p class="state${state === 'on' || state === 'needed' ? ' on' : ''}">${text}</p>
${isOn ? form(desk, 'stop', hidden('purpose', purpose), html`<div class="row">${button(desk.say('stop'), id)}</div>`) : NOTHING}
${(state === 'off' || state === 'pending') && policy !== undefined ? form(desk, 'start', hidden('purpose', purpose),
    html`<p class="note">${desk.say('start_note', { version: policy.version })}</p><div class="row">${button(desk.say(consent === undefined ? 'start_new' : 'start'), id, 'main')}</div>`) : NOTHING}
${isOn && since !== undefined && policy !== undefined ? measured(desk, line, policy) : NOTHING}</section>
`;
}

/** Says to a screen reader which purpose it is about. */
function button(text: string, about: string, kind = ''): Html {
  return html`<button type="submit" class="${kind}" aria-describedby="${about}">${text}</button>`;
}

function measured(desk: Desk, { purpose, consent }: PurposeLine, { tracking }: Policy): Html {
  if (consent === undefined) return html``;
  if (tracking.opens === 'none' && tracking.clicks === 'none') return html`<p class="note">${desk.say('measured_off')}</p>`;
  const opens = OPEN_MODES.slice(0, OPEN_MODES.indexOf(tracking.opens) + 1);
  const clicks = CLICK_MODES.slice(0, CLICK_MODES.indexOf(tracking.clicks) + 1);
  const now = { opens: lesser(opens, consent.tracking.opens), clicks: lesser(clicks, consent.tracking.clicks) };
  const choice = (name: 'opens' | 'clicks', mode: OpenMode | ClickMode, text: string): Html =>
    html`<label><input type="radio" name="${name}" value="${mode}"${now[name] === mode ? html` checked` : NOTHING}><span>${text}</span></label>
`;
  return html`<details><summary>${desk.say('measured')}</summary>
${form(desk, 'tracking', hidden('purpose', purpose), html`
${opens.length > 1 ? html`<fieldset><legend>${desk.say('opens')}</legend>
${opens.map((mode) => choice('opens', mode, desk.say(`opens_${mode}`)))}</fieldset>` : NOTHING}
${clicks.length > 1 ? html`<fieldset><legend>${desk.say('clicks')}</legend>
${clicks.map((mode) => choice('clicks', mode, desk.say(`clicks_${mode}`)))}</fieldset>` : NOTHING}
<div class="row">${button(desk.say('save'), `purpose-${purpose}`, 'main')}</div>`)}</details>`;
}

/** The choice on record, or the most that is still allowed. */
function lesser<Mode extends string>(allowed: readonly Mode[], chosen: Mode): Mode | undefined {
  return allowed.includes(chosen) ? chosen : allowed.at(-1);
}

const hidden = (name: string, value: string): Html => html`<input type="hidden" name="${name}" value="${value}">`;

function form(desk: Desk, change: string, fields: Html, rest: Html): Html {
  return html`<form method="post" action="?lang=${desk.language}">${hidden('change', change)}${fields}${rest}</form>`;
}

/** The one question of "stop tracking, keep the mail"; undefined where there is nobody to ask: the preference page tells how things stand. */
export function unmeasurePage(desk: Desk, { lines }: Standing, purpose: string, said: string | undefined): Sheet | undefined {
  const line = lines.find((one) => one.purpose === purpose);
  if (line === undefined || (line.state !== 'on' && line.state !== 'paused') || line.consent === undefined) return undefined;
  const { opens, clicks } = line.consent.tracking;
  const words = { purpose: nameOfPurpose(purpose) };
  const isOff = opens === 'none' && clicks === 'none';
  return {
    title: desk.say('unmeasure_title'),
    step: 'tracking',
    body: html`${said === undefined ? NOTHING : html`<p class="said" role="status">${said}</p>
`}<p id="what">${desk.say(isOff ? 'unmeasured' : 'unmeasure', words)}</p>
${isOff ? NOTHING : html`<form method="post" action="?step=tracking&amp;lang=${desk.language}">${hidden('change', 'tracking')}${hidden('purpose', purpose)}${hidden('opens', 'none')}${hidden('clicks', 'none')}<div class="row">${button(desk.say('unmeasure_button'), 'what', 'main')}</div></form>`}
<p><a href="?lang=${desk.language}">${desk.say('unmeasure_more')}</a></p>`,
  };
}

export function erasePage(desk: Desk, { tenant }: Standing, now: number): Sheet {
  const keepMs = tenant.keepEvidenceMs ?? 0;
  return {
    title: desk.say('erase_ask_title'),
    step: 'erase',
    body: html`<p>${desk.say('erase_ask')}</p>
<section class="card" aria-labelledby="goes"><h2 id="goes">${desk.say('erase_goes_title')}</h2><p>${desk.say('erase_goes')}</p></section>
<section class="card" aria-labelledby="stays"><h2 id="stays">${desk.say('erase_stays_title')}</h2><ul><li>${desk.say('erase_stays')}</li>
<li>${desk.say('erase_logs')}</li>
${keepMs > 0 ? html`<li>${desk.say('erase_keeps', { date: dayIn(desk.language, now + keepMs) })}</li>` : NOTHING}</ul><p class="note">${desk.say('erase_others')}</p></section>
${form(desk, 'erase', hidden('sure', 'yes'), html`<div class="row"><button class="main" type="submit">${desk.say('erase_button')}</button></div>`)}
<p><a href="?lang=${desk.language}">${desk.say('back')}</a></p>`,
  };
}

export function erasedPage(desk: Desk): Sheet {
  return { title: desk.say('erased_title'), body: html`<p role="status">${desk.say('erased')}</p><p class="note">${desk.say('erase_others')}</p>` };
}
