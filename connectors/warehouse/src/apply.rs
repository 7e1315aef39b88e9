//! The statements that bring staged rows into their table.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::dialect::{ColumnType, Dialect};
use crate::intent::{FileColumn, LoadMode, PlannedFile};

/// Columns of staged files that the sink adds for itself.
pub(crate) mod control {
    /// The order of the rows of a load.
    pub(crate) const SEQUENCE: &str = "trunkline_sequence";
    /// The row deletes its key.
    pub(crate) const DELETED: &str = "trunkline_deleted";
    /// When the source made the change.
    pub(crate) const CHANGED_AT: &str = "trunkline_changed_at";
    /// Rank of a version within its key.
    pub(crate) const RANK: &str = "trunkline_rank";
}

/// Columns of the target that the load itself fills.
pub(crate) mod filled {
    /// When the row was loaded.
    pub(crate) const LOADED_AT: &str = "_loaded_at";
    /// When the row was deleted at the source (`deletes = "soft"`).
    pub(crate) const DELETED_AT: &str = "deleted_at";
    /// The time in which a version was valid (`mode = "history"`).
    pub(crate) const VALID_FROM: &str = "valid_from";
    /// See [`VALID_FROM`].
    pub(crate) const VALID_TO: &str = "valid_to";
    /// The version is the newest one of its key.
    pub(crate) const IS_CURRENT: &str = "is_current";
}

/// Number of staging tables that a mode uses.
pub(crate) fn stagings(mode: LoadMode) -> usize {
    match mode {
        LoadMode::Append => 1,
        // The rows as loaded, and the newest of each key (the versions with their times).
        LoadMode::Upsert | LoadMode::UpsertSoft | LoadMode::History => 2,
    }
}

/// The names of the staging tables of a group.
pub(crate) fn staging_names(dialect: &dyn Dialect, task: &str, index: usize) -> Vec<String> {
    ["a", "b"].map(|part| dialect.folded(&format!("trunkline_staging_{task}_{index}{part}"))).to_vec()
}

/// The present as SQL.
pub(crate) fn now(dialect: &dyn Dialect) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let text = arrow::temporal_conversions::timestamp_us_to_datetime(since.as_micros() as i64)
        .map(|time| time.format("%Y-%m-%d %H:%M:%S%.6f").to_string())
        .unwrap_or_default();
    format!("CAST({} AS {})", dialect.literal(&text), dialect.sql_type(&ColumnType::Timestamp))
}

/// Quotes names of one load.
struct Sql<'a> {
    dialect: &'a dyn Dialect,
    file: &'a PlannedFile,
    now: &'a str,
}

impl Sql<'_> {
    fn name(&self, name: &str) -> String {
        self.dialect.quoted(name)
    }

    fn own(&self, name: &str) -> String {
        self.dialect.quoted(&self.dialect.folded(name))
    }

    fn all_columns(&self) -> String {
        list(self.file.columns.iter().map(|column| self.name(&column.name)))
    }

    fn loaded(&self) -> impl Iterator<Item = &FileColumn> {
        self.file.columns.iter().filter(|column| column.is_loaded)
    }

    /// `INSERT INTO target (..) SELECT .. FROM staging`, with more columns that the load fills.
    fn insert(&self, from: &str, more: &[(&str, String)], condition: &str) -> String {
        let names = self.loaded().map(|column| self.name(&column.name));
        let values =
            self.loaded().map(|column| self.dialect.load_expression(&column.column_type, &self.name(&column.name)));
        let lineage = self.file.fills_loaded_at.then(|| (filled::LOADED_AT, self.now.to_owned()));
        let more: Vec<_> = lineage.into_iter().chain(more.iter().map(|(name, value)| (*name, value.clone()))).collect();
        let names = list(names.chain(more.iter().map(|(name, _)| self.own(name))));
        let values = list(values.chain(more.iter().map(|(_, value)| value.clone())));
        format!("INSERT INTO {} ({names}) SELECT {values} FROM {from}{condition}", self.name(&self.file.table))
    }

    /// The rows of target and staging table have the same key.
    fn same_key(&self, staging: &str) -> String {
        let table = self.name(&self.file.table);
        let columns = self.file.columns.iter().filter(|column| self.file.key_columns.contains(&column.name));
        let equal: Vec<String> = columns
            .map(|column| {
                let name = self.name(&column.name);
                let staged = self.dialect.load_expression(&column.column_type, &format!("{staging}.{name}"));
                format!("{table}.{name} = {staged}")
            })
            .collect();
        equal.join(" AND ")
    }

    fn partition_by_key(&self) -> String {
        list(self.file.key_columns.iter().map(|name| self.name(name)))
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

/// Empties the target: the source did.
pub(crate) fn truncate(dialect: &dyn Dialect, file: &PlannedFile, now: &str) -> Vec<String> {
    let sql = Sql { dialect, file, now };
    let table = sql.name(&file.table);
    // Not TRUNCATE, which commits.
    vec![match file.mode {
        LoadMode::Append => return Vec::new(),
        LoadMode::Upsert => format!("DELETE FROM {table}"),
        LoadMode::UpsertSoft => {
            let deleted = sql.own(filled::DELETED_AT);
            format!("UPDATE {table} SET {deleted} = {now} WHERE {deleted} IS NULL")
        }
        LoadMode::History => format!(
            "UPDATE {table} SET {} = {now}, {current} = FALSE WHERE {current}",
            sql.own(filled::VALID_TO),
            current = sql.own(filled::IS_CURRENT)
        ),
    }]
}

/// The statements for rows that COPY brought into the first of the staging tables.
pub(crate) fn apply(dialect: &dyn Dialect, file: &PlannedFile, stagings: &[String], now: &str) -> Vec<String> {
    let sql = Sql { dialect, file, now };
    let quoted: Vec<String> = stagings.iter().map(|name| dialect.quoted(name)).collect();
    match (file.mode, quoted.as_slice()) {
        (LoadMode::Append, [staging, ..]) => vec![sql.insert(staging, &[], "")],
        (LoadMode::History, [staging, versions, ..]) => history(&sql, staging, versions),
        (mode, [staging, newest, ..]) => upsert(&sql, staging, newest, mode == LoadMode::UpsertSoft),
        _ => Vec::new(),
    }
}

fn upsert(sql: &Sql<'_>, staging: &str, newest: &str, soft: bool) -> Vec<String> {
    let (table, columns) = (sql.name(&sql.file.table), sql.all_columns());
    let (rank, sequence, deleted) = (sql.own(control::RANK), sql.own(control::SEQUENCE), sql.own(control::DELETED));
    let key = sql.partition_by_key();
    let same_key = sql.same_key(newest);
    let mut statements = vec![format!(
        "INSERT INTO {newest} ({columns}) SELECT {columns} FROM (SELECT {columns}, ROW_NUMBER() OVER (PARTITION BY {key} ORDER BY \
         {sequence} DESC) AS {rank} FROM {staging}) AS ranked WHERE {rank} = 1"
    )];
    if soft {
        let deleted_at = sql.own(filled::DELETED_AT);
        statements.push(format!(
            "UPDATE {table} SET {deleted_at} = {} FROM {newest} WHERE {same_key} AND {newest}.{deleted}",
            sql.now
        ));
        statements.push(format!("DELETE FROM {table} USING {newest} WHERE {same_key} AND NOT {newest}.{deleted}"));
    } else {
        statements.push(format!("DELETE FROM {table} USING {newest} WHERE {same_key}"));
    }
    statements.push(sql.insert(newest, &[], &format!(" WHERE NOT {deleted}")));
    statements
}

/// Every staged row is a version that is valid until the next one of its key. A delete ends a
/// version and adds none.
fn history(sql: &Sql<'_>, staging: &str, versions: &str) -> Vec<String> {
    let (table, columns) = (sql.name(&sql.file.table), sql.all_columns());
    let (sequence, deleted, rank) = (sql.own(control::SEQUENCE), sql.own(control::DELETED), sql.own(control::RANK));
    let changed_at = sql.own(control::CHANGED_AT);
    let (valid_to, is_current) = (sql.own(filled::VALID_TO), sql.own(filled::IS_CURRENT));
    let key = sql.partition_by_key();
    let same_key = sql.same_key(versions);
    let over = format!("OVER (PARTITION BY {key} ORDER BY {sequence})");
    let next = sql.own("trunkline_next_at");
    let from = format!("(SELECT {columns}, LEAD({changed_at}) {over} AS {next} FROM {staging}) AS versions");
    let more = [
        (filled::VALID_FROM, changed_at.clone()),
        (filled::VALID_TO, next.clone()),
        (filled::IS_CURRENT, format!("{next} IS NULL")),
    ];
    vec![
        // The first change of each key ends the version that the table holds.
        format!(
            "INSERT INTO {versions} ({columns}) SELECT {columns} FROM (SELECT {columns}, ROW_NUMBER() {over} AS {rank} FROM {staging}) AS \
             ranked WHERE {rank} = 1"
        ),
        format!(
            "UPDATE {table} SET {valid_to} = {versions}.{changed_at}, {is_current} = FALSE FROM {versions} WHERE {same_key} AND \
             {table}.{is_current}"
        ),
        sql.insert(&from, &more, &format!(" WHERE NOT {deleted}")),
    ]
}
