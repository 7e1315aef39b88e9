//! The options of a `mysql` source: their declarations, and how a component's section is read.

use std::sync::Arc;

use trunkline_connector::config::{Mismatch, Node, OptionSpec, Section, Value};
use trunkline_connector::tls::{self, TlsOptions};

use crate::connection::address::Address;
use crate::connection::options::{ConnectionOptions, TLS_CODES, Tls};
use crate::format::envelope::Op;
use crate::format::options::{BinaryFormat, DecimalFormat, Envelope, FormatOptions, TimeFormat, ZeroDates};
use crate::schema::column_filter::ColumnFilter;
use crate::schema::column_mode::Mask;
use crate::schema::record_keys::RecordKeys;
use crate::schema::table_filter::TableFilter;
use crate::schema::table_name::TableName;

/// The options of the connector.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::required(
        "url",
        "string",
        "`mysql://USER:PASSWORD@HOST:PORT`. Write `%XX` for characters that a URL reserves (`@`, `/`, `%`).",
        "\"mysql://cdc:${env:SHOP_PASSWORD}@db.example.com:3306\"",
    ),
    OptionSpec::required(
        "tables",
        "array of strings",
        "Globs of `database.table`; `!` excludes. The server's own databases are never included.",
        "[\"shop.*\", \"!shop.audit_*\"]",
    ),
    OptionSpec::optional(
        "columns",
        "array of strings",
        "all",
        "Globs of `database.table.column`. A table that such a glob names is restricted to the matching columns; a glob that begins \
         with `!` excludes columns. Columns of the primary key are always included.",
        "[\"shop.people.*\", \"!*.*.password\"]",
    ),
    OptionSpec::optional(
        "key",
        "table of arrays of strings",
        "the primary key, else a UNIQUE index whose columns are NOT NULL",
        "The columns of the record key, by `database.table`: Debezium's `message.key.columns`. The columns must identify a row (a \
         UNIQUE index whose columns are NOT NULL). Such a table is read as one without a primary key. Write `%2E` for a `.` in a name.",
        "{ \"shop.orders\" = [\"customer\", \"number\"] }",
    ),
    OptionSpec::optional(
        "masks",
        "array of tables",
        "none",
        "What replaces the values of columns: see [Masks](#masks).",
        "[{ columns = [\"*.*.email\"], hash = \"sha256\" }]",
    ),
    OptionSpec::with_default(
        "skip_unchanged",
        "boolean",
        "false",
        "Skips (and counts as dropped) updates that change no included column: Debezium's `skip.messages.without.change`.",
    ),
    OptionSpec::optional(
        "skipped_operations",
        "array of strings",
        "none",
        "Operations to skip (and count as dropped): Debezium's letters `c`, `u`, `d` and `t`. A changed key is a `u`.",
        "[\"d\", \"t\"]",
    ),
    OptionSpec::with_default(
        "snapshot",
        "`initial`, `never`, `only`, `when_needed`",
        "\"initial\"",
        "`initial`: the existing rows, then the binlog. `never`: the binlog from its end at the first start. `only`: the existing \
         rows, nothing else. `when_needed`: `initial` with `on_purged = \"resnapshot\"`.",
    ),
    OptionSpec::with_default(
        "snapshot_mode",
        "`chunks`, `exact`",
        "\"chunks\"",
        "`chunks` reads tables with a primary key in chunks, without a lock. `exact` reads all tables as of one point in time: see \
         [Snapshots](#snapshots).",
    ),
    OptionSpec::with_default(
        "chunk_rows",
        "integer from 1 to 1000000",
        "4096",
        "Maximum rows per chunk. Chunks of large rows have fewer (about 4 MiB).",
    ),
    OptionSpec::optional(
        "snapshot_threads",
        "integer from 1 to 64",
        "the number of cores, at most 4",
        "Readers of chunks, each with a connection and a core: see [Snapshots](#snapshots).",
        "8",
    ),
    OptionSpec::optional(
        "on_purged",
        "`stop`, `resnapshot`",
        "`stop`; `resnapshot` with `snapshot = \"when_needed\"`",
        "When the server has purged the binlog after the position: stop, or restart with a snapshot, which also deletes the rows \
         that it does not find.",
        "\"resnapshot\"",
    ),
    OptionSpec::with_default(
        "on_malformed",
        "`stop`, `dead_letter`",
        "\"stop\"",
        "A row that cannot be decoded: stop, or reject it with its bytes and its origin (`on_error` applies), and continue: see \
         [Malformed rows](#malformed-rows).",
    ),
    OptionSpec::with_default(
        "envelope",
        "`debezium`, `row`",
        "\"debezium\"",
        "`debezium`: `before`, `after`, `source`, `op`, `ts_ms`. `row`: the row alone; a delete is only its tombstone, a TRUNCATE and \
         a delete without a key are dropped (and counted).",
    ),
    OptionSpec::with_default(
        "ddl",
        "boolean",
        "false",
        "Emits schema changes to the topic `{pipeline}.ddl`: see [Schema changes](#schema-changes).",
    ),
    OptionSpec::with_default(
        "transaction_markers",
        "boolean",
        "false",
        "Emits the start and end of transactions to the topic `{pipeline}.transaction`, and adds the position within the transaction \
         to each change: see [Transactions](#transactions).",
    ),
    OptionSpec::with_default(
        "query",
        "boolean",
        "false",
        "Adds the statement that made the change (`source.query`), if the server logs it (MySQL's `binlog_rows_query_log_events = \
         ON`). Statements show values that `columns` and `masks` hide.",
    ),
    OptionSpec::with_default("tombstones", "boolean", "true", "Emits a record without a value after each delete."),
    OptionSpec::with_default(
        "decimals",
        "`string`, `number`",
        "\"string\"",
        "How DECIMAL is written: a string, or a JSON number with the same digits, which most readers round.",
    ),
    OptionSpec::with_default("binary", "`base64`, `hex`", "\"base64\"", "How bytes are written."),
    OptionSpec::with_default(
        "zero_dates",
        "`null`, `string`, `error`",
        "\"null\"",
        "How dates that do not exist (`0000-00-00`, `2026-00-00`) are written: `null`; `string`, which makes all dates and times \
         strings; `error`, which rejects the record as `mysql.zero_date`.",
    ),
    OptionSpec::with_default(
        "times",
        "`iso`, `epoch_ms`, `epoch_us`, `adaptive`",
        "\"iso\"",
        "`iso`: ISO 8601. `epoch_ms`, `epoch_us`: milliseconds or microseconds since 1970 (UTC), for TIME since midnight; DATE in \
         days. `adaptive`: Debezium's `adaptive_time_microseconds` (DATETIME up to 3 digits in milliseconds, from 4 in microseconds; \
         TIME in microseconds; TIMESTAMP in ISO 8601). Numbers require `zero_dates` of `null` or `error`.",
    ),
    OptionSpec::optional(
        "server_id",
        "integer from 1 to 4294967295",
        "derived from the task's name",
        "The source's number as a replica. No other replica of the server may have it.",
        "4711",
    ),
    OptionSpec::with_default(
        "tls",
        "`disable`, `prefer`, `require`, `verify_ca`, `verify_identity`",
        "\"prefer\"",
        "`prefer` and `require` verify nothing. With `tls_ca`, the default is `verify_identity`.",
    ),
    tls::CA,
    tls::CERT,
    tls::KEY,
    tls::KEY_PASSWORD,
];

/// The options of a source.
#[derive(Debug, Clone)]
pub(crate) struct MysqlOptions {
    /// The component's name: `source.name` in the envelope.
    pub(crate) name: String,
    pub(crate) connection: Arc<ConnectionOptions>,
    pub(crate) tables: TableFilter,
    pub(crate) columns: ColumnFilter,
    pub(crate) keys: RecordKeys,
    pub(crate) skipped: SkippedOperations,
    pub(crate) server_id: Option<u32>,
    pub(crate) snapshot: SnapshotPolicy,
    pub(crate) snapshot_mode: SnapshotMode,
    pub(crate) chunk_rows: usize,
    pub(crate) snapshot_threads: usize,
    pub(crate) on_purged: OnPurged,
    pub(crate) on_malformed: OnMalformed,
    pub(crate) format: FormatOptions,
    pub(crate) ddl: bool,
    pub(crate) tombstones: bool,
    pub(crate) skip_unchanged: bool,
}

/// Operations to skip.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SkippedOperations {
    create: bool,
    update: bool,
    delete: bool,
    truncate: bool,
}

/// Whether existing rows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SnapshotPolicy {
    /// At the first start, before the changes.
    Initial,
    Never,
    /// Nothing but the existing rows.
    Only,
}

/// How existing rows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SnapshotMode {
    /// In chunks, while the source follows the binlog.
    Chunks,
    /// All tables as of one point in time.
    Exact,
}

/// What happens when the binlog after the position is purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnPurged {
    Stop,
    Resnapshot,
}

/// What happens to rows that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnMalformed {
    Stop,
    DeadLetter,
}

/// Output port of schema changes.
pub(crate) const DDL_PORT: &str = "ddl";
/// Output port of transaction markers.
pub(crate) const TRANSACTION_PORT: &str = "transaction";

impl MysqlOptions {
    /// Whether `skipped_operations` has this operation.
    pub(crate) fn skips(&self, op: Op) -> bool {
        match op {
            Op::Create => self.skipped.create,
            Op::Update => self.skipped.update,
            Op::Delete => self.skipped.delete,
            Op::Truncate => self.skipped.truncate,
            Op::Read => false,
        }
    }

    /// Whether rows that cannot be decoded are rejected, and do not stop the source.
    pub(crate) fn rejects_malformed(&self) -> bool {
        self.on_malformed == OnMalformed::DeadLetter
    }

    /// The output ports besides the default one; the first has the number 1.
    pub(crate) fn ports(&self) -> Vec<&'static str> {
        let ddl = self.ddl.then_some(DDL_PORT);
        ddl.into_iter().chain(self.format.transaction_block.then_some(TRANSACTION_PORT)).collect()
    }

    /// The number of an output port.
    pub(crate) fn port(&self, name: &str) -> Option<u16> {
        self.ports().iter().position(|port| *port == name).and_then(|at| u16::try_from(at + 1).ok())
    }

    /// Reads a component's section. Reports every problem; `None` if there is one.
    pub(crate) fn read(section: &Section<'_>) -> Option<Self> {
        let problems = section.report.len();
        section.declare(OPTIONS);
        let connection = read_connection(section);
        let tables = read_tables(section);
        let (snapshot, on_purged) = read_snapshot_policy(section);
        let chunk_rows = read_number(section, "chunk_rows", section.value("chunk_rows"), MAX_CHUNK_ROWS);
        let snapshot_threads = match section.optional("snapshot_threads") {
            Some(threads) => read_number(section, "snapshot_threads", threads, MAX_SNAPSHOT_THREADS),
            None => Some(default_snapshot_threads()),
        };
        let server_id =
            section.optional("server_id").and_then(|id| read_number(section, "server_id", id, u64::from(u32::MAX)));
        let options = Self {
            name: section.path.rsplit('.').next().unwrap_or(&section.path).to_owned(),
            columns: read_columns(section),
            keys: read_keys(section),
            skipped: read_skipped_operations(section),
            server_id: server_id.map(|id| id as u32),
            snapshot,
            snapshot_mode: section
                .one_of("snapshot_mode", &[("chunks", SnapshotMode::Chunks), ("exact", SnapshotMode::Exact)]),
            on_purged,
            on_malformed: section
                .one_of("on_malformed", &[("stop", OnMalformed::Stop), ("dead_letter", OnMalformed::DeadLetter)]),
            format: read_format(section),
            ddl: section.value("ddl"),
            tombstones: section.value("tombstones"),
            skip_unchanged: section.value("skip_unchanged"),
            connection: Arc::new(connection?),
            tables: tables?,
            chunk_rows: chunk_rows? as usize,
            snapshot_threads: snapshot_threads? as usize,
        };
        (section.report.len() == problems).then_some(options)
    }
}

const MAX_CHUNK_ROWS: u64 = 1_000_000;
const MAX_SNAPSHOT_THREADS: u64 = 64;

/// One reader per core. The database has other users, so more than a few must be asked for.
fn default_snapshot_threads() -> u64 {
    const MOST: usize = 4;
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MOST)) as u64
}

fn read_connection(section: &Section<'_>) -> Option<ConnectionOptions> {
    let address = read_address(section);
    let chosen = section.one_of(
        "tls",
        &[
            ("disable", Tls::Disable),
            ("prefer", Tls::Prefer),
            ("require", Tls::Require),
            ("verify_ca", Tls::VerifyCa),
            ("verify_identity", Tls::VerifyIdentity),
        ],
    );
    let files = TlsOptions::read(section, TLS_CODES);
    // Authorities are named to verify the server: `prefer` would ignore them.
    let is_given = |key: &str| section.table.get(key).is_some();
    let tls = if is_given(tls::CA.key) && !is_given("tls") { Tls::VerifyIdentity } else { chosen };
    Some(ConnectionOptions { address: address?, tls, files })
}

fn read_address(section: &Section<'_>) -> Option<Address> {
    let text: String = section.required("url")?;
    let node = section.node("url")?;
    match Address::parse(&text) {
        Ok(address) => Some(address),
        Err(why) => {
            // `why` never contains the text, which has a password (I8).
            let expected = "a URL such as `mysql://cdc:${env:PASSWORD}@db.example.com:3306`".to_owned();
            section.mismatch("url", node, Mismatch::new(why), expected);
            None
        }
    }
}

fn read_tables(section: &Section<'_>) -> Option<TableFilter> {
    let globs: Vec<String> = section.required("tables")?;
    let node = section.node("tables")?;
    match TableFilter::new(&globs) {
        Ok(filter) => Some(filter),
        Err((index, why)) => {
            let item = index.and_then(|index| items(node).get(index)).unwrap_or(node);
            let expected = "globs of `database.table` such as `shop.*` or `!shop.audit_*`".to_owned();
            section.mismatch("tables", item, Mismatch::new(why), expected);
            None
        }
    }
}

fn read_snapshot_policy(section: &Section<'_>) -> (SnapshotPolicy, OnPurged) {
    let (snapshot, default) = section.one_of(
        "snapshot",
        &[
            ("initial", (SnapshotPolicy::Initial, OnPurged::Stop)),
            ("never", (SnapshotPolicy::Never, OnPurged::Stop)),
            ("only", (SnapshotPolicy::Only, OnPurged::Stop)),
            ("when_needed", (SnapshotPolicy::Initial, OnPurged::Resnapshot)),
        ],
    );
    let choices = [("stop", OnPurged::Stop), ("resnapshot", OnPurged::Resnapshot)];
    let on_purged = section.choice("on_purged", &choices, default);
    if default == OnPurged::Resnapshot
        && on_purged == OnPurged::Stop
        && let Some(node) = section.node("on_purged")
    {
        let mismatch = Mismatch::new("is `stop`, but `snapshot` is `when_needed`");
        section.mismatch("on_purged", node, mismatch, "`resnapshot`, or `snapshot = \"initial\"`".to_owned());
    }
    (snapshot, on_purged)
}

fn read_format(section: &Section<'_>) -> FormatOptions {
    let format = FormatOptions {
        envelope: section.one_of("envelope", &[("debezium", Envelope::Debezium), ("row", Envelope::Row)]),
        decimals: section.one_of("decimals", &[("string", DecimalFormat::String), ("number", DecimalFormat::Number)]),
        binary: section.one_of("binary", &[("base64", BinaryFormat::Base64), ("hex", BinaryFormat::Hex)]),
        zero_dates: section.one_of(
            "zero_dates",
            &[("null", ZeroDates::Null), ("string", ZeroDates::String), ("error", ZeroDates::Error)],
        ),
        times: section.one_of(
            "times",
            &[
                ("iso", TimeFormat::Iso),
                ("epoch_ms", TimeFormat::EpochMs),
                ("epoch_us", TimeFormat::EpochUs),
                ("adaptive", TimeFormat::Adaptive),
            ],
        ),
        transaction_block: section.value("transaction_markers"),
        query: section.value("query"),
    };
    for (option, is_set) in [("transaction_markers", format.transaction_block), ("query", format.query)] {
        if is_set
            && format.envelope == Envelope::Row
            && let Some(node) = section.node(option)
        {
            let mismatch = Mismatch::new("is `true`, which requires `envelope = \"debezium\"`");
            section.mismatch(option, node, mismatch, "`false`, or `envelope = \"debezium\"`".to_owned());
        }
    }
    if format.times != TimeFormat::Iso
        && format.zero_dates == ZeroDates::String
        && let Some(node) = section.node("times")
    {
        let mismatch = Mismatch::new("writes dates as numbers, but `zero_dates` is `string`");
        section.mismatch("times", node, mismatch, "`iso`, or `zero_dates` of `null` or `error`".to_owned());
    }
    format
}

/// The items of an array, whose spans locate problems.
fn items(node: &Node) -> &[Node] {
    if let Value::Array(items) = &node.value { items } else { &[] }
}

fn read_keys(section: &Section<'_>) -> RecordKeys {
    let mut keys = RecordKeys::default();
    let Some(node) = section.node("key") else { return keys };
    let expected = || "a table such as `{ \"shop.orders\" = [\"customer\", \"number\"] }`".to_owned();
    let Value::Table(table) = &node.value else {
        section.mismatch("key", node, Mismatch::new(format!("is {}", node.value.kind())), expected());
        return keys;
    };
    for (name, columns) in &table.entries {
        let Some(table) = TableName::from_key(&name.name) else {
            section.mismatch(
                "key",
                node,
                Mismatch::new(format!("has `{}`, not `database.table`", name.name)),
                expected(),
            );
            continue;
        };
        let text = |item: &Node| if let Value::String(text) = &item.value { Some(text.resolved.clone()) } else { None };
        let names: Vec<String> = items(columns).iter().filter_map(text).collect();
        if names.is_empty() || names.len() < items(columns).len() {
            let mismatch = Mismatch::new(format!("of `{}` is not a list of columns", name.name));
            section.mismatch("key", columns, mismatch, expected());
            continue;
        }
        keys.add(table, names);
    }
    keys
}

const COLUMN_GLOBS: &str = "globs of `database.table.column` such as `shop.people.*` or `!*.*.password`";

fn read_columns(section: &Section<'_>) -> ColumnFilter {
    let mut filter = ColumnFilter::default();
    let globs: Option<Vec<String>> = section.optional("columns");
    if let (Some(globs), Some(node)) = (globs, section.node("columns"))
        && let Err((index, why)) = filter.add_globs(&globs)
    {
        let item = items(node).get(index).unwrap_or(node);
        section.mismatch("columns", item, Mismatch::new(why), COLUMN_GLOBS.to_owned());
    }
    let Some(node) = section.node("masks") else { return filter };
    let expected = || "an array of tables such as `{ columns = [\"*.*.email\"], hash = \"sha256\" }`".to_owned();
    let Value::Array(masks) = &node.value else {
        section.mismatch("masks", node, Mismatch::new(format!("is {}", node.value.kind())), expected());
        return filter;
    };
    for (index, node) in masks.iter().enumerate() {
        let Value::Table(table) = &node.value else {
            section.mismatch("masks", node, Mismatch::new(format!("contains {}", node.value.kind())), expected());
            continue;
        };
        let path = format!("{}.masks[{index}]", section.path);
        let mask_section = Section::new(table, node.span.clone(), path, section.base, section.report);
        read_mask(section, node, mask_section, &mut filter);
    }
    filter
}

/// Reads one table of `masks`.
fn read_mask(section: &Section<'_>, node: &Node, mask_section: Section<'_>, filter: &mut ColumnFilter) {
    let globs: Option<Vec<String>> = mask_section.required("columns");
    let mask = read_mask_kind(&mask_section);
    if mask.is_none() {
        let expected =
            "exactly one of `hash = \"sha256\"` (optionally with a `salt`), `truncate = 4` and `fixed = \"***\"`";
        section.mismatch("masks", node, Mismatch::new("lacks the replacement"), expected.to_owned());
    }
    if let (Some(globs), Some(mask)) = (globs, mask)
        && let Err((index, why)) = filter.add_mask(&globs, mask)
        && let Some(node) = mask_section.node("columns")
    {
        let item = items(node).get(index).unwrap_or(node);
        mask_section.mismatch("columns", item, Mismatch::new(why), COLUMN_GLOBS.to_owned());
    }
    mask_section.finish();
}

fn read_mask_kind(section: &Section<'_>) -> Option<Mask> {
    let hash = section.node("hash").map(|_| section.choice("hash", &[("sha256", ())], ()));
    let salt: Option<String> = section.optional("salt");
    let truncate: Option<u64> = section.optional("truncate");
    let fixed: Option<String> = section.optional("fixed");
    match (hash, salt, truncate, fixed) {
        (Some(()), salt, None, None) => Some(Mask::Hash { salt: salt.unwrap_or_default() }),
        (None, None, Some(length), None) => Some(Mask::Truncate(usize::try_from(length).unwrap_or(usize::MAX))),
        (None, None, None, Some(text)) => Some(Mask::Fixed(text)),
        _ => None,
    }
}

fn read_skipped_operations(section: &Section<'_>) -> SkippedOperations {
    let mut skipped = SkippedOperations::default();
    let letters: Option<Vec<String>> = section.optional("skipped_operations");
    let (Some(letters), Some(node)) = (letters, section.node("skipped_operations")) else { return skipped };
    for (index, letter) in letters.iter().enumerate() {
        match letter.as_str() {
            "c" => skipped.create = true,
            "u" => skipped.update = true,
            "d" => skipped.delete = true,
            "t" => skipped.truncate = true,
            other => {
                let item = items(node).get(index).unwrap_or(node);
                let expected = "`c` (create), `u` (update), `d` (delete) or `t` (truncate)".to_owned();
                section.mismatch("skipped_operations", item, Mismatch::new(format!("has `{other}`")), expected);
            }
        }
    }
    skipped
}

/// Checks the range of a number.
fn read_number(section: &Section<'_>, key: &'static str, number: u64, max: u64) -> Option<u64> {
    if (1..=max).contains(&number) {
        return Some(number);
    }
    let node = section.node(key)?;
    section.mismatch(key, node, Mismatch::new(format!("is {number}")), format!("an integer from 1 to {max}"));
    None
}
