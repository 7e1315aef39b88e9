//! Records of rows: their envelope, their values as JSON, their schemas.

pub(crate) mod envelope;
pub(crate) mod json;
pub(crate) mod table;
pub(crate) mod transaction_metadata;
