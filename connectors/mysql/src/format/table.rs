//! [`Table`]: a captured table with everything that its records have in common, computed once.
//!
//! Two descriptions of a table exist: the binlog's table map event for streamed rows, and
//! `information_schema` for a snapshot. Both produce the same [`Table`], so a row becomes the same
//! record whichever way it was read.

use std::sync::Arc;

use trunkline_connector::batch::write_header;
use trunkline_connector::{Result, Schema, headers, json};

use super::options::FormatOptions;
use super::schemas::row_schema;
use crate::schema::column_mode::ColumnMode;
use crate::schema::table_name::TableName;
use crate::schema::types::Column;

/// Header with the database of a record; `{@database}` in templates.
pub(crate) const DATABASE: &str = "trunkline.database";
/// Header with the table of a record; `{@table}` in templates.
pub(crate) const TABLE: &str = "trunkline.table";

/// A captured table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: TableName,
    pub(crate) columns: Vec<Column>,
    /// Indices of the key's columns, in the key's order; empty for a table without a key.
    pub(crate) key: Vec<usize>,
    /// The columns by which the table can be read in chunks: those of the primary key; empty if the
    /// table has none, or if the configuration names another key.
    pub(crate) order: Vec<usize>,
    pub(crate) format: FormatOptions,
    pub(crate) schema: Arc<Schema>,
    /// `,"name":` of each column in JSON.
    pub(crate) names_json: Vec<Vec<u8>>,
    /// `"db":"..","table":".."`
    pub(crate) source_json: Vec<u8>,
    /// The headers of records that have a value.
    pub(crate) headers: Vec<u8>,
    /// The headers of a tombstone, which has no schema.
    pub(crate) tombstone_headers: Vec<u8>,
    /// Preserves the order of records without a key.
    pub(crate) ordering_key: u32,
}

impl Table {
    pub(crate) fn new(name: TableName, columns: Vec<Column>, key: Vec<usize>, format: FormatOptions) -> Result<Self> {
        let schema = row_schema(&columns, &key, format).map_err(|error| error.context(&name))?;
        let member = |name: &str| {
            let mut json = vec![b','];
            json::write_string(&mut json, name);
            json.push(b':');
            json
        };
        let mut source_json = b"\"db\":".to_vec();
        json::write_string(&mut source_json, &name.database);
        source_json.extend_from_slice(b",\"table\":");
        json::write_string(&mut source_json, &name.table);
        let mut tombstone_headers = Vec::new();
        write_header(&mut tombstone_headers, DATABASE, Some(name.database.as_bytes()));
        write_header(&mut tombstone_headers, TABLE, Some(name.table.as_bytes()));
        let mut headers = tombstone_headers.clone();
        write_header(&mut headers, headers::SCHEMA, Some(schema.id().to_string().as_bytes()));
        let ordering_key = xxhash_rust::xxh3::xxh3_64(name.key().as_bytes()) as u32;
        Ok(Self {
            names_json: columns.iter().map(|column| member(&column.name)).collect(),
            name,
            columns,
            order: key.clone(),
            key,
            format,
            schema: Arc::new(schema),
            source_json,
            headers,
            tombstone_headers,
            ordering_key,
        })
    }

    /// The table, with a key that the configuration names.
    pub(crate) fn without_order(self) -> Self {
        Self { order: Vec::new(), ..self }
    }

    /// Whether the configuration excludes or masks columns.
    pub(crate) fn has_hidden_columns(&self) -> bool {
        self.columns.iter().any(|column| column.mode != ColumnMode::Include)
    }

    /// Names of the key's columns, in the key's order.
    pub(crate) fn key_names(&self) -> impl Iterator<Item = &str> {
        self.key.iter().filter_map(|index| self.columns.get(*index)).map(|column| column.name.as_str())
    }
}
