//! What the sinks that write objects share.
//!
//! | file | subject |
//! |---|---|
//! | `columns/` | JSON to columns: types, inference, widening |
//! | `encoding` | rows to Parquet, in a thread of the runtime |
//! | `parquet_file` | row groups: which rows are written when, and how many columns at once |
//! | `pages` | compression of pages |
//! | `dictionaries` | columns of Parquet files that get no dictionary |
//! | `options` | options of Parquet files and object stores |
//! | `client`, `errors` | the S3 client, and the meaning of a store's answers |

mod client;
pub mod columns;
mod dictionaries;
mod encoding;
mod errors;
mod options;
mod pages;
mod parquet_file;

pub use client::connect;
pub use encoding::{Encoders, Encoding};
pub use errors::Failure;
pub use options::{AccessKey, BucketOptions, Checksum, Encryption, TLS_CA_CODE, WriterOptions};
pub use parquet_file::ParquetFile;
