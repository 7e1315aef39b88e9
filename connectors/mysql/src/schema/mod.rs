//! What tables, columns and values are.

pub(crate) mod charset;
pub(crate) mod column_filter;
pub(crate) mod table_filter;
