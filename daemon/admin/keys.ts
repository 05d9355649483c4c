// The keys of the tokens in recipients' links: a new one seals from now on, and what older ones sealed opens
// until they are retired. Callers may rely on: each act is a leaf of the tenant's log, and a link a mail
// profile still asks to work is only broken by a retirement, which has to be meant.
import type { Operations } from './control.ts';
import { noteAct, type Desk } from './desk.ts';
import { required, tenantOf, wrong } from './params.ts';

export function keyOperations(desk: Desk): Operations {
  return {
    'keys.rotate': async (params) => {
      const { id } = tenantOf(desk, params);
      const [newest = '', ...older] = desk.keyring.rotateToken(id);
      await noteAct(desk, id, 'token-key-made', { key: newest });
      return { tenant: id, seals: newest, opens: [newest, ...older] };
    },
    'keys.retire': async (params) => {
      const { id } = tenantOf(desk, params);
      const key = required(params, 'key');
      if (params['yes'] !== true) throw wrong('links this key sealed lead nowhere any more, unsubscribing included: wait until no law or reader needs them, then say --yes');
      const [newest = '', ...older] = desk.keyring.retireToken(id, key);
      await noteAct(desk, id, 'token-key-retired', { key });
      return { tenant: id, seals: newest, opens: [newest, ...older] };
    },
  };
}
