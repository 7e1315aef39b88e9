//! Rebuilds the rows of `upsert` and `history` tables from a range of offsets, in the transaction
//! of a replay. See `docs/adr/033-replays-of-keys.md`.
//!
//! ```text
//! BEGIN
//!   mark of the run           see `replay`
//!   UPDATE live offsets       locks them: no load of the live sink follows the range any more
//!   COPY, count               for all groups of files
//!   check, reopen             what the range cannot know of its keys; versions that it had ended
//!   DELETE                    the rows of the range, by their lineage columns
//!   check, apply              for each group, as a load does: newer rows of other records stay
//! COMMIT
//! ```
//! The range reaches the last load of the live sink, so no record after it has changed a key.

use std::collections::BTreeSet;

use trunkline_connector::{Error, LIVE_AHEAD, NOT_REBUILT, OffsetRanges, Result, TopicPartition};

use crate::apply::{Context, Sql, control, filled};
use crate::dialect::{Dialect, Session, StagingColumn};
use crate::intent::{FileColumn, LoadMode, PlannedFile};
use crate::offsets::Offsets;
use crate::replay::{Replacement, condition};

/// See the module's header.
pub(crate) struct Rebuild<'a> {
    pub(crate) dialect: &'a dyn Dialect,
    pub(crate) mode: LoadMode,
    /// The offsets table of the live sink.
    pub(crate) live: &'a Offsets,
    pub(crate) replacement: &'a Replacement,
    /// Those that exist.
    pub(crate) tables: Vec<RebuiltTable>,
    /// Names temporary tables.
    pub(crate) task: &'a str,
}

/// A table with rows of the range.
pub(crate) struct RebuiltTable {
    /// The name in the catalog.
    pub(crate) name: String,
    pub(crate) ranges: OffsetRanges,
    /// It has the column of the order of changes.
    pub(crate) has_order: bool,
    /// The columns of the option `key`.
    pub(crate) key: Vec<String>,
}

/// A group of files, and the staging table with its rows, if it has some.
pub(crate) struct StagedGroup<'a> {
    pub(crate) target: &'a PlannedFile,
    pub(crate) staging: Option<&'a str>,
}

impl Rebuild<'_> {
    fn own(&self, name: &str) -> String {
        self.dialect.quoted(&self.dialect.folded(name))
    }

    /// The name of the temporary table with the staged keys of a table.
    fn keys_table(&self, index: usize) -> String {
        self.dialect.folded(&format!("trunkline_staging_{}_k{index}", self.task))
    }

    /// The temporary tables that [`Rebuild::create`] creates.
    pub(crate) fn temporary_tables(&self) -> Vec<String> {
        (0..self.tables.len()).map(|index| self.keys_table(index)).collect()
    }

    /// Creates temporary tables, outside of the transaction: for the key and the order of each
    /// staged row.
    pub(crate) fn create(&self, session: &mut dyn Session, groups: &[StagedGroup<'_>]) -> Result<()> {
        let order = self.dialect.folded(filled::SOURCE_ORDER);
        for (index, table) in self.tables.iter().enumerate() {
            let Some(group) = with_rows(groups, &table.name).next() else { continue };
            let file = group.target;
            let is_kept = |column: &&FileColumn| file.key_columns.contains(&column.name) || column.name == order;
            let columns = file
                .columns
                .iter()
                .filter(is_kept)
                .map(|column| StagingColumn { name: column.name.clone(), column_type: column.column_type.clone() });
            let (name, columns): (String, Vec<StagingColumn>) = (self.keys_table(index), columns.collect());
            session.execute(&format!("DROP TABLE IF EXISTS {}", self.dialect.quoted(&name)))?;
            self.dialect.create_staging(&name, &columns).iter().try_for_each(|sql| session.execute(sql).map(drop))?;
        }
        Ok(())
    }

    /// Locks the offsets rows of the live sink, and checks that it has not loaded records after the
    /// range.
    pub(crate) fn hold_live(&self, session: &mut dyn Session) -> Result<()> {
        let table = self.dialect.quoted(&self.live.table);
        let next = self.own("next_offset");
        for (partition, (_, to)) in &self.replacement.ranges {
            let row = self.live.condition(self.dialect, partition);
            session.execute(&format!("UPDATE {table} SET {next} = {next} WHERE {row}"))?;
            let found = session.query(&format!("SELECT {next} FROM {table} WHERE {row}"))?;
            let loaded = found.first().and_then(|row| row.first()?.as_ref()?.parse::<i64>().ok()).unwrap_or(0);
            if loaded > *to {
                let message = format!(
                    "the live sink has loaded the records of {partition} up to offset {loaded}, and the range ends at {to}: the run must \
                     follow it first"
                );
                return Err(Error::data(LIVE_AHEAD, message));
            }
        }
        Ok(())
    }

    /// Removes the rows of the range after the checks that need them. All rows are staged.
    pub(crate) fn remove_rows(&self, session: &mut dyn Session, groups: &[StagedGroup<'_>]) -> Result<()> {
        for (index, table) in self.tables.iter().enumerate() {
            self.check_truncates(table, groups)?;
            match self.mode {
                LoadMode::Append => {}
                LoadMode::Upsert | LoadMode::UpsertSoft => self.check_keys(session, table, index, groups)?,
                LoadMode::History => self.reopen_versions(session, table, groups)?,
            }
            let in_range = self.in_range(table, "", |_| true);
            session.execute(&format!("DELETE FROM {} WHERE {in_range}", self.dialect.quoted(&table.name)))?;
        }
        Ok(())
    }

    /// The rows of the selected partitions of the range. `qualifier` is the table's name with a
    /// dot, where others have these columns, too.
    fn in_range(&self, table: &RebuiltTable, qualifier: &str, selected: impl Fn(&TopicPartition) -> bool) -> String {
        let ranges = table.ranges.iter().filter(|(partition, _)| selected(partition));
        let conditions: Vec<String> =
            ranges.map(|(partition, range)| condition(self.dialect, qualifier, partition, *range)).collect();
        if conditions.is_empty() { "FALSE".to_owned() } else { format!("({})", conditions.join(" OR ")) }
    }

    /// Records of other partitions may be from before or after a TRUNCATE. Only its order decides.
    fn check_truncates(&self, table: &RebuiltTable, groups: &[StagedGroup<'_>]) -> Result<()> {
        let is_unordered = |group: &&StagedGroup<'_>| {
            group.target.table == table.name && group.target.truncates && group.target.truncates_until.is_none()
        };
        if table.ranges.len() == 1 || !groups.iter().any(|group| is_unordered(&group)) {
            return Ok(());
        }
        let message = format!(
            "the range has a TRUNCATE of the table {} whose place among the records of the other partitions is not known: replay into an \
             empty table with --into",
            table.name
        );
        Err(Error::data(NOT_REBUILT, message))
    }

    /// The checks of tables that hold the newest row of each key.
    fn check_keys(
        &self,
        session: &mut dyn Session,
        table: &RebuiltTable,
        index: usize,
        groups: &[StagedGroup<'_>],
    ) -> Result<()> {
        let is_truncated = groups.iter().any(|group| group.target.table == table.name && group.target.truncates);
        let earlier: &BTreeSet<TopicPartition> = &self.replacement.earlier;
        let is_cut = !is_truncated && table.ranges.keys().any(|partition| earlier.contains(partition));
        let is_soft = self.mode == LoadMode::UpsertSoft;
        if !is_cut && !is_soft {
            return Ok(());
        }
        let keys = self.dialect.quoted(&self.keys_table(index));
        let first = self.stage_keys(session, table, &keys, groups)?;
        if let Some(first) = first.filter(|_| is_soft) {
            self.check_soft_deletes(session, table, &keys, first, groups)?;
        }
        if is_cut { self.check_gone_keys(session, table, &keys, first) } else { Ok(()) }
    }

    /// Brings the keys of all staged rows into the temporary table. Returns a file of the table, if
    /// there is one.
    fn stage_keys<'g>(
        &self,
        session: &mut dyn Session,
        table: &RebuiltTable,
        keys: &str,
        groups: &[StagedGroup<'g>],
    ) -> Result<Option<&'g PlannedFile>> {
        let Some(first) = with_rows(groups, &table.name).next() else { return Ok(None) };
        for group in with_rows(groups, &table.name) {
            if group.target.key_columns != first.target.key_columns {
                let message = format!(
                    "the columns of the key of the table {} change within the range: replay into an empty table with --into",
                    table.name
                );
                return Err(Error::data(NOT_REBUILT, message));
            }
            let staging = self.dialect.quoted(group.staging.unwrap_or_default());
            let order = self.sql(first.target).order().and(self.sql(group.target).order());
            let key = key_columns(group.target).map(|column| self.dialect.quoted(&column.name));
            let columns = list(key.chain(order));
            session.execute(&format!("INSERT INTO {keys} ({columns}) SELECT {columns} FROM {staging}"))?;
        }
        Ok(Some(first.target))
    }

    /// The row that a key had before the range is not known any more. So a key without a change in
    /// the range, whose row is from the range, is removed only if nothing precedes the range.
    fn check_gone_keys(
        &self,
        session: &mut dyn Session,
        table: &RebuiltTable,
        keys: &str,
        file: Option<&PlannedFile>,
    ) -> Result<()> {
        let target = self.dialect.quoted(&table.name);
        let in_range = self.in_range(table, "", |partition| self.replacement.earlier.contains(partition));
        let mut sql = format!("SELECT COUNT(*) FROM {target} WHERE {in_range}");
        if let Some(file) = file {
            let same_key = self.sql(file).same_key(keys);
            sql.push_str(&format!(" AND NOT EXISTS (SELECT 1 FROM {keys} WHERE {same_key})"));
        }
        match self.count(session, &sql)? {
            0 => Ok(()),
            count => Err(cut(
                table,
                &format!(
                    "today's transforms make no row of the records in the range that {count} of its rows are from, and the rows that \
                     their keys had before the range are not known"
                ),
            )),
        }
    }

    /// Refuses keys with staged changes and a later delete, which is not staged and may be from
    /// before the range or from the range.
    fn check_soft_deletes(
        &self,
        session: &mut dyn Session,
        table: &RebuiltTable,
        keys: &str,
        file: &PlannedFile,
        groups: &[StagedGroup<'_>],
    ) -> Result<()> {
        let sql = self.sql(file);
        let Some(order) = sql.order() else { return Ok(()) };
        let target = self.dialect.quoted(&table.name);
        let outside = format!("NOT {}", self.in_range(table, &format!("{target}."), |_| true));
        let key = list(key_columns(file).map(|column| self.dialect.quoted(&column.name)));
        let [changes, newest] = ["trunkline_changes", "trunkline_newest"].map(|name| self.own(name));
        let truncates = groups.iter().filter(|group| group.target.table == table.name);
        let truncated = truncates.filter_map(|group| group.target.truncates_until.as_deref()).max().unwrap_or_default();
        let query = format!(
            "SELECT COUNT(*) FROM {target}, (SELECT {key}, MAX({order}) AS {newest} FROM {keys} GROUP BY {key}) AS {changes} WHERE {} AND \
             {outside} AND {target}.{} IS NOT NULL AND {target}.{order} > {changes}.{newest} AND {target}.{order} > {}",
            sql.same_key(&changes),
            self.own(filled::DELETED_AT),
            self.dialect.literal(truncated)
        );
        unknown_deletes(table, self.count(session, &query)?)
    }

    /// Versions from before the range that the range has ended are current again: what it holds now
    /// ends them.
    fn reopen_versions(
        &self,
        session: &mut dyn Session,
        table: &RebuiltTable,
        groups: &[StagedGroup<'_>],
    ) -> Result<()> {
        let Some(key) = self.history_key(table, groups) else {
            let message = format!(
                "today's transforms make no row of the table {} of the records in the range, so its key is not known: set the option `key`",
                table.name
            );
            return Err(Error::data(NOT_REBUILT, message));
        };
        let target = self.dialect.quoted(&table.name);
        let [topic, partition, offset] = ["_topic", "_partition", "_offset"].map(|name| self.own(name));
        let [valid_from, valid_to, is_current] =
            [filled::VALID_FROM, filled::VALID_TO, filled::IS_CURRENT].map(|name| self.own(name));
        let [next_at, replayed, next_replayed, versions] =
            ["trunkline_next_at", "trunkline_replayed", "trunkline_next_replayed", "trunkline_versions"]
                .map(|name| self.own(name));
        let order = table.has_order.then(|| self.own(filled::SOURCE_ORDER));
        let place = [&topic, &partition, &offset, &valid_from];
        let columns = list(key.iter().chain(place).chain(&order).cloned());
        let order = order.map(|order| format!("COALESCE({order}, ''), ")).unwrap_or_default();
        let over = format!("OVER (PARTITION BY {} ORDER BY {order}{valid_from}, {offset})", key.join(", "));
        let in_range = self.in_range(table, "", |_| true);
        let same: Vec<String> =
            key.iter().chain(place).map(|name| format!("{target}.{name} = {versions}.{name}")).collect();
        session.execute(&format!(
            "UPDATE {target} SET {valid_to} = NULL, {is_current} = TRUE FROM (SELECT {columns}, {replayed}, LEAD({valid_from}) {over} AS \
             {next_at}, LEAD({replayed}) {over} AS {next_replayed} FROM (SELECT {columns}, CASE WHEN {in_range} THEN 1 ELSE 0 END AS \
             {replayed} FROM {target}) AS trunkline_marked) AS {versions} WHERE {} AND {target}.{valid_to} = {versions}.{next_at} AND \
             {versions}.{replayed} = 0 AND {versions}.{next_replayed} = 1",
            same.join(" AND ")
        ))?;
        for group in with_rows(groups, &table.name) {
            self.reopen_deleted(session, table, group)?;
        }
        Ok(())
    }

    /// The same for versions that a delete of the range has ended. They have its order.
    fn reopen_deleted(&self, session: &mut dyn Session, table: &RebuiltTable, group: &StagedGroup<'_>) -> Result<()> {
        let sql = self.sql(group.target);
        let (Some(order), Some(staging)) = (sql.order(), group.staging) else { return Ok(()) };
        let (target, staging) = (self.dialect.quoted(&table.name), self.dialect.quoted(staging));
        let (deleted, changed_at) = (self.own(control::DELETED), self.own(control::CHANGED_AT));
        let [valid_from, valid_to, is_current] =
            [filled::VALID_FROM, filled::VALID_TO, filled::IS_CURRENT].map(|name| self.own(name));
        let [first_at, first_order, changes] =
            ["trunkline_first_at", "trunkline_first_order", "trunkline_changes"].map(|name| self.own(name));
        let key = list(key_columns(group.target).map(|column| self.dialect.quoted(&column.name)));
        let in_range = self.in_range(table, &format!("{target}."), |_| true);
        // A change of the key that is older than the version is a repeated one: then the delete may
        // be, too.
        session.execute(&format!(
            "UPDATE {target} SET {valid_to} = NULL, {is_current} = TRUE, {order} = NULL FROM (SELECT {key}, {order}, {deleted}, \
             MIN({changed_at}) OVER (PARTITION BY {key}) AS {first_at}, MIN({order}) OVER (PARTITION BY {key}) AS {first_order} FROM \
             {staging}) AS {changes} WHERE {} AND {changes}.{deleted} AND {target}.{order} = {changes}.{order} AND \
             {target}.{valid_to} IS NOT NULL AND NOT {in_range} AND ({changes}.{first_at} > {target}.{valid_from} OR \
             {changes}.{first_order} = {target}.{order})",
            sql.same_key(&changes)
        ))?;
        Ok(())
    }

    /// Refuses keys of a `history` whose staged changes are older than a delete that may be from
    /// before the range or from the range. Called before the group is applied.
    pub(crate) fn check_deletes(&self, session: &mut dyn Session, group: &StagedGroup<'_>) -> Result<()> {
        let table = self.tables.iter().find(|table| table.name == group.target.table);
        let (Some(table), Some(staging), LoadMode::History) = (table, group.staging, self.mode) else { return Ok(()) };
        let sql = self.sql(group.target);
        let (target, staging) = (self.dialect.quoted(&table.name), self.dialect.quoted(staging));
        let outside = format!("NOT {}", self.in_range(table, &format!("{target}."), |_| true));
        let [changes, first] = ["trunkline_changes", "trunkline_first"].map(|name| self.own(name));
        let columns: Vec<String> = key_columns(group.target).map(|column| self.dialect.quoted(&column.name)).collect();
        let key = columns.join(", ");
        let qualified = list(columns.iter().map(|name| format!("{changes}.{name}")));
        // Without the order, the times decide.
        let (of_change, of_version) = match sql.order() {
            Some(order) => (order.clone(), order),
            None => (self.own(control::CHANGED_AT), self.own(filled::VALID_TO)),
        };
        let query = format!(
            "SELECT COUNT(*) FROM (SELECT {qualified} FROM {target}, (SELECT {key}, MIN({of_change}) AS {first} FROM {staging} GROUP BY \
             {key}) AS {changes} WHERE {} AND {outside} GROUP BY {qualified}, {changes}.{first} HAVING MAX(CASE WHEN {target}.{} THEN 1 \
             ELSE 0 END) = 0 AND MAX({target}.{of_version}) > {changes}.{first}) AS trunkline_cut",
            sql.same_key(&changes),
            self.own(filled::IS_CURRENT)
        );
        unknown_deletes(table, self.count(session, &query)?)
    }

    /// The columns of the key, quoted.
    fn history_key(&self, table: &RebuiltTable, groups: &[StagedGroup<'_>]) -> Option<Vec<String>> {
        let quoted = |name: &String| self.dialect.quoted(name);
        match with_rows(groups, &table.name).next() {
            Some(group) => Some(group.target.key_columns.iter().map(quoted).collect()),
            None if table.key.is_empty() => None,
            None => Some(table.key.iter().map(quoted).collect()),
        }
    }

    fn sql<'s>(&'s self, file: &'s PlannedFile) -> Sql<'s> {
        let context = Context { now: "", newest_truncate: "", deletes: None, has_deletes: false };
        Sql { dialect: self.dialect, file, context }
    }

    fn count(&self, session: &mut dyn Session, sql: &str) -> Result<u64> {
        let rows = session.query(sql)?;
        let count = rows.first().and_then(|row| row.first()?.as_ref()?.parse().ok());
        count.ok_or_else(|| {
            Error::external("warehouse.row_count", "a count of rows is no number: the run tries it again")
        })
    }
}

/// The groups of a table that have rows.
fn with_rows<'g, 'a>(groups: &'g [StagedGroup<'a>], table: &str) -> impl Iterator<Item = &'g StagedGroup<'a>> {
    groups.iter().filter(move |group| group.target.table == table && group.staging.is_some())
}

fn key_columns(file: &PlannedFile) -> impl Iterator<Item = &FileColumn> {
    file.columns.iter().filter(|column| file.key_columns.contains(&column.name))
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

fn cut(table: &RebuiltTable, reason: &str) -> Error {
    let message = format!(
        "the table {}: {reason}. Nothing was replaced: give the run up with --discard, and start one with `--from earliest`",
        table.name
    );
    Error::data(NOT_REBUILT, message)
}

fn unknown_deletes(table: &RebuiltTable, keys: u64) -> Result<()> {
    match keys {
        0 => Ok(()),
        keys => Err(cut(
            table,
            &format!(
                "{keys} of its keys were deleted after changes that the range has for them, and the table does not say whether before the \
                 range or in it"
            ),
        )),
    }
}
