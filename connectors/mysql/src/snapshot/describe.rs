//! Tables as `information_schema` describes them: the same [`Table`] that the binlog's table maps make.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::mysql::MySqlConnection;
use trunkline_connector::{Error, Result};

use super::select::literal;
use crate::config::MysqlOptions;
use crate::connection::connect::{query, server};
use crate::decode::table_map::{COMPRESSED, OLD_FORMAT};
use crate::format::table::{Column, Kind, Style, Table};
use crate::schema::charset::Charsets;

/// A column of `information_schema.COLUMNS`.
struct Described<'a> {
    data_type: &'a str,
    column_type: &'a str,
    precision: Option<u8>,
    scale: Option<u8>,
    digits: Option<u8>,
    charset: Option<&'a str>,
}

/// All tables that the source takes, or one of them (database and name).
pub(crate) async fn tables(
    options: &MysqlOptions,
    connection: &mut MySqlConnection,
    charsets: &Charsets,
    only: Option<(&str, &str)>,
) -> Result<Vec<Arc<Table>>> {
    let filter = |prefix: &str| match only {
        Some((database, table)) => {
            format!("{prefix}TABLE_SCHEMA = {} AND {prefix}TABLE_NAME = {}", literal(database), literal(table))
        }
        None => format!("{prefix}TABLE_SCHEMA NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema')"),
    };
    let key_sql = format!(
        "SELECT TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME FROM information_schema.STATISTICS WHERE INDEX_NAME = 'PRIMARY' AND {} \
         ORDER BY TABLE_SCHEMA, TABLE_NAME, SEQ_IN_INDEX",
        filter("")
    );
    let mut keys: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for row in query(options, connection, &key_sql).await? {
        if let [Some(database), Some(table), Some(column)] = row.as_slice() {
            keys.entry((database.clone(), table.clone())).or_default().push(column.clone());
        }
    }
    let columns_sql = format!(
        "SELECT c.TABLE_SCHEMA, c.TABLE_NAME, c.COLUMN_NAME, c.DATA_TYPE, c.COLUMN_TYPE, c.IS_NULLABLE, c.NUMERIC_PRECISION, c.NUMERIC_SCALE, \
         c.DATETIME_PRECISION, c.CHARACTER_SET_NAME FROM information_schema.COLUMNS c JOIN information_schema.TABLES t \
         ON t.TABLE_SCHEMA = c.TABLE_SCHEMA AND t.TABLE_NAME = c.TABLE_NAME WHERE t.TABLE_TYPE = 'BASE TABLE' AND {} \
         ORDER BY c.TABLE_SCHEMA, c.TABLE_NAME, c.ORDINAL_POSITION",
        filter("c.")
    );
    let mut columns: BTreeMap<(String, String), Vec<Column>> = BTreeMap::new();
    for row in query(options, connection, &columns_sql).await? {
        let text = |index: usize| row.get(index).and_then(Option::as_deref);
        let [Some(database), Some(table), Some(name), Some(data_type), Some(column_type)] = [0, 1, 2, 3, 4].map(text)
        else {
            continue;
        };
        if !options.tables.takes(database, table) {
            continue;
        }
        let small = |index: usize| text(index).and_then(|number| number.parse().ok());
        let described = Described {
            data_type,
            column_type,
            precision: small(6),
            scale: small(7),
            digits: small(8),
            charset: text(9),
        };
        let kind = described.kind(charsets).map_err(|why| {
            Error::data(
                "mysql.column",
                format!(
                    "{}: {database}.{table}: column `{name}` cannot be read: {why}. Leave the table out by `tables`",
                    server(options)
                ),
            )
        })?;
        let column = Column::new(name.to_owned(), kind, text(5) == Some("YES"));
        columns.entry((database.to_owned(), table.to_owned())).or_default().push(column);
    }
    let style = Style::of(options);
    columns
        .into_iter()
        .map(|(name, mut columns)| {
            let key = keys.remove(&name).unwrap_or_default();
            let index = |wanted: &String| columns.iter().position(|column| column.name == *wanted);
            let key: Vec<usize> = key.iter().filter_map(index).collect();
            options.columns.settle(&name.0, &name.1, &mut columns, &key)?;
            Table::new(name.0, name.1, columns, key, style).map(Arc::new)
        })
        .collect()
}

/// About how many rows these tables (database and name) have together: what the server guesses, from its statistics.
pub(crate) async fn guessed_rows(
    options: &MysqlOptions,
    connection: &mut MySqlConnection,
    tables: &[(&str, &str)],
) -> Result<u64> {
    let names: Vec<String> =
        tables.iter().map(|(database, table)| format!("({}, {})", literal(database), literal(table))).collect();
    let sql = format!(
        "SELECT CAST(COALESCE(SUM(TABLE_ROWS), 0) AS CHAR) FROM information_schema.TABLES WHERE (TABLE_SCHEMA, TABLE_NAME) IN ({})",
        names.join(", ")
    );
    let rows = query(options, connection, &sql).await?;
    Ok(rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok()).unwrap_or(0))
}

impl Described<'_> {
    fn kind(&self, charsets: &Charsets) -> Result<Kind, String> {
        // MariaDB says in comments what is odd about a column.
        if self.column_type.contains("/* mariadb-5.3 */") {
            return Err(OLD_FORMAT.to_owned());
        }
        if self.column_type.ends_with("COMPRESSED*/") {
            return Err(COMPRESSED.to_owned());
        }
        let unsigned = self.column_type.contains("unsigned");
        let int = |bytes| Kind::Int { bytes, unsigned };
        let digits = self.digits.unwrap_or(0);
        let charset = || {
            let name = self.charset.ok_or("it has no character set")?;
            charsets.by_name(name).ok_or_else(|| format!("nothing here reads the character set {name}")).cloned()
        };
        Ok(match self.data_type {
            "tinyint" => int(1),
            "smallint" => int(2),
            "mediumint" => int(3),
            "int" => int(4),
            "bigint" => int(8),
            "year" => Kind::Year,
            "float" => Kind::Float,
            "double" => Kind::Double,
            "decimal" => Kind::Decimal { precision: self.precision.unwrap_or(10), scale: self.scale.unwrap_or(0) },
            "bit" => Kind::Bit { bits: self.precision.unwrap_or(1) },
            "date" => Kind::Date,
            "time" => Kind::Time { digits },
            "datetime" => Kind::DateTime { digits },
            "timestamp" => Kind::Timestamp { digits },
            "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" => Kind::Text { charset: charset()? },
            "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => Kind::Binary,
            "enum" => Kind::Enum { members: members(self.column_type)?.into() },
            "set" => Kind::Set { members: members(self.column_type)?.into() },
            "json" => Kind::Json,
            "vector" => Kind::Vector,
            "uuid" => Kind::Uuid,
            "inet4" => Kind::Inet4,
            "inet6" => Kind::Inet6,
            "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon"
            | "geomcollection" | "geometrycollection" => Kind::Geometry,
            other => return Err(format!("the type `{other}` is not known here")),
        })
    }
}

/// Members of `enum('a','b''c')`. The server doubles quotes and escapes backslashes and what cannot be printed.
fn members(column_type: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("`{column_type}` cannot be taken apart");
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
    fn members_are_taken_apart() {
        assert_eq!(members("enum('a','b''c','d,e','été')").unwrap(), ["a", "b'c", "d,e", "été"]);
        assert_eq!(members("set('')").unwrap(), [""]);
        assert_eq!(members(r"enum('a\\b','c\nd')").unwrap(), ["a\\b", "c\nd"]);
        assert!(members("enum('a").is_err() && members("enum").is_err());
    }
}
