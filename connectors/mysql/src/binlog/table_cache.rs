//! The tables of the binlog, by the number that rows events refer to. A table map precedes nearly
//! every rows event. The cache decodes it again only when its bytes change, which is how a schema
//! change becomes visible.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use trunkline_connector::{Error, Result};

use crate::config::MysqlOptions;
use crate::connection::dialect::Dialect;
use crate::decode::rows::Storage;
use crate::decode::table_map::{TableMap, TableMapName, Unusable};
use crate::format::table::Table;
use crate::schema::charset::Charsets;
use crate::schema::table_name::TableName;
use crate::schema::types::{Column, ColumnType};

/// A mapped table.
#[derive(Debug)]
pub(crate) struct MappedTable {
    /// `None` if the source does not capture the table.
    pub(crate) captured: Option<CapturedTable>,
}

/// A captured table, and the encoding of its rows.
#[derive(Debug)]
pub(crate) struct CapturedTable {
    pub(crate) table: Arc<Table>,
    pub(crate) storage: Vec<Storage>,
}

/// The length of a BINARY column, if it is the length of a native type of MariaDB.
fn native_length(column: &Column, storage: Storage) -> Option<usize> {
    match storage {
        Storage::Bytes { padded_to: size @ (4 | 16), .. } if column.column_type == ColumnType::Binary => Some(size),
        _ => None,
    }
}

/// A cache of more tables is cleared: numbers are never reused, and the next table map of a table
/// adds it again.
const MAX_TABLES: usize = 10_000;

/// Tables by number.
pub(crate) struct TableCache {
    options: Arc<MysqlOptions>,
    dialect: Dialect,
    tables: HashMap<u64, (Vec<u8>, Arc<MappedTable>)>,
    /// MariaDB's native types, which a table map does not identify: per table, the columns with
    /// such a type.
    native_types: HashMap<TableName, Vec<(String, ColumnType)>>,
    /// Tables that have a primary key, among those with a key that the options hide.
    with_primary_key: HashSet<TableName>,
}

impl TableCache {
    pub(crate) fn new(options: Arc<MysqlOptions>, dialect: Dialect) -> Self {
        Self {
            options,
            dialect,
            tables: HashMap::new(),
            native_types: HashMap::new(),
            with_primary_key: HashSet::new(),
        }
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Arc<MappedTable>> {
        self.tables.get(&number).map(|(_, mapped)| mapped)
    }

    /// Adds the table of a table map. Returns it if it is new or changed.
    pub(crate) fn add(&mut self, event: &[u8], charsets: &Charsets) -> Result<Option<Arc<MappedTable>>> {
        let name = TableMapName::read(event).map_err(|error| {
            let server = self.options.connection.server_label();
            Error::data("mysql.malformed", format!("{server}: a table map: {error} (please report this)"))
        })?;
        if self.is_cached(&name, event) {
            return Ok(None);
        }
        let captured = match self.options.tables.includes(name.database, name.table) {
            true => Some(self.captured_table(&name, charsets)?),
            false => None,
        };
        if self.tables.len() >= MAX_TABLES {
            self.tables.clear();
        }
        let mapped = Arc::new(MappedTable { captured });
        self.tables.insert(name.number, (event.to_vec(), Arc::clone(&mapped)));
        Ok(Some(mapped))
    }

    fn is_mariadb(&self) -> bool {
        self.dialect == Dialect::MariaDb
    }

    fn is_cached(&self, name: &TableMapName<'_>, event: &[u8]) -> bool {
        self.tables.get(&name.number).is_some_and(|(cached, _)| cached == event)
    }

    /// The captured table of a new or changed table map.
    pub(crate) fn new_table(&self, event: &[u8]) -> Option<TableName> {
        let name = TableMapName::read(event).ok()?;
        let is_new = !self.is_cached(&name, event) && self.options.tables.includes(name.database, name.table);
        is_new.then(|| name.table_name())
    }

    /// Whether the cache needs the description of the table before [`add`](TableCache::add), because
    /// the table map does not identify the types of all columns (MariaDB's UUID and INET types look
    /// like BINARY), or not the kind of a key that the options hide.
    pub(crate) fn needs_description(&self, event: &[u8], charsets: &Charsets) -> bool {
        let Ok(name) = TableMapName::read(event) else { return false };
        let Ok(map) = TableMap::read(&name, charsets, self.is_mariadb()) else { return false };
        let mut columns = map.columns.iter().zip(&map.storage);
        self.is_mariadb() && columns.any(|(column, storage)| native_length(column, *storage).is_some())
            || self.hides_key(&name.table_name(), &map.columns, &map.key)
    }

    /// Whether the options exclude or merge a column of a key.
    fn hides_key(&self, table: &TableName, columns: &[Column], key: &[usize]) -> bool {
        let filter = &self.options.columns;
        key.iter().filter_map(|index| columns.get(*index)).any(|column| !filter.may_identify(table, &column.name))
    }

    /// Sets the description of a table.
    pub(crate) fn set_description(&mut self, name: TableName, columns: &[Column], has_primary_key: bool) {
        match has_primary_key {
            true => self.with_primary_key.insert(name.clone()),
            false => self.with_primary_key.remove(&name),
        };
        let is_native =
            |column: &&Column| matches!(column.column_type, ColumnType::Uuid | ColumnType::Inet4 | ColumnType::Inet6);
        let types = columns.iter().filter(is_native).map(|column| (column.name.clone(), column.column_type.clone()));
        self.native_types.insert(name, types.collect());
    }

    fn captured_table(&self, name: &TableMapName<'_>, charsets: &Charsets) -> Result<CapturedTable> {
        let table_name = name.table_name();
        let map =
            TableMap::read(name, charsets, self.is_mariadb()).map_err(|error| self.unusable(&table_name, error))?;
        let TableMap { mut columns, storage, key } = map;
        for (name, column_type) in self.native_types.get(&table_name).into_iter().flatten() {
            let size = if *column_type == ColumnType::Inet4 { 4 } else { 16 };
            let mut both = columns.iter_mut().zip(&storage);
            let is_it = |(column, storage): &(&mut Column, &Storage)| {
                column.name == *name && native_length(column, **storage) == Some(size)
            };
            if let Some((column, _)) = both.find(is_it) {
                column.column_type = column_type.clone();
            }
        }
        // The key of a table map is the primary key, or without one the first UNIQUE index whose
        // columns are NOT NULL. Such an index reveals no column that the options hide.
        let is_hidden = self.hides_key(&table_name, &columns, &key) && !self.with_primary_key.contains(&table_name);
        let key = if is_hidden { Vec::new() } else { key };
        let key = self.options.keys.of(&table_name, &columns)?.unwrap_or(key);
        self.options.columns.apply(&table_name, &mut columns, &key)?;
        let table = Table::new(table_name, columns, key, self.options.format)?;
        Ok(CapturedTable { table: Arc::new(table), storage })
    }

    fn unusable(&self, table: &TableName, error: Unusable) -> Error {
        let server = self.options.connection.server_label();
        match error {
            Unusable::Malformed(why) => Error::data(
                "mysql.malformed",
                format!("{server}: the table map of {table}: {why} (please report this)"),
            ),
            Unusable::NoMetadata => {
                let fix = self.dialect.set_global("binlog_row_metadata = 'FULL'");
                let message = format!(
                    "{server}: the binlog does not contain the column names of {table}; {fix}. Earlier changes cannot be read: \
                     create a source with another name, or exclude the table from `tables`"
                );
                Error::data("mysql.row_metadata", message)
            }
            Unusable::Column(column, why) => {
                let message = format!(
                    "{server}: {table}: column `{column}` cannot be read: {why}; or exclude the table from `tables`"
                );
                Error::data("mysql.column", message)
            }
        }
    }
}
