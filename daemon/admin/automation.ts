// The operator's hand on what replies have brought about: to see it, and to end it. Ending is an event of
// the journal like any other end. Only a running daemon has actions in force.
import { routeSite } from './shaping.ts';
import type { Action } from '../schedule/index.ts';
import { formatRate } from '../settings/index.ts';
import type { Operation } from './control.ts';
import type { Desk } from './desk.ts';
import { text, wrong, type Params } from './params.ts';

export function automationOperations(desk: Desk): Readonly<Record<string, Operation>> {
  return {
    'automation.list': async (params) => {
      const fits = await fitting(desk, params);
      return { actions: (desk.automation?.list() ?? []).filter(fits).map(({ rate, ...one }) => ({ ...one, ...(rate !== undefined && { rate: formatRate(rate) }) })) };
    },
    'automation.lift': async (params) => {
      if (['lane', 'domain', 'rule'].every((name) => text(params, name) === '') && params['all'] !== true) throw wrong('say which: --lane, --domain, --rule, or --all');
      return { lifted: desk.automation?.lift(await fitting(desk, params), 'cli') ?? 0 };
    },
  };
}

async function fitting(desk: Desk, params: Params): Promise<(action: Action) => boolean> {
  const [lane, rule] = [text(params, 'lane'), text(params, 'rule')];
  const site = text(params, 'domain') === '' ? '' : await routeSite(desk, params);
  return (one) => (lane === '' || one.lane === lane) && (rule === '' || one.rule === rule) && (site === '' || one.lane.slice(one.lane.indexOf('/') + 1) === site);
}
