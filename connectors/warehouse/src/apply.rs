//! The statements that bring staged rows into their table.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::deletes::Deletes;
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
    /// Hash of the row's key, for the memory of deleted keys.
    pub(crate) const KEY: &str = "trunkline_key";
    /// Offset of the row's record, where the target has no lineage columns.
    pub(crate) const OFFSET: &str = "trunkline_offset";
    /// Rank of a version within its key.
    pub(crate) const RANK: &str = "trunkline_rank";
}

/// Columns of the target that name the row's record.
pub(crate) mod lineage {
    /// Offset of the record.
    pub(crate) const OFFSET: &str = "_offset";
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
    /// The order of the row's newest change in the source, as far as it is known. That of a version
    /// that a delete ended is the delete's.
    pub(crate) const SOURCE_ORDER: &str = "_source_order";
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

/// Whether the rows of a file have the hashes of their keys.
pub(crate) fn has_key_hashes(dialect: &dyn Dialect, file: &PlannedFile) -> bool {
    let name = dialect.folded(control::KEY);
    file.columns.iter().any(|column| column.name == name)
}

/// The present as SQL.
pub(crate) fn now(dialect: &dyn Dialect) -> String {
    timestamp(dialect, SystemTime::now())
}

/// A time as SQL.
pub(crate) fn timestamp(dialect: &dyn Dialect, time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let text = arrow::temporal_conversions::timestamp_us_to_datetime(since.as_micros() as i64)
        .map(|time| time.format("%Y-%m-%d %H:%M:%S%.6f").to_string())
        .unwrap_or_default();
    format!("CAST({} AS {})", dialect.literal(&text), dialect.sql_type(&ColumnType::Timestamp))
}

/// What the statements of a load need besides its files.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    /// SQL of the present.
    pub(crate) now: &'a str,
    /// SQL of the order of the table's newest TRUNCATE.
    pub(crate) newest_truncate: &'a str,
    /// The memory of deleted keys.
    pub(crate) deletes: Option<&'a Deletes>,
    /// Some of the rows are deletes.
    pub(crate) has_deletes: bool,
}

/// Quotes names of one load.
pub(crate) struct Sql<'a> {
    pub(crate) dialect: &'a dyn Dialect,
    pub(crate) file: &'a PlannedFile,
    pub(crate) context: Context<'a>,
}

impl Sql<'_> {
    fn name(&self, name: &str) -> String {
        self.dialect.quoted(name)
    }

    fn own(&self, name: &str) -> String {
        self.dialect.quoted(&self.dialect.folded(name))
    }

    /// The column with the order of changes, if the rows have it.
    pub(crate) fn order(&self) -> Option<String> {
        let name = self.dialect.folded(filled::SOURCE_ORDER);
        self.loaded().any(|column| column.name == name).then(|| self.name(&name))
    }

    /// The condition that a row of the table is newer than the row of a staging table: then the
    /// staged one arrived late. A row without an order is older than all others.
    fn is_newer(&self, staging: &str, order: &str, or_equal: bool) -> String {
        let (table, than) = (self.name(&self.file.table), if or_equal { ">=" } else { ">" });
        format!("{} AND {table}.{order} {than} COALESCE({staging}.{order}, '')", self.same_key(staging))
    }

    /// The staged rows that no TRUNCATE has removed.
    fn staged(&self, staging: &str, order: &str) -> String {
        let (columns, newest_truncate) = (self.all_columns(), self.context.newest_truncate);
        format!("(SELECT {columns} FROM {staging} WHERE {order} IS NULL OR {order} >= {newest_truncate}) AS staged")
    }

    fn all_columns(&self) -> String {
        list(self.file.columns.iter().map(|column| self.name(&column.name)))
    }

    fn loaded(&self) -> impl Iterator<Item = &FileColumn> {
        self.file.columns.iter().filter(|column| column.is_loaded)
    }

    /// `INSERT INTO target (..) SELECT .. FROM staging`, with columns that the load fills.
    fn insert(&self, from: &str, more: &[(&str, String)], condition: &str) -> String {
        let is_staged = |column: &&FileColumn| more.iter().all(|(name, _)| self.dialect.folded(name) != column.name);
        let staged: Vec<&FileColumn> = self.loaded().filter(is_staged).collect();
        let names = staged.iter().map(|column| self.name(&column.name));
        let values =
            staged.iter().map(|column| self.dialect.load_expression(&column.column_type, &self.name(&column.name)));
        let lineage = self.file.fills_loaded_at.then(|| (filled::LOADED_AT, self.context.now.to_owned()));
        let more: Vec<_> = lineage.into_iter().chain(more.iter().map(|(name, value)| (*name, value.clone()))).collect();
        let names = list(names.chain(more.iter().map(|(name, _)| self.own(name))));
        let values = list(values.chain(more.iter().map(|(_, value)| value.clone())));
        format!("INSERT INTO {} ({names}) SELECT {values} FROM {from}{condition}", self.name(&self.file.table))
    }

    /// The rows of target and staging table have the same key.
    pub(crate) fn same_key(&self, staging: &str) -> String {
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

    /// The memory of deleted keys, if the rows have the hashes of their keys.
    fn deletes(&self) -> Option<&Deletes> {
        self.context.deletes.filter(|_| has_key_hashes(self.dialect, self.file))
    }

    /// Drops staged changes from before the delete of their key.
    fn drop_late(&self, staging: &str, order: &str, or_equal: bool) -> Option<String> {
        let key = self.own(control::KEY);
        let late = (staging, key.as_str(), order);
        self.deletes().map(|deletes| deletes.drop_late(self.dialect, &self.file.table, late, or_equal))
    }

    /// Remembers the staged deletes.
    fn note_deletes(&self, staging: &str, order: &str) -> Vec<String> {
        let (key, deleted) = (self.own(control::KEY), self.own(control::DELETED));
        let staged = (staging, key.as_str(), order);
        let note = |deletes: &Deletes| {
            deletes.note(self.dialect, &self.file.table, staged, &deleted, self.context.now).to_vec()
        };
        self.deletes().filter(|_| self.context.has_deletes).map(note).unwrap_or_default()
    }

    fn partition_by_key(&self) -> String {
        list(self.file.key_columns.iter().map(|name| self.name(name)))
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

/// Empties the target: the source did. Rows with newer changes stay.
pub(crate) fn truncate(dialect: &dyn Dialect, file: &PlannedFile, now: &str) -> Vec<String> {
    let context = Context { now, newest_truncate: "", deletes: None, has_deletes: false };
    let sql = Sql { dialect, file, context };
    let (table, order) = (sql.name(&file.table), sql.own(filled::SOURCE_ORDER));
    let until = file.truncates_until.as_ref().map(|until| dialect.literal(until));
    let is_older = until.as_ref().map(|until| format!("({order} IS NULL OR {order} < {until})"));
    // The rows that stay know of the change, so that older ones lose.
    let set_order = until.map(|until| format!(", {order} = {until}")).unwrap_or_default();
    let and_older = is_older.as_ref().map(|is_older| format!(" AND {is_older}")).unwrap_or_default();
    // Not TRUNCATE, which commits.
    vec![match file.mode {
        LoadMode::Append => return Vec::new(),
        LoadMode::Upsert => match is_older {
            Some(is_older) => format!("DELETE FROM {table} WHERE {is_older}"),
            None => format!("DELETE FROM {table}"),
        },
        LoadMode::UpsertSoft => {
            let deleted = sql.own(filled::DELETED_AT);
            match is_older {
                // Deleted rows learn of it, too.
                Some(is_older) => {
                    format!("UPDATE {table} SET {deleted} = COALESCE({deleted}, {now}){set_order} WHERE {is_older}")
                }
                None => format!("UPDATE {table} SET {deleted} = {now} WHERE {deleted} IS NULL"),
            }
        }
        LoadMode::History => format!(
            "UPDATE {table} SET {} = {now}, {current} = FALSE{set_order} WHERE {current}{and_older}",
            sql.own(filled::VALID_TO),
            current = sql.own(filled::IS_CURRENT)
        ),
    }]
}

/// The statements for rows that COPY brought into the first of the staging tables.
pub(crate) fn apply(
    dialect: &dyn Dialect,
    file: &PlannedFile,
    stagings: &[String],
    context: &Context<'_>,
) -> Vec<String> {
    let sql = Sql { dialect, file, context: *context };
    let quoted: Vec<String> = stagings.iter().map(|name| dialect.quoted(name)).collect();
    match (file.mode, quoted.as_slice()) {
        (LoadMode::Append, [staging, ..]) => vec![sql.insert(staging, &[], "")],
        (LoadMode::History, [staging, versions, ..]) => history(&sql, staging, versions),
        (mode, [staging, newest, ..]) => upsert(&sql, staging, newest, mode == LoadMode::UpsertSoft),
        _ => Vec::new(),
    }
}

/// The newest change of each key replaces the row, unless the row is newer.
fn upsert(sql: &Sql<'_>, staging: &str, newest: &str, soft: bool) -> Vec<String> {
    let (table, columns) = (sql.name(&sql.file.table), sql.all_columns());
    let (rank, sequence, deleted) = (sql.own(control::RANK), sql.own(control::SEQUENCE), sql.own(control::DELETED));
    let key = sql.partition_by_key();
    let same_key = sql.same_key(newest);
    let order = sql.order();
    let (staged, newest_first) = match &order {
        Some(order) => (sql.staged(staging, order), format!("COALESCE({order}, '') DESC, {sequence} DESC")),
        None => (staging.to_owned(), format!("{sequence} DESC")),
    };
    let mut statements = vec![format!(
        "INSERT INTO {newest} ({columns}) SELECT {columns} FROM (SELECT {columns}, ROW_NUMBER() OVER (PARTITION BY {key} ORDER BY \
         {newest_first}) AS {rank} FROM {staged}) AS ranked WHERE {rank} = 1"
    )];
    if let Some(order) = &order {
        statements.push(format!("DELETE FROM {newest} USING {table} WHERE {}", sql.is_newer(newest, order, false)));
        statements.extend(sql.drop_late(newest, order, false));
    }
    if soft {
        let deleted_at = sql.own(filled::DELETED_AT);
        let set_order = order.as_ref().map(|order| format!(", {order} = {newest}.{order}")).unwrap_or_default();
        statements.push(format!(
            "UPDATE {table} SET {deleted_at} = {}{set_order} FROM {newest} WHERE {same_key} AND {newest}.{deleted}",
            sql.context.now
        ));
        statements.push(format!("DELETE FROM {table} USING {newest} WHERE {same_key} AND NOT {newest}.{deleted}"));
    } else {
        statements.push(format!("DELETE FROM {table} USING {newest} WHERE {same_key}"));
    }
    statements.push(sql.insert(newest, &[], &format!(" WHERE NOT {deleted}")));
    if let Some(order) = order.as_ref().filter(|_| !soft) {
        statements.extend(sql.note_deletes(newest, order));
    }
    if let Some(order) = order.filter(|_| soft) {
        // A delete is kept also if the table never had the row: older changes may still arrive.
        let is_unknown =
            format!(" WHERE {deleted} AND {order} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {table} WHERE {same_key})");
        statements.push(sql.insert(newest, &[(filled::DELETED_AT, sql.context.now.to_owned())], &is_unknown));
    }
    statements
}

/// Every staged row is a version that is valid until the next one of its key. A delete ends a
/// version and adds none. A change that is not newer than what the table holds of its key adds
/// nothing: it is repeated, or it is late.
fn history(sql: &Sql<'_>, staging: &str, versions: &str) -> Vec<String> {
    let (table, columns) = (sql.name(&sql.file.table), sql.all_columns());
    let (sequence, deleted, rank) = (sql.own(control::SEQUENCE), sql.own(control::DELETED), sql.own(control::RANK));
    let changed_at = sql.own(control::CHANGED_AT);
    let (valid_to, is_current) = (sql.own(filled::VALID_TO), sql.own(filled::IS_CURRENT));
    let key = sql.partition_by_key();
    let same_key = sql.same_key(versions);
    let next = sql.own("trunkline_next_at");
    let mut more = vec![
        (filled::VALID_FROM, changed_at.clone()),
        (filled::VALID_TO, next.clone()),
        (filled::IS_CURRENT, format!("{next} IS NULL")),
    ];
    let mut statements = Vec::new();
    let (changes, over, next_order, set_order) = match sql.order() {
        None => {
            (staging.to_owned(), format!("OVER (PARTITION BY {key} ORDER BY {sequence})"), String::new(), String::new())
        }
        Some(order) => {
            statements
                .push(format!("DELETE FROM {staging} USING {table} WHERE {}", sql.is_newer(staging, &order, true)));
            statements.extend(sql.drop_late(staging, &order, true));
            let over = format!("OVER (PARTITION BY {key} ORDER BY COALESCE({order}, ''), {sequence})");
            let ended = sql.own("trunkline_ended_order");
            let staged = sql.staged(staging, &order);
            more.push((filled::SOURCE_ORDER, format!("COALESCE({ended}, {order})")));
            (
                // Each change once.
                format!(
                    "(SELECT {columns} FROM (SELECT {columns}, ROW_NUMBER() OVER (PARTITION BY {key}, {order} ORDER BY {sequence}) AS {rank} \
                     FROM {staged}) AS numbered WHERE {rank} = 1 OR {order} IS NULL) AS changes"
                ),
                over.clone(),
                format!(", LEAD(CASE WHEN {deleted} THEN {order} END) {over} AS {ended}"),
                format!(", {order} = CASE WHEN {versions}.{deleted} THEN {versions}.{order} ELSE {table}.{order} END"),
            )
        }
    };
    // The first change of each key ends the version that the table holds.
    statements.push(format!(
        "INSERT INTO {versions} ({columns}) SELECT {columns} FROM (SELECT {columns}, ROW_NUMBER() {over} AS {rank} FROM {changes}) AS \
         ranked WHERE {rank} = 1"
    ));
    statements.push(format!(
        "UPDATE {table} SET {valid_to} = {versions}.{changed_at}, {is_current} = FALSE{set_order} FROM {versions} WHERE {same_key} AND \
         {table}.{is_current}"
    ));
    let from =
        format!("(SELECT {columns}, LEAD({changed_at}) {over} AS {next}{next_order} FROM {changes}) AS versions");
    statements.push(sql.insert(&from, &more, &format!(" WHERE NOT {deleted}")));
    if let Some(order) = sql.order() {
        statements.extend(sql.note_deletes(staging, &order));
    }
    statements
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::DataType;
    use trunkline_connector::{Error, Result};

    use super::*;
    use crate::dialect::{Column, Right, Session, StagingColumn};
    use crate::stage::StagedFile;

    /// SQL without a server.
    struct Plain;

    impl Dialect for Plain {
        fn name(&self) -> &'static str {
            "plain"
        }

        fn destination(&self) -> String {
            String::new()
        }

        fn connect(&self) -> Result<Box<dyn Session>> {
            Err(Error::internal("test.no_server", "there is no server"))
        }

        fn folded(&self, name: &str) -> String {
            name.to_lowercase()
        }

        fn check_name(&self, _: &str) -> Option<String> {
            None
        }

        fn quoted(&self, name: &str) -> String {
            name.to_owned()
        }

        fn qualified(&self, table: &str) -> String {
            table.to_owned()
        }

        fn swap_tables(&self, _: &[(String, String)]) -> Vec<String> {
            Vec::new()
        }

        fn may_alter(&self, _: &mut dyn Session, _: &str) -> Result<Option<bool>> {
            Ok(None)
        }

        fn grant(&self, _: Right<'_>) -> Option<String> {
            None
        }

        fn literal(&self, text: &str) -> String {
            format!("'{text}'")
        }

        fn columns(&self, _: &mut dyn Session, _: &str) -> Result<Option<Vec<Column>>> {
            Ok(None)
        }

        fn column_type(&self, _: &DataType, _: usize, _: bool) -> Option<ColumnType> {
            None
        }

        fn sql_type(&self, _: &ColumnType) -> String {
            String::new()
        }

        fn create_table(&self, _: &str, _: &[Column], _: &[String]) -> Vec<String> {
            Vec::new()
        }

        fn widen_column(&self, _: &str, _: &Column, _: &ColumnType) -> Option<Vec<String>> {
            None
        }

        fn drop_not_null(&self, _: &str, _: &Column) -> Option<Vec<String>> {
            None
        }

        fn parquet_type(&self, _: &ColumnType) -> DataType {
            DataType::Utf8
        }

        fn create_staging(&self, _: &str, _: &[StagingColumn]) -> Vec<String> {
            Vec::new()
        }

        fn load_expression(&self, _: &ColumnType, column: &str) -> String {
            column.to_owned()
        }

        fn copy(&self, _: &str, _: &[StagingColumn], _: &[StagedFile], _: &str) -> String {
            String::new()
        }

        fn insert_if_absent(&self, _: &str, _: usize, _: &[String], _: &[String]) -> Vec<String> {
            Vec::new()
        }
    }

    fn file(mode: LoadMode, has_order: bool) -> PlannedFile {
        let column = |name: &str, is_loaded| FileColumn {
            name: name.to_owned(),
            column_type: ColumnType::Integer(64),
            is_loaded,
        };
        let mut columns = vec![column("id", true), column(control::SEQUENCE, false), column(control::DELETED, false)];
        if has_order {
            columns.insert(1, column(filled::SOURCE_ORDER, true));
        }
        PlannedFile {
            key: None,
            temp: String::new(),
            bytes: 0,
            rows: 1,
            table: "t".to_owned(),
            mode,
            key_columns: vec!["id".to_owned()],
            columns,
            has_deletes: false,
            fills_loaded_at: false,
            truncates: false,
            truncates_until: None,
        }
    }

    fn statements(mode: LoadMode, has_order: bool) -> Vec<String> {
        let context = Context { now: "NOW", newest_truncate: "LAST", deletes: None, has_deletes: true };
        apply(&Plain, &file(mode, has_order), &["a".to_owned(), "b".to_owned()], &context)
    }

    #[test]
    fn deletes_are_remembered_only_where_keys_have_hashes_and_rows_are_deleted() {
        let deletes = Deletes::new("d".to_owned(), String::new(), std::time::Duration::from_secs(60));
        let of = |mode, has_hashes, has_deletes| {
            let mut file = file(mode, true);
            if has_hashes {
                let column =
                    FileColumn { name: control::KEY.to_owned(), column_type: ColumnType::Text(32), is_loaded: false };
                file.columns.push(column);
            }
            let context = Context { now: "NOW", newest_truncate: "LAST", deletes: Some(&deletes), has_deletes };
            let statements = apply(&Plain, &file, &["a".to_owned(), "b".to_owned()], &context);
            statements.into_iter().filter(|sql| sql.contains(" d ")).collect::<Vec<_>>()
        };
        let drops_late = "DELETE FROM b USING d WHERE d.table_name = 't' AND d.row_key = b.trunkline_key AND d.source_order > \
                          b._source_order";
        assert_eq!(of(LoadMode::Upsert, true, false), [drops_late]);
        let all = of(LoadMode::Upsert, true, true);
        assert_eq!(all.len(), 3, "{all:?}");
        assert_eq!(
            all[1],
            "INSERT INTO d (table_name, row_key, source_order, removed_at) SELECT 't', trunkline_key, MAX(_source_order), NOW FROM b \
             WHERE trunkline_deleted AND _source_order IS NOT NULL GROUP BY trunkline_key"
        );
        assert!(all[2].starts_with("DELETE FROM d WHERE removed_at < CAST("), "{}", all[2]);
        assert!(of(LoadMode::Upsert, false, true).is_empty());
        let history = of(LoadMode::History, true, true);
        assert!(history[0].starts_with("DELETE FROM a USING d") && history[0].contains(">="), "{history:?}");
    }

    #[test]
    fn rows_without_an_order_replace_by_arrival() {
        assert_eq!(
            statements(LoadMode::Upsert, false),
            [
                "INSERT INTO b (id, trunkline_sequence, trunkline_deleted) SELECT id, trunkline_sequence, trunkline_deleted FROM \
                 (SELECT id, trunkline_sequence, trunkline_deleted, ROW_NUMBER() OVER (PARTITION BY id ORDER BY \
                 trunkline_sequence DESC) AS trunkline_rank FROM a) AS ranked WHERE trunkline_rank = 1",
                "DELETE FROM t USING b WHERE t.id = b.id",
                "INSERT INTO t (id) SELECT id FROM b WHERE NOT trunkline_deleted",
            ]
        );
    }

    #[test]
    fn rows_that_are_newer_in_the_table_stay() {
        let hard = statements(LoadMode::Upsert, true);
        assert!(hard[0].contains("ORDER BY COALESCE(_source_order, '') DESC, trunkline_sequence DESC"), "{}", hard[0]);
        assert!(
            hard[0].contains("FROM a WHERE _source_order IS NULL OR _source_order >= LAST) AS staged"),
            "{}",
            hard[0]
        );
        assert_eq!(
            hard[1..],
            [
                "DELETE FROM b USING t WHERE t.id = b.id AND t._source_order > COALESCE(b._source_order, '')",
                "DELETE FROM t USING b WHERE t.id = b.id",
                "INSERT INTO t (id, _source_order) SELECT id, _source_order FROM b WHERE NOT trunkline_deleted",
            ]
        );
        let soft = statements(LoadMode::UpsertSoft, true);
        assert_eq!(
            soft[2..],
            [
                "UPDATE t SET deleted_at = NOW, _source_order = b._source_order FROM b WHERE t.id = b.id AND b.trunkline_deleted",
                "DELETE FROM t USING b WHERE t.id = b.id AND NOT b.trunkline_deleted",
                "INSERT INTO t (id, _source_order) SELECT id, _source_order FROM b WHERE NOT trunkline_deleted",
                "INSERT INTO t (id, _source_order, deleted_at) SELECT id, _source_order, NOW FROM b WHERE trunkline_deleted AND \
                 _source_order IS NOT NULL AND NOT EXISTS (SELECT 1 FROM t WHERE t.id = b.id)",
            ]
        );
    }

    #[test]
    fn a_history_takes_each_change_once_and_none_that_is_late() {
        let ordered = statements(LoadMode::History, true);
        assert_eq!(
            ordered[0],
            "DELETE FROM a USING t WHERE t.id = a.id AND t._source_order >= COALESCE(a._source_order, '')"
        );
        assert!(ordered[1].contains("PARTITION BY id, _source_order ORDER BY trunkline_sequence"), "{}", ordered[1]);
        assert!(
            ordered[2].contains(
                "_source_order = CASE WHEN b.trunkline_deleted THEN b._source_order ELSE t._source_order END"
            ),
            "{}",
            ordered[2]
        );
        assert!(ordered[3].contains("COALESCE(trunkline_ended_order, _source_order)"), "{}", ordered[3]);
        assert!(!statements(LoadMode::History, false).join(";").contains("_source_order"));
    }

    #[test]
    fn a_truncate_keeps_newer_rows() {
        let truncated = |mode, until: Option<&str>| {
            let file = PlannedFile { truncates_until: until.map(str::to_owned), ..file(mode, false) };
            truncate(&Plain, &file, "NOW").join(";")
        };
        assert_eq!(truncated(LoadMode::Upsert, None), "DELETE FROM t");
        assert_eq!(
            truncated(LoadMode::Upsert, Some("7")),
            "DELETE FROM t WHERE (_source_order IS NULL OR _source_order < '7')"
        );
        assert_eq!(
            truncated(LoadMode::UpsertSoft, Some("7")),
            "UPDATE t SET deleted_at = COALESCE(deleted_at, NOW), _source_order = '7' WHERE (_source_order IS NULL OR _source_order < '7')"
        );
        assert_eq!(
            truncated(LoadMode::History, Some("7")),
            "UPDATE t SET valid_to = NOW, is_current = FALSE, _source_order = '7' WHERE is_current AND (_source_order IS NULL OR \
             _source_order < '7')"
        );
        assert_eq!(truncated(LoadMode::Append, Some("7")), "");
    }
}
