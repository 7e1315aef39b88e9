//! Durable state: entries that outlive the plugin's instance. The host commits their changes in the
//! transaction of the batch's output, so that they are exactly-once.
//!
//! State belongs to the topic partition of the batch: a plugin sees the entries of that partition
//! only. It is available in [`Transform::record`] and [`Transform::process`], not in
//! [`Transform::new`] and [`Transform::flush`]. The changes of a batch that fails are discarded.
//!
//! [`State`] is a typed collection. Each of its methods is one call of the host: a transform that
//! reads many entries implements [`Transform::process`], and passes all keys of a batch at once.
//!
//! ```
//! use trunkline_plugin::state::State;
//! use trunkline_plugin::{ConfigError, Done, Record, Transform, Verdict};
//!
//! struct Visits {
//!     counts: State<u64>,
//! }
//!
//! impl Transform for Visits {
//!     type Config = serde_json::Value;
//!
//!     fn new(_: serde_json::Value) -> Result<Self, ConfigError> {
//!         Ok(Self { counts: State::new("counts") })
//!     }
//!
//!     fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
//!         let Some(key) = record.key() else { return Ok(verdict.drop()) };
//!         let count = self.counts.get(key)?.unwrap_or(0) + 1;
//!         self.counts.put(key, &count)?;
//!         Ok(verdict.value(count.to_string().as_bytes()))
//!     }
//! }
//!
//! trunkline_plugin::export!(Visits);
//!
//! // In the plugin's tests:
//! use trunkline_plugin::testing::{Input, MockHost};
//! let mut host = MockHost::<Visits>::start(serde_json::json!({}))?;
//! let outcomes = host.process(&[Input::value("").key("ann"), Input::value("").key("ann")])?;
//! assert_eq!(outcomes[1].passed().unwrap().text(), Some("2"));
//! # Ok::<(), String>(())
//! ```
//!
//! [`Transform::record`]: crate::Transform::record
//! [`Transform::process`]: crate::Transform::process
//! [`Transform::new`]: crate::Transform::new
//! [`Transform::flush`]: crate::Transform::flush

use std::marker::PhantomData;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(target_arch = "wasm32")]
use crate::guest as implementation;
#[cfg(not(target_arch = "wasm32"))]
use crate::testing as implementation;

/// Separates the name of a collection from the keys of its entries.
const SEPARATOR: u8 = 0;

/// A collection of entries with values of type `V`, which are stored as JSON. Keys are bytes.
#[derive(Debug)]
pub struct State<V> {
    /// The name and the separator.
    prefix: Vec<u8>,
    ttl_ms: Option<u64>,
    values: PhantomData<fn() -> V>,
}

impl<V: Serialize + DeserializeOwned> State<V> {
    /// The collection of this name. The collections of a plugin have different names, without zero
    /// bytes.
    pub fn new(name: &str) -> Self {
        let mut prefix = name.as_bytes().to_vec();
        prefix.push(SEPARATOR);
        Self { prefix, ttl_ms: None, values: PhantomData }
    }

    /// Entries expire when the time of the partition, which is the greatest timestamp of its
    /// records, has advanced by `ttl` since they were stored. They are readable at least until
    /// then.
    #[must_use]
    pub fn with_ttl(self, ttl: Duration) -> Self {
        Self { ttl_ms: Some(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)), ..self }
    }

    /// The value of a key.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<V>, String> {
        Ok(self.get_all(&[key])?.pop().flatten())
    }

    /// The values of several keys, in order.
    pub fn get_all(&self, keys: &[impl AsRef<[u8]>]) -> Result<Vec<Option<V>>, String> {
        let values = self.stored_values(keys);
        values.iter().map(|value| value.map(decode).transpose()).collect()
    }

    /// The stored bytes of several keys, in order. For values that are not of type `V`, such as the
    /// rows of a table.
    pub fn get_all_bytes(&self, keys: &[impl AsRef<[u8]>]) -> Vec<Option<Vec<u8>>> {
        self.stored_values(keys).iter().map(|value| value.map(<[u8]>::to_vec)).collect()
    }

    /// Stores a value.
    pub fn put(&self, key: impl AsRef<[u8]>, value: &V) -> Result<(), String> {
        self.put_all([(key, value)])
    }

    /// Stores several values.
    pub fn put_all<'v, K: AsRef<[u8]>>(&self, entries: impl IntoIterator<Item = (K, &'v V)>) -> Result<(), String>
    where
        V: 'v,
    {
        let entries = entries.into_iter();
        let mut stored = Packed::with_capacity(2 * entries.size_hint().0, 0);
        for (key, value) in entries {
            self.add_key(&mut stored, key.as_ref());
            serde_json::to_writer(&mut stored.bytes, value)
                .map_err(|error| format!("a value cannot be stored: {error}"))?;
            stored.end();
        }
        if !stored.is_empty() {
            implementation::state_put(&stored, self.ttl_ms);
        }
        Ok(())
    }

    /// Removes an entry, if there is one.
    pub fn delete(&self, key: impl AsRef<[u8]>) {
        self.delete_all(&[key]);
    }

    /// Removes several entries.
    pub fn delete_all(&self, keys: &[impl AsRef<[u8]>]) {
        if !keys.is_empty() {
            implementation::state_delete(&self.stored_keys(keys));
        }
    }

    /// At most `limit` entries from the key `start` (inclusive) to `end` (exclusive; `None` = the
    /// end of the collection), in the order of their keys. The host may return fewer; an empty list
    /// means that no entry is left.
    pub fn range(&self, start: impl AsRef<[u8]>, end: Option<&[u8]>, limit: u32) -> Result<Vec<(Vec<u8>, V)>, String> {
        let end = match end {
            Some(end) => self.stored_key(end),
            None => {
                let mut end = self.prefix.clone();
                end.pop();
                end.push(SEPARATOR + 1);
                end
            }
        };
        let found = implementation::state_range(&self.stored_key(start.as_ref()), &end, limit).into_iter();
        found.map(|(key, value)| Ok((key[self.prefix.len()..].to_vec(), decode(&value)?))).collect()
    }

    fn stored_key(&self, key: &[u8]) -> Vec<u8> {
        [&self.prefix, key].concat()
    }

    fn stored_values(&self, keys: &[impl AsRef<[u8]>]) -> PackedValues {
        if keys.is_empty() { PackedValues::default() } else { implementation::state_get(&self.stored_keys(keys)) }
    }

    fn stored_keys(&self, keys: &[impl AsRef<[u8]>]) -> Packed {
        let bytes = keys.iter().map(|key| self.prefix.len() + key.as_ref().len()).sum();
        let mut stored = Packed::with_capacity(keys.len(), bytes);
        keys.iter().for_each(|key| self.add_key(&mut stored, key.as_ref()));
        stored
    }

    fn add_key(&self, to: &mut Packed, key: &[u8]) {
        to.bytes.extend_from_slice(&self.prefix);
        to.bytes.extend_from_slice(key);
        to.end();
    }
}

/// Keys, or keys and values in turn, in one block of memory: an allocation for each of them would
/// cost more than the call of the host.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) bytes: Vec<u8>,
    pub(crate) lengths: Vec<u32>,
    /// The bytes of all items that have ended.
    ended: usize,
}

impl Packed {
    fn with_capacity(items: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), lengths: Vec::with_capacity(items), ended: 0 }
    }

    /// Ends the item whose bytes were appended.
    fn end(&mut self) {
        // A plugin has less than 4 GiB of memory.
        self.lengths.push((self.bytes.len() - self.ended) as u32);
        self.ended = self.bytes.len();
    }

    fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// The items, in order.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let mut rest = self.bytes.as_slice();
        self.lengths.iter().map(move |length| take(&mut rest, *length as usize))
    }
}

/// Values in one block of memory.
#[derive(Debug, Default)]
pub(crate) struct PackedValues {
    pub(crate) bytes: Vec<u8>,
    /// -1: the key has no entry.
    pub(crate) lengths: Vec<i32>,
}

impl PackedValues {
    /// The values of the keys, in their order.
    fn iter(&self) -> impl ExactSizeIterator<Item = Option<&[u8]>> {
        let mut rest = self.bytes.as_slice();
        self.lengths.iter().map(move |length| usize::try_from(*length).ok().map(|length| take(&mut rest, length)))
    }
}

/// The first bytes, which are removed from the slice.
fn take<'b>(bytes: &mut &'b [u8], length: usize) -> &'b [u8] {
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

fn decode<V: DeserializeOwned>(value: &[u8]) -> Result<V, String> {
    serde_json::from_slice(value).map_err(|error| {
        crate::stop(&format!(
            "an entry of its state has another form than this version of the transform writes ({error}). Use the \
             version that wrote it, or give the transform another name, which starts without state"
        ))
    })
}
