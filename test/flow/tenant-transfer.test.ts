// A tenant leaves one relay for another as an operator does it: exported to a sealed file, imported where
// the host and the master key are others, judged there as before, and ended here.
import { existsSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { deleteTenant, exportTenant, importTenant, operationsOf, type Desk } from '../../daemon/admin/index.ts';
import { openStores, type Stores } from '../../daemon/main.ts';
import { systemClock, openLog } from '../../daemon/runtime/index.ts';
import { makeTwoTenants, type TwoTenants } from '../lib/two-tenants.ts';

const PASSPHRASE = 'correct horse battery staple';
const still = (): void => undefined;

async function house(t: Test): Promise<TwoTenants> {
  const made = await makeTwoTenants(1); // no mail leaves
  t.teardown(() => made.remove());
  return made;
}

/** Opens the stores of a relay that does not run, as the CLI does. */
async function at<T>(house: TwoTenants, work: (desk: Desk, stores: Stores) => Promise<T>): Promise<T> {
  const stores = await openStores(house.root, openLog('silent'));
  try {
    const { ledger, spool, journal, live } = stores;
    return await work({ settings: () => live.current(), ledger, spool, journal, clock: systemClock, expel: still, lanes: () => [] } as unknown as Desk, stores);
  } finally {
    await stores.close();
  }
}

const explain = (desk: Desk, rcpt: string): Promise<string> => operationsOf(desk)['explain']?.({ tenant: 'acme', stream: 'newsletter', rcpt }, still).then((told) => {
  const { answer, rule, evidence } = (told as { readonly recipient: { readonly answer: string; readonly rule: string; readonly evidence?: string } }).recipient;
  return `${answer} ${rule} ${evidence ?? ''}`;
}) ?? Promise.resolve('no such operation');

t.test('P11: out of one relay, into another, and ended here', async (t) => {
  const [old, fresh] = [await house(t), await house(t)];
  const people = Array.from({ length: 60 }, (_, i) => `p${i}@x.example`);
  await old.record({ acme: { yes: people.slice(0, 40), no: { 'p1@x.example': 'complaint', 'p50@x.example': 'manual' } }, bravo: { yes: people } });
  const file = join(old.dir, 'acme.export');
  const here = await at(old, async (desk, { ledger }) => {
    for (const { hash } of desk.settings().tenants.get('acme')?.policies ?? []) await ledger.published('acme', hash, 'test');
    const stream = [...desk.settings().tenants.get('acme')?.streams.keys() ?? []][0] ?? '';
    t.equal(stream, 'newsletter');
    for (const [params, reason] of [
      [{ tenant: 'acme', file }, /passphrase is missing/], [{ tenant: 'acme', file, passphrase: 'short' }, /shorter than 12/], [{ tenant: 'acme', file: 'acme.export', passphrase: PASSPHRASE }, /absolute/],
      [{ tenant: 'nobody', file, passphrase: PASSPHRASE }, /no tenant "nobody"/], [{ tenant: 'acme', file: '/nowhere/at/all', passphrase: PASSPHRASE }, /cannot be made/],
    ] as const) await t.rejects(exportTenant(desk, params, still), { code: 'E_CONTROL', message: reason });
    t.notOk(existsSync(file));
    const done = await exportTenant(desk, { tenant: 'acme', file, passphrase: PASSPHRASE }, still);
    t.match(done, { tenant: 'acme', sealed: true, octets: statSync(file).size });
    t.equal(statSync(file).mode & 0o777, 0o600);
    await t.rejects(exportTenant(desk, { tenant: 'acme', file, passphrase: PASSPHRASE }, still), { message: /cannot be made.*exist/i }, 'never over a file');
    t.ok(existsSync(file), 'which stays');
    await exportTenant(desk, { tenant: 'acme', file: `${file}.clear`, clear: true }, still);
    const [head] = readFileSync(`${file}.clear`, 'utf8').split('\n');
    t.match(JSON.parse(head ?? ''), { format: 'postern-tenant/1', tenant: 'acme', policies: [{ version: '1', text: /Privacy notice/ }] });
    return Promise.all(people.map((rcpt) => explain(desk, rcpt)));
  });

  // There: the tenant's configuration comes after its data. Its policies are the same texts.
  const yaml = readFileSync(join(fresh.root, 'tenants/acme.yaml'), 'utf8');
  await at(fresh, (desk) => t.rejects(importTenant(desk, { file, passphrase: PASSPHRASE }, still), { code: 'E_CONTROL', message: /already/ }, 'a tenant that is configured has keys and policies'));
  const there = await at(fresh, async (desk) => {
    await operationsOf(desk)['suspend']?.({ tenant: 'acme', cause: 'makes room' }, still);
    await t.rejects(deleteTenant(desk, { tenant: 'acme', yes: true }, still), { message: /is configured/ });
    return desk.settings().tenants.size;
  });
  t.equal(there, 2);
  rmSync(join(fresh.root, 'tenants/acme.yaml'));
  await at(fresh, async (desk) => {
    t.match(await deleteTenant(desk, { tenant: 'acme', yes: true }, still), { leaves: 0, name: /can be used again/ });
    await t.rejects(importTenant(desk, { file, passphrase: `${PASSPHRASE}!` }, still), { code: 'E_CONTROL', message: /passphrase is another/ });
    await t.rejects(importTenant(desk, { file: `${file}.none`, passphrase: PASSPHRASE }, still), { code: 'E_CONTROL', message: /cannot be read/ });
    await t.rejects(importTenant(desk, { file: join(fresh.root, 'postern.yaml') }, still), { code: 'E_CONTROL', message: /not JSON|not one of/ });
    t.match(await importTenant(desk, { file, passphrase: PASSPHRASE }, still), { tenant: 'acme', consents: 40, suppressions: 2, suspended: false, next: /tenants\/acme\.yaml/ });
  });
  writeFileSync(join(fresh.root, 'tenants/acme.yaml'), yaml);
  await at(fresh, async (desk, { ledger }) => {
    t.same(await Promise.all(people.map((rcpt) => explain(desk, rcpt))), here, 'every decision, with its evidence');
    t.match(await ledger.log.verify('acme'), { ok: true });
  });
  t.ok(new Set(here).size > 3, [...new Set(here)].slice(0, 5).join('; '));

  // Here: suspended, out of the configuration, ended; and the name does not come back unnoticed.
  const own = readFileSync(join(old.root, 'tenants/acme.yaml'), 'utf8');
  await at(old, async (desk) => {
    await t.rejects(deleteTenant(desk, { tenant: 'acme' }, still), { message: /--yes/ });
    await operationsOf(desk)['suspend']?.({ tenant: 'acme', cause: 'moved' }, still);
  });
  rmSync(join(old.root, 'tenants/acme.yaml'));
  await at(old, async (desk, { ledger }) => {
    await t.rejects(deleteTenant(desk, { tenant: 'nobody', yes: true }, still), { message: /not suspended, or nothing is recorded/ });
    t.match(await deleteTenant(desk, { tenant: 'acme', yes: true }, still), { dropped: 0, name: /not used again/ });
    t.match(await ledger.log.verify('bravo'), { ok: true }, 'the neighbour is whole');
  });
  t.notOk(existsSync(join(old.dataDir, 'keys/acme.json')));
  writeFileSync(join(old.root, 'tenants/acme.yaml'), own);
  await t.rejects(at(old, () => Promise.resolve()), { code: 'E_CONFIG', message: /acme\.yaml.*was deleted on/ }, 'with its file back nothing starts, and it is said why');
});
