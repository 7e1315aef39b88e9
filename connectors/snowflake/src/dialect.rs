//! Snowflake's SQL, for the loads of [`trunkline_warehouse`].

use std::sync::{Arc, OnceLock};

use arrow::datatypes::DataType;
use tokio::runtime::Handle;
use trunkline_connector::Result;
use trunkline_warehouse::{
    AccessKey, Column, ColumnType, Dialect, Right, Session, StagedFile, StagingColumn, is_geometry,
};

use crate::client;
use crate::client::{Answer, ClientOptions, SqlError};
use crate::types;

/// The longest name, in characters.
const MAX_NAME: usize = 255;

/// How the service reads the stage. No `Debug`: it holds a secret (I8).
#[derive(Clone)]
pub(crate) enum StageAccess {
    /// A storage integration: the service has its own role there.
    Integration(String),
    /// The stage is one of the service.
    Internal,
    /// An access key, sent with each COPY. The service masks them in its query history.
    Keys(AccessKey),
}

/// The case of the names that the sink creates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameCase {
    /// `order_id` is the column `ORDER_ID`, which SQL finds without quotes.
    Upper,
    /// Names stay as they are; SQL must quote them.
    Preserve,
}

impl NameCase {
    /// The name in the catalog.
    pub(crate) fn folded(self, name: &str) -> String {
        match self {
            Self::Upper => name.to_uppercase(),
            Self::Preserve => name.to_owned(),
        }
    }
}

/// See the module's header.
pub(crate) struct SnowflakeDialect {
    pub(crate) client: Arc<ClientOptions>,
    pub(crate) access: StageAccess,
    /// The name of the service's own stage, if it is used.
    pub(crate) internal_stage: Option<String>,
    pub(crate) case: NameCase,
    /// New columns of geometries are GEOGRAPHY.
    pub(crate) has_geographies: bool,
    /// Shown in the service's query history.
    pub(crate) tag: String,
    pub(crate) runtime: Handle,
    /// The role that the service gave to a session.
    pub(crate) session_role: OnceLock<String>,
}

/// A session for the library: its calls block.
///
/// The service may end a transaction behind the client: it does so after 5 minutes in which the
/// transaction blocks another one, or because another session asks for it. Later statements would
/// then run without the earlier ones. So the session does not commit by itself in a transaction,
/// and before COMMIT it compares the transaction's id with that of BEGIN.
///
/// Outside of transactions the service commits a statement by itself: a worker that dies between a
/// statement and its COMMIT would leave a lock until the service ends the session.
struct BlockingSession {
    session: client::Session,
    id: Option<String>,
    transaction: Transaction,
    /// The session's `AUTOCOMMIT`.
    commits_by_itself: bool,
    runtime: Handle,
    /// Part of some statements.
    secrets: Vec<String>,
}

impl BlockingSession {
    fn run(&mut self, sql: &str) -> Result<Answer> {
        let outcome = self.runtime.block_on(self.session.execute(sql));
        outcome.map_err(|error| error.redact(&self.secrets).into_error(&format!("cannot {}", purpose(sql))))
    }
}

/// The state of a session.
enum Transaction {
    None,
    /// Its id, if the service says it.
    Open(Option<String>),
}

/// Statements that change rows.
const CHANGES: [&str; 5] = ["INSERT", "UPDATE", "DELETE", "MERGE", "COPY"];

impl BlockingSession {
    fn current_transaction(&mut self) -> Result<Option<String>> {
        let answer = self.run("SELECT CURRENT_TRANSACTION()")?;
        Ok(answer.rows.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
    }

    fn commit(&mut self) -> Result<u64> {
        if let Transaction::Open(Some(begun)) = std::mem::replace(&mut self.transaction, Transaction::None)
            && self.current_transaction()?.as_ref() != Some(&begun)
        {
            self.run("ROLLBACK")?;
            let message = "the service ended the transaction before its COMMIT";
            return Err(SqlError::new(client::ErrorKind::SessionLost, message).into_error("cannot run `COMMIT ..`"));
        }
        Ok(self.run("COMMIT")?.changed_rows())
    }

    fn set_autocommit(&mut self, on: bool) -> Result<()> {
        if self.commits_by_itself != on {
            self.run(&format!("ALTER SESSION SET AUTOCOMMIT = {}", if on { "TRUE" } else { "FALSE" }))?;
            self.commits_by_itself = on;
        }
        Ok(())
    }

    /// Aborts the transactions of another session of the same user.
    fn abort_transactions(&mut self, session: &str) -> Result<bool> {
        let Answer { columns, rows, .. } = self.run("SHOW TRANSACTIONS")?;
        let column = |name: &str| columns.iter().position(|column| column.eq_ignore_ascii_case(name));
        let (Some(id), Some(of)) = (column("id"), column("session")) else { return Ok(false) };
        let own = rows.iter().filter(|row| row.get(of).is_some_and(|found| found.as_deref() == Some(session)));
        let ids: Vec<String> = own.filter_map(|row| row.get(id)?.clone()).collect();
        for id in ids.iter().filter(|id| is_number(id)) {
            self.run(&format!("SELECT SYSTEM$ABORT_TRANSACTION({id})"))?;
        }
        Ok(!ids.is_empty())
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl Session for BlockingSession {
    fn execute(&mut self, sql: &str) -> Result<u64> {
        match (sql.split_whitespace().next().unwrap_or_default(), &self.transaction) {
            ("BEGIN", _) => {
                self.set_autocommit(false)?;
                self.run(sql)?;
                self.transaction = Transaction::Open(self.current_transaction()?);
                Ok(0)
            }
            ("COMMIT", _) => self.commit(),
            ("ROLLBACK", _) => {
                self.transaction = Transaction::None;
                Ok(self.run(sql)?.changed_rows())
            }
            (word, Transaction::None) if CHANGES.contains(&word) => {
                self.set_autocommit(true)?;
                Ok(self.run(sql)?.changed_rows())
            }
            _ => Ok(self.run(sql)?.changed_rows()),
        }
    }

    fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    fn describe_work(&mut self, work: &str) {
        self.session.tag_with(work);
    }

    fn end_session(&mut self, id: &str) -> Result<bool> {
        if !is_number(id) {
            return Ok(false);
        }
        match self.run(&format!("SELECT SYSTEM$ABORT_SESSION({id})")) {
            Ok(_) => Ok(true),
            // An account may reserve it for administrators.
            Err(error) => {
                tracing::debug!(%error, session = id, "a session could not be aborted, so its transactions are");
                self.abort_transactions(id)
            }
        }
    }

    fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        Ok(self.run(sql)?.rows)
    }
}

/// The first words of a statement, for messages. Never its values or keys.
fn purpose(sql: &str) -> String {
    let words: Vec<&str> = sql.split_whitespace().take(8).collect();
    let named = |word: &&str| word.starts_with('"');
    let end = words.iter().position(named).map_or(2, |name| name + 1);
    format!("run `{} ..`", words[..end.min(words.len())].join(" "))
}

impl Dialect for SnowflakeDialect {
    fn name(&self) -> &'static str {
        "snowflake"
    }

    fn destination(&self) -> String {
        self.client.place()
    }

    fn connect(&self) -> Result<Box<dyn Session>> {
        let opened = self.runtime.block_on(client::Session::open(&self.client, &self.tag, &self.runtime));
        let session = opened.map_err(|error: SqlError| {
            error.into_error(&format!("cannot log in to {} as {}", self.client.account, self.client.user))
        })?;
        let secrets = match &self.access {
            StageAccess::Keys(key) => {
                // As a statement has them.
                let escaped = |secret: &String| self.literal(secret).trim_matches('\'').to_owned();
                std::iter::once(&key.secret).chain(&key.session_token).map(escaped).collect()
            }
            StageAccess::Integration(_) | StageAccess::Internal => Vec::new(),
        };
        if let Some(role) = session.role() {
            // The first one stays: all sessions log in alike.
            let _ = self.session_role.set(role.to_owned());
        }
        let id = session.id().map(|id| id.to_string());
        let (transaction, runtime) = (Transaction::None, self.runtime.clone());
        Ok(Box::new(BlockingSession { session, id, transaction, commits_by_itself: true, runtime, secrets }))
    }

    fn folded(&self, name: &str) -> String {
        self.case.folded(name)
    }

    fn check_name(&self, name: &str) -> Option<String> {
        if name.is_empty() {
            return Some("is empty".to_owned());
        }
        let length = name.chars().count();
        (length > MAX_NAME).then(|| format!("has {length} characters, and Snowflake allows {MAX_NAME}"))
    }

    fn quoted(&self, name: &str) -> String {
        format!("\"{}\"", name.replace('"', "\"\""))
    }

    fn qualified(&self, table: &str) -> String {
        format!("{}.{}.{}", self.named(&self.client.database), self.named(&self.client.schema), self.quoted(table))
    }

    fn literal(&self, text: &str) -> String {
        format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    }

    fn columns(&self, session: &mut dyn Session, table: &str) -> Result<Option<Vec<Column>>> {
        // Unlike a query of the catalog, DESCRIBE needs no warehouse.
        let described = match session.query(&format!("DESCRIBE TABLE {}", self.quoted(table))) {
            Ok(rows) => rows,
            // The service does not distinguish a missing table from one that the role may not see.
            // Creating the table shows which it is.
            Err(error) if error.code == client::ErrorKind::AccessDenied.code() => return Ok(None),
            Err(error) => return Err(error),
        };
        let text = |row: &[Option<String>], index: usize| row.get(index).cloned().flatten();
        let columns =
            described.iter().filter(|row| text(row, 2).is_none_or(|kind| kind == "COLUMN")).map(|row| Column {
                name: text(row, 0).unwrap_or_default(),
                column_type: types::parse_type(&text(row, 1).unwrap_or_default()),
                nullable: text(row, 3).is_none_or(|nullable| nullable == "Y"),
                has_default: text(row, 4).is_some_and(|default| !default.is_empty()),
            });
        Ok(Some(columns.collect()))
    }

    fn column_type(&self, data_type: &DataType, _longest: usize, is_json: bool) -> Option<ColumnType> {
        if self.has_geographies && is_geometry(data_type) {
            return Some(ColumnType::Geography);
        }
        types::column_type(data_type, is_json)
    }

    fn sql_type(&self, column_type: &ColumnType) -> String {
        types::sql_type(column_type)
    }

    fn create_table(&self, table: &str, columns: &[Column], _key: &[String]) -> Vec<String> {
        let column = |column: &Column| {
            let not_null = if column.nullable { "" } else { " NOT NULL" };
            format!("{} {}{not_null}", self.quoted(&column.name), types::sql_type(&column.column_type))
        };
        let columns: Vec<String> = columns.iter().map(column).collect();
        vec![format!("CREATE TABLE IF NOT EXISTS {} ({})", self.quoted(table), columns.join(", "))]
    }

    fn add_column(&self, table: &str, column: &Column) -> Vec<String> {
        let (table, name) = (self.quoted(table), self.quoted(&column.name));
        let sql_type = types::sql_type(&column.column_type);
        vec![format!("ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {name} {sql_type}")]
    }

    fn widen_column(&self, table: &str, column: &Column, to: &ColumnType) -> Option<Vec<String>> {
        types::can_alter(&column.column_type, to).then(|| {
            let (table, name) = (self.quoted(table), self.quoted(&column.name));
            vec![format!("ALTER TABLE {table} ALTER COLUMN {name} SET DATA TYPE {}", types::sql_type(to))]
        })
    }

    fn drop_not_null(&self, table: &str, column: &Column) -> Option<Vec<String>> {
        let (table, name) = (self.quoted(table), self.quoted(&column.name));
        Some(vec![format!("ALTER TABLE {table} ALTER COLUMN {name} DROP NOT NULL")])
    }

    fn parquet_type(&self, column_type: &ColumnType) -> DataType {
        types::parquet_type(column_type)
    }

    fn refused_text(&self, column_type: &ColumnType, text: &str) -> Option<String> {
        let is_long = *column_type == ColumnType::Json && text.len() > types::MAX_TEXT as usize;
        is_long.then(|| format!("has {} bytes of JSON; VARIANT takes {}", text.len(), types::MAX_TEXT))
    }

    fn create_staging(&self, name: &str, columns: &[StagingColumn]) -> Vec<String> {
        let column = |column: &StagingColumn| {
            format!("{} {}", self.quoted(&column.name), types::staging_type(&column.column_type))
        };
        let columns: Vec<String> = columns.iter().map(column).collect();
        // A temporary table ends with its session, so a worker that dies leaves none behind.
        vec![format!("CREATE OR REPLACE TEMPORARY TABLE {} ({})", self.quoted(name), columns.join(", "))]
    }

    fn load_expression(&self, column_type: &ColumnType, column: &str) -> String {
        types::load_expression(column_type, column)
    }

    fn copy(&self, staging: &str, _columns: &[StagingColumn], files: &[StagedFile], _manifest: &str) -> String {
        let root = common_folder(files);
        let names: Vec<String> =
            files.iter().map(|file| self.literal(file.url.get(root.len()..).unwrap_or_default())).collect();
        let access = match &self.access {
            StageAccess::Integration(name) => format!(" STORAGE_INTEGRATION = {}", self.quoted(name)),
            StageAccess::Internal => String::new(),
            StageAccess::Keys(AccessKey { id, secret, session_token }) => {
                let token = session_token.as_ref();
                let token = token.map_or_else(String::new, |token| format!(" AWS_TOKEN = {}", self.literal(token)));
                let (id, secret) = (self.literal(id), self.literal(secret));
                format!(" CREDENTIALS = (AWS_KEY_ID = {id} AWS_SECRET_KEY = {secret}{token})")
            }
        };
        // FORCE: the service skips files that it has loaded into a table of this name before. The
        // offsets row decides what is loaded.
        format!(
            "COPY INTO {} FROM {}{access} FILES = ({}) FILE_FORMAT = (TYPE = PARQUET BINARY_AS_TEXT = FALSE \
             USE_LOGICAL_TYPE = TRUE) MATCH_BY_COLUMN_NAME = CASE_SENSITIVE FORCE = TRUE ON_ERROR = ABORT_STATEMENT",
            self.quoted(staging),
            self.literal(root),
            names.join(", ")
        )
    }

    fn insert_if_absent(&self, table: &str, keys: usize, columns: &[String], values: &[String]) -> Vec<String> {
        // MERGE locks the table until COMMIT: another session's MERGE waits for it.
        let table = self.quoted(table);
        let sources: Vec<String> =
            values.iter().zip(columns).map(|(value, column)| format!("{value} AS {column}")).collect();
        let matches: Vec<String> = columns.iter().take(keys).map(|column| format!("t.{column} = s.{column}")).collect();
        let inserted: Vec<String> = columns.iter().map(|column| format!("s.{column}")).collect();
        vec![format!(
            "MERGE INTO {table} AS t USING (SELECT {}) AS s ON {} WHEN NOT MATCHED THEN INSERT ({}) VALUES ({})",
            sources.join(", "),
            matches.join(" AND "),
            columns.join(", "),
            inserted.join(", ")
        )]
    }

    fn swap_tables(&self, pairs: &[(String, String)]) -> Vec<String> {
        let swap = |(one, other): &(String, String)| {
            format!("ALTER TABLE {} SWAP WITH {}", self.quoted(one), self.quoted(other))
        };
        pairs.iter().map(swap).collect()
    }

    fn may_alter(&self, session: &mut dyn Session, table: &str) -> Result<Option<bool>> {
        // ALTER needs the role that owns the table, or one that inherits it.
        let owned = session.query(&format!(
            "SELECT IS_ROLE_IN_SESSION(TABLE_OWNER) FROM INFORMATION_SCHEMA.TABLES WHERE TABLE_SCHEMA = CURRENT_SCHEMA() \
             AND TABLE_NAME = {}",
            self.literal(table)
        ));
        // The check needs a right that loads do not need.
        let answer = owned.ok().and_then(|rows| rows.first()?.first().cloned().flatten());
        Ok(answer.map(|answer| answer == "1" || answer.eq_ignore_ascii_case("true")))
    }

    fn missing_rights(&self, session: &mut dyn Session, table: &str) -> Result<Vec<&'static str>> {
        let Some(columns) = self.columns(session, table)? else { return Ok(Vec::new()) };
        let Some(column) = columns.first().map(|column| self.quoted(&column.name)) else { return Ok(Vec::new()) };
        let table = self.quoted(table);
        // A plan needs the rights of its statement, and no warehouse.
        let statements = [
            ("SELECT", format!("SELECT 1 FROM {table}")),
            ("INSERT", format!("INSERT INTO {table} ({column}) VALUES (NULL)")),
            ("UPDATE", format!("UPDATE {table} SET {column} = {column}")),
            ("DELETE", format!("DELETE FROM {table}")),
        ];
        let mut missing = Vec::new();
        for (right, statement) in statements {
            match session.query(&format!("EXPLAIN {statement}")) {
                Err(error) if error.code == client::ErrorKind::AccessDenied.code() => missing.push(right),
                Err(error) => tracing::debug!(%error, table, right, "a right could not be checked"),
                Ok(_) => {}
            }
        }
        Ok(missing)
    }

    fn grant(&self, right: Right<'_>) -> Option<String> {
        let ClientOptions { role, warehouse, database, schema, .. } = self.client.as_ref();
        let role = match (role, self.session_role.get()) {
            (Some(role), _) => self.named(role),
            (None, Some(role)) if self.named(role) == *role => role.clone(),
            (None, Some(role)) => self.quoted(role),
            (None, None) => "..".to_owned(),
        };
        let (database, schema) = (self.named(database), self.named(schema));
        match right {
            Right::CreateTables => Some(format!(
                "GRANT USAGE ON DATABASE {database} TO ROLE {role}; GRANT USAGE, CREATE TABLE ON SCHEMA {database}.{schema} TO \
                 ROLE {role}"
            )),
            Right::UseWarehouse => {
                let warehouse = self.named(warehouse.as_ref()?);
                Some(format!("GRANT USAGE ON WAREHOUSE {warehouse} TO ROLE {role}"))
            }
            Right::ReadStage => match &self.access {
                StageAccess::Integration(name) => {
                    Some(format!("GRANT USAGE ON INTEGRATION {} TO ROLE {role}", self.quoted(name)))
                }
                StageAccess::Internal => {
                    Some(format!("GRANT READ, WRITE ON STAGE {} TO ROLE {role}", self.internal_stage.as_ref()?))
                }
                StageAccess::Keys(_) => None,
            },
            Right::LoadTable(table) => {
                Some(format!("GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE {} TO ROLE {role}", self.qualified(table)))
            }
            Right::AlterTable(table) => {
                Some(format!("GRANT OWNERSHIP ON TABLE {} TO ROLE {role} COPY CURRENT GRANTS", self.qualified(table)))
            }
        }
    }
}

impl SnowflakeDialect {
    /// A name of the options as the login takes it: without quotes in upper case.
    fn named(&self, name: &str) -> String {
        let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if is_plain { name.to_uppercase() } else { self.quoted(name) }
    }
}

/// The folder that all files are in, with its slash.
fn common_folder(files: &[StagedFile]) -> &str {
    let Some((first, others)) = files.split_first() else { return "" };
    let mut folder = first.url.rfind('/').map_or("", |slash| &first.url[..=slash]);
    while !others.iter().all(|file| file.url.starts_with(folder)) {
        let parent = folder.trim_end_matches('/').rfind('/').map_or(0, |slash| slash + 1);
        folder = &folder[..parent];
    }
    folder
}
