//! Reads the committed records of assigned partitions.
//!
//! - [`fetcher`]: the positions of a consumer, and its connections. [`requests`] asks, [`answers`]
//!   takes the answers, [`partition`] knows the position of a partition.
//! - [`records`]: selects the committed records of an answer; [`batch`] reads a batch,
//!   [`decompressor`] unpacks it.

mod answers;
mod batch;
mod decompressor;
mod fetcher;
mod partition;
mod records;
mod requests;

pub(in crate::kafka) use fetcher::{FetchOptions, Fetcher};
pub(in crate::kafka) use records::Room;
pub(in crate::kafka) use requests::{Bound, FetchLimits, Isolation, bound, bound_of};
