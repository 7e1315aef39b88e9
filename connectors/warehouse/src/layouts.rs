//! The columns that the rows of a table are decoded with, by declared schema.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema as ArrowSchema};
use trunkline_connector::{Result, SchemaId, SchemaLookup};
use trunkline_objects::columns::ColumnLayout;

/// Rows of one table and one declared schema share a layout.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LayoutKey {
    pub(crate) table: String,
    pub(crate) schema: Option<SchemaId>,
}

/// See the module's header.
#[derive(Clone)]
pub(crate) struct Layout {
    /// The layout that the last rows were decoded with.
    pub(crate) columns: Arc<ColumnLayout>,
    /// Columns whose text the source declares to be JSON.
    pub(crate) json: Arc<HashSet<String>>,
    /// The schema's primary key; empty if it has none.
    pub(crate) key: Arc<[String]>,
    /// The schema is that of change events.
    pub(crate) is_enveloped: bool,
}

/// The known layouts: one for each table and schema.
#[derive(Default)]
pub(crate) struct Layouts {
    known: HashMap<LayoutKey, Layout>,
}

impl Layouts {
    /// The layout for a key; `None` if the schema was never published.
    pub(crate) fn get(&mut self, key: &LayoutKey, schemas: &dyn SchemaLookup) -> Result<Option<Layout>> {
        if let Some(known) = self.known.get(key) {
            return Ok(Some(known.clone()));
        }
        let layout = match key.schema {
            None => {
                Layout { columns: ColumnLayout::empty(), json: Arc::default(), key: Arc::from([]), is_enveloped: false }
            }
            Some(id) => match schemas.schema(id)? {
                Some(schema) => declared(schema.arrow()),
                None => return Ok(None),
            },
        };
        self.known.insert(key.clone(), layout.clone());
        Ok(Some(layout))
    }

    /// Later rows are decoded with wider columns.
    pub(crate) fn widen(&mut self, key: &LayoutKey, columns: Arc<ColumnLayout>) {
        if let Some(known) = self.known.get_mut(key) {
            known.columns = columns;
        }
    }
}

/// The layout of a declared schema: the row in an envelope's `after`, or the fields themselves.
/// Every column may be null, because a delete has only the key.
fn declared(schema: &ArrowSchema) -> Layout {
    let after = schema.field_with_name("op").ok().and_then(|_| schema.field_with_name("after").ok());
    let (fields, is_enveloped) = match after.map(Field::data_type) {
        Some(DataType::Struct(members)) => (members.clone(), true),
        _ => (schema.fields().clone(), false),
    };
    let is_json = |field: &&FieldRef| field.metadata().get("mysql.type").is_some_and(|name| name == "json");
    let json = fields.iter().filter(is_json).map(|field| field.name().clone()).collect();
    let key = schema.metadata().get("primary_key").map(|names| names.split(',').map(str::to_owned).collect::<Vec<_>>());
    let nullable: Fields = fields.iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
    Layout {
        columns: ColumnLayout::declared(&ArrowSchema::new(nullable)),
        json: Arc::new(json),
        key: key.unwrap_or_default().into(),
        is_enveloped,
    }
}
