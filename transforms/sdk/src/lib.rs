//! SDK for Trunkline transform plugins in Rust.
//!
//! A plugin is a crate of type `cdylib` that implements [`Transform`] and exports it with
//! [`export!`]. It is built for `wasm32-unknown-unknown` (or `wasm32-wasip2`). The worker passes it
//! records in batches, and it returns a verdict on each record.
//!
//! ```
//! use trunkline_plugin::{json, ConfigError, Done, Port, Record, Transform, Verdict};
//!
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     over: f64,
//! }
//!
//! struct LargeOrders {
//!     over: f64,
//! }
//!
//! const LARGE: Port = 1; // the first name in `ports`
//!
//! impl Transform for LargeOrders {
//!     type Config = Config;
//!
//!     fn new(config: Config) -> Result<Self, ConfigError> {
//!         if config.over < 0.0 {
//!             return Err(ConfigError::at("over", "is negative; expected a positive amount"));
//!         }
//!         Ok(Self { over: config.over })
//!     }
//!
//!     fn ports(&self) -> Vec<String> {
//!         vec!["large".to_owned()]
//!     }
//!
//!     fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
//!         let Some(value) = record.value() else { return Ok(verdict.pass()) };
//!         let amount = match json::lookup(value, &["amount"]) {
//!             Ok(raw) => raw.and_then(json::text).and_then(|text| text.parse::<f64>().ok()),
//!             Err(error) => return Ok(verdict.reject("orders.not_json", &error.to_string())),
//!         };
//!         Ok(match amount {
//!             Some(amount) if amount > self.over => verdict.pass_to(LARGE),
//!             Some(_) => verdict.pass(),
//!             None => verdict.reject("orders.no_amount", "`amount` is missing or not a number"),
//!         })
//!     }
//! }
//!
//! trunkline_plugin::export!(LargeOrders);
//!
//! // In the plugin's tests:
//! use trunkline_plugin::testing::{Input, MockHost};
//! let mut host = MockHost::<LargeOrders>::start(serde_json::json!({ "over": 100 }))?;
//! let outcomes = host.process(&[Input::value(r#"{"amount":"250.00"}"#)])?;
//! assert_eq!(outcomes[0].passed().unwrap().port, "large");
//! # Ok::<(), String>(())
//! ```
//!
//! Values are bytes. Read JSON values with [`json`], which parses them without building a tree.
//!
//! The memory of a plugin lasts as long as its instance: until the worker stops, the task moves, or
//! the plugin crashes on a record (then a new instance processes some records again). Results must
//! not depend on it. [`state`] keeps entries durably, and [`timers`] call the plugin at a time.

#[cfg(any(test, all(target_arch = "wasm32", target_os = "unknown", not(target_feature = "atomics"))))]
mod allocator;
mod batch;
mod config;
pub mod host;
pub mod json;
mod runner;
pub mod state;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
pub mod timers;
mod verdict;

#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[rustfmt::skip]
#[allow(warnings, clippy::all, clippy::unwrap_used, reason = "generated")]
pub mod bindings;
#[cfg(target_arch = "wasm32")]
mod guest;

pub use batch::{Batch, Headers, InvalidBatch, Record};
pub use config::ConfigError;
pub use verdict::{DEFAULT_PORT, Done, Emit, Parts, Port, Verdict, Verdicts};

/// The parts of records that a transform reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inputs {
    /// The keys.
    pub key: bool,
    /// The values.
    pub value: bool,
    /// The headers.
    pub headers: bool,
}

impl Inputs {
    /// All parts.
    pub const ALL: Self = Self { key: true, value: true, headers: true };
    /// The keys only.
    pub const KEY: Self = Self { key: true, value: false, headers: false };
    /// The values only.
    pub const VALUE: Self = Self { key: false, value: true, headers: false };
    /// The headers only.
    pub const HEADERS: Self = Self { key: false, value: false, headers: true };

    /// The parts of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { key: self.key || other.key, value: self.value || other.value, headers: self.headers || other.headers }
    }
}

/// A transform. Implement [`Transform::record`], or [`Transform::process`] if a verdict depends on
/// several records of the batch.
pub trait Transform: Sized + 'static {
    /// The transform's `config` table. Derive `serde::Deserialize` with `deny_unknown_fields`, so
    /// that a misspelt key is an error. Use `serde_json::Value` for a dynamic configuration.
    type Config: serde::de::DeserializeOwned;

    /// Creates the transform. It should detect all errors in the configuration: `trunkline
    /// validate` calls it and shows the error at the key that the error names.
    fn new(config: Self::Config) -> Result<Self, ConfigError>;

    /// Names of the output ports, without the default port. They may depend on the configuration.
    fn ports(&self) -> Vec<String> {
        Vec::new()
    }

    /// The parts of records that the transform reads. The host need not copy the others: they can
    /// be null in [`Record`], and output records keep them. The timestamp and the origin of a
    /// record can always be read.
    fn inputs(&self) -> Inputs {
        Inputs::ALL
    }

    /// Returns true if every changed value still fits the schema of its input record. If false, the
    /// host compares each changed value with the schema, and leaves out the columns that no longer
    /// fit. Emitted records have no schema then, and typed sinks infer one.
    fn keeps_schema(&self) -> bool {
        false
    }

    /// Returns the verdict on one record. Return an error only for a temporary failure of the whole
    /// batch: the host retries the batch, unless the error is one of [`stop`]. Use
    /// [`Verdict::reject`] for a record with bad data.
    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
        let _ = record;
        Ok(verdict.pass())
    }

    /// Writes one verdict per record of a batch, in order. The default calls [`Transform::record`]
    /// for each record.
    fn process(&mut self, batch: Batch<'_>, verdicts: &mut Verdicts) -> Result<(), String> {
        for record in batch.iter() {
            let _: Done = self.record(record, verdicts.next_verdict())?;
        }
        Ok(())
    }

    /// A timer that the transform has set is due: see [`timers`]. The verdict emits records, or is
    /// [`Verdict::drop`] to emit none, or rejects the timer. Emitted records have the timer's time
    /// as timestamp, and no key, value and headers, unless they are set.
    fn timer(&mut self, timer: timers::Timer<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
        let _ = timer;
        Ok(verdict.drop())
    }

    /// The host calls this before it stops the instance. The transform can emit its last records.
    fn flush(&mut self, out: &mut Emit<'_>) -> Result<(), String> {
        let _ = out;
        Ok(())
    }
}

/// The error of a batch that no retry can solve, such as state that belongs to other options: the
/// stage stops, and shows the message.
pub fn stop(message: &str) -> String {
    format!("stop: {message}")
}

/// Exports a [`Transform`] to the host. Call it once per crate. It has no effect on targets other
/// than wasm32.
///
/// For `wasm32-unknown-unknown` it also sets a global allocator that makes small blocks cheap. With
/// `export!(MyTransform, own_allocator)` the crate keeps that of Rust's library, or sets its own.
#[macro_export]
macro_rules! export {
    ($transform:ty) => {
        $crate::export!($transform, own_allocator);

        #[cfg(all(target_arch = "wasm32", target_os = "unknown", not(target_feature = "atomics")))]
        const _: () = {
            #[global_allocator]
            static ALLOCATOR: $crate::__private::Allocator = $crate::__private::Allocator::new();
        };
    };
    ($transform:ty, own_allocator) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            struct Exported;
            $crate::__export_guest!(Exported, $transform);
        };
    };
}

#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod __private {
    //! Used by the expansion of [`crate::export!`]; not a public API.
    #[cfg(all(target_os = "unknown", not(target_feature = "atomics")))]
    pub use crate::allocator::Allocator;
    pub use crate::bindings;
    pub use crate::bindings::exports::trunkline::transform::plugin::{Guest, InitError, InitReply, Offer};
    pub use crate::guest::{flush, init, process, realloc};
}
