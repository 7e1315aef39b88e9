//! Records of rows: the envelope, values as JSON, and schemas.

pub(crate) mod deletes;
pub(crate) mod envelope;
pub(crate) mod json;
pub(crate) mod options;
pub(crate) mod rejected;
pub(crate) mod schemas;
pub(crate) mod table;
pub(crate) mod transaction_metadata;
