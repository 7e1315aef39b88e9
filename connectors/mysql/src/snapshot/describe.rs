//! Describes tables from `information_schema`, as the same [`Table`] that the binlog's table maps
//! produce.

use std::collections::BTreeMap;
use std::sync::Arc;

use trunkline_connector::{Error, Result};

use super::select::quoted_table;
use crate::config::MysqlOptions;
use crate::connection::charsets::load_charsets;
use crate::connection::query::{QueryConnection, TextRows};
use crate::connection::quote::string_literal;
use crate::decode::protocol::TimestampEncoding;
use crate::decode::table_map::{COMPRESSED, OLD_FORMAT};
use crate::format::table::Table;
use crate::position::KeyColumn;
use crate::schema::charset::{Charset, Charsets};
use crate::schema::table_filter::SYSTEM_DATABASES;
use crate::schema::table_name::TableName;
use crate::schema::types::{Column, ColumnType};

/// A row of `information_schema.COLUMNS`.
struct ColumnDescription<'a> {
    data_type: &'a str,
    column_type: &'a str,
    precision: Option<u8>,
    scale: Option<u8>,
    digits: Option<u8>,
    charset: Option<&'a str>,
}

/// A captured table, as the server describes it.
#[derive(Debug)]
pub(crate) struct TableDescription {
    pub(crate) table: Arc<Table>,
    /// The columns of the key, in the key's order.
    pub(crate) key: Vec<KeyColumn>,
    /// The key is the primary key; otherwise it is the columns of a UNIQUE index, or empty.
    pub(crate) has_primary_key: bool,
    /// The server computes some columns in the session that reads them.
    pub(crate) has_virtual_columns: bool,
    /// Indices of CHAR columns, which a session may pad.
    pub(crate) char_columns: Vec<usize>,
}

impl TableDescription {
    /// Whether the table can be read in chunks. A virtual column requires the server's time zone,
    /// in which a TIMESTAMP of the key may be ambiguous.
    pub(crate) fn has_chunks(&self) -> bool {
        let is_timestamp = |index: &usize| {
            let column = self.table.columns.get(*index);
            column.is_some_and(|column| matches!(column.column_type, ColumnType::Timestamp { .. }))
        };
        let has_timestamp_key = self.table.order.iter().any(is_timestamp);
        !(self.table.order.is_empty() || self.has_virtual_columns && has_timestamp_key)
    }

    /// How a query selects TIMESTAMP columns.
    pub(crate) fn timestamps(&self) -> TimestampEncoding {
        match self.has_virtual_columns {
            true => TimestampEncoding::Epoch,
            false => TimestampEncoding::Utc,
        }
    }
}

/// The columns of a table, during its description.
#[derive(Default)]
struct Columns {
    columns: Vec<Column>,
    /// What determines the order of each column.
    orders: Vec<KeyColumn>,
    has_virtual: bool,
    chars: Vec<usize>,
    /// The columns by which the server identifies rows.
    identifying: Vec<String>,
}

/// The indexes of a table that may be its key.
#[derive(Default)]
struct Indexes {
    primary: Vec<String>,
    /// The other UNIQUE indexes: their names and columns.
    unique: BTreeMap<String, Vec<String>>,
}

impl Indexes {
    /// The names of the UNIQUE indexes with exactly these columns.
    fn named(&self, columns: &[String]) -> Vec<&String> {
        let has_all = |index: &Vec<String>| index.iter().all(|column| columns.contains(column));
        let is_same = |index: &&Vec<String>| index.len() == columns.len() && has_all(index);
        self.unique.iter().filter(|(_, index)| is_same(index)).map(|(name, _)| name).collect()
    }
}

/// The columns of a table's key. A table without a primary key has the key that the server gives
/// it, and writes to its table maps: the first UNIQUE index whose columns are NOT NULL, which
/// `information_schema` marks as primary. As in Debezium, it is the key of the table's records.
async fn key_of(
    options: &MysqlOptions,
    connection: &mut QueryConnection,
    name: &TableName,
    indexes: &Indexes,
    identifying: &[String],
) -> Result<Vec<String>> {
    if options.keys.is_named(name) || !indexes.primary.is_empty() {
        return Ok(indexes.primary.clone());
    }
    if identifying.iter().any(|column| !options.columns.may_identify(name, column)) {
        return Ok(Vec::new());
    }
    let found = indexes.named(identifying);
    let index = match found.as_slice() {
        // Several indexes have these columns in another order. The server lists the first one
        // first.
        [_, _, ..] => {
            let rows = connection.query(&format!("SHOW INDEX FROM {}", quoted_table(name))).await?;
            let names = rows.iter().filter_map(|row| row.get(2).cloned().flatten());
            names.into_iter().find(|name| found.contains(&name))
        }
        only => only.first().map(|name| (*name).clone()),
    };
    Ok(index.and_then(|index| indexes.unique.get(&index).cloned()).unwrap_or_default())
}

/// All captured tables, or one of them.
pub(crate) async fn tables(
    options: &MysqlOptions,
    connection: &mut QueryConnection,
    charsets: &Charsets,
    only: Option<&TableName>,
) -> Result<Vec<Arc<TableDescription>>> {
    let mut indexes = read_indexes(connection, only).await?;
    let columns = read_columns(options, connection, charsets, only).await?;
    let mut descriptions = Vec::with_capacity(columns.len());
    for (name, described) in columns {
        let Columns { mut columns, orders, has_virtual, chars, identifying } = described;
        let indexes = indexes.remove(&name).unwrap_or_default();
        let key = key_of(options, connection, &name, &indexes, &identifying).await?;
        let index = |key: &String| columns.iter().position(|column| column.name == *key);
        let key: Vec<usize> = key.iter().filter_map(index).collect();
        let key_columns = key.iter().filter_map(|index| orders.get(*index).cloned()).collect();
        let named = options.keys.of(&name, &columns)?;
        let has_named_key = named.is_some();
        let key = named.unwrap_or(key);
        options.columns.apply(&name, &mut columns, &key)?;
        let table = Table::new(name, columns, key, options.format)?;
        descriptions.push(Arc::new(TableDescription {
            table: Arc::new(if has_named_key { table.without_order() } else { table }),
            key: key_columns,
            has_primary_key: !indexes.primary.is_empty(),
            has_virtual_columns: has_virtual,
            char_columns: chars,
        }));
    }
    Ok(descriptions)
}

/// The condition that selects the described tables.
fn filter(prefix: &str, only: Option<&TableName>) -> String {
    match only {
        Some(TableName { database, table }) => {
            let (database, table) = (string_literal(database), string_literal(table));
            format!("{prefix}TABLE_SCHEMA = {database} AND {prefix}TABLE_NAME = {table}")
        }
        None => format!("{prefix}TABLE_SCHEMA NOT IN ('{}')", SYSTEM_DATABASES.join("', '")),
    }
}

/// The UNIQUE indexes of tables, with their columns in the index's order.
async fn read_indexes(
    connection: &mut QueryConnection,
    only: Option<&TableName>,
) -> Result<BTreeMap<TableName, Indexes>> {
    let sql = format!(
        "SELECT TABLE_SCHEMA, TABLE_NAME, INDEX_NAME, COLUMN_NAME FROM information_schema.STATISTICS WHERE NON_UNIQUE = 0 AND {} \
         ORDER BY TABLE_SCHEMA, TABLE_NAME, INDEX_NAME, SEQ_IN_INDEX",
        filter("", only)
    );
    let mut tables: BTreeMap<TableName, Indexes> = BTreeMap::new();
    for row in connection.query(&sql).await? {
        // A part that is an expression has no column. The server never marks it as primary.
        let [Some(database), Some(table), Some(index), Some(column)] = row.as_slice() else { continue };
        let indexes = tables.entry(TableName::new(database, table)).or_default();
        match index.as_str() {
            "PRIMARY" => indexes.primary.push(column.clone()),
            _ => indexes.unique.entry(index.clone()).or_default().push(column.clone()),
        }
    }
    Ok(tables)
}

async fn read_columns(
    options: &MysqlOptions,
    connection: &mut QueryConnection,
    charsets: &Charsets,
    only: Option<&TableName>,
) -> Result<BTreeMap<TableName, Columns>> {
    let sql = format!(
        "SELECT c.TABLE_SCHEMA, c.TABLE_NAME, c.COLUMN_NAME, c.DATA_TYPE, c.COLUMN_TYPE, c.IS_NULLABLE, c.NUMERIC_PRECISION, c.NUMERIC_SCALE, \
         c.DATETIME_PRECISION, c.CHARACTER_SET_NAME, c.COLLATION_NAME, c.EXTRA, c.COLUMN_KEY FROM information_schema.COLUMNS c JOIN information_schema.TABLES t \
         ON t.TABLE_SCHEMA = c.TABLE_SCHEMA AND t.TABLE_NAME = c.TABLE_NAME WHERE t.TABLE_TYPE = 'BASE TABLE' AND {} \
         ORDER BY c.TABLE_SCHEMA, c.TABLE_NAME, c.ORDINAL_POSITION",
        filter("c.", only)
    );
    let mut tables: BTreeMap<TableName, Columns> = BTreeMap::new();
    let rows = connection.query(&sql).await?;
    load_charsets(connection, &unloaded_charsets(options, charsets, &rows)).await?;
    for row in rows {
        let text = |index: usize| row.get(index).and_then(Option::as_deref);
        let [Some(database), Some(table), Some(name), Some(data_type), Some(type_text)] = [0, 1, 2, 3, 4].map(text)
        else {
            continue;
        };
        if !options.tables.includes(database, table) {
            continue;
        }
        let table = TableName::new(database, table);
        let small = |index: usize| text(index).and_then(|number| number.parse().ok());
        let (precision, scale, digits, charset) = (small(6), small(7), small(8), text(9));
        let described = ColumnDescription { data_type, column_type: type_text, precision, scale, digits, charset };
        let column_type = described.column_type(charsets).map_err(|why| {
            let server = connection.server_label();
            let message =
                format!("{server}: {table}: column `{name}` cannot be read: {why}; or exclude the table from `tables`");
            Error::data("mysql.column", message)
        })?;
        let described = tables.entry(table).or_default();
        described.has_virtual |= text(11).is_some_and(|extra| extra.contains("VIRTUAL GENERATED"));
        if text(12) == Some("PRI") {
            described.identifying.push(name.to_owned());
        }
        if data_type == "char" {
            described.chars.push(described.columns.len());
        }
        described.orders.push(KeyColumn {
            name: name.to_owned(),
            column_type: order_of(&column_type, type_text),
            collation: text(10).map(str::to_owned),
        });
        described.columns.push(Column::new(name.to_owned(), column_type, text(5) == Some("YES")));
    }
    Ok(tables)
}

/// The charsets of captured columns whose tables are not loaded.
fn unloaded_charsets(options: &MysqlOptions, charsets: &Charsets, rows: &TextRows) -> Vec<Arc<Charset>> {
    let mut unloaded: Vec<Arc<Charset>> = Vec::new();
    for row in rows {
        if let [Some(database), Some(table), ..] = row.as_slice()
            && let Some(Some(name)) = row.get(9)
            && let Some(charset) = charsets.by_name(name).filter(|charset| charset.unloaded().is_some())
            && options.tables.includes(database, table)
            && !unloaded.contains(charset)
        {
            unloaded.push(Arc::clone(charset));
        }
    }
    unloaded
}

/// The part of a column's type that determines the order of its values.
fn order_of(column_type: &ColumnType, type_text: &str) -> String {
    match column_type {
        ColumnType::Int { .. } | ColumnType::Decimal { .. } | ColumnType::Year => "number".to_owned(),
        ColumnType::Text { .. } => "text".to_owned(),
        _ => type_text.to_owned(),
    }
}

/// An estimate of the number of rows in all of these tables, from the server's statistics.
pub(crate) async fn estimated_rows(connection: &mut QueryConnection, tables: &[TableName]) -> Result<u64> {
    let pair = |name: &TableName| format!("({}, {})", string_literal(&name.database), string_literal(&name.table));
    let names: Vec<String> = tables.iter().map(pair).collect();
    let sql = format!(
        "SELECT CAST(COALESCE(SUM(TABLE_ROWS), 0) AS CHAR) FROM information_schema.TABLES WHERE (TABLE_SCHEMA, TABLE_NAME) IN ({})",
        names.join(", ")
    );
    Ok(connection.query_one(&sql).await?.and_then(|rows| rows.parse().ok()).unwrap_or(0))
}

impl ColumnDescription<'_> {
    fn column_type(&self, charsets: &Charsets) -> Result<ColumnType, String> {
        // MariaDB marks special columns with comments.
        if self.column_type.contains("/* mariadb-5.3 */") {
            return Err(OLD_FORMAT.to_owned());
        }
        if self.column_type.ends_with("COMPRESSED*/") {
            return Err(COMPRESSED.to_owned());
        }
        let unsigned = self.column_type.contains("unsigned");
        let int = |bytes| ColumnType::Int { bytes, unsigned };
        let digits = self.digits.unwrap_or(0);
        let charset = || {
            let name = self.charset.ok_or("it has no character set")?;
            charsets.by_name(name).ok_or_else(|| format!("its character set {name} is unknown")).cloned()
        };
        Ok(match self.data_type {
            "tinyint" => int(1),
            "smallint" => int(2),
            "mediumint" => int(3),
            "int" => int(4),
            "bigint" => int(8),
            "year" => ColumnType::Year,
            "float" => ColumnType::Float,
            "double" => ColumnType::Double,
            "decimal" => {
                ColumnType::Decimal { precision: self.precision.unwrap_or(10), scale: self.scale.unwrap_or(0) }
            }
            "bit" => ColumnType::Bit { bits: self.precision.unwrap_or(1) },
            "date" => ColumnType::Date,
            "time" => ColumnType::Time { digits },
            "datetime" => ColumnType::DateTime { digits },
            "timestamp" => ColumnType::Timestamp { digits },
            "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" => {
                ColumnType::Text { charset: charset()? }
            }
            "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => ColumnType::Binary,
            "enum" => ColumnType::Enum { members: members(self.column_type)?.into() },
            "set" => ColumnType::Set { members: members(self.column_type)?.into() },
            "json" => ColumnType::Json,
            "vector" => ColumnType::Vector,
            "uuid" => ColumnType::Uuid,
            "inet4" => ColumnType::Inet4,
            "inet6" => ColumnType::Inet6,
            "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon"
            | "geomcollection" | "geometrycollection" => ColumnType::Geometry,
            other => return Err(format!("its type `{other}` is unknown")),
        })
    }
}

/// The members of `enum('a','b''c')`. The server doubles quotes, and escapes backslashes and
/// unprintable characters.
fn members(column_type: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("its type `{column_type}` cannot be parsed");
    let inside = column_type.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).ok_or_else(wrong)?;
    let mut members = Vec::new();
    let mut characters = inside.chars().peekable();
    while characters.peek().is_some() {
        if characters.next() != Some('\'') {
            return Err(wrong());
        }
        let mut member = String::new();
        loop {
            match characters.next().ok_or_else(wrong)? {
                '\'' if characters.peek() == Some(&'\'') => {
                    characters.next();
                    member.push('\'');
                }
                '\'' => break,
                '\\' => member.push(match characters.next().ok_or_else(wrong)? {
                    '0' => '\0',
                    'n' => '\n',
                    'r' => '\r',
                    other => other,
                }),
                other => member.push(other),
            }
        }
        members.push(member);
        match characters.next() {
            None | Some(',') => {}
            Some(_) => return Err(wrong()),
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_parsed() {
        assert_eq!(members("enum('a','b''c','d,e','été')").unwrap(), ["a", "b'c", "d,e", "été"]);
        assert_eq!(members("set('')").unwrap(), [""]);
        assert_eq!(members(r"enum('a\\b','c\nd')").unwrap(), ["a\\b", "c\nd"]);
        assert!(members("enum('a").is_err() && members("enum").is_err());
    }
}
