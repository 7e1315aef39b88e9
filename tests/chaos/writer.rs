//! One who writes to the tables: transactions of several rows that follow from the seed, and what became of each, be the server killed meanwhile.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection};
use trunkline_tests::{Random, wait};

use crate::ground::LONG;

/// The tables: their names, and the columns of their keys. Each key is made of a number, which is a column too.
pub(crate) const TABLES: [(&str, &str); 3] = [("orders", "id"), ("people", "name"), ("parts", "shelf, place")];

/// Who writes at the same time. Each has rows of its own, and so knows what is in them.
pub(crate) const WRITERS: u64 = 2;

/// Versions of the `n`-th writer begin at `n + 1` times this; those of the rows that were there before are smaller.
const VERSIONS: u64 = 1_000_000_000;

/// Most rows of one statement: of small transactions, and of those that are large because much is to be written.
const SMALL: u64 = 8;
const LARGE: u64 = 400;

/// What the test plugin does with a row of this text. Such a row is written once and never touched again.
pub(crate) const POISON: [&str; 4] = ["poison-trap", "poison-loop", "poison-flood", "poison-bomb"];

/// A change of one row: table, Debezium's letter for what was done, the row's number, and its version; of a deleted row those that it had.
pub(crate) type Change = (usize, u8, u64, u64);

/// What is in the rows of one writer.
#[derive(Clone, Default)]
struct Rows {
    /// Number and version of each row, by table.
    live: [Vec<(u64, u64)>; TABLES.len()],
    /// Numbers of rows that are gone.
    gone: [Vec<u64>; TABLES.len()],
    next_number: u64,
}

/// See the module's header.
pub(crate) struct Writer {
    number: u64,
    url: String,
    random: Random,
    runtime: tokio::runtime::Runtime,
    connection: Option<MySqlConnection>,
    rows: Rows,
    next_version: u64,
    transaction: u64,
    /// Everything that was committed.
    pub changes: Vec<Change>,
    /// Columns that the tables have got meanwhile.
    pub more_columns: [Vec<String>; TABLES.len()],
    /// Some of the new rows are poison; the versions of those that were committed.
    pub poisons: bool,
    pub poisoned: Vec<u64>,
}

impl Writer {
    /// The `number`-th one, with its share of `rows` rows in each table that are there already.
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
            rows: Rows { live, gone: Default::default(), next_number },
            next_version: (number + 1) * VERSIONS,
            transaction: 0,
            changes: Vec::new(),
            more_columns: Default::default(),
            poisons: false,
            poisoned: Vec::new(),
        }
    }

    /// Commits at least so many changes, however often the server goes away, and goes on until `is_over`; gives how many it were.
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
                // At a pace at which others can follow.
                wait::within(Duration::from_millis(self.random.below(8)), || None::<()>);
                self.transact(1);
            }
            assert!(since.elapsed() < LONG * 3, "{done} changes of {changes} were written in {:?}", since.elapsed());
        }
    }

    /// One transaction.
    fn transact(&mut self, left: u64) {
        let most = if left > 1_000 { LARGE } else { SMALL };
        let rows = self.rows.clone();
        self.transaction += 1;
        let mut sql =
            format!("BEGIN; UPDATE progress SET done = {} WHERE writer = {};\n", self.transaction, self.number);
        let (mut changes, mut poisoned) = (Vec::new(), Vec::new());
        for _ in 0..1 + self.random.below(4) {
            let table = self.random.below(TABLES.len() as u64) as usize;
            let count = 1 + self.random.below(most);
            match self.random.below(8) {
                0..3 => self.insert(&mut sql, table, count, &mut changes),
                3..6 => self.update(&mut sql, table, count, &mut changes),
                6 => self.delete(&mut sql, table, count, &mut changes),
                _ => self.rekey(&mut sql, table, &mut changes),
            }
        }
        if self.poisons && self.random.below(20) == 0 {
            let (number, version) = (self.new_number(0), self.new_version());
            // Each of the others takes a new instance, and a while.
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

    /// Of several rows in one statement, each with a version of its own.
    fn update(&mut self, sql: &mut String, table: usize, count: u64, changes: &mut Vec<Change>) {
        let mut values = Vec::new();
        let some = self.some(table, count);
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
        let some = self.some(table, count);
        if some.is_empty() {
            return;
        }
        let keys: Vec<String> = some.iter().map(|(number, _)| format!("({})", key(table, *number))).collect();
        let (name, columns) = TABLES[table];
        let _ = writeln!(sql, "DELETE FROM {name} WHERE ({columns}) IN ({});", keys.join(", "));
        for (number, version) in some {
            self.rows.gone[table].push(number);
            changes.push((table, b'd', number, version));
        }
    }

    /// A row gets another key: one is gone, and one is new.
    fn rekey(&mut self, sql: &mut String, table: usize, changes: &mut Vec<Change>) {
        let Some((number, version)) = self.some(table, 1).pop() else { return };
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
        self.rows.gone[table].push(number);
        self.rows.live[table].push((new_number, new_version));
        changes.push((table, b'd', number, version));
        changes.push((table, b'c', new_number, new_version));
    }

    /// Takes some rows out of those that are there.
    fn some(&mut self, table: usize, count: u64) -> Vec<(u64, u64)> {
        let live = &mut self.rows.live[table];
        let mut some = Vec::new();
        for _ in 0..count.min(live.len() as u64) {
            let which = self.random.below(live.len() as u64) as usize;
            some.push(live.swap_remove(which));
        }
        some
    }

    /// The number of a row to come: one that was there and is gone, now and then.
    fn new_number(&mut self, table: usize) -> u64 {
        if self.random.below(3) == 0
            && let Some(number) = self.rows.gone[table].pop()
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

    /// Runs a transaction; says whether it was committed, which is asked of the server if nobody says.
    fn execute(&mut self, sql: &str) -> bool {
        if let Some(connection) = &mut self.connection {
            let done = self.runtime.block_on(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection));
            match done {
                Ok(_) => return true,
                // A mistake of this tool's, not of the server's, which may go away or find a deadlock.
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
                Err(error) => assert!(since.elapsed() < LONG, "MySQL does not come back: {error}"),
            }
            wait::within(Duration::from_millis(100), || None::<()>);
        }
    }
}

/// Connects, and asks for the last transaction that was committed. It waits for one that still ends.
async fn connect(url: &str, writer: u64) -> sqlx::Result<(MySqlConnection, u64)> {
    let mut connection = MySqlConnection::connect(url).await?;
    let settings = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; USE shop";
    sqlx::raw_sql(settings).execute(&mut connection).await?;
    let ask = format!("SELECT done FROM progress WHERE writer = {writer} FOR UPDATE");
    let done: u64 = sqlx::query_scalar(AssertSqlSafe(ask)).persistent(false).fetch_one(&mut connection).await?;
    Ok((connection, done))
}

/// The columns behind the key.
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
