//! [`SchemaFits`]: the schema header of records whose value a plugin has changed.
//!
//! A value that still fits its schema keeps it. Of another one, a schema is derived that lacks the
//! columns which no longer fit; see [`Fit`]. A plugin that declares `keeps_schema` is trusted, and
//! emitted records are new ones: neither is checked here.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use trunkline_connector::{Error, Fit, Schema, SchemaId, SchemaLookup};

/// Schemas derived by one instance. Records that differ in ever new ways have no common types.
const MAX_DERIVED: usize = 64;

/// The schemas that records name.
pub trait SchemaStore: SchemaLookup {
    /// Adds a derived schema, so that its id can be looked up in this process.
    fn add(&self, schema: &Arc<Schema>);
}

/// What happens to the schema header of a changed record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SchemaHeader {
    Keep,
    /// It names this schema.
    Replace(Arc<str>),
    Remove,
}

/// The schemas of the records of one instance.
#[derive(Default)]
pub(crate) struct SchemaFits {
    store: Option<Arc<dyn SchemaStore>>,
    known: HashMap<SchemaId, KnownSchema>,
    derived: Vec<Arc<Schema>>,
    error: Option<Error>,
}

struct KnownSchema {
    schema: Arc<Schema>,
    /// The header of values that differ in these ways.
    headers: HashMap<Fit, SchemaHeader>,
}

impl SchemaFits {
    pub(crate) fn set_store(&mut self, store: Arc<dyn SchemaStore>) {
        self.store = Some(store);
    }

    /// The schemas that were derived so far. Records name them.
    pub(crate) fn derived(&self) -> &[Arc<Schema>] {
        &self.derived
    }

    /// The error of a lookup since the last call. The records since then are to be processed again.
    pub(crate) fn take_error(&mut self) -> Option<Error> {
        self.error.take()
    }

    /// The header of a changed value that had the schema `id`.
    pub(crate) fn header(&mut self, id: Option<&[u8]>, value: Option<&[u8]>) -> SchemaHeader {
        let Some(store) = &self.store else { return SchemaHeader::Remove };
        let id = id.and_then(|id| std::str::from_utf8(id).ok()).and_then(|id| id.parse::<SchemaId>().ok());
        let (Some(id), Some(value)) = (id, value) else { return SchemaHeader::Remove };
        let known = match self.known.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => match store.schema(id) {
                Ok(Some(schema)) => vacant.insert(KnownSchema { schema, headers: HashMap::new() }),
                Ok(None) => return SchemaHeader::Remove,
                Err(error) => {
                    self.error = Some(error);
                    return SchemaHeader::Remove;
                }
            },
        };
        let Some(fit) = known.schema.compare(value) else { return SchemaHeader::Remove };
        if fit.is_exact() {
            return SchemaHeader::Keep;
        }
        if let Some(header) = known.headers.get(&fit) {
            return header.clone();
        }
        if self.derived.len() >= MAX_DERIVED {
            return SchemaHeader::Remove;
        }
        // Types that a published schema has can be in a derived one.
        let Ok(Some(schema)) = known.schema.derive(&fit) else { return SchemaHeader::Remove };
        let schema = Arc::new(schema);
        store.add(&schema);
        let header = SchemaHeader::Replace(Arc::from(schema.id().to_string()));
        known.headers.insert(fit, header.clone());
        self.derived.push(schema);
        header
    }
}
