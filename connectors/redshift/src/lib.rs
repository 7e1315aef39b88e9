//! Sink connector `redshift`: tables in Amazon Redshift, each record loaded exactly once.
//!
//! The library `trunkline-warehouse` stages, loads and evolves; this crate adds the options
//! (`config`), types and SQL texts (`dialect`), sessions over sqlx (`session`), and logins with
//! temporary credentials (`iam`).

mod config;
mod dialect;
mod iam;
mod session;

use std::sync::{Arc, LazyLock};

use tokio::runtime::Handle;
use trunkline_connector::config::{OptionSpec, Section};
use trunkline_connector::{
    CommitPolicy, Contents, EachContent, OffsetRanges, PreflightIssue, RecordSample, Result, RowCounts, Sink,
    SinkConnector, SinkContext, SinkSpec, Supersede, SwitchPlan, Template,
};
use trunkline_warehouse::{
    RefusedRows, S3Stage, Stage, check, check_records, count_rows, finish_switch, open_sink, plan_switch,
    read_contents, rows_in_the_way, switch,
};

use config::Config;
use dialect::RedshiftDialect;

/// The connector `redshift`.
pub struct RedshiftConnector;

impl SinkConnector for RedshiftConnector {
    fn name(&self) -> &'static str {
        "redshift"
    }

    fn summary(&self) -> &'static str {
        "Tables in Amazon Redshift"
    }

    fn options(&self) -> &'static [OptionSpec] {
        static ALL: LazyLock<Vec<OptionSpec>> =
            LazyLock::new(|| [config::OPTIONS, trunkline_warehouse::OPTIONS].concat());
        &ALL
    }

    fn configure(&self, section: &Section<'_>, template_variables: &[&str]) -> Option<Box<dyn SinkSpec>> {
        section.declare(self.options());
        let config = Config::read(section, template_variables)?;
        Some(Box::new(RedshiftSpec { config, refused: Arc::default() }))
    }
}

struct RedshiftSpec {
    config: Config,
    refused: Arc<RefusedRows>,
}

impl SinkSpec for RedshiftSpec {
    fn open(&self, context: SinkContext) -> Result<Sink> {
        let dialect = RedshiftDialect::new(&self.config, &context.name, context.runtime.clone());
        let stage = S3Stage::open(self.config.stage.clone(), context.runtime.clone())?;
        open_sink(Arc::new(dialect), Box::new(stage), self.config.options.clone(), context, Arc::clone(&self.refused))
    }

    fn preflight(&self, name: &str, runtime: &Handle) -> Vec<PreflightIssue> {
        let dialect = RedshiftDialect::new(&self.config, name, runtime.clone());
        let stage = S3Stage::open(self.config.stage.clone(), runtime.clone());
        check(&dialect, stage.map(|stage| Box::new(stage) as Box<dyn Stage>), name)
    }

    fn preflight_records(&self, context: SinkContext, records: &mut RecordSample<'_>) -> Vec<PreflightIssue> {
        let dialect = RedshiftDialect::new(&self.config, &context.name, context.runtime.clone());
        let stage = S3Stage::open(self.config.stage.clone(), context.runtime.clone());
        let stage = stage.map(|stage| Box::new(stage) as Box<dyn Stage>);
        check_records(Arc::new(dialect), stage, &self.config.options, context, records)
    }

    fn commit_policy(&self) -> CommitPolicy {
        self.config.options.commit_policy()
    }

    fn destination(&self) -> Option<String> {
        Some(self.config.options.destination(&self.config.place(), str::to_lowercase))
    }

    fn supersede(&self) -> Supersede {
        self.config.options.supersede()
    }

    fn count_rows(&self, ranges: &OffsetRanges, gaps: usize, runtime: &Handle) -> Result<Option<RowCounts>> {
        count_rows(&RedshiftDialect::new(&self.config, "replay", runtime.clone()), &self.config.options, ranges, gaps)
    }

    fn rows_in_the_way(&self, ranges: &OffsetRanges, runtime: &Handle) -> Result<Option<String>> {
        rows_in_the_way(&RedshiftDialect::new(&self.config, "replay", runtime.clone()), &self.config.options, ranges)
    }

    fn contents(&self) -> Option<Contents> {
        self.config.options.contents(str::to_lowercase)
    }

    fn read_contents(
        &self,
        ranges: &OffsetRanges,
        _: &dyn SinkSpec,
        runtime: &Handle,
        each: EachContent<'_>,
    ) -> Result<u64> {
        read_contents(
            &RedshiftDialect::new(&self.config, "replay", runtime.clone()),
            &self.config.options,
            ranges,
            each,
        )
    }

    fn places(&self, topics: &[Arc<str>]) -> Option<Vec<String>> {
        let options = &self.config.options;
        let schema = self.config.place();
        options.places(&schema, str::to_lowercase, topics)
    }

    fn plan_switch(&self, topics: &[Arc<str>], shadow: &dyn SinkSpec, runtime: &Handle) -> Result<SwitchPlan> {
        plan_switch(
            &RedshiftDialect::new(&self.config, "replay", runtime.clone()),
            &self.config.options,
            topics,
            shadow,
        )
    }

    fn switch(&self, topics: &[Arc<str>], shadow: &dyn SinkSpec, run: &str, runtime: &Handle) -> Result<()> {
        switch(
            &RedshiftDialect::new(&self.config, "replay", runtime.clone()),
            &self.config.options,
            topics,
            shadow,
            run,
        )
    }

    fn finish_switch(&self, topics: &[Arc<str>], shadow: &dyn SinkSpec, run: &str, runtime: &Handle) -> Result<()> {
        finish_switch(
            &RedshiftDialect::new(&self.config, "replay", runtime.clone()),
            &self.config.options,
            topics,
            shadow,
            run,
        )
    }

    fn templates(&self) -> Vec<(&'static str, &Template)> {
        self.config.options.templates()
    }
}
