//! A writer of the tables: seeded transactions of several rows. It knows the outcome of each
//! transaction, even if the server is killed during it.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection};
use trunkline_tests::{Mysql, Random, wait};

use crate::fixture::LIMIT;

/// The tables' names and key columns. A row's number determines its key, and is a column too.
pub(crate) const TABLES: [(&str, &str); 3] = [("orders", "id"), ("people", "name"), ("parts", "shelf, place")];

/// The number of concurrent writers. Each has its own rows, so that it knows their contents.
pub(crate) const WRITERS: u64 = 2;

/// The versions of the `n`-th writer begin at `n + 1` times this. Initial rows have smaller
/// versions.
const VERSIONS: u64 = 1_000_000_000;

/// The maximum rows of a statement, in small transactions and in those of a large write.
const SMALL: u64 = 8;
const LARGE: u64 = 400;

/// Texts that are poison for the test plugin. A poison row is inserted and never changed.
pub(crate) const POISON: [&str; 4] = ["poison-trap", "poison-loop", "poison-flood", "poison-bomb"];

/// A change of one row: table, Debezium's letter of the operation, the row's number and its version
/// (for a deletion, the deleted one).
pub(crate) type Change = (usize, u8, u64, u64);

/// The rows of one writer.
#[derive(Clone, Default)]
struct Rows {
    /// Number and version of each row, by table.
    live: [Vec<(u64, u64)>; TABLES.len()],
    /// Numbers of deleted rows, by table.
    deleted: [Vec<u64>; TABLES.len()],
    next_number: u64,
}

/// A writer of the tables.
pub(crate) struct Writer {
    number: u64,
    url: String,
    random: Random,
    runtime: tokio::runtime::Runtime,
    connection: Option<MySqlConnection>,
    rows: Rows,
    next_version: u64,
    transaction: u64,
    /// All committed changes.
    pub changes: Vec<Change>,
    /// Columns that were added to the tables.
    pub more_columns: [Vec<String>; TABLES.len()],
    /// Whether some new rows are poison.
    pub poisons: bool,
    /// The versions of committed poison rows.
    pub poisoned: Vec<u64>,
}

impl Writer {
    /// The `number`-th writer. It owns its share of the `rows` initial rows of each table.
    pub(crate) fn new(number: u64, url: String, seed: u64, rows: u64) -> Self {
        let own: Vec<_> = (0..rows).filter(|row| row % WRITERS == number).map(|row| (row, row)).collect();
        let live = [own.clone(), own.clone(), own];
        let next_number = rows - rows % WRITERS + WRITERS + number;
        Self {
            number,
            url,
            random: Random::new(seed),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            connection: None,
            rows: Rows { live, deleted: Default::default(), next_number },
            next_version: (number + 1) * VERSIONS,
            transaction: 0,
            changes: Vec::new(),
            more_columns: Default::default(),
            poisons: false,
            poisoned: Vec::new(),
        }
    }

    /// Commits at least `changes` changes, even if the server stops in between, and continues until
    /// `is_over`; returns their number.
    pub(crate) fn write(&mut self, changes: u64, is_over: &AtomicBool) -> u64 {
        let before = self.changes.len() as u64;
        let since = Instant::now();
        loop {
            let done = self.changes.len() as u64 - before;
            if done < changes {
                self.transact(changes - done);
            } else if is_over.load(Ordering::Relaxed) {
                return done;
            } else {
                // At a rate that the pipeline can follow.
                wait::within(Duration::from_millis(self.random.below(8)), || None::<()>);
                self.transact(1);
            }
            assert!(since.elapsed() < LIMIT * 3, "{done} changes of {changes} were written in {:?}", since.elapsed());
        }
    }

    /// Executes one transaction.
    fn transact(&mut self, left: u64) {
        let max_rows = if left > 1_000 { LARGE } else { SMALL };
        let rows = self.rows.clone();
        self.transaction += 1;
        let mut sql =
            format!("BEGIN; UPDATE progress SET done = {} WHERE writer = {};\n", self.transaction, self.number);
        let (mut changes, mut poisoned) = (Vec::new(), Vec::new());
        for _ in 0..1 + self.random.below(4) {
            let table = self.random.below(TABLES.len() as u64) as usize;
            let count = 1 + self.random.below(max_rows);
            match self.random.below(8) {
                0..3 => self.insert(&mut sql, table, count, &mut changes),
                3..6 => self.update(&mut sql, table, count, &mut changes),
                6 => self.delete(&mut sql, table, count, &mut changes),
                _ => self.rekey(&mut sql, table, &mut changes),
            }
        }
        if self.poisons && self.random.below(20) == 0 {
            let (number, version) = (self.new_number(0), self.new_version());
            // Mostly traps: each other kind costs a new plugin instance and its timeout.
            let kind = POISON[self.random.below(30).saturating_sub(26) as usize];
            let values = self.values(0, number, version, kind);
            let _ = writeln!(sql, "INSERT INTO orders ({}) VALUES {values};", self.columns(0));
            changes.push((0, b'c', number, version));
            poisoned.push(version);
        }
        let gives_up = self.random.below(8) == 0;
        sql.push_str(if gives_up { "ROLLBACK" } else { "COMMIT" });
        if self.execute(&sql) && !gives_up {
            self.changes.append(&mut changes);
            self.poisoned.append(&mut poisoned);
        } else {
            self.rows = rows;
        }
    }

    fn insert(&mut self, sql: &mut String, table: usize, count: u64, changes: &mut Vec<Change>) {
        let mut values = Vec::new();
        for _ in 0..count {
            let (number, version) = (self.new_number(table), self.new_version());
            values.push(self.values(table, number, version, "new"));
            self.rows.live[table].push((number, version));
            changes.push((table, b'c', number, version));
        }
        let _ =
            writeln!(sql, "INSERT INTO {} ({}) VALUES {};", TABLES[table].0, self.columns(table), values.join(", "));
    }

    /// Updates several rows in one statement, each to its own new version.
    fn update(&mut self, sql: &mut String, table: usize, count: u64, changes: &mut Vec<Change>) {
        let mut values = Vec::new();
        let some = self.take_rows(table, count);
        for (number, _) in &some {
            let version = self.new_version();
            values.push(self.values(table, *number, version, "changed"));
            self.rows.live[table].push((*number, version));
            changes.push((table, b'u', *number, version));
        }
        if some.is_empty() {
            return;
        }
        let columns = self.columns(table);
        let set: Vec<String> = columns.split(", ").map(|column| format!("{column} = VALUES({column})")).collect();
        let _ = writeln!(
            sql,
            "INSERT INTO {} ({columns}) VALUES {} ON DUPLICATE KEY UPDATE {};",
            TABLES[table].0,
            values.join(", "),
            set.join(", ")
        );
    }

    fn delete(&mut self, sql: &mut String, table: usize, count: u64, changes: &mut Vec<Change>) {
        let some = self.take_rows(table, count);
        if some.is_empty() {
            return;
        }
        let keys: Vec<String> = some.iter().map(|(number, _)| format!("({})", key(table, *number))).collect();
        let (name, columns) = TABLES[table];
        let _ = writeln!(sql, "DELETE FROM {name} WHERE ({columns}) IN ({});", keys.join(", "));
        for (number, version) in some {
            self.rows.deleted[table].push(number);
            changes.push((table, b'd', number, version));
        }
    }

    /// Changes the key of a row: the events are a deletion and a creation.
    fn rekey(&mut self, sql: &mut String, table: usize, changes: &mut Vec<Change>) {
        let Some((number, version)) = self.take_rows(table, 1).pop() else { return };
        let (new_number, new_version) = (self.new_number(table), self.new_version());
        let (name, columns) = TABLES[table];
        let new_key = key(table, new_number);
        let set: Vec<String> =
            columns.split(", ").zip(new_key.split(", ")).map(|(column, value)| format!("{column} = {value}")).collect();
        let _ = writeln!(
            sql,
            "UPDATE {name} SET {}, n = {new_number}, version = {new_version} WHERE ({columns}) = ({});",
            set.join(", "),
            key(table, number)
        );
        self.rows.deleted[table].push(number);
        self.rows.live[table].push((new_number, new_version));
        changes.push((table, b'd', number, version));
        changes.push((table, b'c', new_number, new_version));
    }

    /// Removes some rows from the live ones, and returns them.
    fn take_rows(&mut self, table: usize, count: u64) -> Vec<(u64, u64)> {
        let live = &mut self.rows.live[table];
        let mut some = Vec::new();
        for _ in 0..count.min(live.len() as u64) {
            let which = self.random.below(live.len() as u64) as usize;
            some.push(live.swap_remove(which));
        }
        some
    }

    /// The number of a new row: sometimes that of a deleted one.
    fn new_number(&mut self, table: usize) -> u64 {
        if self.random.below(3) == 0
            && let Some(number) = self.rows.deleted[table].pop()
        {
            return number;
        }
        self.rows.next_number += WRITERS;
        self.rows.next_number
    }

    fn new_version(&mut self) -> u64 {
        self.next_version += 1;
        self.next_version
    }

    fn columns(&self, table: usize) -> String {
        let mut columns = format!("{}, {COLUMNS}", TABLES[table].1);
        self.more_columns[table].iter().for_each(|column| columns += &format!(", {column}"));
        columns
    }

    fn values(&mut self, table: usize, number: u64, version: u64, word: &str) -> String {
        let mut values = values(&mut self.random, table, number, version, word);
        values.pop();
        for _ in &self.more_columns[table] {
            let value = self.random.below(1_000);
            let _ = match value % 5 {
                0 => write!(values, ", NULL"),
                _ => write!(values, ", {value}"),
            };
        }
        values + ")"
    }

    /// Runs a transaction; returns whether it was committed. If the connection breaks, it asks the
    /// server.
    fn execute(&mut self, sql: &str) -> bool {
        if let Some(connection) = &mut self.connection {
            let done = self.runtime.block_on(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection));
            match done {
                Ok(_) => return true,
                // A syntax error or an unknown name is a defect of this program. Other errors are
                // expected: the server stops, or finds a deadlock.
                Err(sqlx::Error::Database(error))
                    if ["42000", "42S22", "42S02"].iter().any(|state| error.code().as_deref() == Some(state)) =>
                {
                    panic!("{error}\n{sql}")
                }
                Err(_) => self.connection = None,
            }
        }
        let since = Instant::now();
        loop {
            match self.runtime.block_on(connect(&self.url, self.number)) {
                Ok((connection, done)) => {
                    self.connection = Some(connection);
                    return done == self.transaction;
                }
                Err(error) => assert!(since.elapsed() < LIMIT, "MySQL is not reachable: {error}"),
            }
            wait::within(Duration::from_millis(100), || None::<()>);
        }
    }
}

/// Connects; also returns the writer's last committed transaction. The row lock waits for one that
/// is still ending.
async fn connect(url: &str, writer: u64) -> sqlx::Result<(MySqlConnection, u64)> {
    let mut connection = MySqlConnection::connect(url).await?;
    let settings = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; SET time_zone = '+00:00'; USE shop";
    let settings = [Mysql::PLAIN_SESSION, settings].concat();
    sqlx::raw_sql(AssertSqlSafe(settings)).execute(&mut connection).await?;
    let ask = format!("SELECT done FROM progress WHERE writer = {writer} FOR UPDATE");
    let done: u64 = sqlx::query_scalar(AssertSqlSafe(ask)).persistent(false).fetch_one(&mut connection).await?;
    Ok((connection, done))
}

/// The columns after the key.
pub(crate) const COLUMNS: &str = "n, version, amount, at, note, secret";

/// Their types.
pub(crate) const TYPES: &str = "n BIGINT UNSIGNED NOT NULL, version BIGINT UNSIGNED NOT NULL, amount DECIMAL(12,2), at DATETIME(6), note VARCHAR(300), \
                                secret VARCHAR(40) NOT NULL";

/// The key of a row, as SQL.
fn key(table: usize, number: u64) -> String {
    match table {
        0 => format!("{number}"),
        1 => format!("'p{number}'"),
        _ => format!("{}, {}", number / 10, number % 10),
    }
}

/// A row as SQL.
pub(crate) fn values(random: &mut Random, table: usize, number: u64, version: u64, word: &str) -> String {
    let (amount, filling) = (random.below(100_000_000), random.below(200) as usize);
    let note = format!("{word} {}", "ä".repeat(filling));
    let at = format!("2026-01-{:02} 03:04:05.{:06}", 1 + amount % 28, amount % 1_000_000);
    format!(
        "({}, {number}, {version}, {}.{:02}, '{at}', '{}', 'clear {amount}')",
        key(table, number),
        amount / 100,
        amount % 100,
        note.trim_end()
    )
}
