//! Implements the exports of a plugin: it holds the transform, reports panics to the host, and
//! calls host functions.
//!
//! wit-bindgen 0.63 (`cargo install wit-bindgen-cli --no-default-features --features rust`)
//! generated `bindings.rs`. The file is committed, so that plugin authors need neither macro nor
//! generator. After a change of the WIT file, run in the folder of this crate:
//! ```text
//! wit-bindgen rust ../wit --world timed --out-dir src --runtime-path crate::guest::rt \
//!     --pub-export-macro --export-macro-name __export_guest_types \
//!     --default-bindings-module '$crate::__private::bindings'
//! sed -E 's|^ *///|///|' src/timed.rs > src/bindings.rs && rm src/timed.rs
//! ```

use std::cell::RefCell;

use crate::bindings::exports::trunkline::transform::plugin::{InitError, InitReply, Offer};
use crate::bindings::trunkline::transform::{host, inputs, state, timers};
use crate::config::ConfigError;
use crate::host::Level;
use crate::state::{Packed, PackedValues};
use crate::{Inputs, Transform, runner};

/// The format of `batch.rs` and `verdict.rs`.
const FORMAT: u32 = 1;

trait DynTransform {
    fn process(&mut self, batch: &[u8]) -> Result<Vec<u8>, String>;
    fn flush(&mut self) -> Result<Vec<u8>, String>;
}

impl<T: Transform> DynTransform for T {
    fn process(&mut self, batch: &[u8]) -> Result<Vec<u8>, String> {
        runner::process(self, batch)
    }

    fn flush(&mut self) -> Result<Vec<u8>, String> {
        runner::flush(self)
    }
}

thread_local! {
    static INSTANCE: RefCell<Option<Box<dyn DynTransform>>> = const { RefCell::new(None) };
}

/// The exported function `init`.
pub fn init<T: Transform>(config: &str, offer: &Offer) -> Result<InitReply, InitError> {
    // a trap carries no text, so the hook logs the panic message
    std::panic::set_hook(Box::new(|panic| log(Level::Error, &panic.to_string())));
    let rejected = |error: ConfigError| InitError { message: error.message, key: error.key };
    if !offer.formats.contains(&FORMAT) {
        let message =
            format!("the plugin needs batch format {FORMAT}; worker {} offers {:?}", offer.host_version, offer.formats);
        return Err(rejected(ConfigError::new(message)));
    }
    let transform = T::new(ConfigError::read(config).map_err(rejected)?).map_err(rejected)?;
    let Inputs { key, value, headers } = transform.inputs();
    if !(key && value && headers) {
        inputs::declare(key, value, headers);
    }
    let reply = InitReply { format: FORMAT, ports: transform.ports(), keeps_schema: transform.keeps_schema() };
    INSTANCE.with(|instance| *instance.borrow_mut() = Some(Box::new(transform)));
    Ok(reply)
}

/// The exported function `process`.
pub fn process(batch: &[u8]) -> Result<Vec<u8>, String> {
    with_instance(|instance| instance.process(batch))
}

/// The exported function `flush`.
pub fn flush() -> Result<Vec<u8>, String> {
    with_instance(|instance| instance.flush())
}

fn with_instance(call: impl FnOnce(&mut dyn DynTransform) -> Result<Vec<u8>, String>) -> Result<Vec<u8>, String> {
    INSTANCE.with(|instance| match instance.borrow_mut().as_deref_mut() {
        Some(instance) => call(instance),
        None => Err("called before `init` succeeded".to_owned()),
    })
}

/// Implements the exports of the WIT world with a transform. It must expand in the plugin's crate,
/// because the linker keeps only the exports of that crate.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_guest {
    ($exported:ident, $transform:ty) => {
        impl $crate::__private::Guest for $exported {
            fn init(
                config: ::std::string::String,
                host: $crate::__private::Offer,
            ) -> ::std::result::Result<$crate::__private::InitReply, $crate::__private::InitError> {
                $crate::__private::init::<$transform>(&config, &host)
            }

            fn process(batch: ::std::vec::Vec<u8>) -> ::std::result::Result<::std::vec::Vec<u8>, ::std::string::String> {
                $crate::__private::process(&batch)
            }

            fn flush() -> ::std::result::Result<::std::vec::Vec<u8>, ::std::string::String> {
                $crate::__private::flush()
            }
        }

        $crate::__private::bindings::__export_guest_types!($exported with_types_in $crate::__private::bindings);

        // the standard library of wasm32-wasip2 exports it
        #[cfg(not(target_env = "p2"))]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn cabi_realloc(old: *mut u8, old_len: usize, align: usize, new_len: usize) -> *mut u8 {
            // SAFETY: the canonical ABI passes a block that this function returned, or no block.
            unsafe { $crate::__private::realloc(old, old_len, align, new_len) }
        }
    };
}

pub(crate) fn log(level: Level, message: &str) {
    let level = match level {
        Level::Trace => host::Level::Trace,
        Level::Debug => host::Level::Debug,
        Level::Info => host::Level::Info,
        Level::Warn => host::Level::Warn,
        Level::Error => host::Level::Error,
    };
    host::log(level, message);
}

pub(crate) fn counter_add(name: &str, by: u64) {
    host::counter_add(name, by);
}

pub(crate) fn histogram_record(name: &str, value: f64) {
    host::histogram_record(name, value);
}

pub(crate) fn now_ms() -> u64 {
    host::now_ms()
}

pub(crate) fn state_get(keys: &Packed) -> PackedValues {
    let state::PackedValues { bytes, lengths } = state::get_packed(&keys.bytes, &keys.lengths);
    PackedValues { bytes, lengths }
}

/// `entries`: keys and values in turn.
pub(crate) fn state_put(entries: &Packed, ttl_ms: Option<u64>) {
    state::put_packed(&entries.bytes, &entries.lengths, ttl_ms);
}

pub(crate) fn state_delete(keys: &Packed) {
    let keys: Vec<Bytes> = keys.iter().map(Bytes::of).collect();
    // SAFETY: the arguments have the layout of `list<list<u8>>`.
    unsafe { imports::delete(keys.as_ptr(), keys.len()) }
}

pub(crate) fn state_range(start: &[u8], end: &[u8], limit: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
    state::range(start, Some(end), limit).into_iter().map(|entry| (entry.key, entry.value)).collect()
}

pub(crate) fn timers_set(stored: Vec<(Vec<u8>, i64)>) {
    let stored: Vec<_> = stored.into_iter().map(|(key, time)| timers::NewTimer { key, time }).collect();
    timers::set(&stored);
}

pub(crate) fn timers_delete(keys: Vec<Vec<u8>>) {
    timers::delete(&keys);
}

pub(crate) fn timers_get(keys: Vec<Vec<u8>>) -> Vec<Option<i64>> {
    timers::get(&keys)
}

pub(crate) fn event_time() -> Option<i64> {
    timers::event_time()
}

/// The interface `state` as the host sees it. `bindings.rs` has this function too, but there each
/// key is a separate vector.
mod imports {
    use super::Bytes;

    #[link(wasm_import_module = "trunkline:transform/state@1.1.0")]
    unsafe extern "C" {
        pub(super) fn delete(keys: *const Bytes, count: usize);
    }
}

/// A `list<u8>`.
#[repr(C)]
#[allow(dead_code, reason = "the host reads it")]
struct Bytes {
    first: *const u8,
    len: usize,
}

impl Bytes {
    fn of(bytes: &[u8]) -> Self {
        Self { first: bytes.as_ptr(), len: bytes.len() }
    }
}

/// The allocator of the canonical ABI.
///
/// # Safety
/// `old` is null with `old_len` 0, or a block of `old_len` bytes aligned to `align` that this
/// function returned.
pub unsafe fn realloc(old: *mut u8, old_len: usize, align: usize, new_len: usize) -> *mut u8 {
    use std::alloc::{Layout, alloc, handle_alloc_error, realloc};
    if new_len == 0 {
        return std::ptr::without_provenance_mut(align);
    }
    // SAFETY: size and alignment belong to a canonical ABI type; the caller guarantees `old`.
    unsafe {
        let new_layout = Layout::from_size_align_unchecked(new_len, align);
        let new = match old_len {
            0 => alloc(new_layout),
            _ => realloc(old, Layout::from_size_align_unchecked(old_len, align), new_len),
        };
        if new.is_null() {
            handle_alloc_error(new_layout);
        }
        new
    }
}

/// The runtime of the generated code: the parts of wit-bindgen's runtime that this world needs.
pub(crate) mod rt {
    use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};

    pub(crate) fn run_ctors_once() {
        use std::sync::atomic::{AtomicBool, Ordering};
        static RUN: AtomicBool = AtomicBool::new(false);
        unsafe extern "C" {
            fn __wasm_call_ctors();
        }
        if !RUN.swap(true, Ordering::Relaxed) {
            // SAFETY: the linker defines it; a library without a start function must call it once,
            // before all other code.
            unsafe { __wasm_call_ctors() }
        }
    }

    /// Does nothing, because [`crate::export!`] exports `cabi_realloc`.
    pub(crate) fn maybe_link_cabi_realloc() {}

    pub(crate) struct Cleanup {
        block: *mut u8,
        layout: Layout,
    }

    impl Cleanup {
        pub(crate) fn new(layout: Layout) -> (*mut u8, Option<Self>) {
            if layout.size() == 0 {
                return (std::ptr::without_provenance_mut(layout.align()), None);
            }
            // SAFETY: the size is not 0.
            let block = unsafe { alloc(layout) };
            if block.is_null() {
                handle_alloc_error(layout);
            }
            (block, Some(Self { block, layout }))
        }

        pub(crate) fn forget(self) {
            std::mem::forget(self);
        }
    }

    impl Drop for Cleanup {
        fn drop(&mut self) {
            // SAFETY: `new` allocated the block with this layout, and it is dropped once.
            unsafe { dealloc(self.block, self.layout) }
        }
    }
}
