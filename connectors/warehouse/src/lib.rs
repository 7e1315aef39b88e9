//! What the sinks for warehouses share.
//!
//! A warehouse sink is a [two-phase sink](trunkline_connector::TwoPhaseSink). Records become
//! Parquet files in local scratch space; *prepare* uploads them into the [`Stage`]; *commit* loads
//! them in one transaction of the destination, which also advances a row of the sink's offsets
//! table. A connector adds a [`Dialect`]: types, SQL texts and sessions of one warehouse.

mod dialect;
mod stage;

pub use dialect::{Column, ColumnType, Dialect, Session, StagingColumn};
pub use stage::{Stage, StagedFile};
