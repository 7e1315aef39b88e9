//! Declarations of the bundled plugins: what they do, and the options in their `config`.

use trunkline_connector::config::OptionSpec;

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
        summary: "Aggregates the records of each group and window of time; keeps state",
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
                title: "averages of each minute: a later record closes the window",
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

const ABSENCE: &[OptionSpec] = &[
    OptionSpec::optional(
        "fields",
        "array of paths",
        "the key of the record",
        "The fields of the row that make the key. One field: its text. Several: a JSON object.",
        "[\"vehicle\"]",
    ),
    OptionSpec::optional(
        "expression",
        "CEL",
        "none",
        "The same as an expression, instead of `fields`. Records for which it is null are not watched.",
        "\"value.line + '/' + value.vehicle\"",
    ),
    OptionSpec::required(
        "after",
        "duration",
        "The time without a record of the key, by the timestamps of records, after which a record is emitted.",
        "\"10m\"",
    ),
    OptionSpec::optional(
        "take",
        "array of names",
        "all members",
        "The members of the last record that the emitted one gets.",
        "[\"vehicle\", \"lat\", \"lon\"]",
    ),
    OptionSpec::with_default(
        "into",
        "string",
        "\"last_seen\"",
        "The member for the timestamp of the last record (milliseconds since 1970).",
    ),
];

const PREVIOUS: &[OptionSpec] = &[
    OptionSpec::optional(
        "fields",
        "array of paths",
        "the key of the record",
        "The fields of the row that records are compared by.",
        "[\"vehicle\"]",
    ),
    OptionSpec::optional(
        "expression",
        "CEL",
        "none",
        "The same as an expression, instead of `fields`. Records for which it is null have no previous one.",
        "\"value.line + '/' + value.vehicle\"",
    ),
    OptionSpec::required(
        "into",
        "string",
        "The member for the previous record, an object. Null if there is none.",
        "\"previous\"",
    ),
    OptionSpec::optional(
        "take",
        "array of names",
        "all members except `into`",
        "The members of the previous record that are added.",
        "[\"lat\", \"lon\"]",
    ),
    OptionSpec::optional(
        "within",
        "duration",
        "no limit",
        "A record that is older than this, by the timestamps of the records, is forgotten.",
        "\"10m\"",
    ),
];

const LOOKUP: &[OptionSpec] = &[
    OptionSpec::optional(
        "fields",
        "array of paths",
        "the key of the record",
        "The fields of the row that make the key of the table. One field: its text. Several: a JSON object.",
        "[\"account\"]",
    ),
    OptionSpec::optional(
        "expression",
        "CEL",
        "none",
        "The same as an expression, instead of `fields`. Null finds no row.",
        "\"value.country + '/' + string(value.id)\"",
    ),
    OptionSpec::with_default(
        "format",
        "`auto`, `json`",
        "\"auto\"",
        "`json`: one field gives a JSON object, too. The keys of `mysql` have this form.",
    ),
    OptionSpec::optional(
        "into",
        "string",
        "none; either `into` or `merge`",
        "The member for the row of the table, an object. Null if the table has no row.",
        "\"account\"",
    ),
    OptionSpec::with_default(
        "merge",
        "boolean",
        "false",
        "The members of the table's row become members of the record, and replace those of the same name.",
    ),
    OptionSpec::optional(
        "take",
        "array of names",
        "all members",
        "The members of the table's row that are added.",
        "[\"name\", \"country\"]",
    ),
    OptionSpec::with_default(
        "missing",
        "`keep`, `drop`, `reject`, `port`",
        "\"keep\"",
        "What happens to a record without a row in the table. `keep`: it passes, with null in `into` (a left join). `drop`: it \
         is dropped (an inner join). `port`: it passes unchanged to the port `missing`.",
    ),
];

const DEDUPE: &[OptionSpec] = &[
    OptionSpec::optional(
        "fields",
        "array of paths",
        "the key of the record",
        "The fields of the row that records are compared by.",
        "[\"device\", \"sequence\"]",
    ),
    OptionSpec::optional(
        "expression",
        "CEL",
        "none",
        "The same as an expression, instead of `fields`. Records for which it is null pass.",
        "\"value.device + '/' + string(value.sequence)\"",
    ),
    OptionSpec::required(
        "within",
        "duration",
        "A record is dropped if another one with its key passed less than this before or after it, by the timestamps of \
         the records. The first one passes.",
        "\"10m\"",
    ),
];

const AGGREGATE: &[OptionSpec] = &[
    OptionSpec::optional(
        "group_by",
        "array of paths",
        "none: one group",
        "The fields of the row that make the groups. They become members of the result and its key.",
        "[\"device\"]",
    ),
    OptionSpec::optional(
        "window",
        "duration",
        "none; either `window` or `session`",
        "The size of the windows. They start at multiples of it, counted from 1970 in UTC.",
        "\"1m\"",
    ),
    OptionSpec::optional(
        "advance",
        "duration",
        "the size of the window",
        "The time between the starts of two windows. If it is shorter than `window`, windows overlap, and a record counts \
         in each of them (hopping windows).",
        "\"10s\"",
    ),
    OptionSpec::optional(
        "session",
        "duration",
        "none",
        "Session windows, instead of `window`: a window ends when its group has no record for this time.",
        "\"30m\"",
    ),
    OptionSpec::with_default(
        "lateness",
        "duration",
        "\"0s\"",
        "How long a window waits for late records after its end, by the timestamps of records.",
    ),
    OptionSpec::required(
        "aggregates",
        "table of aggregates",
        "Members of the result: `count()`, `count(..)`, `distinct(..)`, `sum(..)`, `min(..)`, `max(..)`, `avg(..)`, \
         `percentile(.., 95)`, `first(..)` or `last(..)` of an expression in CEL. Nulls are ignored.",
        "{ average = \"avg(row.celsius)\", readings = \"count()\" }",
    ),
    OptionSpec::with_default(
        "emit",
        "`final`, `updates`",
        "\"final\"",
        "`final`: one result for each window, when it is closed. `updates`: the result so far, after each record.",
    ),
    OptionSpec::with_default(
        "late",
        "`drop`, `port`",
        "\"drop\"",
        "What happens to the records of closed windows. `port`: they pass to the port `late`.",
    ),
];

const MASK: &[OptionSpec] = &[
    OptionSpec::required(
        "fields",
        "array of paths",
        "Dotted paths of the members to mask. A path reaches into every object of an array, and into the rows of a \
         change event.",
        "[\"card_number\", \"customer.email\"]",
    ),
    OptionSpec::with_default(
        "mode",
        "`fixed`, `keep_last`, `hash`",
        "\"fixed\"",
        "`fixed`: the text of `with`. `keep_last`: `with`, then the last `keep` characters. `hash`: HMAC-SHA-256 under \
         `salt` as 64 hexadecimal digits, so that equal values stay equal.",
    ),
    OptionSpec::with_default("with", "string", "\"***\"", "The mask of `fixed` and `keep_last`."),
    OptionSpec::with_default(
        "keep",
        "number",
        "4",
        "The number of characters that `keep_last` keeps. A text that is not longer is masked completely.",
    ),
    OptionSpec::optional(
        "salt",
        "string",
        "none; required for `hash`",
        "The secret of `hash`. Without it, the possible values could be tried one by one.",
        "\"${secret:mask-salt}\"",
    ),
];

const FILTER: &[OptionSpec] = &[
    OptionSpec::required(
        "condition",
        "CEL",
        "The condition. A record that it has no value for (a missing member, a text compared with a number) is rejected.",
        "\"value.amount > 100\"",
    ),
    OptionSpec::with_default(
        "tombstones",
        "`keep`, `drop`, `test`",
        "\"keep\"",
        "What happens to tombstones. `test`: the condition decides; one that needs a member of the value is false.",
    ),
];

const PROJECT: &[OptionSpec] = &[
    OptionSpec::optional(
        "fields",
        "array of paths",
        "all members",
        "The members that stay, in the record's order. A path reaches into nested objects, and into every object of an \
         array.",
        "[\"id\", \"customer.name\"]",
    ),
    OptionSpec::optional("drop", "array of paths", "none", "Members that are removed.", "[\"debug\"]"),
    OptionSpec::optional("rename", "table of names", "none", "New names of members, by path.", "{ ts = \"time\" }"),
    OptionSpec::optional(
        "cast",
        "table of `string`, `number`, `integer`, `boolean`",
        "none",
        "Types of members, by path. Null stays null; a value that cannot be converted rejects the record.",
        "{ amount = \"number\" }",
    ),
    OptionSpec::optional(
        "compute",
        "table of CEL",
        "none",
        "New members of the row, in the order of their names. Expressions see the row as it was; a member of the same \
         name is replaced.",
        "{ total = \"row.price * row.count\" }",
    ),
    OptionSpec::optional(
        "headers",
        "table of CEL",
        "none",
        "Headers that are set. Null removes a header.",
        "{ country = \"value.country\" }",
    ),
    OptionSpec::optional("drop_headers", "array of names", "none", "Headers that are removed.", "[\"trace\"]"),
];

const ROUTE: &[OptionSpec] = &[
    OptionSpec::required(
        "routes",
        "array of `{ port, when }`",
        "Ports, each with a condition in CEL. The first condition that holds decides. For a tombstone, a condition that \
         needs a member of the value is false.",
        "[{ port = \"alerts\", when = \"value.level == 'error'\" }]",
    ),
    OptionSpec::with_default("otherwise", "port, `drop`", "\"default\"", "The port of records that meet no condition."),
];

const FLATTEN: &[OptionSpec] = &[
    OptionSpec::with_default("separator", "string", "\".\"", "The text between the names of a nested member."),
    OptionSpec::with_default(
        "arrays",
        "`keep`, `index`",
        "\"keep\"",
        "`index`: items become members, with their position as name.",
    ),
];

const UNWRAP_ENVELOPE: &[OptionSpec] = &[
    OptionSpec::with_default(
        "deletes",
        "`tombstone`, `delete_to_tombstone`, `rewrite`, `rewrite_with_tombstone`, `drop`",
        "\"tombstone\"",
        "What happens to a delete, and to the tombstone that follows it. `tombstone`: only the tombstone passes. \
         `delete_to_tombstone`: the delete becomes a tombstone, and the tombstone is dropped. `rewrite`: the delete becomes \
         its old row, rows get the member `__deleted`, and the tombstone is dropped. `rewrite_with_tombstone`: the same, \
         and the tombstone passes. `drop`: neither passes.",
    ),
    OptionSpec::optional(
        "add_fields",
        "array of paths",
        "none",
        "Members of the event that are added to the row: `op`, `ts_ms`, `deleted`, or a path. A name without a dot is a \
         member of `source`.",
        "[\"op\", \"table\", \"source.ts_ms\"]",
    ),
    OptionSpec::with_default("prefix", "string", "\"__\"", "The beginning of the names of added members."),
    OptionSpec::with_default(
        "others",
        "`reject`, `keep`",
        "\"reject\"",
        "What happens to values that are not change events.",
    ),
];

const EXPLODE: &[OptionSpec] = &[
    OptionSpec::required("field", "string", "The member that holds the array.", "\"lines\""),
    OptionSpec::optional("into", "string", "the name of `field`", "The member that holds the item.", "\"line\""),
    OptionSpec::with_default(
        "merge",
        "boolean",
        "false",
        "The members of an item that is an object become members of the record, and replace those of the same name.",
    ),
    OptionSpec::optional("index", "string", "none", "A member for the position of the item, from 0.", "\"position\""),
    OptionSpec::with_default(
        "empty",
        "`keep`, `drop`",
        "\"keep\"",
        "What happens to a record whose array is empty, null or missing. `keep`: it passes unchanged.",
    ),
];

const TIMESTAMP: &[OptionSpec] = &[
    OptionSpec::required("field", "path", "The member that holds the point in time.", "\"created_at\""),
    OptionSpec::with_default(
        "from",
        "format",
        "\"iso\"",
        "The format of the member: `iso` (ISO 8601), `unix_s`, `unix_ms`, `unix_us`, `unix_ns`, or a pattern such as \
         `%d.%m.%Y %H:%M` (strptime).",
    ),
    OptionSpec::optional("to", "format", "the member stays", "The new format of the member.", "\"unix_ms\""),
    OptionSpec::with_default(
        "zone",
        "offset",
        "\"+00:00\"",
        "The offset of texts that name none, and of texts that are written.",
    ),
    OptionSpec::with_default(
        "set_timestamp",
        "boolean",
        "false",
        "The record gets this point in time as its timestamp.",
    ),
];

const REKEY: &[OptionSpec] = &[
    OptionSpec::optional(
        "fields",
        "array of paths",
        "none; either `fields` or `expression`",
        "The fields of the row that make the key. One field: its text. Several: a JSON object.",
        "[\"customer_id\"]",
    ),
    OptionSpec::optional(
        "expression",
        "CEL",
        "none",
        "The key as an expression. Null gives a record without key.",
        "\"value.country + '/' + string(value.id)\"",
    ),
    OptionSpec::with_default("format", "`auto`, `json`", "\"auto\"", "`json`: one field gives a JSON object, too."),
    OptionSpec::with_default(
        "tombstones",
        "`keep`, `drop`",
        "\"keep\"",
        "What happens to tombstones, which have no fields. `keep`: they keep their key.",
    ),
];
