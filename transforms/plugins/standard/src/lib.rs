//! The everyday transforms: one plugin, so that they share their code. The worker passes the
//! configuration with the name of the transform: `{"filter": {"condition": ".."}}`.
//!
//! - Numbers stay as written. Arithmetic and comparison are exact, up to 38 digits.
//! - In a change event (`op` with `before` or `after`), the transforms that change rows change both
//!   images.
//! - A record whose value is not a JSON object is rejected by the transforms that need one. A
//!   tombstone passes unless the transform has an option for it.

mod absence;
mod aggregate;
mod dedupe;
mod distinct;
mod duration;
mod explode;
mod expression;
mod filter;
mod flatten;
mod key;
mod lookup;
mod number;
mod previous;
mod project;
mod rekey;
mod route;
mod rows;
mod state_options;
mod timestamp;
mod unwrap_envelope;

use serde::Deserialize;
use trunkline_plugin::timers::Timer;
use trunkline_plugin::{Batch, ConfigError, Done, Inputs, Record, Transform, Verdict, Verdicts};

use crate::state_options::StateOptions;

/// The configuration: the name of the transform, and its table `config`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Config {
    /// Passes records that meet a condition.
    Filter(filter::Config),
    /// Selects, renames, casts, drops and computes members.
    Project(project::Config),
    /// Passes records to ports.
    Route(route::Config),
    /// Moves the members of nested objects to the top.
    Flatten(flatten::Config),
    /// Turns change events into rows.
    UnwrapEnvelope(unwrap_envelope::Config),
    /// Makes a record of each item of an array.
    Explode(explode::Config),
    /// Converts points in time.
    Timestamp(timestamp::Config),
    /// Sets the key.
    Rekey(rekey::Config),
    /// Drops duplicates.
    Dedupe(dedupe::Config),
    /// Aggregates the records of windows of time.
    Aggregate(aggregate::Config),
    /// Adds the row of a table.
    Lookup(lookup::Config),
    /// Adds the previous record with the same key.
    Previous(previous::Config),
    /// Emits a record when a key has had none for a time.
    Absence(absence::Config),
}

/// One of the transforms.
#[derive(Debug)]
pub struct Standard {
    transform: Box<dyn Everyday>,
}

/// A transform without the parts that all of them share.
trait Everyday: std::fmt::Debug {
    fn ports(&self) -> Vec<String> {
        Vec::new()
    }

    fn keeps_schema(&self) -> bool {
        false
    }

    fn inputs(&self) -> Inputs {
        Inputs::VALUE
    }

    /// The options that the entries of its state depend on.
    fn state_options(&self) -> Option<&StateOptions> {
        None
    }

    /// The verdict on a record, for transforms that look at each record by itself.
    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Done {
        let _ = record;
        verdict.pass()
    }

    /// The verdicts on the records of a batch, for transforms with state.
    fn process(&mut self, batch: Batch<'_>, verdicts: &mut Verdicts) -> Result<(), String> {
        for record in batch.iter() {
            let _: Done = self.record(record, verdicts.next_verdict());
        }
        Ok(())
    }

    /// The verdict on a timer, for transforms that set timers.
    fn timer(&mut self, timer: Timer<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
        let _ = timer;
        Ok(verdict.drop())
    }
}

impl Transform for Standard {
    type Config = Config;

    fn new(config: Config) -> Result<Self, ConfigError> {
        let transform: Box<dyn Everyday> = match config {
            Config::Filter(config) => Box::new(filter::Filter::new(&config)?),
            Config::Project(config) => Box::new(project::Project::new(&config)?),
            Config::Route(config) => Box::new(route::Route::new(&config)?),
            Config::Flatten(config) => Box::new(flatten::Flatten::new(config)?),
            Config::UnwrapEnvelope(config) => Box::new(unwrap_envelope::UnwrapEnvelope::new(config)?),
            Config::Explode(config) => Box::new(explode::Explode::new(config)?),
            Config::Timestamp(config) => Box::new(timestamp::Timestamps::new(&config)?),
            Config::Rekey(config) => Box::new(rekey::Rekey::new(&config)?),
            Config::Dedupe(config) => Box::new(dedupe::Dedupe::new(&config)?),
            Config::Aggregate(config) => Box::new(aggregate::Aggregate::new(&config)?),
            Config::Lookup(config) => Box::new(lookup::Lookup::new(config)?),
            Config::Previous(config) => Box::new(previous::Previous::new(config)?),
            Config::Absence(config) => Box::new(absence::Absence::new(config)?),
        };
        Ok(Self { transform })
    }

    fn ports(&self) -> Vec<String> {
        self.transform.ports()
    }

    fn keeps_schema(&self) -> bool {
        self.transform.keeps_schema()
    }

    fn inputs(&self) -> Inputs {
        self.transform.inputs()
    }

    fn process(&mut self, batch: Batch<'_>, verdicts: &mut Verdicts) -> Result<(), String> {
        self.transform.state_options().map_or(Ok(()), StateOptions::check)?;
        self.transform.process(batch, verdicts)
    }

    fn timer(&mut self, timer: Timer<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
        self.transform.state_options().map_or(Ok(()), StateOptions::check)?;
        self.transform.timer(timer, verdict)
    }
}

trunkline_plugin::export!(Standard);
