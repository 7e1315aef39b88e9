//! The sink's offsets table: which load of each topic partition was committed last.
//!
//! A row names the last committed load. A prepared load names the load that it follows, and is
//! committed only if the row still names that one, in the transaction that loads its rows: it
//! arrives once, also if another task repeats it. Offsets are not compared, so a topic that was
//! created again, or a group that was reset, loads its records.
//!
//! A task raises the epoch of the row when it prepares its first load. Loads of tasks with an older
//! epoch are refused from then on (I4).

use std::collections::HashMap;

use trunkline_connector::{Error, Result, TopicPartition};

use crate::dialect::{Column, ColumnType, Dialect, Session};

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OffsetsRow {
    pub(crate) epoch: i64,
    /// The last committed load; empty before the first.
    pub(crate) load: String,
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

impl Offsets {
    /// The table of the sink `{pipeline}.{sink}`. All its replays share another one, in which each
    /// has rows of its id.
    pub(crate) fn of(sink: &str, run: Option<&str>, dialect: &dyn Dialect) -> Self {
        let plain: String =
            sink.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(MAX_NAME).collect();
        // Different names must not become one.
        let hash = xxhash_rust::xxh3::xxh3_64(sink.as_bytes()) as u32;
        let kind = if run.is_some() { "replays" } else { "offsets" };
        let scope = run.map(|run| format!("{run}/")).unwrap_or_default();
        Self { table: dialect.folded(&format!("trunkline_{kind}_{plain}_{hash:08x}")), scope }
    }

    /// Creates the table unless it exists.
    pub(crate) fn create(&self, dialect: &dyn Dialect, session: &mut dyn Session) -> Result<()> {
        if dialect.columns(session, &self.table)?.is_some() {
            return Ok(());
        }
        let column = |name: &str, column_type| Column {
            name: dialect.folded(name),
            column_type,
            nullable: true,
            has_default: false,
        };
        let columns = [
            column("topic", ColumnType::Text(if self.scope.is_empty() { 255 } else { 300 })),
            column("partition", ColumnType::Integer(32)),
            column("epoch", ColumnType::Integer(64)),
            column("load_id", ColumnType::Text(64)),
            column("next_offset", ColumnType::Integer(64)),
            column("updated_at", ColumnType::Timestamp),
        ];
        let created =
            dialect.create_table(&self.table, &columns, &[]).iter().try_for_each(|sql| session.execute(sql).map(drop));
        // Another task may have created it at the same time.
        created.or_else(|error| {
            match dialect.connect().and_then(|mut other| dialect.columns(other.as_mut(), &self.table)) {
                Ok(Some(_)) => Ok(()),
                _ => Err(error),
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
    pub(crate) fn claim(
        &self,
        dialect: &dyn Dialect,
        session: &mut dyn Session,
        partition: &TopicPartition,
    ) -> Result<OffsetsRow> {
        let name = |name: &str| dialect.quoted(&dialect.folded(name));
        let columns: Vec<String> = ["topic", "partition", "epoch", "load_id", "next_offset"].map(name).to_vec();
        let values = [
            dialect.literal(&self.scoped(partition)),
            partition.partition.to_string(),
            "0".to_owned(),
            dialect.literal(""),
            "0".to_owned(),
        ];
        session.execute("BEGIN")?;
        for sql in dialect.insert_if_absent(&self.table, 2, &columns, &values) {
            session.execute(&sql)?;
        }
        let (table, epoch) = (dialect.quoted(&self.table), name("epoch"));
        let condition = self.condition(dialect, partition);
        session.execute(&format!("UPDATE {table} SET {epoch} = {epoch} + 1 WHERE {condition}"))?;
        let row = self.read(dialect, session, std::slice::from_ref(partition))?.remove(partition);
        session.execute("COMMIT")?;
        row.ok_or_else(|| missing_row(&self.table, partition))
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
            "SELECT {}, {}, {}, {} FROM {} WHERE {}",
            name("topic"),
            name("partition"),
            name("epoch"),
            name("load_id"),
            dialect.quoted(&self.table),
            conditions.join(" OR ")
        ))?;
        let mut rows = HashMap::new();
        for row in found {
            let mut values = row.into_iter().map(Option::unwrap_or_default);
            let mut next = || values.next().unwrap_or_default();
            let (topic, partition, epoch, load) = (next(), next(), next(), next());
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
            rows.insert(partition, OffsetsRow { epoch: number(&epoch)?, load });
        }
        Ok(rows)
    }

    /// The row that remembers the newest TRUNCATE of a table.
    fn truncates_of(table: &str) -> TopicPartition {
        let start: String = table.chars().take(200).collect();
        TopicPartition::new(format!("truncated/{start}/{:016x}", xxhash_rust::xxh3::xxh3_64(table.as_bytes())), -1)
    }

    /// Statements that remember the order of a TRUNCATE. Its record is in one partition of the
    /// topic, and older changes may still arrive from the others.
    pub(crate) fn remember_truncate(&self, dialect: &dyn Dialect, table: &str, order: &str) -> Vec<String> {
        let name = |name: &str| dialect.quoted(&dialect.folded(name));
        let row = Self::truncates_of(table);
        let columns: Vec<String> = ["topic", "partition", "epoch", "load_id", "next_offset"].map(name).to_vec();
        let (zero, topic) = ("0".to_owned(), dialect.literal(&self.scoped(&row)));
        let values = [topic, row.partition.to_string(), zero.clone(), dialect.literal(""), zero];
        let mut statements = dialect.insert_if_absent(&self.table, 2, &columns, &values);
        let (order, load) = (dialect.literal(order), name("load_id"));
        statements.push(format!(
            "UPDATE {} SET {load} = {order} WHERE {} AND {load} < {order}",
            dialect.quoted(&self.table),
            self.condition(dialect, &row)
        ));
        statements
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
