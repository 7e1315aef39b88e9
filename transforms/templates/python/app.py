"""Passes large orders to the port `large`."""

import json

from trunkline_plugin import Record, Transform, export, pass_, reject


class LargeOrders(Transform):
    ports = ["large"]

    def __init__(self, config: dict):
        # config.schema.json checks the options; raise ConfigError for what it cannot express
        self.over = config["over"]

    def record(self, record: Record):
        if record.value is None:  # a tombstone
            return pass_()
        try:
            amount = float(json.loads(record.value)["amount"])
        except ValueError:
            return reject("orders.not_json", "the value is not JSON, or `amount` is not a number")
        except (KeyError, TypeError):
            return reject("orders.no_amount", "`amount` is missing or not a number")
        return pass_("large") if amount > self.over else pass_()


Plugin = export(LargeOrders)
