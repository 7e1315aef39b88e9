//! Tables of MySQL as the input of a pipeline, and the checks of their rows and changes.
//!
//! * Each initial row must arrive, as a row of the snapshot or as a change.
//! * Each committed change must arrive exactly once. A row's number and version identify it, and
//!   each version is used once.
//! * Each change of a row begins with the version that the change before it ended with.
//! * Applied in order, the changes result in the tables in MySQL, row by row.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{Array, StringArray, StructArray, UInt64Array};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use trunkline_tests::{KafkaClient, Mysql, Random, Reader};

use crate::feed::published;
use crate::writer::{COLUMNS, Change, TABLES, TYPES, WRITERS, Writer, values};

/// Options of the plugin `transforms/plugins/testing` for poison rows.
const POISON: &str =
    "{ trap_on = 'poison-trap', loop_on = 'poison-loop', flood_on = 'poison-flood', bomb_on = 'poison-bomb' }";

/// The MySQL of one run, and its writers.
pub(crate) struct Tables<'a> {
    server: &'a mut Mysql,
    /// Whether the source connects over TLS.
    secured: bool,
    writers: Vec<Writer>,
    /// The number of initial rows of each table.
    initial: u64,
    /// The files that are already counted.
    counted: HashSet<PathBuf>,
    /// The number of changes in these files.
    changes: u64,
    /// The initial rows in these files, by table.
    seen: [HashSet<u64>; TABLES.len()],
    columns_added: u64,
}

impl<'a> Tables<'a> {
    /// New tables of `initial` rows each. `secured`: the source connects over TLS if the server has
    /// a certificate.
    pub(crate) fn new(server: &'a mut Mysql, initial: u64, secured: bool, random: &mut Random) -> Self {
        let mut sql = "SET time_zone = '+00:00'; DROP DATABASE IF EXISTS shop; CREATE DATABASE shop CHARACTER SET utf8mb4; USE shop;\n\
                       CREATE TABLE progress (writer INT PRIMARY KEY, done BIGINT UNSIGNED NOT NULL);\n"
            .to_owned();
        (0..WRITERS).for_each(|writer| sql += &format!("INSERT INTO progress VALUES ({writer}, 0);\n"));
        for (table, (name, key)) in TABLES.into_iter().enumerate() {
            let keys = ["id BIGINT UNSIGNED", "name VARCHAR(30)", "shelf INT UNSIGNED, place TINYINT UNSIGNED"];
            let rows: Vec<String> = (0..initial).map(|n| values(random, table, n, n, "old")).collect();
            sql += &format!(
                "CREATE TABLE {name} ({}, {TYPES}, PRIMARY KEY ({key}));\nINSERT INTO {name} ({key}, {COLUMNS}) VALUES {};\n",
                keys[table],
                rows.join(",\n")
            );
        }
        server.run(&sql);
        let url = server.root_url();
        let writers = (0..WRITERS).map(|n| Writer::new(n, url.clone(), random.number(), initial)).collect();
        Self {
            server,
            secured,
            writers,
            initial,
            counted: HashSet::new(),
            changes: 0,
            seen: Default::default(),
            columns_added: 0,
        }
    }

    /// The source. Its small chunks give more moments at which a fault matters.
    pub(crate) fn source(&self) -> String {
        let authority = self.server.authority().filter(|_| self.secured);
        let tls = authority
            .map_or_else(String::new, |file| format!("tls = \"verify_ca\"\ntls_ca = \"{}\"\n", file.display()));
        format!(
            "\n[sources.shop]\nconnector = \"mysql\"\nurl = \"{}\"\ntables = [\"shop.*\", \"!shop.progress\"]\ntombstones = false\nchunk_rows = 50\n{tls}\n",
            self.server.url()
        )
    }

    /// Has the writers change `each` rows per table.
    pub(crate) fn append(&mut self, each: u64) -> u64 {
        self.write_while(each, |_| ())
    }

    /// Has the writers change at least `each` rows per table, and continue until `act` returns.
    pub(crate) fn write_while(&mut self, each: u64, act: impl FnOnce(&mut Mysql)) -> u64 {
        let share = each * TABLES.len() as u64 / WRITERS;
        let Self { server, writers, .. } = self;
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // The writers must stop if `act` panics, or the scope would wait for them forever.
            let _over = SetOnDrop(&is_over);
            let is_over = &is_over;
            let writing: Vec<_> =
                writers.iter_mut().map(|writer| scope.spawn(move || writer.write(share, is_over))).collect();
            act(server);
            is_over.store(true, Ordering::Relaxed);
            writing.into_iter().map(|writer| writer.join().unwrap()).sum()
        })
    }

    /// Adds a column at a random place of a table while the writers continue. Afterwards they write
    /// to it.
    pub(crate) fn add_column(&mut self, random: &mut Random, each: u64) -> u64 {
        let table = random.below(TABLES.len() as u64) as usize;
        self.columns_added += 1;
        let (name, column) = (TABLES[table].0, format!("more{}", self.columns_added));
        let kind = ["INT", "VARCHAR(20)", "BIGINT UNSIGNED", "SMALLINT"][random.below(4) as usize];
        let place = ["", " FIRST", " AFTER version"][random.below(3) as usize];
        let written = self.write_while(each, |server| {
            server.run(&format!("ALTER TABLE shop.{name} ADD COLUMN {column} {kind} NULL{place}"));
        });
        self.writers.iter_mut().for_each(|writer| writer.more_columns[table].push(column.clone()));
        written
    }

    pub(crate) fn poison(&mut self) -> &'static str {
        self.writers.iter_mut().for_each(|writer| writer.poisons = true);
        POISON
    }

    pub(crate) fn dead(&self) -> u64 {
        self.writers.iter().map(|writer| writer.poisoned.len() as u64).sum()
    }

    /// Committed changes and initial rows, without poison.
    pub(crate) fn expected(&self) -> u64 {
        let committed: usize = self.writers.iter().map(|writer| writer.changes.len()).sum();
        committed as u64 - self.dead() + self.initial * TABLES.len() as u64
    }

    /// Arrived changes, and initial rows that arrived as snapshot rows or as changes.
    pub(crate) fn arrived(&mut self, lake: &Path) -> u64 {
        for path in published(lake) {
            // A file that the server is still writing is unreadable, and is counted later.
            if !self.counted.contains(&path)
                && let Some(found) = operations_in(&path)
            {
                let table =
                    TABLES.iter().position(|(name, _)| path.to_string_lossy().contains(&format!("table={name}/")));
                let table = table.expect("a file of one of the tables");
                for (op, number) in found {
                    self.changes += u64::from(op != b'r');
                    if number < self.initial {
                        self.seen[table].insert(number);
                    }
                }
                self.counted.insert(path);
            }
        }
        self.changes + self.seen.iter().map(|seen| seen.len() as u64).sum::<u64>()
    }

    /// Checks that the topics have each change once; returns the number of records, including
    /// snapshots.
    pub(crate) fn check_topics(&self, client: &KafkaClient, pipeline: &str) -> u64 {
        let mut count = 0;
        let mut found = Vec::new();
        for (table, (name, _)) in TABLES.into_iter().enumerate() {
            for record in client.read(&format!("{pipeline}.shop.{name}")) {
                count += 1;
                found.extend(change(table, &record.json()));
            }
        }
        self.check_changes("topics", found, &self.committed());
        count
    }

    /// Checks that the dead letters have each poison change once; returns their number, including
    /// poison rows of snapshots.
    pub(crate) fn check_dead(&self, client: &KafkaClient, topic: &str) -> u64 {
        let letters = client.read(topic);
        let found = letters.iter().filter_map(|letter| change(0, &letter.json())).collect();
        self.check_changes("dead letters", found, &self.poisoned());
        letters.len() as u64
    }

    fn committed(&self) -> BTreeSet<Change> {
        self.writers.iter().flat_map(|writer| writer.changes.iter().copied()).collect()
    }

    fn poisoned(&self) -> BTreeSet<Change> {
        let versions: HashSet<u64> = self.writers.iter().flat_map(|writer| writer.poisoned.iter().copied()).collect();
        self.committed().into_iter().filter(|(.., version)| versions.contains(version)).collect()
    }

    fn check_changes(&self, place: &str, found: Vec<Change>, wanted: &BTreeSet<Change>) {
        let mut seen = BTreeSet::new();
        let doubled: Vec<Change> = found.into_iter().filter(|change| !seen.insert(*change)).collect();
        let missing: Vec<_> = wanted.difference(&seen).collect();
        let unknown: Vec<_> = seen.difference(wanted).collect();
        assert!(
            doubled.is_empty() && missing.is_empty() && unknown.is_empty(),
            "{place}: of {} changes (table, operation, number, version) {} are missing {:?}, {} are duplicates {:?}, {} were never committed {:?}",
            wanted.len(),
            missing.len(),
            &missing[..missing.len().min(5)],
            doubled.len(),
            &doubled[..doubled.len().min(5)],
            unknown.len(),
            &unknown[..unknown.len().min(5)],
        );
    }

    /// Checks that the lake has every change once, and that the changes result in MySQL's rows.
    pub(crate) fn check_lake(&self, reader: &Reader, lake: &Path, records: u64) {
        let found = reader.fold(lake, "n", "version");
        assert_eq!(found.rows, records, "rows in the lake");
        assert!(found.out_of_order.is_empty(), "out of order (I5): {:?}", found.out_of_order);
        let table_of = |name: &str| TABLES.iter().position(|(table, _)| *table == name).expect("one of the tables");
        let changes = found.changes.iter().map(|(table, op, number, version)| {
            (table_of(table), op.bytes().next().expect("an operation"), *number, *version)
        });
        let poisoned = self.poisoned();
        let wanted = self.committed().difference(&poisoned).copied().collect();
        self.check_changes("the lake", changes.collect(), &wanted);
        for (name, _) in TABLES {
            let expected = self.rows(name);
            let empty = BTreeMap::new();
            let folded = found.folded.get(name).unwrap_or(&empty);
            let keys: BTreeSet<&String> = expected.keys().chain(folded.keys()).collect();
            let same = |key: &&&String| match (expected.get(**key), folded.get(**key)) {
                (Some(one), Some(other)) => {
                    one.iter().all(|(column, value)| other.get(column).unwrap_or(&None) == value)
                }
                _ => false,
            };
            let different: Vec<_> = keys.iter().filter(|key| !same(key)).take(5).collect();
            let shown: Vec<_> = different.iter().map(|key| (key, expected.get(**key), folded.get(**key))).collect();
            assert!(shown.is_empty(), "{name}: (key, row in MySQL, row that results from the lake): {shown:?}");
        }
    }

    /// The rows of a table as the lake must have them: without poison, and with masked secrets.
    fn rows(&self, table: &str) -> BTreeMap<String, BTreeMap<String, Option<String>>> {
        let ask = format!(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = 'shop' AND table_name = '{table}' ORDER BY ordinal_position"
        );
        let columns = self.server.run(&ask);
        let shown: Vec<String> = columns.iter().map(|column| format!("CAST({column} AS CHAR)")).collect();
        let ask = format!(
            "SET NAMES utf8mb4; SELECT n, {} FROM shop.{table} WHERE note NOT LIKE 'poison%'",
            shown.join(", ")
        );
        let row = |line: String| {
            let mut cells = line.split('\t').map(str::to_owned);
            let key = cells.next().expect("the number");
            let cells = cells.map(|cell| (cell != "NULL").then_some(cell));
            let mut row: BTreeMap<String, Option<String>> = columns.iter().cloned().zip(cells).collect();
            match self.writers.iter().any(|writer| writer.poisons) {
                // The test plugin, which replaces the mask plugin, masks nothing.
                true => row.remove("secret"),
                false => row.insert("secret".to_owned(), Some("***".to_owned())),
            };
            (key, row)
        };
        self.server.run(&ask).into_iter().map(row).collect()
    }
}

/// Sets a flag when it is dropped, also by a panic.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The change of an event; `None` for a row of a snapshot.
fn change(table: usize, value: &Value) -> Option<Change> {
    let op = value["op"].as_str().unwrap().as_bytes()[0];
    let row = if op == b'd' { &value["before"] } else { &value["after"] };
    (op != b'r').then(|| (table, op, row["n"].as_u64().unwrap(), row["version"].as_u64().unwrap()))
}

/// The operations and row numbers in a file; `None` if the file is unreadable.
fn operations_in(path: &Path) -> Option<Vec<(u8, u64)>> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).ok()?).ok()?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), ["op", "before.n", "after.n"]);
    let mut found = Vec::new();
    for batch in builder.with_projection(mask).build().ok()? {
        let batch = batch.ok()?;
        let ops = batch.column_by_name("op")?.as_any().downcast_ref::<StringArray>()?;
        let number = |image: &str| {
            let image = batch.column_by_name(image)?.as_any().downcast_ref::<StructArray>()?;
            image.column_by_name("n")?.as_any().downcast_ref::<UInt64Array>().cloned()
        };
        let (before, after) = (number("before")?, number("after")?);
        for row in 0..batch.num_rows() {
            let op = ops.value(row).as_bytes()[0];
            found.push((op, if op == b'd' { before.value(row) } else { after.value(row) }));
        }
    }
    Some(found)
}

/// The workers' connections: the command of each by its id, from the server's process list.
pub(crate) fn connections(server: &Mysql) -> HashMap<u64, String> {
    let ask = "SELECT id, command FROM information_schema.processlist WHERE user = 'cdc'";
    let lines = server.run(ask);
    let pairs = lines.iter().filter_map(|line| line.split_once('\t'));
    pairs.map(|(id, command)| (id.parse().unwrap(), command.to_owned())).collect()
}
