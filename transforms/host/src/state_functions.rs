//! The functions of the interface `state`.
//!
//! `get` and `put` take a list for each key and value. `get-packed` and `put-packed` do the same
//! with one block of bytes and the lengths of its items: the host reads the items where they are,
//! and allocates one block in the plugin's memory for all values. With a list for each value, it
//! calls the plugin's allocator for each of them.

use std::sync::Arc;

use wasmtime::component::{ComponentType, Lift, Linker, Lower, WasmList};

use crate::guest::GuestState;
use crate::host_functions::{STATE_INTERFACE, with_state};
use crate::state::StateError;
use crate::timers;

/// Greatest number of items of a packed call. The host has a slice for each of them.
const MAX_PACKED_ITEMS: usize = 1 << 20;

/// An entry as `put` receives it. Keys and values stay in the plugin's memory until they are
/// stored.
#[derive(ComponentType, Lift)]
#[component(record)]
struct NewEntry {
    key: WasmList<u8>,
    value: WasmList<u8>,
    #[component(name = "ttl-ms")]
    ttl_ms: Option<u64>,
}

/// An entry as `range` returns it.
#[derive(ComponentType, Lower)]
#[component(record)]
struct Entry {
    key: Arc<[u8]>,
    value: Arc<[u8]>,
}

/// The values that `get-packed` returns.
#[derive(Default, ComponentType, Lower)]
#[component(record)]
struct PackedValues {
    bytes: Vec<u8>,
    lengths: Vec<i32>,
}

type Keys = (Vec<WasmList<u8>>,);
type PackedKeys = (WasmList<u8>, WasmList<u32>);
type PackedEntries = (WasmList<u8>, WasmList<u32>, Option<u64>);
type Range = (Vec<u8>, Option<Vec<u8>>, u32);

/// Defines the functions of the interface.
pub(crate) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut functions = linker.instance(STATE_INTERFACE)?;
    functions.func_wrap("get", |mut store, (keys,): Keys| {
        let values = with_state(&mut store, |state, memory| {
            let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_le_slice(memory)).collect();
            keys.iter().try_for_each(|key| timers::check_key(key))?;
            let mut values = Vec::with_capacity(keys.len());
            state.get_all(&keys, |value| {
                values.push(value.cloned());
                Ok::<_, StateError>(())
            })?;
            Ok(values)
        })?;
        Ok((values,))
    })?;
    functions.func_wrap("put", |mut store, (entries,): (Vec<NewEntry>,)| {
        with_state(&mut store, |state, memory| {
            let bytes = |list: &WasmList<u8>| list.as_le_slice(memory);
            let entries: Vec<_> =
                entries.iter().map(|entry| (bytes(&entry.key), bytes(&entry.value), entry.ttl_ms)).collect();
            entries.iter().try_for_each(|(key, ..)| timers::check_key(key))?;
            Ok(state.put_all(&entries)?)
        })
    })?;
    functions.func_wrap("delete", |mut store, (keys,): Keys| {
        with_state(&mut store, |state, memory| {
            for key in keys.iter().map(|key| key.as_le_slice(memory)) {
                timers::check_key(key)?;
                state.delete(key)?;
            }
            Ok(())
        })
    })?;
    functions.func_wrap("range", |mut store, (start, end, limit): Range| {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let end = timers::end_of_range(end.as_deref());
        let found = with_state(&mut store, |state, _| Ok(state.range(&start, Some(end), limit)?))?;
        Ok((found.into_iter().map(|(key, value)| Entry { key, value }).collect::<Vec<_>>(),))
    })?;
    functions.func_wrap("get-packed", |mut store, (keys, lengths): PackedKeys| {
        let limit = store.data().memory_limit();
        let values = with_state(&mut store, |state, memory| {
            let keys = unpack(keys.as_le_slice(memory), lengths.as_le_slice(memory))?;
            keys.iter().try_for_each(|key| timers::check_key(key))?;
            let mut values = PackedValues { bytes: Vec::new(), lengths: Vec::with_capacity(keys.len()) };
            let found = state.get_all(&keys, |value| {
                values.bytes.extend_from_slice(value.map_or(&[], |value| value));
                // An entry has less than 2 GiB.
                values.lengths.push(value.map_or(-1, |value| value.len() as i32));
                if values.bytes.len() <= limit { Ok(()) } else { Err(GetError::LargeValues) }
            });
            match found {
                Ok(()) => Ok(Some(values)),
                Err(GetError::LargeValues) => Ok(None),
                Err(GetError::State(error)) => Err(error.into()),
            }
        })?;
        // Without a limit, a few keys that come many times would fill the worker's memory.
        let Some(values) = values else { return Err(store.data_mut().refuse_memory()) };
        Ok((values,))
    })?;
    functions.func_wrap("put-packed", |mut store, (entries, lengths, ttl_ms): PackedEntries| {
        with_state(&mut store, |state, memory| {
            let items = unpack(entries.as_le_slice(memory), lengths.as_le_slice(memory))?;
            let (entries, rest) = items.as_chunks::<2>();
            if !rest.is_empty() {
                return Err(wasmtime::format_err!("the last key of `put-packed` has no value"));
            }
            let entries: Vec<_> = entries.iter().map(|[key, value]| (*key, *value, ttl_ms)).collect();
            entries.iter().try_for_each(|(key, ..)| timers::check_key(key))?;
            Ok(state.put_all(&entries)?)
        })
    })?;
    Ok(())
}

enum GetError {
    State(StateError),
    /// The values have more bytes than the plugin's memory may have.
    LargeValues,
}

impl From<StateError> for GetError {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}

/// The items of packed bytes.
fn unpack<'b>(mut bytes: &'b [u8], lengths: &[u32]) -> wasmtime::Result<Vec<&'b [u8]>> {
    if lengths.len() > MAX_PACKED_ITEMS {
        return Err(wasmtime::format_err!(
            "a packed call has {} items; expected at most {MAX_PACKED_ITEMS}",
            lengths.len()
        ));
    }
    let mut items = Vec::with_capacity(lengths.len());
    for length in lengths {
        let split = usize::try_from(u32::from_le(*length)).ok().and_then(|length| bytes.split_at_checked(length));
        let Some((item, rest)) = split else {
            return Err(wasmtime::format_err!("the lengths of packed items exceed their bytes"));
        };
        items.push(item);
        bytes = rest;
    }
    if !bytes.is_empty() {
        return Err(wasmtime::format_err!("{} bytes follow the last packed item", bytes.len()));
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_items_fill_their_bytes() {
        let unpacked =
            |bytes: &'static [u8], lengths: &[u32]| unpack(bytes, lengths).map_err(|error| error.to_string());
        assert_eq!(unpacked(b"abc", &[1, 0, 2]).unwrap(), [&b"a"[..], b"", b"bc"]);
        assert!(unpacked(b"", &[]).unwrap().is_empty());
        assert_eq!(unpacked(b"abc", &[1, 3]).unwrap_err(), "the lengths of packed items exceed their bytes");
        assert_eq!(unpacked(b"abc", &[u32::MAX]).unwrap_err(), "the lengths of packed items exceed their bytes");
        assert_eq!(unpacked(b"abc", &[1]).unwrap_err(), "2 bytes follow the last packed item");
        assert_eq!(unpacked(b"", &vec![0; MAX_PACKED_ITEMS]).unwrap().len(), MAX_PACKED_ITEMS);
        let error = unpacked(b"", &vec![0; MAX_PACKED_ITEMS + 1]).unwrap_err();
        assert_eq!(error, "a packed call has 1048577 items; expected at most 1048576");
    }
}
