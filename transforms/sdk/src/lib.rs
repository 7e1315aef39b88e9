//! For writing Trunkline transform plugins in Rust.
//!
//! A plugin is a type that implements [`Transform`], exported with [`export!`] from a crate of type `cdylib`, and built for
//! `wasm32-unknown-unknown` (or `wasm32-wasip2`). It sees records in batches and gives a verdict on each.
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
//! const LARGE: Port = 1; // the first of `ports`
//!
//! impl Transform for LargeOrders {
//!     type Config = Config;
//!
//!     fn new(config: Config) -> Result<Self, ConfigError> {
//!         if config.over < 0.0 {
//!             return Err(ConfigError::at("over", "is negative; expected an amount"));
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
//!             Err(malformed) => return Ok(verdict.reject("orders.not_json", &malformed.to_string())),
//!         };
//!         Ok(match amount {
//!             Some(amount) if amount > self.over => verdict.pass_to(LARGE),
//!             Some(_) => verdict.pass(),
//!             None => verdict.reject("orders.no_amount", "the member `amount` is missing or no number"),
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
//! Values are bytes; JSON ones are best read with [`json`], which walks the text without building a tree.
//!
//! What a plugin keeps between records lives as long as its instance: until the worker stops, the task moves, or a record traps (then
//! some records are processed again by a fresh instance). Do not count on it for results.

mod batch;
mod config;
pub mod host;
pub mod json;
mod runner;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod verdict;

#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[rustfmt::skip]
#[allow(warnings, clippy::all, clippy::unwrap_used, reason = "generated")]
pub mod bindings;
#[cfg(target_arch = "wasm32")]
mod guest;

pub use batch::{Batch, Headers, NotABatch, Record};
pub use config::ConfigError;
pub use verdict::{DEFAULT, Done, Emit, Parts, Port, Verdict, Verdicts};

/// A transform. Implement [`Transform::record`], or [`Transform::process`] where the batch as a whole matters.
pub trait Transform: Sized + 'static {
    /// The transform's `config` table. Derive `serde::Deserialize` with `deny_unknown_fields`, so that a misspelt key is told; use
    /// `serde_json::Value` to read it by hand.
    type Config: serde::de::DeserializeOwned;

    /// Checks the configuration. Everything that can be wrong with it should be found here: `trunkline validate` calls this and shows
    /// the error at the key it names.
    fn new(config: Self::Config) -> Result<Self, ConfigError>;

    /// Names of the output ports besides the default one. They may depend on the configuration.
    fn ports(&self) -> Vec<String> {
        Vec::new()
    }

    /// True if every value this transform changes still fits the schema that the record came with. If false, changed records lose their
    /// schema and typed sinks infer one.
    fn keeps_schema(&self) -> bool {
        false
    }

    /// The verdict on one record. An error is a failure that may pass, of the batch as a whole: the host tries the batch again later. A
    /// record that is itself at fault gets [`Verdict::reject`].
    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
        let _ = record;
        Ok(verdict.pass())
    }

    /// The verdicts on a batch: one for each record, in order. Calls [`Transform::record`] for each unless implemented.
    fn process(&mut self, batch: Batch<'_>, verdicts: &mut Verdicts) -> Result<(), String> {
        for record in batch.iter() {
            let _: Done = self.record(record, verdicts.next_verdict())?;
        }
        Ok(())
    }

    /// Called before the instance is given up in peace: the last chance to emit.
    fn flush(&mut self, out: &mut Emit<'_>) -> Result<(), String> {
        let _ = out;
        Ok(())
    }
}

/// Makes a [`Transform`] what the crate exports to the host. Once in a crate; does nothing on other targets than wasm32.
#[macro_export]
macro_rules! export {
    ($transform:ty) => {
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
    //! What [`crate::export!`] expands to needs this; it is no API.
    pub use crate::bindings;
    pub use crate::bindings::exports::trunkline::transform::plugin::{Guest, InitError, InitReply, Offer};
    pub use crate::guest::{flush, init, process, realloc};
}
