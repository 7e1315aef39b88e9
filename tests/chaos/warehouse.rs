//! The warehouse in which a pipeline ends: its sink, its faults, and the checks of its rows.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use trunkline_tests::{Redshift, RedshiftFault, RedshiftFaults, Snowflake};

/// The options of a sink whose loads are small: more of them give more moments at which a kill
/// matters.
const SINK: &str = r#"
[sinks.lake]
inputs = ["clean"]
table = "lines"
commit = { records = 1_000, age = "1s", idle = "300ms" }
takeover_timeout = "4s"
"#;

/// With this option, a table has one row for each line.
const KEYS: &str = "mode = \"upsert\"\nkey = [\"path\"]\n";

/// The number of polls and the time after which a slow statement is answered.
const SLOW: (u64, Duration) = (6, Duration::from_secs(3));

/// The stand-in of a warehouse.
pub(crate) enum Server<'a> {
    /// Snowflake.
    Snowflake(&'a Snowflake),
    /// Redshift, with the proxy that breaks its statements.
    Redshift(&'a Redshift, RedshiftFaults),
}

/// What a warehouse does with a statement.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StatementFault {
    /// Its session ends before it is executed.
    Lost,
    /// It is executed, and its reply is lost.
    ReplyLost,
    /// Another transaction is in its way, this number of times: Redshift's error 1023, Snowflake's
    /// lock timeout.
    Conflict(u32),
    /// The role lacks the privilege, this number of times.
    Denied(u32),
    /// The queue of the warehouse is full, this number of times.
    Busy(u32),
    /// It takes seconds.
    Slow,
}

/// The warehouse of one run, whose schema no other run uses.
pub(crate) struct Warehouse<'a> {
    server: Server<'a>,
    schema: String,
    /// The options of its table.
    table: &'static str,
    /// The beginning of the names that the sessions of the run's workers have.
    application: String,
    /// The name of the sink's offsets table, once it exists.
    offsets: Option<String>,
    /// The number of rows that a topic partition had when its offsets row had this offset.
    seen: BTreeMap<(i32, i64), u64>,
    /// It refuses some rows: a load may end with records that have no row.
    refuses: bool,
}

impl<'a> Warehouse<'a> {
    /// The warehouse of the run with this unique name. With `has_keys`, the rows of its table have
    /// keys.
    pub(crate) fn new(server: Server<'a>, name: &str, has_keys: bool) -> Self {
        let schema = name.replace('-', "_");
        if let Server::Redshift(redshift, _) = &server {
            redshift.run(&format!("CREATE SCHEMA {schema}"));
        }
        let (table, application) = (if has_keys { KEYS } else { "" }, format!("trunkline {name}"));
        Self { server, schema, table, application, offsets: None, seen: BTreeMap::new(), refuses: false }
    }

    /// The sink's section, with the stage in `bucket` at this address.
    pub(crate) fn sink(&self, bucket: &str, s3: &str) -> String {
        let options = match &self.server {
            Server::Snowflake(snowflake) => snowflake.options_with_stage_at(&self.schema.to_uppercase(), bucket, s3),
            Server::Redshift(redshift, proxy) => {
                let options = redshift.options_with_stage_at(proxy.port(), &self.schema, bucket, s3);
                format!("connector = \"redshift\"\n{options}")
            }
        };
        format!("{SINK}{}{options}", self.table)
    }

    /// The number of rows in the table. Each observation must show whole loads: the offsets row
    /// advances together with the rows before its offset.
    pub(crate) fn arrived(&mut self) -> u64 {
        let Some(offsets) = self.offsets_table() else { return 0 };
        let (partition, next_offset) = match &self.server {
            Server::Snowflake(_) => ("\"PARTITION\"", "\"NEXT_OFFSET\""),
            Server::Redshift(..) => ("\"partition\"", "\"next_offset\""),
        };
        // One statement sees one state of the database.
        let rows = self.try_query(&format!(
            "SELECT l._partition, COUNT(*), MAX(l._offset) + 1, o.{next_offset} FROM $S.lines AS l JOIN $S.\"{offsets}\" AS o \
             ON o.{partition} = l._partition GROUP BY l._partition, o.{next_offset}"
        ));
        // Before the first load there is no table.
        let mut sum = 0;
        for row in rows.unwrap_or_default() {
            let values: Vec<i64> = row.split('\t').map(|value| value.parse().unwrap()).collect();
            let [partition, count, end, next] = values[..] else { panic!("the row has other columns: {row}") };
            let is_whole = if self.refuses { end <= next } else { end == next };
            assert!(is_whole, "partition {partition}: the rows end at {end}, and the offsets row has {next}");
            let count = u64::try_from(count).unwrap();
            let before = self.seen.insert((i32::try_from(partition).unwrap(), next), count);
            assert!(
                before.is_none_or(|before| before == count),
                "partition {partition} at {next}: {before:?}, {count}"
            );
            sum += count;
        }
        sum
    }

    /// Checks that the table has every line once, and that every earlier observation showed whole
    /// loads.
    pub(crate) fn check(&self, records: u64, bytes: Option<i64>) {
        let found = self.query(
            "SELECT COUNT(*), COUNT(DISTINCT path), COUNT(DISTINCT CONCAT(_partition, '+', _offset)), SUM(bytes) FROM $S.lines",
        );
        let (counts, sum) = found[0].rsplit_once('\t').unwrap();
        assert_eq!(counts, format!("{records}\t{records}\t{records}"), "rows, distinct lines, distinct offsets");
        // The stand-in for Snowflake prints it as a float.
        let sum = sum.parse::<f64>().unwrap() as i64;
        assert!(bytes.is_none_or(|bytes| bytes == sum), "sum of bytes: {sum}, not {bytes:?}");
        let mut loaded: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        for row in self.query("SELECT _partition, _offset FROM $S.lines ORDER BY _offset") {
            let (partition, offset) = row.split_once('\t').unwrap();
            loaded.entry(partition.parse().unwrap()).or_default().push(offset.parse().unwrap());
        }
        for ((partition, next), count) in &self.seen {
            let before = loaded[partition].partition_point(|offset| offset < next) as u64;
            assert_eq!(*count, before, "partition {partition}: rows before offset {next}, when the offsets row had it");
        }
    }

    /// The time of the last load.
    pub(crate) fn last_load(&self) -> String {
        self.query("SELECT MAX(_loaded_at) FROM $S.lines").remove(0)
    }

    /// The number of rows that were loaded until this time.
    pub(crate) fn loaded_until(&self, time: &str) -> u64 {
        let found = self.query(&format!("SELECT COUNT(*) FROM $S.lines WHERE _loaded_at <= '{time}'"));
        found[0].parse().unwrap()
    }

    /// Applies a fault to the next statement that begins with this text. False if the warehouse has
    /// no such fault.
    pub(crate) fn break_at(&self, statement: &str, fault: StatementFault) -> bool {
        let refuse = |times: u32, code: &str, message: &str| json!({"refuse": statement, "times": times, "code": code, "message": message});
        match &self.server {
            Server::Snowflake(snowflake) => {
                snowflake.control(&match fault {
                    StatementFault::Lost => json!({"drop": statement, "when": "before"}),
                    StatementFault::ReplyLost => json!({"drop": statement}),
                    StatementFault::Conflict(times) => refuse(times, "000625", "Statement waited for a lock"),
                    StatementFault::Denied(times) => refuse(times, "003001", "Insufficient privileges"),
                    StatementFault::Busy(times) => refuse(times, "000622", "The queue of the warehouse timed out"),
                    StatementFault::Slow => json!({"slow": SLOW.0, "text": statement}),
                });
            }
            Server::Redshift(_, proxy) => {
                let fault = match fault {
                    StatementFault::Lost => RedshiftFault::Unsent,
                    StatementFault::ReplyLost => RedshiftFault::ReplyLost,
                    StatementFault::Conflict(times) => RedshiftFault::Conflict(times),
                    StatementFault::Denied(times) => RedshiftFault::Denied(times),
                    StatementFault::Slow => RedshiftFault::Slow(SLOW.1),
                    StatementFault::Busy(_) => return false,
                };
                proxy.break_at(statement, fault);
            }
        }
        true
    }

    /// Whether the fault of [`Warehouse::break_at`] has happened, each time.
    pub(crate) fn is_broken(&self) -> bool {
        match &self.server {
            Server::Snowflake(snowflake) => snowflake.control(&json!({})) == 0,
            Server::Redshift(_, proxy) => proxy.is_done(),
        }
    }

    /// From now on, COPY refuses rows with a text, for a reason that the sink does not check;
    /// returns the text. (The stand-in for Redshift always does.)
    pub(crate) fn refuse_rows(&mut self) -> &'static str {
        self.refuses = true;
        match &self.server {
            Server::Snowflake(snowflake) => {
                snowflake.control(&json!({"refuse_values": true}));
                "refuse:100078:String is too long and would be truncated"
            }
            Server::Redshift(..) => "refuse:1220:bad code point",
        }
    }

    /// Ends [`Warehouse::refuse_rows`]: other runs use the server, too.
    pub(crate) fn accept_rows(&self) {
        if let Server::Snowflake(snowflake) = &self.server {
            snowflake.control(&json!({"refuse_values": false}));
        }
    }

    /// Ends all sessions of the run's workers; their transactions are rolled back.
    pub(crate) fn end_sessions(&self) {
        match &self.server {
            Server::Snowflake(snowflake) => snowflake.kill_sessions(),
            Server::Redshift(redshift, _) => redshift.end_sessions(&self.application),
        }
    }

    /// Lets the tokens of all sessions expire, in one of Snowflake's ways. Redshift has no tokens.
    pub(crate) fn expire_tokens(&self, way: TokenExpiry) {
        if let Server::Snowflake(snowflake) = &self.server {
            snowflake.control(&match way {
                TokenExpiry::Renewed => json!({"expire": "token"}),
                TokenExpiry::Final => json!({"expire": "master"}),
                TokenExpiry::OtherSession => json!({"expire": "token", "replace": true}),
            });
        }
    }

    fn offsets_table(&mut self) -> Option<String> {
        if self.offsets.is_none() {
            let found = self.query(&format!(
                "SELECT table_name FROM information_schema.tables WHERE LOWER(table_schema) = '{}' AND \
                 LOWER(table_name) LIKE 'trunkline_offsets%'",
                self.schema
            ));
            self.offsets = found.first().cloned();
        }
        self.offsets.clone()
    }

    fn query(&self, sql: &str) -> Vec<String> {
        self.try_query(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The rows of a query in which `$S` stands for the schema.
    fn try_query(&self, sql: &str) -> Result<Vec<String>, String> {
        let sql = sql.replace("$S", &self.schema);
        match &self.server {
            Server::Snowflake(snowflake) => snowflake.try_query("DB", &self.schema.to_uppercase(), &sql),
            Server::Redshift(redshift, _) => redshift.try_run(&sql),
        }
    }
}

/// How the token of a session expires.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TokenExpiry {
    /// Another one can be had for the same session.
    Renewed,
    /// The worker must log in.
    Final,
    /// The renewal gives another session, in which the open transaction does not exist.
    OtherSession,
}
