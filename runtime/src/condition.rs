//! [`Condition`]: an expression in CEL that selects records, for `--where`.

use trunkline_connector::{Batch, Error, RecordRef, Rejections, Result};
use trunkline_transform_host::{Host, Instance, Limits};

/// The bundled plugin that evaluates it.
const FILTER: &str = "filter.wasm";

/// A condition on records: an expression in CEL.
pub struct Condition {
    filter: Instance,
    rejections: Rejections,
    /// Records for which it has no value, because a member is missing, for example.
    undecided: u64,
    /// Why it has no value for the first of them.
    first: Option<String>,
}

impl Condition {
    /// Compiles the expression.
    pub fn compile(host: &Host, expression: &str) -> Result<Self> {
        let plugin = host
            .bundled(FILTER)
            .ok_or_else(|| Error::internal("plugin.load", format!("the plugin {FILTER} is not bundled")))?
            .map_err(|error| Error::config("plugin.load", format!("--where: {error}")))?;
        let config = serde_json::json!({ "condition": expression, "tombstones": "test" });
        let filter = plugin
            .start(&config, &Limits::default())
            .map_err(|error| Error::config("replay.bad_where", format!("--where: {}", error.message)))?;
        Ok(Self { filter, rejections: Rejections::default(), undecided: 0, first: None })
    }

    /// Leaves the records in the batch for which it is true.
    pub fn retain(&mut self, batch: &mut Batch) -> Result<()> {
        let context = |error: Error| error.context("--where");
        self.filter.ready().map_err(context)?;
        self.rejections.clear();
        self.filter.process(batch, &mut self.rejections).map_err(context)?;
        self.undecided += self.rejections.len() as u64;
        if let (None, Some((_, reason))) = (&self.first, self.rejections.iter().next()) {
            self.first = Some(reason.message.clone());
        }
        Ok(())
    }

    /// How many records it had no value for, and why.
    pub fn note(&self) -> Option<String> {
        let (undecided, first) = (self.undecided, self.first.as_ref()?);
        Some(format!("{undecided} for which --where is neither true nor false; the first one: {first}"))
    }

    /// Whether it is true for a record.
    pub fn holds(&mut self, record: RecordRef<'_>) -> Result<bool> {
        let mut single = Batch::default();
        single.push_copy(record);
        self.retain(&mut single)?;
        Ok(!single.is_empty())
    }
}
