//! [`RecordKeys`]: the option `key`, which names the columns of a table's record key.

use std::collections::BTreeMap;

use trunkline_connector::{Error, Result};

use super::table_name::TableName;
use super::types::Column;

/// The key columns that the configuration names, by table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RecordKeys(BTreeMap<TableName, Vec<String>>);

impl RecordKeys {
    /// Adds the key of a table.
    pub(crate) fn add(&mut self, table: TableName, columns: Vec<String>) {
        self.0.insert(table, columns);
    }

    /// Whether the configuration names the key of a table.
    pub(crate) fn is_named(&self, table: &TableName) -> bool {
        self.0.contains_key(table)
    }

    /// The indices of a table's key columns, if the configuration names them.
    pub(crate) fn of(&self, table: &TableName, columns: &[Column]) -> Result<Option<Vec<usize>>> {
        let Some(names) = self.0.get(table) else { return Ok(None) };
        let index = |name: &String| {
            columns.iter().position(|column| column.name == *name).ok_or_else(|| {
                let known: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
                let message = format!(
                    "`key` names the column `{name}`, which {table} does not have (or did not have at this position of the \
                     binlog): correct `key`, the columns are {}",
                    known.join(", ")
                );
                Error::config("mysql.key", message)
            })
        };
        names.iter().map(index).collect::<Result<_>>().map(Some)
    }
}
