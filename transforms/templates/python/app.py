"""Passes large orders to the port `large`."""

import json

from trunkline_plugin import ConfigError, Record, Transform, export, pass_, reject


class LargeOrders(Transform):
    ports = ["large"]

    def __init__(self, config: dict):
        unknown = set(config) - {"over"}
        if unknown:
            raise ConfigError("is not a known option; expected `over`", key=sorted(unknown)[0])
        if not isinstance(config.get("over"), (int, float)):
            raise ConfigError("missing field `over`; expected a number")
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
