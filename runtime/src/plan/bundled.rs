//! Declarations of the bundled plugins: what they do, with examples, and the options in their
//! `config`.

mod options;

use trunkline_connector::config::OptionSpec;

use self::options::{
    ABSENCE, AGGREGATE, DEDUPE, EXPLODE, FILTER, FLATTEN, LOOKUP, MASK, PREVIOUS, PROJECT, REKEY, ROUTE, TIMESTAMP,
    UNWRAP_ENVELOPE,
};

/// A plugin that is part of the binary.
pub struct BundledPlugin {
    /// Its name in pipeline files: `plugin = "name"`.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Options in `config`.
    pub options: &'static [OptionSpec],
    /// Options that are arrays of field names.
    pub field_options: &'static [&'static str],
    /// Examples: each is a test that runs.
    pub examples: &'static [Example],
    /// The plugin removes confidential data, so it belongs before the topic.
    pub hides_data: bool,
}

/// An example of a bundled plugin: a configuration, a record, and its output. Records are lines as
/// in [`crate::record_tests`].
pub struct Example {
    /// What it shows.
    pub title: &'static str,
    /// The transform's table `config`, as TOML.
    pub config: &'static str,
    /// The input record.
    pub input: &'static str,
    /// The expected records.
    pub outputs: &'static [&'static str],
}

/// The bundled plugin of a name.
pub(crate) fn find(name: &str) -> Option<&'static BundledPlugin> {
    PLUGINS.iter().find(|plugin| plugin.name == name)
}

/// All bundled plugins.
pub const PLUGINS: &[BundledPlugin] = &[
    BundledPlugin {
        name: "mask.wasm",
        summary: "Masks members of JSON values: card numbers, addresses, names",
        options: MASK,
        field_options: &["fields"],
        examples: &[Example {
            title: "mask card numbers, and keep their last digits",
            config: r#"config = { fields = ["card"], mode = "keep_last" }"#,
            input: r#"{"value": {"id": 1, "card": "4111111111111111", "amount": 12.50}}"#,
            outputs: &[r#"{"value": {"id": 1, "card": "***1111", "amount": 12.50}}"#],
        }],
        hides_data: true,
    },
    BundledPlugin {
        name: "filter.wasm",
        summary: "Passes the records that meet a condition, and drops the others",
        options: FILTER,
        field_options: &[],
        examples: &[
            Example {
                title: "keep large orders from Germany",
                config: r#"config = { condition = "value.amount >= 100 && value.country == 'DE'" }"#,
                input: r#"{"value": {"amount": 100.00, "country": "DE"}}"#,
                outputs: &[r#"{"value": {"amount": 100.00, "country": "DE"}}"#],
            },
            Example {
                title: "decimals that are text, and members that may be missing",
                config: r#"config = { condition = "has(value.amount) && decimal(value.amount) > 99.99" }"#,
                input: r#"{"value": {"amount": "12.50"}}"#,
                outputs: &[],
            },
        ],
        hides_data: false,
    },
    BundledPlugin {
        name: "project.wasm",
        summary: "Selects, renames, casts, drops and computes members of rows; sets headers",
        options: PROJECT,
        field_options: &[],
        examples: &[
            Example {
                title: "select members, and compute a total",
                config: r#"config = { fields = ["id", "customer.name"], compute = { total = "row.price * row.count" } }"#,
                input: r#"{"value": {"id": 1, "customer": {"name": "Ada", "mail": "a@b"}, "price": 10.10, "count": 3}}"#,
                outputs: &[r#"{"value": {"id": 1, "customer": {"name": "Ada"}, "total": 30.30}}"#],
            },
            Example {
                title: "rename and cast",
                config: r#"config = { rename = { ts = "time" }, cast = { amount = "number" }, drop = ["debug"] }"#,
                input: r#"{"value": {"ts": 5, "amount": "12.50", "debug": true}}"#,
                outputs: &[r#"{"value": {"time": 5, "amount": 12.50}}"#],
            },
        ],
        hides_data: false,
    },
    BundledPlugin {
        name: "route.wasm",
        summary: "Passes each record to the port of the first condition that it meets",
        options: ROUTE,
        field_options: &[],
        examples: &[Example {
            title: "send alerts to their own port",
            config: r#"config = { routes = [{ port = "alerts", when = "value.level in ['error', 'fatal']" }] }"#,
            input: r#"{"value": {"level": "error"}}"#,
            outputs: &[r#"{"port": "alerts", "value": {"level": "error"}}"#],
        }],
        hides_data: false,
    },
    BundledPlugin {
        name: "flatten.wasm",
        summary: "Moves the members of nested objects to the top of the row",
        options: FLATTEN,
        field_options: &[],
        examples: &[Example {
            title: "names with an underscore",
            config: r#"config = { separator = "_" }"#,
            input: r#"{"value": {"id": 1, "customer": {"name": "Ada", "address": {"city": "Ulm"}}}}"#,
            outputs: &[r#"{"value": {"id": 1, "customer_name": "Ada", "customer_address_city": "Ulm"}}"#],
        }],
        hides_data: false,
    },
    BundledPlugin {
        name: "unwrap_envelope.wasm",
        summary: "Turns change events into rows; deletes become tombstones or flagged rows",
        options: UNWRAP_ENVELOPE,
        field_options: &[],
        examples: &[Example {
            title: "rows with their operation, deletes as flagged rows",
            config: r#"config = { deletes = "rewrite", add_fields = ["op", "table"] }"#,
            input: r#"{"value": {"before": {"id": 1}, "after": null, "source": {"table": "orders"}, "op": "d"}}"#,
            outputs: &[r#"{"value": {"id": 1, "__op": "d", "__table": "orders", "__deleted": true}}"#],
        }],
        hides_data: false,
    },
    BundledPlugin {
        name: "explode.wasm",
        summary: "Makes a record of each item of an array",
        options: EXPLODE,
        field_options: &[],
        examples: &[Example {
            title: "one record per order line",
            config: r#"config = { field = "lines", into = "line" }"#,
            input: r#"{"key": "7", "value": {"order": 7, "lines": [{"sku": "a"}, {"sku": "b"}]}}"#,
            outputs: &[
                r#"{"key": "7", "value": {"order": 7, "line": {"sku": "a"}}}"#,
                r#"{"key": "7", "value": {"order": 7, "line": {"sku": "b"}}}"#,
            ],
        }],
        hides_data: false,
    },
    BundledPlugin {
        name: "timestamp.wasm",
        summary: "Converts points in time, and sets the timestamp of records",
        options: TIMESTAMP,
        field_options: &[],
        examples: &[Example {
            title: "milliseconds to ISO 8601, and the record's timestamp",
            config: r#"config = { field = "time", from = "unix_ms", to = "iso", set_timestamp = true }"#,
            input: r#"{"value": {"time": 1700000000123}}"#,
            outputs: &[r#"{"value": {"time": "2023-11-14T22:13:20.123Z"}, "timestamp": 1700000000123}"#],
        }],
        hides_data: false,
    },
    BundledPlugin {
        name: "rekey.wasm",
        summary: "Sets the key of records from fields or an expression",
        options: REKEY,
        field_options: &[],
        examples: &[
            Example {
                title: "the customer as key",
                config: r#"config = { fields = ["customer_id"] }"#,
                input: r#"{"value": {"id": 1, "customer_id": 42}}"#,
                outputs: &[r#"{"key": "42", "value": {"id": 1, "customer_id": 42}}"#],
            },
            Example {
                title: "a computed key",
                config: r#"config = { expression = "value.country + '/' + string(value.id)" }"#,
                input: r#"{"value": {"id": 1, "country": "DE"}}"#,
                outputs: &[r#"{"key": "DE/1", "value": {"id": 1, "country": "DE"}}"#],
            },
        ],
        hides_data: false,
    },
    BundledPlugin {
        name: "dedupe.wasm",
        summary: "Drops the records whose key was seen shortly before; keeps state",
        options: DEDUPE,
        field_options: &[],
        examples: &[Example {
            title: "drop readings that are sent again",
            config: r#"config = { fields = ["device", "sequence"], within = "10m" }"#,
            input: r#"{"value": {"device": "a", "sequence": 7}, "timestamp": 1700000000000}"#,
            outputs: &[r#"{"value": {"device": "a", "sequence": 7}, "timestamp": 1700000000000}"#],
        }],
        hides_data: false,
    },
    BundledPlugin {
        name: "aggregate.wasm",
        summary: "Aggregates the records of each group and window of time; keeps state, has timers",
        options: AGGREGATE,
        field_options: &[],
        examples: &[
            Example {
                title: "the running total of an account and day",
                config: r#"config = { group_by = ["account"], window = "1d", aggregates = { total = "sum(row.amount)" }, emit = "updates" }"#,
                input: r#"{"value": {"account": "a", "amount": 12.50}, "timestamp": 1700000000000}"#,
                outputs: &[
                    r#"{"key": "a", "value": {"account": "a", "window_start": 1699920000000, "window_end": 1700006400000, "total": 12.50}, "timestamp": 1700000000000}"#,
                ],
            },
            Example {
                title: "averages of each minute: a timer closes the window ten seconds after its end",
                config: r#"config = { group_by = ["device"], window = "1m", lateness = "10s", aggregates = { average = "avg(row.celsius)", readings = "count()" } }"#,
                input: r#"{"value": {"device": "a", "celsius": 21.5}, "timestamp": 1700000000000}"#,
                outputs: &[],
            },
        ],
        hides_data: false,
    },
    BundledPlugin {
        name: "lookup.wasm",
        summary: "Adds the row of a table, which is a topic, to each record",
        options: LOOKUP,
        field_options: &[],
        examples: &[Example {
            title: "add the account of a payment (here, the table is empty)",
            config: r#"config = { fields = ["account"], into = "holder", take = ["name", "country"] }"#,
            input: r#"{"value": {"account": "a-1", "amount": 12.50}}"#,
            outputs: &[r#"{"value": {"account": "a-1", "amount": 12.50, "holder": null}}"#],
        }],
        hides_data: false,
    },
    BundledPlugin {
        name: "previous.wasm",
        summary: "Adds the previous record with the same key to each record; keeps state",
        options: PREVIOUS,
        field_options: &[],
        examples: &[Example {
            title: "the position before a position (there is none before the first)",
            config: r#"config = { fields = ["vehicle"], into = "previous", take = ["lat", "lon"], within = "10m" }"#,
            input: r#"{"value": {"vehicle": "bus-1", "lat": 48.4, "lon": 9.99}, "timestamp": 1700000000000}"#,
            outputs: &[
                r#"{"value": {"vehicle": "bus-1", "lat": 48.4, "lon": 9.99, "previous": null}, "timestamp": 1700000000000}"#,
            ],
        }],
        hides_data: false,
    },
    BundledPlugin {
        name: "absence.wasm",
        summary: "Emits a record when a key has had no record for a time; keeps state, has timers",
        options: ABSENCE,
        field_options: &[],
        examples: &[Example {
            title: "buses that send no position for ten minutes; their records pass",
            config: r#"config = { fields = ["vehicle"], after = "10m", take = ["vehicle", "lat", "lon"] }"#,
            input: r#"{"value": {"vehicle": "bus-1", "lat": 48.4, "lon": 9.99}, "timestamp": 1700000000000}"#,
            outputs: &[r#"{"value": {"vehicle": "bus-1", "lat": 48.4, "lon": 9.99}, "timestamp": 1700000000000}"#],
        }],
        hides_data: false,
    },
];
