//! The tables of the binlog, by the number that rows events name them by. A table map comes before nearly every rows event; it is read again
//! only when its bytes have changed, which is how a changed table is noticed.

use std::collections::HashMap;
use std::sync::Arc;

use trunkline_connector::{Error, Result};

use crate::config::MysqlOptions;
use crate::connection::connect::server;
use crate::decode::rows::Storage;
use crate::decode::table_map::{TableMap, TableName, Unusable};
use crate::format::table::{Column, Kind, Style, Table};
use crate::schema::charset::Charsets;

/// A table's rows, as they lie in the binlog.
#[derive(Debug)]
pub(crate) struct Mapped {
    /// `None` if the source does not take the table.
    pub(crate) taken: Option<Taken>,
}

/// A table that the source takes.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) table: Arc<Table>,
    pub(crate) storage: Vec<Storage>,
}

/// The length of a BINARY, if it is that of one of MariaDB's types.
fn looks_binary(column: &Column, storage: Storage) -> Option<usize> {
    match storage {
        Storage::Bytes { padded_to: size @ (4 | 16), .. } if column.kind == Kind::Binary => Some(size),
        _ => None,
    }
}

/// More tables than this are forgotten at once: numbers are never used again, and those in use come back with their next map.
const MOST: usize = 10_000;

/// Tables by number.
pub(crate) struct Tables {
    style: Style,
    /// Table maps are MariaDB's.
    mariadb: bool,
    known: HashMap<u64, (Vec<u8>, Arc<Mapped>)>,
    /// Types that a table map does not tell: by table, the columns of these types.
    untold: HashMap<String, Vec<(String, Kind)>>,
}

impl Tables {
    pub(crate) fn new(style: Style, mariadb: bool) -> Self {
        Self { style, mariadb, known: HashMap::new(), untold: HashMap::new() }
    }

    pub(crate) fn get(&self, id: u64) -> Option<&Arc<Mapped>> {
        self.known.get(&id).map(|(_, mapped)| mapped)
    }

    /// Takes up a table map; the table if it is new or has changed.
    pub(crate) fn map(
        &mut self,
        event: &[u8],
        options: &MysqlOptions,
        charsets: &Charsets,
    ) -> Result<Option<Arc<Mapped>>> {
        let broken = |why: String| Error::data("mysql.malformed", format!("{}: a table map: {why}", server(options)));
        let name = TableName::read(event).map_err(|error| broken(error.to_string()))?;
        if self.known.get(&name.id).is_some_and(|(known, _)| known == event) {
            return Ok(None);
        }
        let taken = if options.tables.takes(name.database, name.table) {
            Some(self.read(&name, options, charsets)?)
        } else {
            None
        };
        if self.known.len() >= MOST {
            self.known.clear();
        }
        let mapped = Arc::new(Mapped { taken });
        self.known.insert(name.id, (event.to_vec(), Arc::clone(&mapped)));
        Ok(Some(mapped))
    }

    /// The database and name of a table whose new map leaves open what some columns are: MariaDB's UUID and INET types look like BINARY there. Its
    /// description is wanted before the map is taken up.
    pub(crate) fn asks_for(
        &self,
        event: &[u8],
        options: &MysqlOptions,
        charsets: &Charsets,
    ) -> Option<(String, String)> {
        let name = TableName::read(event).ok().filter(|_| self.mariadb)?;
        let is_known = self.known.get(&name.id).is_some_and(|(known, _)| known == event);
        if is_known || !options.tables.takes(name.database, name.table) {
            return None;
        }
        let map = TableMap::read(&name, charsets, self.mariadb).ok()?;
        let mut columns = map.columns.iter().zip(&map.storage);
        let asks = columns.any(|(column, storage)| looks_binary(column, *storage).is_some());
        asks.then(|| (name.database.to_owned(), name.table.to_owned()))
    }

    /// What a table's columns are, as it is now.
    pub(crate) fn told(&mut self, full_name: String, columns: &[Column]) {
        let native = |column: &&Column| matches!(column.kind, Kind::Uuid | Kind::Inet4 | Kind::Inet6);
        let kinds = columns.iter().filter(native).map(|column| (column.name.clone(), column.kind.clone()));
        self.untold.insert(full_name, kinds.collect());
    }

    fn read(&self, name: &TableName<'_>, options: &MysqlOptions, charsets: &Charsets) -> Result<Taken> {
        let full_name = format!("{}.{}", name.database, name.table);
        let map = TableMap::read(name, charsets, self.mariadb).map_err(|unusable| match unusable {
            Unusable::Malformed(why) => {
                Error::data("mysql.malformed", format!("{}: the table map of {full_name}: {why}", server(options)))
            }
            Unusable::NoNames => Error::data(
                "mysql.row_metadata",
                format!(
                    "{}: the binlog does not name the columns of {full_name}. SET PERSIST binlog_row_metadata = 'FULL'; what was written before cannot \
                     be read: go on with a source of another name, or leave the table out by `tables`",
                    server(options)
                ),
            ),
            Unusable::Column(column, why) => Error::data(
                "mysql.column",
                format!("{}: {full_name}: column `{column}` cannot be read: {why}. Leave the table out by `tables`", server(options)),
            ),
        })?;
        let TableMap { mut columns, storage, key } = map;
        for (name, kind) in self.untold.get(&full_name).into_iter().flatten() {
            let size = if *kind == Kind::Inet4 { 4 } else { 16 };
            let mut both = columns.iter_mut().zip(&storage);
            let same = |(column, storage): &(&mut Column, &Storage)| {
                column.name == *name && looks_binary(column, **storage) == Some(size)
            };
            if let Some((column, _)) = both.find(same) {
                column.kind = kind.clone();
            }
        }
        options.columns.settle(name.database, name.table, &mut columns, &key)?;
        let table = Table::new(name.database.to_owned(), name.table.to_owned(), columns, key, self.style)?;
        Ok(Taken { table: Arc::new(table), storage })
    }
}
