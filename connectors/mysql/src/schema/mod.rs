//! What the connector knows of tables: column types, character sets, and which tables and columns
//! the options select.
//!
//! Nothing here knows how a value is written to a record ([`crate::format`]) or read from bytes
//! ([`crate::decode`]).

pub(crate) mod charset;
pub(crate) mod column_filter;
pub(crate) mod column_mode;
pub(crate) mod record_keys;
pub(crate) mod table_filter;
pub(crate) mod table_name;
pub(crate) mod types;
