//! The options of a `mysql` source. The doc comments of [`MysqlOptions`] are the user's documentation.

use std::path::PathBuf;

use trunkline_connector::config::{Mismatch, Node, OptionSpec, Section, Value};

use crate::connection::address::Address;
use crate::format::envelope::Op;
use crate::schema::column_filter::{Columns, Mask};
use crate::schema::table_filter::Selection;

/// The options of the connector.
pub(crate) const OPTIONS: &[OptionSpec] = &[];

/// Everything that a `mysql` source can be told.
#[derive(Debug, Clone)]
pub struct MysqlOptions {
    /// The component's name: what Debezium's envelope has as `source.name`.
    pub name: String,
    /// `url` (required): `mysql://USER:PASSWORD@HOST:PORT`. What must not stand in the URL as it is (`@`, `/`, `%`) is written `%XX`.
    pub url: Address,
    /// `tables` (required): globs of `database.table`. One that begins with `!` takes away what the others chose. `*` stands for any
    /// characters. The server's own databases are never meant.
    pub tables: Selection,
    /// `columns`: globs of `database.table.column`. Of a table that such a glob chooses from, only the chosen columns are written; those of a glob
    /// that begins with `!` never are. Columns of the primary key always stay. `masks`: tables of `columns` and one of `hash = "sha256"` (with
    /// `salt`), `truncate` (a number of characters) and `fixed` (a text): what is written in place of those columns' values, as a string.
    pub columns: Columns,
    /// `skipped_operations`: which changes are left out (and counted as dropped): Debezium's letters `c`, `u`, `d` and `t`.
    pub skipped: Skipped,
    /// `server_id`: the number by which the server knows this replica; no other replica may have it. By default made of the names of
    /// cluster, pipeline and source, so that it stays the same wherever the source runs.
    pub server_id: Option<u32>,
    /// `snapshot` (default `initial`): `initial` reads the rows that are there, then follows the binlog; `never` follows the binlog from where
    /// it ends at the first start; `only` reads the rows that are there and ends; `when_needed` is `initial` with `on_purged = "resnapshot"`.
    pub snapshot: Snapshot,
    /// `snapshot_mode` (default `chunks`): `chunks` reads tables with a key in chunks, without a lock; `exact` reads all tables as of one moment, for which
    /// they are locked against writers for a moment, and begins anew if it is interrupted.
    pub snapshot_mode: SnapshotMode,
    /// `chunk_rows` (default 4096): rows that a snapshot reads at once. They are in memory until the binlog has been read up to
    /// that point.
    pub chunk_rows: usize,
    /// `on_purged` (default `stop`): what happens when the server no longer has the binlog at the source's position: `stop`, or `resnapshot`,
    /// which begins anew with a snapshot.
    pub on_purged: OnPurged,
    /// `envelope` (default `debezium`): `debezium` writes `before`, `after`, `source`, `op` and `ts_ms`; `row` writes the row alone, and a
    /// delete as a tombstone alone.
    pub envelope: Envelope,
    /// `ddl` (default `false`): statements that define tables, indexes and databases, as records of the output port `ddl`: topic `{pipeline}.ddl`.
    pub ddl: bool,
    /// `transaction_markers` (default `false`): a record where each transaction begins and one where it ends, of the output port `transaction` (topic
    /// `{pipeline}.transaction`), and in each change which one of its transaction it is.
    pub transaction_markers: bool,
    /// `query` (default `false`): each change tells the statement that made it (`source.query`), if the server notes it (`binlog_rows_query_log_events`).
    pub query: bool,
    /// `tombstones` (default `true`): a record without value after each delete, by which Kafka's compaction forgets the key.
    pub tombstones: bool,
    /// `decimals` (default `string`): `string` keeps every digit; `number` writes a JSON number of the same digits.
    pub decimals: DecimalAs,
    /// `binary` (default `base64`): `base64` or `hex`.
    pub binary: BinaryAs,
    /// `zero_dates` (default `null`): what a date becomes that no calendar has (`0000-00-00`, `2026-00-00`): `null`; `string`, which makes strings of
    /// all dates and times; or `error`, which sets the record aside.
    pub zero_dates: ZeroDates,
    /// `times` (default `iso`): how dates and times are written: `iso`; `epoch_ms` and `epoch_us`, numbers of milliseconds or microseconds (dates: of days) since
    /// 1970, or since midnight; `adaptive`, the numbers of Debezium's `adaptive_time_microseconds`.
    pub times: TimesAs,
    /// `skip_unchanged` (default `false`): leaves out (and counts as dropped) updates in which no column changed that is written.
    pub skip_unchanged: bool,
    /// `tls` (default `prefer`): `disable`, `prefer`, `require`, `verify_ca`, or `verify_identity`.
    pub tls: Tls,
    /// `tls_ca`: a PEM file with the certificate authorities to trust, instead of the system's.
    pub tls_ca: Option<PathBuf>,
}

/// Changes that are left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Rows that are created.
    pub create: bool,
    /// Rows that are changed, their keys included.
    pub update: bool,
    /// Rows that are deleted.
    pub delete: bool,
    /// Tables that lose all of their rows.
    pub truncate: bool,
}

/// Which rows are read besides those of the binlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    /// Those that are there at the first start.
    Initial,
    /// None.
    Never,
    /// Those that are there, and nothing else.
    Only,
}

/// How rows are read that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotMode {
    /// In chunks, while the binlog is followed.
    Chunks,
    /// All tables as of one moment.
    Exact,
}

/// What happens when the binlog at the position is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPurged {
    /// The source stops.
    Stop,
    /// The source begins anew.
    Resnapshot,
}

/// The shape of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Envelope {
    /// Debezium's.
    Debezium,
    /// The bare row.
    Row,
}

/// How decimals are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecimalAs {
    /// As a string.
    String,
    /// As a JSON number.
    Number,
}

/// How bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinaryAs {
    /// In base64.
    Base64,
    /// In hexadecimal digits.
    Hex,
}

/// What becomes of dates that no calendar has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroDates {
    /// Null.
    Null,
    /// A string, as is every other date.
    String,
    /// The record is set aside.
    Error,
}

/// How dates and times are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimesAs {
    /// As strings, in ISO 8601.
    Iso,
    /// In milliseconds; dates in days.
    EpochMs,
    /// In microseconds; dates in days.
    EpochUs,
    /// As Debezium does it by default: DATETIME of up to 3 digits in milliseconds, of more in microseconds, TIME in microseconds, dates in days, and TIMESTAMP in
    /// ISO 8601.
    Adaptive,
}

/// How the connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// Not at all.
    Disable,
    /// With TLS if the server has it; nothing is verified.
    Prefer,
    /// With TLS; nothing is verified.
    Require,
    /// With TLS, and the certificate's authority is verified.
    VerifyCa,
    /// The same, and the host's name too.
    VerifyIdentity,
}

/// Where changes of definitions leave.
pub(crate) const DDL_PORT: &str = "ddl";
/// Where markers of transactions leave.
pub(crate) const TRANSACTION_PORT: &str = "transaction";

impl MysqlOptions {
    /// Is this kind of change left out?
    pub(crate) fn skips(&self, op: Op) -> bool {
        match op {
            Op::Create => self.skipped.create,
            Op::Update => self.skipped.update,
            Op::Delete => self.skipped.delete,
            Op::Truncate => self.skipped.truncate,
            Op::Read => false,
        }
    }

    /// Output ports besides the default one; the first has the number 1.
    pub(crate) fn ports(&self) -> Vec<&'static str> {
        let ddl = self.ddl.then_some(DDL_PORT);
        ddl.into_iter().chain(self.transaction_markers.then_some(TRANSACTION_PORT)).collect()
    }

    /// The number of an output port, if there is one of this name.
    pub(crate) fn port(&self, name: &str) -> Option<u16> {
        self.ports().iter().position(|port| *port == name).and_then(|at| u16::try_from(at + 1).ok())
    }
}

const MOST_CHUNK_ROWS: u64 = 1_000_000;

impl MysqlOptions {
    /// Reads a component's section; every problem goes to its report, and then the result is `None`.
    pub fn read(section: &Section<'_>) -> Option<Self> {
        let before = section.report.len();
        let url = url(section);
        let tables = tables(section);
        let name = section.path.rsplit('.').next().unwrap_or(&section.path).to_owned();
        let columns = columns(section);
        let skipped = skipped(section);
        let server_id = server_id(section);
        let (snapshot, purged_default) = section.choice(
            "snapshot",
            &[
                ("initial", (Snapshot::Initial, OnPurged::Stop)),
                ("never", (Snapshot::Never, OnPurged::Stop)),
                ("only", (Snapshot::Only, OnPurged::Stop)),
                ("when_needed", (Snapshot::Initial, OnPurged::Resnapshot)),
            ],
            (Snapshot::Initial, OnPurged::Stop),
        );
        let snapshot_mode = section.choice(
            "snapshot_mode",
            &[("chunks", SnapshotMode::Chunks), ("exact", SnapshotMode::Exact)],
            SnapshotMode::Chunks,
        );
        let chunk_rows = number(section, "chunk_rows", MOST_CHUNK_ROWS).unwrap_or(4096) as usize;
        let on_purged = section.choice(
            "on_purged",
            &[("stop", OnPurged::Stop), ("resnapshot", OnPurged::Resnapshot)],
            purged_default,
        );
        if purged_default == OnPurged::Resnapshot
            && on_purged == OnPurged::Stop
            && let Some(node) = section.node("on_purged")
        {
            let mismatch = Mismatch::new("is `stop`, but `snapshot` is `when_needed`");
            section.mismatch("on_purged", node, mismatch, "`resnapshot`, or `snapshot = \"initial\"`".to_owned());
        }
        let envelope =
            section.choice("envelope", &[("debezium", Envelope::Debezium), ("row", Envelope::Row)], Envelope::Debezium);
        let ddl = section.or("ddl", false);
        let transaction_markers = section.or("transaction_markers", false);
        let query = section.or("query", false);
        for (option, is_set) in [("transaction_markers", transaction_markers), ("query", query)] {
            if is_set
                && envelope == Envelope::Row
                && let Some(node) = section.node(option)
            {
                let mismatch = Mismatch::new("is `true`, but with `envelope = \"row\"` no record has a place for it");
                section.mismatch(option, node, mismatch, "`false`, or `envelope = \"debezium\"`".to_owned());
            }
        }
        let tombstones = section.or("tombstones", true);
        let decimals = section.choice(
            "decimals",
            &[("string", DecimalAs::String), ("number", DecimalAs::Number)],
            DecimalAs::String,
        );
        let binary =
            section.choice("binary", &[("base64", BinaryAs::Base64), ("hex", BinaryAs::Hex)], BinaryAs::Base64);
        let zero_dates = section.choice(
            "zero_dates",
            &[("null", ZeroDates::Null), ("string", ZeroDates::String), ("error", ZeroDates::Error)],
            ZeroDates::Null,
        );
        let times = section.choice(
            "times",
            &[
                ("iso", TimesAs::Iso),
                ("epoch_ms", TimesAs::EpochMs),
                ("epoch_us", TimesAs::EpochUs),
                ("adaptive", TimesAs::Adaptive),
            ],
            TimesAs::Iso,
        );
        if times != TimesAs::Iso
            && zero_dates == ZeroDates::String
            && let Some(node) = section.node("times")
        {
            let mismatch = Mismatch::new("makes numbers of dates, and `zero_dates` is `string`");
            section.mismatch("times", node, mismatch, "`iso`, or `zero_dates` of `null` or `error`".to_owned());
        }
        let skip_unchanged = section.or("skip_unchanged", false);
        let tls = section.choice(
            "tls",
            &[
                ("disable", Tls::Disable),
                ("prefer", Tls::Prefer),
                ("require", Tls::Require),
                ("verify_ca", Tls::VerifyCa),
                ("verify_identity", Tls::VerifyIdentity),
            ],
            Tls::Prefer,
        );
        let tls_ca: Option<PathBuf> = section.optional("tls_ca");
        let tls_ca = tls_ca.map(|path| section.base.join(path));
        if section.report.len() > before {
            return None;
        }
        Some(Self {
            name,
            url: url?,
            tables: tables?,
            columns,
            skipped,
            server_id,
            snapshot,
            snapshot_mode,
            chunk_rows,
            on_purged,
            envelope,
            ddl,
            transaction_markers,
            query,
            tombstones,
            decimals,
            binary,
            zero_dates,
            times,
            skip_unchanged,
            tls,
            tls_ca,
        })
    }
}

fn url(section: &Section<'_>) -> Option<Address> {
    let text: String = section.required("url")?;
    let node = section.node("url")?;
    match Address::parse(&text) {
        Ok(address) => Some(address),
        Err(why) => {
            // `why` never holds the text: it has a password in it (I8).
            let expected = "a URL such as `mysql://cdc:${env:PASSWORD}@db.example.com:3306`".to_owned();
            section.mismatch("url", node, Mismatch::new(why), expected);
            None
        }
    }
}

fn tables(section: &Section<'_>) -> Option<Selection> {
    let globs: Vec<String> = section.required("tables")?;
    let node = section.node("tables")?;
    let expected = || "globs of `database.table` such as `shop.*` or `!shop.audit_*`".to_owned();
    match Selection::new(&globs) {
        Ok(selection) => Some(selection),
        Err((index, why)) => {
            let place = index.and_then(|index| items(node).get(index)).unwrap_or(node);
            section.mismatch("tables", place, Mismatch::new(why), expected());
            None
        }
    }
}

/// The items of an array, for the places of what is wrong in it.
fn items(node: &Node) -> &[Node] {
    if let Value::Array(items) = &node.value { items } else { &[] }
}

const COLUMN_GLOBS: &str = "globs of `database.table.column` such as `shop.people.*` or `!*.*.password`";

fn columns(section: &Section<'_>) -> Columns {
    let mut columns = Columns::default();
    let chosen: Option<Vec<String>> = section.optional("columns");
    if let (Some(globs), Some(node)) = (chosen, section.node("columns"))
        && let Err((index, why)) = columns.choose(&globs)
    {
        let place = items(node).get(index).unwrap_or(node);
        section.mismatch("columns", place, Mismatch::new(why), COLUMN_GLOBS.to_owned());
    }
    let Some(node) = section.node("masks") else { return columns };
    let expected = || "an array of tables such as `{ columns = [\"*.*.email\"], hash = \"sha256\" }`".to_owned();
    let Value::Array(masks) = &node.value else {
        section.mismatch("masks", node, Mismatch::new(format!("is {}", node.value.kind())), expected());
        return columns;
    };
    for (index, node) in masks.iter().enumerate() {
        let Value::Table(table) = &node.value else {
            section.mismatch("masks", node, Mismatch::new(format!("holds {}", node.value.kind())), expected());
            continue;
        };
        let path = format!("{}.masks[{index}]", section.path);
        let mask_section = Section::new(table, node.span.clone(), path, section.base, section.report);
        let globs: Option<Vec<String>> = mask_section.required("columns");
        let mask = mask(&mask_section);
        if mask.is_none() {
            let expected =
                "exactly one of `hash = \"sha256\"` (which may have a `salt`), `truncate = 4` and `fixed = \"***\"`";
            section.mismatch("masks", node, Mismatch::new("does not say what to write"), expected.to_owned());
        }
        if let (Some(globs), Some(mask)) = (globs, mask)
            && let Err((index, why)) = columns.mask(&globs, mask)
            && let Some(node) = mask_section.node("columns")
        {
            let place = items(node).get(index).unwrap_or(node);
            mask_section.mismatch("columns", place, Mismatch::new(why), COLUMN_GLOBS.to_owned());
        }
        mask_section.finish();
    }
    columns
}

fn mask(section: &Section<'_>) -> Option<Mask> {
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

fn skipped(section: &Section<'_>) -> Skipped {
    let mut skipped = Skipped::default();
    let letters: Option<Vec<String>> = section.optional("skipped_operations");
    let (Some(letters), Some(node)) = (letters, section.node("skipped_operations")) else { return skipped };
    for (index, letter) in letters.iter().enumerate() {
        match letter.as_str() {
            "c" => skipped.create = true,
            "u" => skipped.update = true,
            "d" => skipped.delete = true,
            "t" => skipped.truncate = true,
            other => {
                let place = items(node).get(index).unwrap_or(node);
                let expected = "some of `c` (create), `u` (update), `d` (delete) and `t` (truncate)".to_owned();
                section.mismatch("skipped_operations", place, Mismatch::new(format!("has `{other}`")), expected);
            }
        }
    }
    skipped
}

fn server_id(section: &Section<'_>) -> Option<u32> {
    number(section, "server_id", u64::from(u32::MAX)).map(|id| id as u32)
}

fn number(section: &Section<'_>, key: &'static str, most: u64) -> Option<u64> {
    let number: u64 = section.optional(key)?;
    if (1..=most).contains(&number) {
        return Some(number);
    }
    let node = section.node(key)?;
    section.mismatch(key, node, Mismatch::new(format!("is {number}")), format!("a whole number from 1 to {most}"));
    None
}
