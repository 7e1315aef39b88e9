//! The tables of the binlog, by the number that rows events name them by. A table map comes before nearly every rows event; it is read again
//! only when its bytes have changed, which is how a changed table is noticed.

use std::collections::HashMap;
use std::sync::Arc;

use trunkline_connector::{Error, Result};

use crate::charset::Charsets;
use crate::config::MysqlOptions;
use crate::connect::server;
use crate::decode::rows::Storage;
use crate::decode::table_map::{TableMap, TableName, Unusable};
use crate::table::{Style, Table};

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

/// More tables than this are forgotten at once: numbers are never used again, and those in use come back with their next map.
const MOST: usize = 10_000;

/// Tables by number.
pub(crate) struct Tables {
    style: Style,
    /// Table maps are MariaDB's.
    mariadb: bool,
    known: HashMap<u64, (Vec<u8>, Arc<Mapped>)>,
}

impl Tables {
    pub(crate) fn new(style: Style, mariadb: bool) -> Self {
        Self { style, mariadb, known: HashMap::new() }
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
        options.columns.settle(name.database, name.table, &mut columns, &key)?;
        let table = Table::new(name.database.to_owned(), name.table.to_owned(), columns, key, self.style)?;
        Ok(Taken { table: Arc::new(table), storage })
    }
}
