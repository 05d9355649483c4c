// Whole tenants: stopped and let go on. Callers may rely on: a suspension ends open sessions at once and
// keeps its first cause; recipients can still unsubscribe.
import type { Operation } from './control.ts';
import { record, type Desk } from './desk.ts';
import { required, tenantOf } from './params.ts';

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
  };
}
