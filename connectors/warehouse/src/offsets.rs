//! The sink's offsets table: which load of each topic partition was committed last.
//!
//! A row names the last committed load. A prepared load names the load that it follows, and is
//! committed only if the row still names that one, in the transaction that loads its rows: it
//! arrives once, also if another task repeats it. Offsets are not compared, so a topic that was
//! created again, or a group that was reset, loads its records.
//!
//! A task raises the epoch of the row before its first load. Loads of tasks with an older epoch are
//! refused from then on (I4). The row also names the session that loads, so that the next owner can
//! end it if it hangs and holds locks (`takeover`).

use std::collections::HashMap;
use std::time::Duration;

use trunkline_connector::{Error, Result, TopicPartition};

use crate::deletes::Deletes;
use crate::dialect::{Column, ColumnType, Dialect, Session};
use crate::load::{CONFLICT, run};
use crate::tables::cannot_create;

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OffsetsRow {
    pub(crate) epoch: i64,
    /// The last committed load; empty before the first.
    pub(crate) load: String,
    /// The session of the task that has the epoch; see [`Session::id`].
    pub(crate) session: String,
}

/// The offsets table of a sink.
#[derive(Clone)]
pub(crate) struct Offsets {
    /// Its name in the catalog.
    pub(crate) table: String,
    /// What the topics of its rows begin with: the run of a replay.
    scope: String,
}

const MAX_NAME: usize = 80;
/// Longest id of a session.
const MAX_SESSION_ID: u32 = 128;

impl Offsets {
    /// The table of the sink `{pipeline}.{sink}`. All its replays share another one, in which each
    /// has rows of its id.
    pub(crate) fn of(sink: &str, run: Option<&str>, dialect: &dyn Dialect) -> Self {
        let kind = if run.is_some() { "replays" } else { "offsets" };
        let scope = run.map(|run| format!("{run}/")).unwrap_or_default();
        Self { table: table_of(sink, kind, dialect), scope }
    }

    /// The sink's memory of deleted keys.
    pub(crate) fn deletes(&self, sink: &str, keep: Duration, dialect: &dyn Dialect) -> Deletes {
        Deletes::new(table_of(sink, "deletes", dialect), self.scope.clone(), keep)
    }

    /// Creates the table unless it exists. A table of an earlier version gets the column that it
    /// lacks.
    pub(crate) fn create(&self, dialect: &dyn Dialect, session: &mut dyn Session) -> Result<()> {
        let column = |name: &str, column_type| Column {
            name: dialect.folded(name),
            column_type,
            nullable: true,
            has_default: false,
        };
        let session_id = column("session_id", ColumnType::Text(MAX_SESSION_ID));
        if let Some(columns) = dialect.columns(session, &self.table)? {
            if columns.iter().any(|known| known.name == session_id.name) {
                return Ok(());
            }
            let added = run(session, &dialect.add_column(&self.table, &session_id));
            // Another task may have added it at the same time. The failed session is not used
            // again.
            return added.or_else(|error| {
                let again = dialect.connect().and_then(|mut other| dialect.columns(other.as_mut(), &self.table))?;
                let is_there = again.is_some_and(|columns| columns.iter().any(|known| known.name == session_id.name));
                if is_there { Ok(()) } else { Err(error) }
            });
        }
        let columns = [
            column("topic", ColumnType::Text(if self.scope.is_empty() { 255 } else { 300 })),
            column("partition", ColumnType::Integer(32)),
            column("epoch", ColumnType::Integer(64)),
            column("load_id", ColumnType::Text(64)),
            column("next_offset", ColumnType::Integer(64)),
            column("updated_at", ColumnType::Timestamp),
            session_id,
        ];
        let created = run(session, &dialect.create_table(&self.table, &columns, &[]));
        // Another task may have created it at the same time.
        created.or_else(|error| {
            match dialect.connect().and_then(|mut other| dialect.columns(other.as_mut(), &self.table)) {
                Ok(Some(_)) => Ok(()),
                _ => Err(cannot_create(dialect, &self.table, error)),
            }
        })
    }

    /// The condition of the row of a topic partition.
    pub(crate) fn condition(&self, dialect: &dyn Dialect, partition: &TopicPartition) -> String {
        let name = |name: &str| dialect.quoted(&dialect.folded(name));
        format!(
            "{} = {} AND {} = {}",
            name("topic"),
            dialect.literal(&self.scoped(partition)),
            name("partition"),
            partition.partition
        )
    }

    /// The topic, as a row names it.
    fn scoped(&self, partition: &TopicPartition) -> String {
        format!("{}{}", self.scope, partition.topic)
    }

    /// Raises the epoch of a topic partition, which refuses the loads of all tasks before this one.
    /// Creates its row if there is none. No transaction is open between two statements, so a task
    /// that hangs here holds no lock.
    pub(crate) fn claim(
        &self,
        dialect: &dyn Dialect,
        session: &mut dyn Session,
        partition: &TopicPartition,
    ) -> Result<OffsetsRow> {
        let name = |name: &str| dialect.quoted(&dialect.folded(name));
        // Without an id, the text only says which of two tasks was the last one.
        let own = session.id().map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned);
        let epoch = name("epoch");
        let raise =
            format!("{}, {epoch} = {epoch} + 1{}", self.adopting(dialect, &own), self.filter(dialect, partition));
        if session.execute(&raise)? == 0 {
            self.create_row(dialect, session, partition)?;
            session.execute(&raise)?;
        }
        let row = self.read(dialect, session, std::slice::from_ref(partition))?.remove(partition);
        let row = row.ok_or_else(|| missing_row(&self.table, partition))?;
        if row.session != own {
            let message = format!("another task claimed {partition} at the same time");
            return Err(Error::external(CONFLICT, message));
        }
        Ok(row)
    }

    /// Names the session in the row of a topic partition, and keeps its epoch: for a load that an
    /// earlier task has prepared under it.
    pub(crate) fn adopt(
        &self,
        dialect: &dyn Dialect,
        session: &mut dyn Session,
        partition: &TopicPartition,
    ) -> Result<()> {
        let own = session.id().unwrap_or_default().to_owned();
        let adopt = format!("{}{}", self.adopting(dialect, &own), self.filter(dialect, partition));
        // The load names its predecessor, so the row must be there.
        if session.execute(&adopt)? == 0 { Err(missing_row(&self.table, partition)) } else { Ok(()) }
    }

    /// The beginning of an UPDATE that names a session. It meets the lock of a load that is being
    /// committed, also where transactions that change different columns do not meet. Otherwise that
    /// load could be committed after the next one was prepared, which would then be taken for
    /// committed.
    fn adopting(&self, dialect: &dyn Dialect, session: &str) -> String {
        let name = |name: &str| dialect.quoted(&dialect.folded(name));
        let (table, load) = (dialect.quoted(&self.table), name("load_id"));
        format!("UPDATE {table} SET {load} = {load}, {} = {}", name("session_id"), dialect.literal(session))
    }

    fn filter(&self, dialect: &dyn Dialect, partition: &TopicPartition) -> String {
        format!(" WHERE {}", self.condition(dialect, partition))
    }

    /// Creates a row unless it exists.
    fn create_row(&self, dialect: &dyn Dialect, session: &mut dyn Session, row: &TopicPartition) -> Result<()> {
        let name = |name: &str| dialect.quoted(&dialect.folded(name));
        let columns: Vec<String> = ["topic", "partition", "epoch", "load_id", "next_offset"].map(name).to_vec();
        let (zero, topic) = ("0".to_owned(), dialect.literal(&self.scoped(row)));
        let values = [topic, row.partition.to_string(), zero.clone(), dialect.literal(""), zero];
        session.transaction(&dialect.insert_if_absent(&self.table, 2, &columns, &values))
    }

    /// Writes the session's id into rows whose epochs are those of its task. Returns the number of
    /// rows.
    pub(crate) fn register(
        &self,
        dialect: &dyn Dialect,
        session: &mut dyn Session,
        id: &str,
        partitions: &[(TopicPartition, i64)],
    ) -> Result<u64> {
        let name = |name: &str| dialect.quoted(&dialect.folded(name));
        let epoch = name("epoch");
        let conditions: Vec<String> = partitions
            .iter()
            .map(|(partition, own)| format!("({} AND {epoch} = {own})", self.condition(dialect, partition)))
            .collect();
        session.execute(&format!(
            "UPDATE {} SET {} = {} WHERE {}",
            dialect.quoted(&self.table),
            name("session_id"),
            dialect.literal(id),
            conditions.join(" OR ")
        ))
    }

    /// The rows of topic partitions.
    pub(crate) fn read(
        &self,
        dialect: &dyn Dialect,
        session: &mut dyn Session,
        partitions: &[TopicPartition],
    ) -> Result<HashMap<TopicPartition, OffsetsRow>> {
        let name = |name: &str| dialect.quoted(&dialect.folded(name));
        let conditions: Vec<String> =
            partitions.iter().map(|partition| format!("({})", self.condition(dialect, partition))).collect();
        let found = session.query(&format!(
            "SELECT {}, {}, {}, {}, {} FROM {} WHERE {}",
            name("topic"),
            name("partition"),
            name("epoch"),
            name("load_id"),
            name("session_id"),
            dialect.quoted(&self.table),
            conditions.join(" OR ")
        ))?;
        let mut rows = HashMap::new();
        for row in found {
            let mut values = row.into_iter().map(Option::unwrap_or_default);
            let mut next = || values.next().unwrap_or_default();
            let (topic, partition, epoch, load, session) = (next(), next(), next(), next(), next());
            let number = |text: &str| {
                text.parse::<i64>().map_err(|_| {
                    Error::data(
                        "warehouse.bad_offsets",
                        format!("the offsets table {} holds `{text}` as a number", self.table),
                    )
                })
            };
            let topic = topic.strip_prefix(&self.scope).unwrap_or(&topic);
            let partition = TopicPartition::new(topic, number(&partition)? as i32);
            rows.insert(partition, OffsetsRow { epoch: number(&epoch)?, load, session });
        }
        Ok(rows)
    }

    /// The row that remembers the newest TRUNCATE of a table.
    fn truncates_of(table: &str) -> TopicPartition {
        let start: String = table.chars().take(200).collect();
        TopicPartition::new(format!("truncated/{start}/{:016x}", xxhash_rust::xxh3::xxh3_64(table.as_bytes())), -1)
    }

    /// Prepares [`Offsets::remember_truncate`], outside of the load's transaction: creating the row
    /// may lock the table even for readers.
    pub(crate) fn create_truncates_row(
        &self,
        dialect: &dyn Dialect,
        session: &mut dyn Session,
        table: &str,
    ) -> Result<()> {
        let row = Self::truncates_of(table);
        if self.read(dialect, session, std::slice::from_ref(&row))?.is_empty() {
            self.create_row(dialect, session, &row)?;
        }
        Ok(())
    }

    /// The statement that remembers the order of a TRUNCATE. Its record is in one partition of the
    /// topic, and older changes may still arrive from the others.
    pub(crate) fn remember_truncate(&self, dialect: &dyn Dialect, table: &str, order: &str) -> String {
        let row = Self::truncates_of(table);
        let (order, load) = (dialect.literal(order), dialect.quoted(&dialect.folded("load_id")));
        format!(
            "UPDATE {} SET {load} = {order} WHERE {} AND {load} < {order}",
            dialect.quoted(&self.table),
            self.condition(dialect, &row)
        )
    }

    /// SQL of the order of a table's newest TRUNCATE; empty if there was none.
    pub(crate) fn newest_truncate(&self, dialect: &dyn Dialect, table: &str) -> String {
        format!(
            "COALESCE((SELECT MAX({}) FROM {} WHERE {}), '')",
            dialect.quoted(&dialect.folded("load_id")),
            dialect.quoted(&self.table),
            self.condition(dialect, &Self::truncates_of(table))
        )
    }

    /// The statement that commits a load: it changes the row only if the row names the load's
    /// predecessor, and no newer task has claimed the topic partition.
    pub(crate) fn advance(
        &self,
        dialect: &dyn Dialect,
        partition: &TopicPartition,
        load: (&str, &str),
        epoch: i64,
        next_offset: i64,
        now: &str,
    ) -> String {
        let name = |name: &str| dialect.quoted(&dialect.folded(name));
        let (previous, load) = load;
        format!(
            "UPDATE {} SET {load_id} = {}, {} = {next_offset}, {} = {now} WHERE {} AND {load_id} = {} AND {} <= {epoch}",
            dialect.quoted(&self.table),
            dialect.literal(load),
            name("next_offset"),
            name("updated_at"),
            self.condition(dialect, partition),
            dialect.literal(previous),
            name("epoch"),
            load_id = name("load_id"),
        )
    }
}

/// The name in the catalog of a table that the sink has for itself.
fn table_of(sink: &str, kind: &str, dialect: &dyn Dialect) -> String {
    let plain: String = sink.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(MAX_NAME).collect();
    // Different names must not become one.
    let hash = xxhash_rust::xxh3::xxh3_64(sink.as_bytes()) as u32;
    dialect.folded(&format!("trunkline_{kind}_{plain}_{hash:08x}"))
}

/// The row of a topic partition is gone, so nothing says whether a load was committed.
pub(crate) fn missing_row(table: &str, partition: &TopicPartition) -> Error {
    Error::data(
        "warehouse.no_offsets_row",
        format!(
            "the offsets table {table} has no row for {partition}, but a load for it is prepared: the table was emptied, or the sink \
             was pointed at another database. Restore the table, or point the sink back until the load is committed"
        ),
    )
}
