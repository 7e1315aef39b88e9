//! Runs WASM transform plugins.
//!
//! [`Host`] owns the engine and the compile cache. [`Host::load`] compiles a file into a
//! [`Plugin`]. [`Plugin::start`] passes the plugin its configuration and returns an [`Instance`],
//! which belongs to one task. [`Instance::process`] passes the records of a batch to the plugin and
//! applies the plugin's verdicts to the batch.
//!
//! # Guarantees, independent of the plugin
//! - Each record has exactly one outcome, and the output keeps the order of the input (I3, I5).
//! - An instance that traps, exceeds its time or memory limit or returns too much is replaced. The
//!   host finds the records that cause the crash by bisection and rejects them; all other records
//!   are processed. If a plugin crashes too often within a minute, its stage pauses.
//! - The host validates everything that a plugin returns. A plugin has no access to files, network,
//!   environment or other plugins.
//! - If processing of a batch fails, the batch is unchanged and can be retried.
//!
//! # Limitations
//! The memory of a plugin is lost with its instance, and bisection runs some records again in a new
//! instance. Therefore a plugin's results must not depend on its memory. Durable state is kept in a
//! [`StateStore`], which belongs to the caller: see [`Instance::process_with_state`].
//!
//! Calls block the thread: run an instance on a dedicated thread or in `spawn_blocking`.

mod bundled;
mod cache;
mod component;
mod config_schema;
mod crash_reason;
mod engine;
mod guest;
mod host_functions;
mod instance;
mod limits;
mod plugin;
mod schema_fits;
mod state;
mod state_functions;
mod ticker;
mod timers;
mod verdict;
mod wasi;

pub use component::{Contents, LoadError};
pub use config_schema::embed_config_schema;
pub use engine::{Host, HostError, HostOptions};
pub use host_functions::Metrics;
pub use instance::Instance;
pub use limits::Limits;
pub use plugin::{Plugin, StartError};
pub use schema_fits::SchemaStore;
pub use state::{StateDisk, StateEntry, StateIdentity, StateStore, table_key};
pub use timers::next_timer;
pub use verdict::Counts;

/// Version of the WIT package that this host implements.
pub const WIT_VERSION: &str = "1.1.0";
