//! [`Dialect`]: what differs between warehouses.
//!
//! The library composes all DML itself from text that both warehouses understand: `BEGIN`,
//! `COMMIT`, `ROLLBACK`, `UPDATE .. SET .. WHERE`, `DELETE FROM t USING s WHERE`, `INSERT INTO ..
//! SELECT`, `ROW_NUMBER() OVER`, `CURRENT_TIMESTAMP`, `CAST(.. AS ..)`. DDL always runs outside of
//! the load's transaction, so that it does not matter whether DDL commits.

use arrow::datatypes::DataType;
use serde::{Deserialize, Serialize};
use trunkline_connector::Result;

use crate::stage::StagedFile;

/// A session of the destination: one connection, one transaction at most. Calls block. A load may
/// take long, because the library runs loads in a thread. A server that is gone must end in an
/// error all the same. A statement outside of `BEGIN` and `COMMIT` commits by itself.
///
/// After any error the library drops the session and opens another one, so a session needs no way
/// to recover. A dropped session must not commit: the destination has to roll its open transaction
/// back. An implementation that notices that the server replaced the session (so that `BEGIN` is
/// forgotten) returns an error.
///
/// Errors: [`Error::external`](trunkline_connector::Error::external) for all that may pass (lost
/// connection, timeout, missing grant, full disk); `Error::config` for a wrong password, key or
/// option. The code `warehouse.conflict` marks a serialisation conflict or deadlock: the library
/// repeats the whole transaction at once a few times. Messages name the statement's purpose and the
/// server's text, never a secret (I8).
pub trait Session: Send {
    /// Runs one statement and returns the number of rows that it changed; 0 if the server does not
    /// report one. `UPDATE` must report it.
    fn execute(&mut self, sql: &str) -> Result<u64>;

    /// Runs one query and returns its rows as text; `None` is null. Used for few rows only:
    /// catalog, offsets row, counts.
    fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>>;

    /// Runs statements in one transaction. A session that can sends them at once, so that a client
    /// that hangs in between holds no lock.
    fn transaction(&mut self, statements: &[String]) -> Result<()> {
        self.execute("BEGIN")?;
        statements.iter().try_for_each(|sql| self.execute(sql).map(drop))?;
        self.execute("COMMIT").map(drop)
    }

    /// Names this session among all that the server had and will have, so that another one can end
    /// it: at most 128 characters, without secrets. `None`: it is not known.
    fn id(&self) -> Option<&str> {
        None
    }

    /// Names the purpose of the next statements, for the destination's history of statements.
    /// Empty: none.
    fn describe_work(&mut self, work: &str) {
        let _ = work;
    }

    /// Ends another session, whose transaction is rolled back. False: there is no session of this
    /// id any more. Never ends one that only looks like it, such as a later session with the same
    /// process id.
    fn end_session(&mut self, id: &str) -> Result<bool> {
        let _ = id;
        Ok(false)
    }
}

/// A type of a column at the destination, as far as the library has to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    /// True or false.
    Boolean,
    /// A signed integer of 16, 32 or 64 bits.
    Integer(u8),
    /// An exact number: precision and scale.
    Decimal(u8, u8),
    /// A float of 32 or 64 bits.
    Float(u8),
    /// Text of at most this number of bytes in UTF-8.
    Text(u32),
    /// Bytes, at most this number.
    Binary(u32),
    /// A calendar date.
    Date,
    /// A time of day.
    Time,
    /// Date and time without a zone, with microseconds.
    Timestamp,
    /// An instant, with microseconds.
    TimestampTz,
    /// A semi-structured value: SUPER, VARIANT.
    Json,
    /// A geometry on the earth, staged as well-known binary in hexadecimal digits.
    Geography,
    /// A type that the sink cannot write (GEOMETRY, INTERVAL): its name. Such a column of an
    /// existing table is left out; a record with a value for it is rejected.
    Other(String),
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The name as the catalog has it.
    pub name: String,
    /// The type.
    pub column_type: ColumnType,
    /// Null is allowed.
    pub nullable: bool,
    /// The column has a default, or the destination fills it (identity): the sink may leave it out.
    pub has_default: bool,
}

/// A column of a staging table, in the order of the Parquet file's columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagingColumn {
    /// The name, equal to that of the Parquet column.
    pub name: String,
    /// The type of the target column (for the sink's own control columns: of the column itself).
    pub column_type: ColumnType,
}

/// What a sink needs to be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right<'a> {
    /// Creating tables in the schema.
    CreateTables,
    /// Running statements in the warehouse.
    UseWarehouse,
    /// Reading the stage in COPY.
    ReadStage,
    /// Changing this table.
    AlterTable(&'a str),
    /// Reading and writing rows of this table.
    LoadTable(&'a str),
}

/// What differs between warehouses. All names that methods take are names as the catalog has them
/// ([`Dialect::folded`]), unquoted; table names are without schema.
pub trait Dialect: Send + Sync {
    /// The connector's name: `redshift`, `snowflake`.
    fn name(&self) -> &'static str;

    /// The destination for messages and stored intents, without secrets:
    /// `redshift://host:5439/db/schema`.
    fn destination(&self) -> String;

    /// Logs in. Sets the session's parameters and the schema, so that unqualified names are in it.
    fn connect(&self) -> Result<Box<dyn Session>>;

    /// The name as the catalog of the destination has it, by the connector's case rule: Redshift
    /// folds to lower case, Snowflake to upper case unless the option keeps it. Cuts nothing: a
    /// name that the destination refuses is reported by [`Dialect::check_name`].
    fn folded(&self, name: &str) -> String;

    /// Why a name cannot be a table or column (too long, for example); `None` if it can.
    fn check_name(&self, name: &str) -> Option<String>;

    /// The name quoted for SQL, `"` doubled. The library quotes everywhere with this.
    fn quoted(&self, name: &str) -> String;

    /// The quoted name of a table with its schema, for statements that an administrator runs.
    fn qualified(&self, table: &str) -> String;

    /// A string literal for SQL, quotes included. Whether `\` must be doubled depends on the
    /// destination.
    fn literal(&self, text: &str) -> String;

    /// The columns of a table in their order; `None` if there is no such table, or if the
    /// destination hides a table on which the user or role has no right. An error if it says so.
    fn columns(&self, session: &mut dyn Session, table: &str) -> Result<Option<Vec<Column>>>;

    /// The type of a new column for values of this Arrow type (that of a schema, or inferred from
    /// JSON). `longest` is the length in bytes of the longest value seen so far, for texts and
    /// binaries: leave room. `is_json`: the source declares JSON text. `None` for a type without
    /// values (null): the column is not created yet. Numbers must be exact: unsigned 64-bit
    /// integers are `Decimal(20, 0)`; a decimal too wide for the destination is `Text`.
    fn column_type(&self, data_type: &DataType, longest: usize, is_json: bool) -> Option<ColumnType>;

    /// The type's SQL text: `VARCHAR(256)`, `NUMBER(38,0)`, `VARIANT`.
    fn sql_type(&self, column_type: &ColumnType) -> String;

    /// Statements that create a table if it does not exist. `key` are the columns that identify a
    /// row (upsert), empty for appends; a dialect may cluster or distribute by them.
    fn create_table(&self, table: &str, columns: &[Column], key: &[String]) -> Vec<String>;

    /// Statements that add a nullable column. They may fail if another task added it: the library
    /// then reads the columns again.
    fn add_column(&self, table: &str, column: &Column) -> Vec<String> {
        let (table, name) = (self.quoted(table), self.quoted(&column.name));
        vec![format!("ALTER TABLE {table} ADD COLUMN {name} {}", self.sql_type(&column.column_type))]
    }

    /// Statements that give an existing column a wider type and keep its values, run in order, each
    /// in a separate transaction unless the statements contain `BEGIN` and `COMMIT`. `None` if
    /// the destination cannot: the library then follows `on_type_change`. `column` is the column as
    /// it is.
    fn widen_column(&self, table: &str, column: &Column, to: &ColumnType) -> Option<Vec<String>>;

    /// Statements that allow null in an existing column; `None` if the destination cannot.
    fn drop_not_null(&self, table: &str, column: &Column) -> Option<Vec<String>>;

    /// The Arrow type that values of a column have in the staged Parquet files: one that the
    /// destination's COPY reads exactly. The library converts to it and checks every value.
    fn parquet_type(&self, column_type: &ColumnType) -> DataType;

    /// Why the destination refuses this text in a column of type `Text` (other than for its length)
    /// or this JSON in one of type `Json`: forbidden characters, a limit of the semi-structured
    /// type. Called for every text, so it must be fast.
    fn refused_text(&self, column_type: &ColumnType, text: &str) -> Option<String> {
        let _ = (column_type, text);
        None
    }

    /// Statements that create an empty staging table, seen by this session at least. They run
    /// before `BEGIN`. The name is unique for the load; the library drops the table after the load
    /// with `DROP TABLE IF EXISTS`. A staging table that outlives its session must be transient and
    /// recognisable by the prefix `trunkline_staging_`.
    fn create_staging(&self, name: &str, columns: &[StagingColumn]) -> Vec<String>;

    /// The expression that turns a staging column (`column` is SQL) into a value of the target
    /// column: the column itself, `JSON_PARSE(column)`, `CAST(column AS TIME)`.
    fn load_expression(&self, column_type: &ColumnType, column: &str) -> String;

    /// An extra object that `copy` needs in the stage, such as Redshift's manifest: its content.
    /// The library uploads it with the files, at the key that `copy` receives as `manifest`.
    fn manifest(&self, files: &[StagedFile]) -> Option<String> {
        let _ = files;
        None
    }

    /// The statement that loads staged files into a staging table, all rows or an error. The
    /// library counts the rows afterwards. `manifest` is the url of [`Dialect::manifest`]'s object.
    fn copy(&self, staging: &str, columns: &[StagingColumn], files: &[StagedFile], manifest: &str) -> String;

    /// Statements that insert a row unless a row with the same values in the first `keys` columns
    /// exists, safe against another session that does the same. The library runs them with
    /// [`Session::transaction`]. `columns` and `values` are SQL.
    fn insert_if_absent(&self, table: &str, keys: usize, columns: &[String], values: &[String]) -> Vec<String>;

    /// The expression for the value of a column as text (`column` is SQL), equal for equal values.
    fn text_of(&self, column_type: &ColumnType, column: &str) -> String {
        let _ = column_type;
        format!("CAST({column} AS VARCHAR)")
    }

    /// Statements that exchange tables, each a pair of names: after them, each table has the rows
    /// that the other one had. They run in order, outside of a transaction; a pair is exchanged as
    /// a whole.
    fn swap_tables(&self, pairs: &[(String, String)]) -> Vec<String>;

    /// Whether the user or role may change a table; `None` if the destination does not say.
    fn may_alter(&self, session: &mut dyn Session, table: &str) -> Result<Option<bool>>;

    /// The rights on the rows of a table that the user or role lacks, as SQL names them (`INSERT`).
    fn missing_rights(&self, session: &mut dyn Session, table: &str) -> Result<Vec<&'static str>> {
        let _ = (session, table);
        Ok(Vec::new())
    }

    /// The statement with which an administrator gives the sink this right; `None` if no statement
    /// does.
    fn grant(&self, right: Right<'_>) -> Option<String>;
}
