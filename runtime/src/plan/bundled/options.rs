//! The options of the bundled plugins. `docs/reference/plugins.md` shows them in tables.

use trunkline_connector::config::OptionSpec;

pub(super) const ABSENCE: &[OptionSpec] = &[
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

pub(super) const PREVIOUS: &[OptionSpec] = &[
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

pub(super) const LOOKUP: &[OptionSpec] = &[
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

pub(super) const DEDUPE: &[OptionSpec] = &[
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

pub(super) const AGGREGATE: &[OptionSpec] = &[
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
        "How long a window waits for late records after its end, in event time: the greatest timestamp of the topic \
         partition.",
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

pub(super) const MASK: &[OptionSpec] = &[
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

pub(super) const FILTER: &[OptionSpec] = &[
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

pub(super) const PROJECT: &[OptionSpec] = &[
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

pub(super) const ROUTE: &[OptionSpec] = &[
    OptionSpec::required(
        "routes",
        "array of `{ port, when }`",
        "Ports, each with a condition in CEL. The first condition that holds decides. For a tombstone, a condition that \
         needs a member of the value is false.",
        "[{ port = \"alerts\", when = \"value.level == 'error'\" }]",
    ),
    OptionSpec::with_default("otherwise", "port, `drop`", "\"default\"", "The port of records that meet no condition."),
];

pub(super) const FLATTEN: &[OptionSpec] = &[
    OptionSpec::with_default("separator", "string", "\".\"", "The text between the names of a nested member."),
    OptionSpec::with_default(
        "arrays",
        "`keep`, `index`",
        "\"keep\"",
        "`index`: items become members, with their position as name.",
    ),
];

pub(super) const UNWRAP_ENVELOPE: &[OptionSpec] = &[
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

pub(super) const EXPLODE: &[OptionSpec] = &[
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

pub(super) const TIMESTAMP: &[OptionSpec] = &[
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

pub(super) const REKEY: &[OptionSpec] = &[
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
