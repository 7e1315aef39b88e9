//! The APIs, a file for each family: from a decoded request to its response. What they decide together with others, they
//! leave to `topics`, `log`, `group` and `transaction`.

pub(crate) mod cluster;
pub(crate) mod configs;
pub(crate) mod fetch;
pub(crate) mod groups;
pub(crate) mod introspection;
pub(crate) mod list_offsets;
pub(crate) mod markers;
pub(crate) mod membership;
pub(crate) mod offsets;
pub(crate) mod produce;
pub(crate) mod topics;
pub(crate) mod transactions;
pub(crate) mod versions;

use std::collections::HashSet;
use std::hash::Hash;

use kafka_protocol::ResponseError;
use kafka_protocol::protocol::StrBytes;

/// The error code of a result.
fn code<T>(result: &Result<T, ResponseError>) -> i16 {
    result.as_ref().err().map_or(0, ResponseError::code)
}

fn text(string: impl Into<String>) -> StrBytes {
    StrBytes::from_string(string.into())
}

/// Those that come more than once: a request that names a thing twice is not carried out for it at all.
fn repeated<T: Eq + Hash + Copy>(things: impl Iterator<Item = T>) -> HashSet<T> {
    let mut seen = HashSet::new();
    things.filter(|thing| !seen.insert(*thing)).collect()
}
