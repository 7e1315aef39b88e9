// Passes large orders to the port `large`.
import { ConfigError, exportTransform, pass, reject, text } from './trunkline_plugin.js';

class LargeOrders {
  ports = ['large'];

  constructor(config) {
    const unknown = Object.keys(config).find((key) => key !== 'over');
    if (unknown) throw new ConfigError('is not a known option; expected `over`', unknown);
    if (typeof config.over !== 'number') throw new ConfigError('missing field `over`; expected a number');
    this.over = config.over;
  }

  record(record) {
    if (record.value === null) return pass(); // a tombstone
    let order;
    try {
      order = JSON.parse(text(record.value));
    } catch (error) {
      return reject('orders.not_json', error.message);
    }
    const amount = parseFloat(order?.amount);
    if (Number.isNaN(amount)) return reject('orders.no_amount', '`amount` is missing or not a number');
    return amount > this.over ? pass('large') : pass();
  }
}

export const plugin = exportTransform(LargeOrders);
