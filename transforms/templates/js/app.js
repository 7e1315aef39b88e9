// Passes large orders to the port `large`.
import { exportTransform, pass, reject, text } from './trunkline_plugin.js';

class LargeOrders {
  ports = ['large'];

  constructor(config) {
    // config.schema.json checks the options; throw a ConfigError for what it cannot express
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
