//! Types and SQL texts of Redshift.

use arrow::datatypes::{DataType, TimeUnit};
use tokio::runtime::Handle;
use trunkline_connector::{Error, Result};
use trunkline_warehouse::{AccessKey, Column, ColumnType, Dialect, Right, Session, StagedFile, StagingColumn};

use crate::config::{Auth, Config, Server};
use crate::iam::{IamLogins, Login};
use crate::session::{LOGIN_REFUSED, PERMISSION_DENIED, RedshiftSession, in_one_message};

/// Longest VARCHAR, in bytes.
const MAX_TEXT: u32 = 65_535;
/// Longest VARBYTE that COPY loads.
const MAX_BINARY: u32 = 1_024_000;
/// Longest identifier, in bytes.
const MAX_NAME: usize = 127;
/// The rights on the rows of a table that loads need.
const ROW_RIGHTS: [&str; 4] = ["SELECT", "INSERT", "UPDATE", "DELETE"];
/// New text columns take at least this many bytes.
const LEAST_TEXT: u32 = 256;

/// See the module's header. No `Debug`: it holds secrets (I8).
pub(crate) struct RedshiftDialect {
    server: Server,
    logins: Logins,
    /// See [`Dialect::destination`].
    place: String,
    schema: String,
    dist_key: Option<String>,
    sort_key: Vec<String>,
    iam_role: Option<String>,
    /// The part of COPY that names the credentials.
    authorization: String,
    /// The secrets in it, as they are written there.
    secrets: Vec<String>,
    application: String,
    runtime: Handle,
}

/// What sessions log in with.
enum Logins {
    Password(Login),
    Temporary(IamLogins),
}

impl RedshiftDialect {
    /// The dialect of the sink `name`.
    pub(crate) fn new(config: &Config, name: &str, runtime: Handle) -> Self {
        let mut secrets = Vec::new();
        let authorization = match (&config.iam_role, &config.stage.credentials) {
            (Some(role), _) => format!("IAM_ROLE {}", quoted_literal(role)),
            (None, Some(AccessKey { id, secret, session_token })) => {
                let token = session_token.as_ref();
                let escaped = |secret: &String| secret.replace('\'', "''");
                secrets.extend(std::iter::once(secret).chain(token).map(escaped));
                let token = token.map_or_else(String::new, |token| format!(" SESSION_TOKEN {}", quoted_literal(token)));
                format!("ACCESS_KEY_ID {} SECRET_ACCESS_KEY {}{token}", quoted_literal(id), quoted_literal(secret))
            }
            (None, None) => "IAM_ROLE default".to_owned(),
        };
        Self {
            logins: match &config.server.auth {
                Auth::Aws(options) => {
                    Logins::Temporary(IamLogins::new(options.clone(), config.server.database.clone()))
                }
                Auth::Password(login) => Logins::Password(login.clone()),
            },
            server: config.server.clone(),
            place: config.place(),
            schema: config.schema.to_lowercase(),
            dist_key: config.dist_key.as_ref().map(|key| key.to_lowercase()),
            sort_key: config.sort_key.iter().map(|key| key.to_lowercase()).collect(),
            iam_role: config.iam_role.clone(),
            authorization,
            secrets,
            application: format!("trunkline {name}"),
            runtime,
        }
    }

    fn definitions(&self, columns: impl Iterator<Item = (String, String)>) -> String {
        columns.map(|(name, sql_type)| format!("{} {sql_type}", self.quoted(&name))).collect::<Vec<_>>().join(", ")
    }

    fn staging_type(&self, column_type: &ColumnType) -> String {
        match column_type {
            // COPY from Parquet has no type for these.
            ColumnType::Json => format!("VARCHAR({MAX_TEXT})"),
            ColumnType::Time => "VARCHAR(32)".to_owned(),
            ColumnType::TimestampTz => "TIMESTAMP".to_owned(),
            other => self.sql_type(other),
        }
    }
}

/// A literal. The library's literals (topics, ids, urls of the stage) have no backslash, which
/// Redshift would read as an escape.
fn quoted_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Room for longer values: a power of two, twice the longest so far.
fn room(longest: usize, most: u32) -> u32 {
    let wanted = u32::try_from(longest).unwrap_or(most).saturating_mul(2).clamp(LEAST_TEXT, most);
    wanted.checked_next_power_of_two().unwrap_or(most).min(most)
}

impl Dialect for RedshiftDialect {
    fn name(&self) -> &'static str {
        "redshift"
    }

    fn destination(&self) -> String {
        self.place.clone()
    }

    fn connect(&self) -> Result<Box<dyn Session>> {
        let mut session = self.log_in()?;
        // A search path may name a schema that does not exist, or that the user may not use.
        let found = session.query(&format!(
            "SELECT has_schema_privilege(nspname, 'USAGE') FROM pg_catalog.pg_namespace WHERE nspname = {}",
            self.literal(&self.schema)
        ))?;
        let (database, schema) = (&self.server.database, &self.schema);
        match found.first().and_then(|row| row.first()) {
            None => {
                return Err(Error::config(
                    "redshift.no_schema",
                    format!(
                        "the database {database} has no schema `{schema}`; run `CREATE SCHEMA {}`, or correct `schema`",
                        self.quoted(schema)
                    ),
                ));
            }
            Some(Some(may_use)) if may_use.starts_with('f') => {
                return Err(Error::external(
                    PERMISSION_DENIED,
                    format!(
                        "the user {} may not use the schema `{schema}`; grant USAGE and CREATE on the schema to the user",
                        self.user()
                    ),
                ));
            }
            Some(_) => {}
        }
        Ok(Box::new(session))
    }

    fn folded(&self, name: &str) -> String {
        name.to_lowercase()
    }

    fn check_name(&self, name: &str) -> Option<String> {
        if name.is_empty() {
            return Some("is empty".to_owned());
        }
        if name.len() > MAX_NAME {
            return Some(format!("has {} bytes; Redshift allows {MAX_NAME}", name.len()));
        }
        name.contains('\0').then(|| "contains a null character".to_owned())
    }

    fn quoted(&self, name: &str) -> String {
        format!("\"{}\"", name.replace('"', "\"\""))
    }

    fn qualified(&self, table: &str) -> String {
        format!("{}.{}", self.quoted(&self.schema), self.quoted(table))
    }

    fn literal(&self, text: &str) -> String {
        quoted_literal(text)
    }

    fn columns(&self, session: &mut dyn Session, table: &str) -> Result<Option<Vec<Column>>> {
        let rows = session.query(&format!(
            "SELECT column_name, data_type, character_maximum_length, numeric_precision, numeric_scale, is_nullable, column_default \
             FROM information_schema.columns WHERE table_schema = {} AND table_name = {} ORDER BY ordinal_position",
            self.literal(&self.schema),
            self.literal(table)
        ))?;
        let column = |row: Vec<Option<String>>| {
            let mut values = row.into_iter();
            let mut next = || values.next().flatten();
            let (name, data_type) = (next().unwrap_or_default(), next().unwrap_or_default());
            let mut number = || next().and_then(|text| text.parse::<u32>().ok());
            let (length, precision, scale) = (number(), number(), number());
            let (nullable, default) = (next(), next());
            Column {
                name,
                column_type: column_type_of(&data_type, length, precision, scale),
                nullable: nullable.is_none_or(|answer| answer != "NO"),
                has_default: default.is_some(),
            }
        };
        if rows.is_empty() {
            self.check_visible(session, table)?;
            return Ok(None);
        }
        Ok(Some(rows.into_iter().map(column).collect()))
    }

    fn column_type(&self, data_type: &DataType, longest: usize, is_json: bool) -> Option<ColumnType> {
        Some(match data_type {
            DataType::Null => return None,
            DataType::Boolean => ColumnType::Boolean,
            DataType::Int8 | DataType::Int16 | DataType::UInt8 => ColumnType::Integer(16),
            DataType::Int32 | DataType::UInt16 => ColumnType::Integer(32),
            DataType::Int64 | DataType::UInt32 => ColumnType::Integer(64),
            DataType::UInt64 => ColumnType::Decimal(20, 0),
            DataType::Float16 | DataType::Float32 => ColumnType::Float(32),
            DataType::Float64 => ColumnType::Float(64),
            DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale)
                if *precision <= 38 && (0..=37).contains(scale) =>
            {
                ColumnType::Decimal(*precision, scale.unsigned_abs())
            }
            DataType::Utf8 if is_json => ColumnType::Json,
            DataType::Struct(_) | DataType::List(_) => ColumnType::Json,
            DataType::Binary => ColumnType::Binary(room(longest, MAX_BINARY)),
            DataType::Date32 => ColumnType::Date,
            DataType::Time32(_) | DataType::Time64(_) => ColumnType::Time,
            DataType::Timestamp(_, None) => ColumnType::Timestamp,
            DataType::Timestamp(_, Some(_)) => ColumnType::TimestampTz,
            _ => ColumnType::Text(room(longest, MAX_TEXT)),
        })
    }

    fn sql_type(&self, column_type: &ColumnType) -> String {
        match column_type {
            ColumnType::Boolean => "BOOLEAN".to_owned(),
            ColumnType::Integer(16) => "SMALLINT".to_owned(),
            ColumnType::Integer(32) => "INTEGER".to_owned(),
            ColumnType::Integer(_) => "BIGINT".to_owned(),
            ColumnType::Decimal(precision, scale) => format!("DECIMAL({precision},{scale})"),
            ColumnType::Float(32) => "REAL".to_owned(),
            ColumnType::Float(_) => "DOUBLE PRECISION".to_owned(),
            ColumnType::Text(most) => format!("VARCHAR({})", most.min(&MAX_TEXT)),
            ColumnType::Binary(most) => format!("VARBYTE({})", most.min(&MAX_BINARY)),
            ColumnType::Date => "DATE".to_owned(),
            ColumnType::Time => "TIME".to_owned(),
            ColumnType::Timestamp => "TIMESTAMP".to_owned(),
            ColumnType::TimestampTz => "TIMESTAMPTZ".to_owned(),
            ColumnType::Json => "SUPER".to_owned(),
            ColumnType::Geography => "GEOGRAPHY".to_owned(),
            ColumnType::Other(name) => name.clone(),
        }
    }

    fn create_table(&self, table: &str, columns: &[Column], _: &[String]) -> Vec<String> {
        let definitions =
            self.definitions(columns.iter().map(|column| (column.name.clone(), self.sql_type(&column.column_type))));
        let mut sql = format!("CREATE TABLE IF NOT EXISTS {} ({definitions})", self.quoted(table));
        let has = |name: &String| columns.iter().any(|column| column.name == *name);
        if let Some(key) = self.dist_key.as_ref().filter(|key| has(key)) {
            sql.push_str(&format!(" DISTKEY({})", self.quoted(key)));
        }
        if !self.sort_key.is_empty() && self.sort_key.iter().all(has) {
            let keys: Vec<String> = self.sort_key.iter().map(|key| self.quoted(key)).collect();
            sql.push_str(&format!(" SORTKEY({})", keys.join(", ")));
        }
        vec![sql]
    }

    fn widen_column(&self, table: &str, column: &Column, to: &ColumnType) -> Option<Vec<String>> {
        let (table, name) = (self.quoted(table), self.quoted(&column.name));
        let sql_type = self.sql_type(to);
        if sql_type == self.sql_type(&column.column_type) {
            return None;
        }
        if matches!((&column.column_type, to), (ColumnType::Text(_), ColumnType::Text(_))) {
            return Some(vec![format!("ALTER TABLE {table} ALTER COLUMN {name} TYPE {sql_type}")]);
        }
        // Redshift changes only the length of a VARCHAR in place. The new column is the last one.
        let value = match (&column.column_type, to) {
            (ColumnType::Other(_) | ColumnType::Binary(_), _) => return None,
            (ColumnType::Json, ColumnType::Text(_)) => format!("JSON_SERIALIZE({name})"),
            (ColumnType::Boolean, ColumnType::Text(_)) => {
                format!("CASE WHEN {name} THEN 'true' WHEN NOT {name} THEN 'false' END")
            }
            _ => format!("CAST({name} AS {sql_type})"),
        };
        let wider = self.quoted(&format!("trunkline_wider_{}", column.name));
        Some(vec![in_one_message(&[
            format!("ALTER TABLE {table} ADD COLUMN {wider} {sql_type}"),
            format!("UPDATE {table} SET {wider} = {value}"),
            format!("ALTER TABLE {table} DROP COLUMN {name}"),
            format!("ALTER TABLE {table} RENAME COLUMN {wider} TO {name}"),
        ])])
    }

    /// Redshift cannot.
    fn drop_not_null(&self, _: &str, _: &Column) -> Option<Vec<String>> {
        None
    }

    fn parquet_type(&self, column_type: &ColumnType) -> DataType {
        match column_type {
            ColumnType::Boolean => DataType::Boolean,
            ColumnType::Integer(16) => DataType::Int16,
            ColumnType::Integer(32) => DataType::Int32,
            ColumnType::Integer(_) => DataType::Int64,
            ColumnType::Decimal(precision, scale) => {
                DataType::Decimal128(*precision, i8::try_from(*scale).unwrap_or(0))
            }
            ColumnType::Float(32) => DataType::Float32,
            ColumnType::Float(_) => DataType::Float64,
            ColumnType::Binary(_) => DataType::Binary,
            ColumnType::Date => DataType::Date32,
            ColumnType::Timestamp | ColumnType::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, None),
            ColumnType::Text(_)
            | ColumnType::Time
            | ColumnType::Json
            | ColumnType::Geography
            | ColumnType::Other(_) => DataType::Utf8,
        }
    }

    fn refused_text(&self, column_type: &ColumnType, text: &str) -> Option<String> {
        if *column_type == ColumnType::Json && text.len() > MAX_TEXT as usize {
            let found = text.len();
            return Some(format!("has {found} bytes of JSON; at most {MAX_TEXT} can be loaded into a SUPER column"));
        }
        let bytes = text.as_bytes();
        let has_null = bytes.contains(&0) || (*column_type == ColumnType::Json && text.contains("\\u0000"));
        has_null.then(|| "contains a null character, which Redshift does not store".to_owned())
    }

    fn create_staging(&self, name: &str, columns: &[StagingColumn]) -> Vec<String> {
        let columns = columns.iter().map(|column| (column.name.clone(), self.staging_type(&column.column_type)));
        vec![format!("CREATE TEMP TABLE {} ({})", self.quoted(name), self.definitions(columns))]
    }

    fn load_expression(&self, column_type: &ColumnType, column: &str) -> String {
        match column_type {
            ColumnType::Json => format!("JSON_PARSE({column})"),
            ColumnType::Time => format!("CAST({column} AS TIME)"),
            ColumnType::TimestampTz => format!("({column} AT TIME ZONE 'UTC')"),
            _ => column.to_owned(),
        }
    }

    fn manifest(&self, files: &[StagedFile]) -> Option<String> {
        let entry = |file: &StagedFile| serde_json::json!({"url": file.url, "mandatory": true, "meta": {"content_length": file.bytes}});
        Some(serde_json::json!({"entries": files.iter().map(entry).collect::<Vec<_>>()}).to_string())
    }

    fn copy(&self, staging: &str, _: &[StagingColumn], _: &[StagedFile], manifest: &str) -> String {
        format!(
            "COPY {} FROM {} {} FORMAT AS PARQUET MANIFEST",
            self.quoted(staging),
            self.literal(manifest),
            self.authorization
        )
    }

    fn insert_if_absent(&self, table: &str, keys: usize, columns: &[String], values: &[String]) -> Vec<String> {
        let table = self.quoted(table);
        let same: Vec<String> =
            columns.iter().zip(values).take(keys).map(|(column, value)| format!("{column} = {value}")).collect();
        vec![
            format!("LOCK TABLE {table}"),
            format!(
                "INSERT INTO {table} ({}) SELECT {} WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE {})",
                columns.join(", "),
                values.join(", "),
                same.join(" AND ")
            ),
        ]
    }

    fn text_of(&self, column_type: &ColumnType, column: &str) -> String {
        match column_type {
            ColumnType::Boolean => format!("CASE WHEN {column} THEN 'true' WHEN NOT {column} THEN 'false' END"),
            ColumnType::Json => format!("JSON_SERIALIZE({column})"),
            ColumnType::Binary(_) => format!("TO_HEX({column})"),
            _ => format!("CAST({column} AS VARCHAR({MAX_TEXT}))"),
        }
    }

    fn swap_tables(&self, pairs: &[(String, String)]) -> Vec<String> {
        let mut statements = vec!["BEGIN".to_owned()];
        for (number, (one, other)) in pairs.iter().enumerate() {
            let aside = format!("trunkline_swapped_{number}");
            for (from, to) in [(one, &aside), (other, one), (&aside, other)] {
                statements.push(format!("ALTER TABLE {} RENAME TO {}", self.quoted(from), self.quoted(to)));
            }
        }
        statements.push("COMMIT".to_owned());
        statements
    }

    fn may_alter(&self, session: &mut dyn Session, table: &str) -> Result<Option<bool>> {
        let owned = session.query(&format!(
            "SELECT t.tableowner = current_user OR u.usesuper FROM pg_catalog.pg_tables t, pg_catalog.pg_user u \
             WHERE u.usename = current_user AND t.schemaname = {} AND t.tablename = {}",
            self.literal(&self.schema),
            self.literal(table)
        ))?;
        let answer = owned.first().and_then(|row| row.first().cloned().flatten());
        Ok(answer.map(|answer| answer.starts_with('t')))
    }

    fn missing_rights(&self, session: &mut dyn Session, table: &str) -> Result<Vec<&'static str>> {
        let name = self.literal(&self.qualified(table));
        let asked: Vec<String> =
            ROW_RIGHTS.iter().map(|right| format!("has_table_privilege({name}, '{right}')")).collect();
        let answers = session.query(&format!("SELECT {}", asked.join(", ")))?.into_iter().next().unwrap_or_default();
        let is_missing = |answer: &Option<String>| answer.as_ref().is_some_and(|answer| answer.starts_with('f'));
        let missing = ROW_RIGHTS.into_iter().zip(&answers).filter(|(_, answer)| is_missing(answer));
        Ok(missing.map(|(right, _)| right).collect())
    }

    fn grant(&self, right: Right<'_>) -> Option<String> {
        let (schema, user) = (self.quoted(&self.schema), self.quoted(&self.user()));
        match right {
            Right::CreateTables => Some(format!("GRANT USAGE, CREATE ON SCHEMA {schema} TO {user}")),
            Right::UseWarehouse => None,
            Right::ReadStage => {
                let role = self.iam_role.as_ref()?;
                Some(format!("GRANT ASSUMEROLE ON {} TO {user} FOR COPY", quoted_literal(role)))
            }
            Right::AlterTable(table) => Some(format!("ALTER TABLE {} OWNER TO {user}", self.qualified(table))),
            Right::LoadTable(table) => {
                Some(format!("GRANT {} ON TABLE {} TO {user}", ROW_RIGHTS.join(", "), self.qualified(table)))
            }
        }
    }
}

impl RedshiftDialect {
    /// The user of the sessions.
    fn user(&self) -> String {
        match &self.logins {
            Logins::Password(login) => login.user.clone(),
            Logins::Temporary(iam) => iam.user().unwrap_or_else(|| "..".to_owned()),
        }
    }

    fn log_in(&self) -> Result<RedshiftSession> {
        let schema = self.quoted(&self.schema);
        let connect = |login: &Login| {
            let secrets = self.secrets.clone();
            RedshiftSession::connect(&self.server, login, &schema, &self.application, secrets, &self.runtime)
        };
        let iam = match &self.logins {
            Logins::Password(login) => return connect(login),
            Logins::Temporary(iam) => iam,
        };
        let (login, was_kept) = iam.get(&self.runtime)?;
        match connect(&login) {
            // They may have been revoked, or the clocks differ.
            Err(error) if error.code == LOGIN_REFUSED && was_kept => connect(&iam.renew(&self.runtime)?),
            outcome => outcome,
        }
    }

    /// An error if a table exists that the catalog hides, because the user has no right on it.
    fn check_visible(&self, session: &mut dyn Session, table: &str) -> Result<()> {
        let found = session.query(&format!(
            "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = {} AND \
             c.relname = {}",
            self.literal(&self.schema),
            self.literal(table)
        ))?;
        if found.is_empty() {
            return Ok(());
        }
        let grant = self.grant(Right::LoadTable(table)).unwrap_or_default();
        let message = format!(
            "the table {} exists, and the user {} has no right on it; run `{grant}`",
            self.qualified(table),
            self.user()
        );
        Err(Error::external(PERMISSION_DENIED, message))
    }
}

/// The type of a column in the catalog. The names in PostgreSQL's catalog are those of servers that
/// tests use.
fn column_type_of(data_type: &str, length: Option<u32>, precision: Option<u32>, scale: Option<u32>) -> ColumnType {
    match data_type {
        "boolean" => ColumnType::Boolean,
        "smallint" => ColumnType::Integer(16),
        "integer" => ColumnType::Integer(32),
        "bigint" => ColumnType::Integer(64),
        "numeric" => {
            let part =
                |value: Option<u32>, default| value.and_then(|value| u8::try_from(value).ok()).unwrap_or(default);
            ColumnType::Decimal(part(precision, 18), part(scale, 0))
        }
        "real" => ColumnType::Float(32),
        "double precision" => ColumnType::Float(64),
        "character varying" | "character" | "text" => ColumnType::Text(length.unwrap_or(MAX_TEXT).min(MAX_TEXT)),
        "binary varying" | "bytea" => ColumnType::Binary(length.unwrap_or(MAX_BINARY).min(MAX_BINARY)),
        "date" => ColumnType::Date,
        "time without time zone" => ColumnType::Time,
        "timestamp without time zone" => ColumnType::Timestamp,
        "timestamp with time zone" => ColumnType::TimestampTz,
        "super" | "jsonb" => ColumnType::Json,
        other => ColumnType::Other(other.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use trunkline_connector::config::{Report, Section};
    use trunkline_connector::conformance::read_toml;

    use super::*;

    fn dialect(more: &str) -> RedshiftDialect {
        let toml = format!("url = \"postgres://u:p%20w@h/db\"\nschema = \"Raw\"\n{more}");
        let table = read_toml(&toml);
        let report = Report::default();
        let section = Section::new(&table, 0..0, "sinks.dw", Path::new("."), &report);
        section.declare(trunkline_connector::SinkConnector::options(&crate::RedshiftConnector));
        let config = Config::read(&section, &[]);
        let Some(config) = config else { panic!("{:?}", report.into_problems()) };
        assert!(matches!(&config.server.auth, Auth::Password(login) if login.password == "p w"));
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let Ok(runtime) = runtime else { panic!("no runtime") };
        RedshiftDialect::new(&config, "shop.dw", runtime.handle().clone())
    }

    #[test]
    fn tables_have_the_configured_keys_where_they_have_the_columns() {
        let dialect = dialect("stage = \"s3://b\"\ndist_key = \"ID\"\nsort_key = [\"at\", \"id\"]");
        let column =
            |name: &str, column_type| Column { name: name.to_owned(), column_type, nullable: true, has_default: false };
        let (id, at) = (column("id", ColumnType::Integer(64)), column("at", ColumnType::TimestampTz));
        assert_eq!(
            dialect.create_table("t", &[id.clone(), at], &[]),
            [
                "CREATE TABLE IF NOT EXISTS \"t\" (\"id\" BIGINT, \"at\" TIMESTAMPTZ) DISTKEY(\"id\") SORTKEY(\"at\", \"id\")"
            ]
        );
        assert_eq!(
            dialect.create_table("t", &[id], &[]),
            ["CREATE TABLE IF NOT EXISTS \"t\" (\"id\" BIGINT) DISTKEY(\"id\")"]
        );
        assert_eq!(dialect.destination(), "redshift://h:5439/db/raw");
    }

    #[test]
    fn copy_uses_the_role_else_the_keys_else_the_default_role() {
        let copy = |stage: &str| dialect(stage).copy("s", &[], &[], "s3://b/m");
        let statement =
            |authorization: &str| format!("COPY \"s\" FROM 's3://b/m' {authorization} FORMAT AS PARQUET MANIFEST");
        assert_eq!(copy("stage = \"s3://b\""), statement("IAM_ROLE default"));
        let keys = "url = \"s3://b\", access_key_id = \"k\", secret_access_key = \"s'x\"";
        assert_eq!(copy(&format!("stage = {{ {keys} }}")), statement("ACCESS_KEY_ID 'k' SECRET_ACCESS_KEY 's''x'"));
        assert_eq!(copy(&format!("stage = {{ {keys}, iam_role = \"arn\" }}")), statement("IAM_ROLE 'arn'"));
        let temporary = format!("stage = {{ {keys}, session_token = \"t'k\" }}");
        let expected = "ACCESS_KEY_ID 'k' SECRET_ACCESS_KEY 's''x' SESSION_TOKEN 't''k'";
        assert_eq!(copy(&temporary), statement(expected));
        assert_eq!(dialect(&temporary).secrets, ["s''x", "t''k"]);
    }

    #[test]
    fn types_keep_every_value() {
        let dialect = dialect("stage = \"s3://b\"");
        let of =
            |data_type: &DataType| dialect.column_type(data_type, 100, false).map(|found| dialect.sql_type(&found));
        for (data_type, expected) in [
            (DataType::UInt8, Some("SMALLINT")),
            (DataType::UInt32, Some("BIGINT")),
            (DataType::UInt64, Some("DECIMAL(20,0)")),
            (DataType::Decimal128(38, 9), Some("DECIMAL(38,9)")),
            (DataType::Decimal256(65, 30), Some("VARCHAR(256)")),
            (DataType::Utf8, Some("VARCHAR(256)")),
            (DataType::Binary, Some("VARBYTE(256)")),
            (
                DataType::List(std::sync::Arc::new(arrow::datatypes::Field::new("x", DataType::Int8, true))),
                Some("SUPER"),
            ),
            (DataType::Null, None),
        ] {
            assert_eq!(of(&data_type).as_deref(), expected, "{data_type}");
        }
        assert_eq!(room(40_000, MAX_TEXT), MAX_TEXT);
        assert_eq!(room(300, MAX_TEXT), 1024);
    }
}
