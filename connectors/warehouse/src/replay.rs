//! Replays: what a replay must know of the tables, and the transaction that replaces rows.
//!
//! A replay has its rows in another offsets table (`trunkline_replays_..`), so that it neither
//! meets nor fences the loads of the live sink. One that supersedes loads all its files at the end:
//!
//! ```text
//! claim the mark of the run   ends the session of an earlier process that holds its lock
//! read the mark               a run with a mark has been loaded
//! create staging tables
//! BEGIN
//!   UPDATE mark               must change one row, else ROLLBACK and decide again
//!   DELETE                    the rows of the range, by their lineage columns
//!   COPY, count, INSERT       for each group of files
//! COMMIT
//! ```
//! A crash before COMMIT leaves the earlier rows, and one after it the new ones. Rows that belong
//! to keys need more steps: see `rebuild`.

use std::collections::{BTreeMap, BTreeSet};

use trunkline_connector::{Error, OffsetRanges, Result, RowCount, RowCounts, Supersede, TopicPartition, failpoint};

use crate::apply::filled::SOURCE_ORDER;
use crate::config::Options;
use crate::dialect::{Dialect, Session};
use crate::intent::LoadMode;
use crate::load::{CONFLICT, Loader, PendingLoad, Rows};
use crate::offsets::Offsets;
use crate::rebuild::{Rebuild, RebuiltTable};
use crate::sessions::Sessions;
use crate::tables::{catalog_name, find_column};
use crate::takeover::Takeover;

/// The columns with which rows name their records.
const LINEAGE: [&str; 3] = ["_topic", "_partition", "_offset"];

/// Topic partitions of one query.
const PARTITIONS_OF_QUERY: usize = 100;

/// What the output of a run takes the place of.
pub(crate) struct Replacement {
    /// The id of the run.
    pub(crate) run: String,
    /// The offsets whose rows are replaced.
    pub(crate) ranges: OffsetRanges,
    /// Topic partitions with records before the range.
    pub(crate) earlier: BTreeSet<TopicPartition>,
    /// The offsets table of the live sink.
    pub(crate) live: Offsets,
}

impl Options {
    /// The place that a sink with these options writes to: a table of the schema, or the schema if
    /// the table depends on the records. `folded` gives the name in the catalog.
    pub fn destination(&self, schema: &str, folded: impl Fn(&str) -> String) -> String {
        match self.table.constant() {
            Some(table) => format!("{schema}/{}", folded(&plain(table))),
            None => schema.to_owned(),
        }
    }

    /// How a replay can take the place of what a sink with these options wrote.
    pub fn supersede(&self) -> Supersede {
        if !self.lineage {
            return Supersede::Refused(
                "with `lineage = false` the rows do not name the records that they are from, so those of the range cannot be found",
            );
        }
        if self.table.for_topic("").is_none() {
            return Supersede::Refused(
                "the option `table` depends on the records and not only on their topic, so the tables with rows of the range are not \
                 known",
            );
        }
        Supersede::Rows { up_to_live: self.mode != LoadMode::Append }
    }

    /// The tables of topic partitions; `None` if they depend on the records.
    pub(crate) fn tables(
        &self,
        dialect: &dyn Dialect,
        ranges: &OffsetRanges,
    ) -> Option<BTreeMap<String, OffsetRanges>> {
        let mut tables: BTreeMap<String, OffsetRanges> = BTreeMap::new();
        for (partition, range) in ranges {
            let table = catalog_name(dialect, &self.table.for_topic(&partition.topic)?);
            tables.entry(table).or_default().insert(partition.clone(), *range);
        }
        Some(tables)
    }
}

/// Characters that no table has become `_`.
pub(crate) fn plain(table: &str) -> String {
    table.chars().map(|c| if c.is_alphanumeric() || c == '_' || c == '$' { c } else { '_' }).collect()
}

/// Counts the rows of offsets; see
/// [`SinkSpec::count_rows`](trunkline_connector::SinkSpec::count_rows).
pub fn count_rows(
    dialect: &dyn Dialect,
    options: &Options,
    ranges: &OffsetRanges,
    gaps: usize,
) -> Result<Option<RowCounts>> {
    let tables = options.tables(dialect, ranges).filter(|_| options.lineage);
    let Some(tables) = tables else { return Ok(None) };
    let mut session = dialect.connect()?;
    let mut counts = RowCounts::default();
    for (table, ranges) in &tables {
        let lookup = Lookup { dialect, session: session.as_mut(), table };
        lookup.count(ranges, gaps, &mut counts)?;
    }
    Ok(Some(counts))
}

/// Rows that a replay must not meet; see
/// [`SinkSpec::rows_in_the_way`](trunkline_connector::SinkSpec::rows_in_the_way). Tables that
/// depend on the records are not looked at.
pub fn rows_in_the_way(dialect: &dyn Dialect, options: &Options, ranges: &OffsetRanges) -> Result<Option<String>> {
    let Some(tables) = options.tables(dialect, ranges) else { return Ok(None) };
    if options.mode == LoadMode::Append
        && let Some(counts) = count_rows(dialect, options, ranges, 0)?
    {
        let found = counts.partitions.first();
        return Ok(found.map(|count| {
            let RowCount { table, partition, rows, .. } = count;
            format!("the table {table} holds {rows} rows of {partition} in the range, and each would be there twice")
        }));
    }
    let mut session = dialect.connect()?;
    for table in tables.keys() {
        let mut lookup = Lookup { dialect, session: session.as_mut(), table };
        let rows = if lookup.columns()?.is_some() { lookup.number("")? } else { 0 };
        if rows > 0 {
            let reason = match options.mode {
                LoadMode::Append => "which do not name their records, so that a repeated one cannot be found",
                _ => "and older records of the range could replace newer rows",
            };
            return Ok(Some(format!("the table {table} holds {rows} rows, {reason}")));
        }
    }
    Ok(None)
}

/// Queries on one table.
struct Lookup<'a> {
    dialect: &'a dyn Dialect,
    session: &'a mut dyn Session,
    table: &'a str,
}

impl Lookup<'_> {
    /// The names of the table's columns; `None` if there is no such table.
    fn columns(&mut self) -> Result<Option<Vec<String>>> {
        let columns = self.dialect.columns(self.session, self.table)?;
        Ok(columns.map(|columns| columns.into_iter().map(|column| column.name).collect()))
    }

    fn number(&mut self, condition: &str) -> Result<u64> {
        let table = self.dialect.quoted(self.table);
        let rows = self.session.query(&format!("SELECT COUNT(*) FROM {table}{condition}"))?;
        let count = rows.first().and_then(|row| row.first()?.as_ref()?.parse().ok());
        count.ok_or_else(|| unreadable(self.table))
    }

    fn count(mut self, ranges: &OffsetRanges, gaps: usize, counts: &mut RowCounts) -> Result<()> {
        let Some(columns) = self.columns()? else { return Ok(()) };
        if !LINEAGE.iter().all(|name| columns.contains(&self.dialect.folded(name))) {
            counts.unnamed += self.number("")?;
            return Ok(());
        }
        let [topic, partition, offset] = names(self.dialect);
        counts.unnamed += self.number(&format!(" WHERE {topic} IS NULL OR {partition} IS NULL OR {offset} IS NULL"))?;
        let ranges: Vec<(&TopicPartition, &(i64, i64))> = ranges.iter().collect();
        for part in ranges.chunks(PARTITIONS_OF_QUERY) {
            let conditions: Vec<String> =
                part.iter().map(|(partition, range)| condition(self.dialect, "", partition, **range)).collect();
            let found = self.session.query(&format!(
                "SELECT {topic}, {partition}, COUNT(*), COUNT(DISTINCT {offset}), MIN({offset}), MAX({offset}) FROM {} WHERE {} GROUP \
                 BY {topic}, {partition}",
                self.dialect.quoted(self.table),
                conditions.join(" OR ")
            ))?;
            for row in found {
                let count = row_count(self.table, row)?;
                let is_meant = |(partition, _): &&(&TopicPartition, &(i64, i64))| **partition == count.partition;
                let range = part.iter().find(is_meant).map(|(_, range)| **range);
                let gaps = match range.filter(|_| gaps > 0) {
                    Some(range) => self.gaps(&count.partition, range, gaps)?,
                    None => Vec::new(),
                };
                counts.partitions.push(RowCount { gaps, ..count });
            }
        }
        Ok(())
    }

    /// The longest ranges of offsets between two rows.
    fn gaps(&mut self, partition: &TopicPartition, range: (i64, i64), most: usize) -> Result<Vec<(i64, i64)>> {
        let [.., offset] = names(self.dialect);
        let rows = self.session.query(&format!(
            "SELECT a, b FROM (SELECT {offset} AS a, LEAD({offset}) OVER (ORDER BY {offset}) AS b FROM {} WHERE {}) AS pairs WHERE b > a \
             + 1 ORDER BY b - a DESC, a LIMIT {most}",
            self.dialect.quoted(self.table),
            condition(self.dialect, "", partition, range)
        ))?;
        rows.iter()
            .map(|row| match row.as_slice() {
                [Some(before), Some(after)] => match (before.parse::<i64>(), after.parse::<i64>()) {
                    (Ok(before), Ok(after)) => Ok((before + 1, after - 1)),
                    _ => Err(unreadable(self.table)),
                },
                _ => Err(unreadable(self.table)),
            })
            .collect()
    }
}

fn row_count(table: &str, row: Vec<Option<String>>) -> Result<RowCount> {
    let mut values = row.into_iter().map(Option::unwrap_or_default);
    let topic = values.next().unwrap_or_default();
    let mut number = || values.next().and_then(|text| text.parse::<i64>().ok()).ok_or_else(|| unreadable(table));
    let partition = TopicPartition::new(topic, i32::try_from(number()?).unwrap_or(-1));
    let (rows, offsets) = (number()?, number()?);
    Ok(RowCount {
        table: table.to_owned(),
        partition,
        rows: u64::try_from(rows).unwrap_or(0),
        offsets: u64::try_from(offsets).unwrap_or(0),
        extremes: (number()?, number()?),
        gaps: Vec::new(),
    })
}

fn unreadable(table: &str) -> Error {
    let message = format!("the count of the rows of {table} is no number: run `SELECT COUNT(*)` on it, and try again");
    Error::external("warehouse.row_count", message)
}

fn names(dialect: &dyn Dialect) -> [String; 3] {
    LINEAGE.map(|name| dialect.quoted(&dialect.folded(name)))
}

/// The rows of a range of offsets. `qualifier` precedes the names of columns.
pub(crate) fn condition(
    dialect: &dyn Dialect,
    qualifier: &str,
    partition: &TopicPartition,
    (from, to): (i64, i64),
) -> String {
    let [topic, number, offset] = names(dialect).map(|name| format!("{qualifier}{name}"));
    format!(
        "({topic} = {} AND {number} = {} AND {offset} >= {from} AND {offset} < {to})",
        dialect.literal(&partition.topic),
        partition.partition
    )
}

/// The row of the offsets table that says whether a run was loaded.
fn mark() -> TopicPartition {
    TopicPartition::new("", -1)
}

impl Loader {
    /// Puts the files of a run in the place of the rows of its range, unless that was done.
    pub(crate) fn replace(
        &self,
        sessions: &mut Sessions,
        options: &Options,
        replacement: &Replacement,
        loads: &[PendingLoad],
    ) -> Result<()> {
        // The session of a process that was killed may hold the lock of the mark, for hours.
        let (offsets, mark) = (&self.offsets, mark());
        Takeover { offsets, partition: &mark, patience: options.takeover_timeout }
            .run(sessions, &mut |dialect, session| offsets.claim(dialect, session, &mark))?;
        self.repeat(sessions, &mut |dialect, session| self.replace_once(dialect, session, options, replacement, loads))
    }

    fn replace_once(
        &self,
        dialect: &dyn Dialect,
        session: &mut dyn Session,
        options: &Options,
        replacement: &Replacement,
        loads: &[PendingLoad],
    ) -> Result<()> {
        let known = self.offsets.read(dialect, session, &[mark()])?.remove(&mark());
        let row = known.map_or_else(|| self.offsets.claim(dialect, session, &mark()), Ok)?;
        if row.load == replacement.run {
            tracing::debug!(run = replacement.run, "the run was loaded before");
            return Ok(());
        }
        // The session was replaced since the claim: the next process must find this one.
        if let Some(own) = session.id().map(str::to_owned).filter(|own| *own != row.session) {
            self.offsets.register(dialect, session, &own, &[(mark(), row.epoch)])?;
        }
        let mut rebuild = Rebuild {
            dialect,
            mode: options.mode,
            live: &replacement.live,
            replacement,
            tables: Vec::new(),
            task: &self.task,
        };
        for (name, ranges) in options.tables(dialect, &replacement.ranges).unwrap_or_default() {
            // No row of the range has been written if there is no such table.
            if let Some(columns) = dialect.columns(session, &name)? {
                let order = dialect.folded(SOURCE_ORDER);
                let has_order = columns.iter().any(|column| column.name == order);
                let in_table = |field: &String| {
                    let name = dialect.folded(field);
                    find_column(&columns, &name).map_or(name.clone(), |column| column.name.clone())
                };
                let key = options.key.iter().map(in_table).collect();
                rebuild.tables.push(RebuiltTable { name, ranges, has_order, key });
            }
        }
        let has_keys = options.mode != LoadMode::Append;
        let loads: Vec<&PendingLoad> = loads.iter().collect();
        let mut begin = |session: &mut dyn Session, now: &str| {
            let ids = ("", replacement.run.as_str());
            let advance = self.offsets.advance(dialect, &mark(), ids, row.epoch, 0, now);
            if session.execute(&advance)? != 1 {
                session.execute("ROLLBACK")?;
                return Err(Error::external(CONFLICT, "another process loads the run at the same time"));
            }
            failpoint!("warehouse.offsets.after")?;
            if has_keys { rebuild.hold_live(session) } else { rebuild.remove_rows(session, &[]) }
        };
        self.transact(dialect, session, &loads, &mut begin, Rows::InFiles(has_keys.then_some(&rebuild)))
    }
}
