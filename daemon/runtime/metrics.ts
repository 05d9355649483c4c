// Every metric the daemon has, in one place, so that the README's table can be made from it. Label
// values come from closed sets (tenants, streams, rules, lanes named by an operator): never a domain,
// never an address (design §4, test I-8).
import { Counter, Gauge, Histogram, Registry, collectDefaultMetrics } from 'prom-client';

/** One instance a process; rooms get it passed in. */
export class Metrics {
  readonly registry = new Registry();
  readonly accepted = this.#counter('postern_messages_accepted_total', 'Messages answered 250', ['tenant', 'stream']);
  readonly refused = this.#counter('postern_refusals_total', 'Recipients and messages refused at submission, by rule', ['tenant', 'rule']);
  readonly sessions = this.#gauge('postern_submission_sessions', 'Open submission sessions', []);
  readonly authFailures = this.#counter('postern_auth_failures_total', 'Failed logins', []);
  readonly acceptSeconds = this.#histogram('postern_accept_seconds', 'From the end of DATA to the 250, durable', [], [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2]);
  readonly outcomes = this.#counter('postern_outcomes_total', 'Attempts by outcome and bounce class', ['tenant', 'lane', 'result', 'class']);
  readonly attemptSeconds = this.#histogram('postern_attempt_seconds', 'One delivery attempt', ['result'], [0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300]);
  readonly connections = this.#gauge('postern_outbound_connections', 'Open connections to receivers', ['lane']);
  readonly queued = this.#gauge('postern_queue_recipients', 'Recipients who wait', []);
  readonly spoolBytes = this.#gauge('postern_spool_bytes', 'Octets of the spool on disk', ['what']);
  readonly automation = this.#counter('postern_automation_actions_total', 'Actions begun because of what receivers said, by rule', ['rule', 'action', 'lane']);
  readonly automationHeld = this.#gauge('postern_automation_actions', 'Actions in force', ['action']);
  readonly links = this.#counter('postern_links_rewritten_total', 'Links rewritten in delivered copies', []);
  readonly trackers = this.#counter('postern_third_party_trackers_total', 'Trackers of others in delivered copies of who does not allow them; emptied, unless the stream only reports them', []);
  readonly untouched = this.#counter('postern_parts_untouched_total', 'Text parts left as they came, by reason', ['why']);
  readonly hits = this.#counter('postern_page_hits_total', 'What recipients touched', ['page', 'result']);
  readonly returned = this.#counter('postern_returned_total', 'Mail that came back, by what it was and what came of it', ['tenant', 'kind', 'result']);
  readonly inboundRefused = this.#counter('postern_inbound_refusals_total', 'Commands refused at the inbound door, by reason', ['reason']);
  readonly apiRequests = this.#counter('postern_api_requests_total', 'Requests of the tenants\' API, by route and status', ['route', 'status']);
  readonly reloadOk = this.#gauge('postern_config_last_reload_successful', '1 when the tree on disk is the one in force', []);
  readonly reloadAt = this.#gauge('postern_config_last_reload_success_timestamp_seconds', 'When the tree in force was loaded', []);
  readonly bugs = this.#counter('postern_bugs_total', 'Unexpected exceptions, by room; alert on any', ['room']);

  constructor() {
    collectDefaultMetrics({ register: this.registry });
  }

  #counter<L extends string>(name: string, help: string, labelNames: readonly L[]): Counter<L> {
    return new Counter({ name, help, labelNames: [...labelNames], registers: [this.registry] });
  }

  #gauge<L extends string>(name: string, help: string, labelNames: readonly L[]): Gauge<L> {
    return new Gauge({ name, help, labelNames: [...labelNames], registers: [this.registry] });
  }

  #histogram<L extends string>(name: string, help: string, labelNames: readonly L[], buckets: number[]): Histogram<L> {
    return new Histogram({ name, help, labelNames: [...labelNames], buckets, registers: [this.registry] });
  }
}
