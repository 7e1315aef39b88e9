//! The glue in a plugin: one instance of the transform, panics told to the host, host calls.
//!
//! `bindings.rs` is written by wit-bindgen 0.63 (`cargo install wit-bindgen-cli --no-default-features --features rust`), checked in so
//! that authors need no macro and no generator. After a change of the WIT file, in the folder of this crate:
//! ```text
//! wit-bindgen rust ../wit --world transform --out-dir src --runtime-path crate::guest::rt --pub-export-macro \
//!     --export-macro-name __export_guest_types --default-bindings-module '$crate::__private::bindings' && mv src/transform.rs src/bindings.rs
//! ```

use std::cell::RefCell;

use crate::bindings::exports::trunkline::transform::plugin::{InitError, InitReply, Offer};
use crate::bindings::trunkline::transform::host;
use crate::config::ConfigError;
use crate::host::Level;
use crate::{Transform, runner};

/// The format of `batch.rs` and `verdict.rs`.
const FORMAT: u32 = 1;

trait Running {
    fn process(&mut self, batch: &[u8]) -> Result<Vec<u8>, String>;
    fn flush(&mut self) -> Result<Vec<u8>, String>;
}

impl<T: Transform> Running for T {
    fn process(&mut self, batch: &[u8]) -> Result<Vec<u8>, String> {
        runner::process(self, batch)
    }

    fn flush(&mut self) -> Result<Vec<u8>, String> {
        runner::flush(self)
    }
}

thread_local! {
    static INSTANCE: RefCell<Option<Box<dyn Running>>> = const { RefCell::new(None) };
}

/// `init` of the exported component.
pub fn init<T: Transform>(config: &str, offer: &Offer) -> Result<InitReply, InitError> {
    // without it the text of a panic is lost: a trap carries none
    std::panic::set_hook(Box::new(|panic| log(Level::Error, &panic.to_string())));
    let refused = |error: ConfigError| InitError { message: error.message, key: error.key };
    if !offer.formats.contains(&FORMAT) {
        let message =
            format!("this plugin speaks format {FORMAT}, worker {} offers {:?}", offer.host_version, offer.formats);
        return Err(refused(ConfigError::new(message)));
    }
    let transform = T::new(ConfigError::read(config).map_err(refused)?).map_err(refused)?;
    let reply = InitReply { format: FORMAT, ports: transform.ports(), keeps_schema: transform.keeps_schema() };
    INSTANCE.with(|instance| *instance.borrow_mut() = Some(Box::new(transform)));
    Ok(reply)
}

/// `process` of the exported component.
pub fn process(batch: &[u8]) -> Result<Vec<u8>, String> {
    with_instance(|instance| instance.process(batch))
}

/// `flush` of the exported component.
pub fn flush() -> Result<Vec<u8>, String> {
    with_instance(|instance| instance.flush())
}

fn with_instance(call: impl FnOnce(&mut dyn Running) -> Result<Vec<u8>, String>) -> Result<Vec<u8>, String> {
    INSTANCE.with(|instance| match instance.borrow_mut().as_deref_mut() {
        Some(instance) => call(instance),
        None => Err("called before `init` succeeded".to_owned()),
    })
}

/// Implements what the WIT world asks for by this transform. Expanded in the plugin's crate, because only what is exported from there is
/// kept by the linker.
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

        // on wasm32-wasip2 the standard library brings it
        #[cfg(not(target_env = "p2"))]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn cabi_realloc(old: *mut u8, old_len: usize, align: usize, new_len: usize) -> *mut u8 {
            // SAFETY: the canonical ABI calls it with a block that it got here, or with none.
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

/// What the canonical ABI asks memory of.
///
/// # Safety
/// `old` is null with `old_len` 0, or a block of `old_len` bytes aligned to `align` that this function returned.
pub unsafe fn realloc(old: *mut u8, old_len: usize, align: usize, new_len: usize) -> *mut u8 {
    use std::alloc::{Layout, alloc, handle_alloc_error, realloc};
    if new_len == 0 {
        return std::ptr::without_provenance_mut(align);
    }
    // SAFETY: sizes and alignment are those of a canonical ABI type; `old` is what the caller promises.
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

/// What the generated code asks of its runtime; wit-bindgen's own, reduced to what this world needs.
pub(crate) mod rt {
    use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};

    pub(crate) fn run_ctors_once() {
        use std::sync::atomic::{AtomicBool, Ordering};
        static RUN: AtomicBool = AtomicBool::new(false);
        unsafe extern "C" {
            fn __wasm_call_ctors();
        }
        if !RUN.swap(true, Ordering::Relaxed) {
            // SAFETY: made by the linker; a library without a start function must call it once, before anything else.
            unsafe { __wasm_call_ctors() }
        }
    }

    /// `cabi_realloc` is exported by [`crate::export!`]; nothing has to be linked for it.
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
            // SAFETY: allocated by `new` with this layout, and dropped once.
            unsafe { dealloc(self.block, self.layout) }
        }
    }
}
