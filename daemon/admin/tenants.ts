// Whole tenants: stopped and let go on, taken elsewhere, ended. Callers may rely on: a suspension ends open sessions at once and
// keeps its first cause; recipients can still unsubscribe.
import { API_SCOPES } from '../settings/index.ts';
import type { Operation } from './control.ts';
import { noteAct, record, type Desk } from './desk.ts';
import { required, tenantOf, wrong } from './params.ts';
import { deleteTenant, exportTenant, importTenant } from './tenant-transfer.ts';

export function tenantOperations(desk: Desk): Readonly<Record<string, Operation>> {
  return {
    suspend: async (params) => {
      const tenant = tenantOf(desk, params);
      const suspension = await desk.ledger.suspend(tenant.id, required(params, 'cause'), 'cli');
      desk.expel(tenant.id);
      record(desk, 'suspended', tenant, undefined, suspension.cause);
      return suspension;
    },
    resume: async (params) => {
      const tenant = tenantOf(desk, params);
      const resumed = await desk.ledger.resume(tenant.id, 'cli');
      if (resumed) record(desk, 'resumed', tenant, undefined, 'by the operator');
      return { resumed };
    },
    'tenant.export': (params, progress) => exportTenant(desk, params, progress),
    'tenant.import': (params, progress) => importTenant(desk, params, progress),
    'tenant.delete': (params, progress) => deleteTenant(desk, params, progress),
    // The token is made in the tenant's file by whoever may write there; this puts it into the tenant's log.
    'token.created': async (params) => {
      const tenant = tenantOf(desk, params);
      const { scopes: asked } = params;
      const scopes = API_SCOPES.filter((scope) => Array.isArray(asked) && asked.includes(scope));
      if (scopes.length === 0) throw wrong(`scopes: expected some of ${API_SCOPES.join(', ')}`);
      await noteAct(desk, tenant.id, 'token-created', { token: required(params, 'id'), scopes });
      return { noted: true };
    },
  };
}
