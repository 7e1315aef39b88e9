//! Runs WASM transform plugins.
//!
//! [`Host`] owns the engine and the compile cache; [`Host::load`] turns a file into a [`Plugin`]; [`Plugin::start`] hands it its
//! configuration and gives an [`Instance`], which belongs to one task. [`Instance::process`] runs the records of a batch through it and
//! applies the verdicts in place.
//!
//! # What holds whatever the plugin does
//! - Each record has exactly one outcome, and the order of those that go on is that in which they came (I3, I5).
//! - A plugin that traps, takes too long, too much memory or returns too much is built anew, and the records it died of are found by
//!   halving and set aside; the others go on. A plugin that dies too often in a minute fails its stage.
//! - Nothing a plugin returns is believed: see [`verdict`]. It sees no file, no network, no environment and no other plugin.
//! - A batch that fails as a whole is left as it was, so that it can be tried again.
//!
//! # What does not
//! What a plugin keeps in its memory is lost with its instance, and some records are run again through the fresh one while a bad
//! record is looked for. Plugins must not rely on memory for results; WIT 1.0 offers no durable state.
//!
//! Calls block: run an instance on a thread where that is allowed (`spawn_blocking` or one of its own).

mod bundled;
mod cache;
mod calls;
mod component;
mod engine;
mod guest;
mod instance;
mod limits;
mod plugin;
mod verdict;
mod wasi;

pub use calls::Metrics;
pub use component::LoadError;
pub use engine::{Host, HostError, HostOptions};
pub use instance::Instance;
pub use limits::Limits;
pub use plugin::{Plugin, StartError};
pub use verdict::Counts;

/// Version of the WIT package that this host speaks.
pub const WIT_VERSION: &str = "1.0.0";
