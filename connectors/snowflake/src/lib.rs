//! Sink connector `snowflake`: tables in Snowflake, each record loaded once.
//!
//! `trunkline-warehouse` stages the records as Parquet files and loads them. This crate adds what
//! is Snowflake's own:
//!
//! | file | subject |
//! |---|---|
//! | `config` | options |
//! | `client/` | logins, statements and errors of the service |
//! | `dialect` | SQL: tables, COPY, the offsets row |
//! | `internal_stage` | stages of the service |
//! | `types` | Arrow's types and Snowflake's |

mod client;
mod config;
mod dialect;
mod internal_stage;
mod types;

use std::sync::{Arc, OnceLock};

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

use config::{Config, StagePlace};
use dialect::SnowflakeDialect;
use internal_stage::InternalStage;

/// The connector `snowflake`.
pub struct SnowflakeConnector;

impl SinkConnector for SnowflakeConnector {
    fn name(&self) -> &'static str {
        "snowflake"
    }

    fn summary(&self) -> &'static str {
        "Tables in Snowflake: appends, upserts and history, each record loaded once"
    }

    fn options(&self) -> &'static [OptionSpec] {
        config::OPTIONS
    }

    fn configure(&self, section: &Section<'_>, template_variables: &[&str]) -> Option<Box<dyn SinkSpec>> {
        let config = Config::read(section, template_variables)?;
        Some(Box::new(SnowflakeSpec { config, refused: Arc::default() }))
    }
}

struct SnowflakeSpec {
    config: Config,
    refused: Arc<RefusedRows>,
}

impl SnowflakeSpec {
    fn dialect(&self, name: &str, runtime: &Handle) -> SnowflakeDialect {
        SnowflakeDialect {
            client: Arc::clone(&self.config.client),
            access: self.config.access.clone(),
            internal_stage: match &self.config.stage {
                StagePlace::Internal(place) => place.trim_start_matches('@').split('/').next().map(str::to_owned),
                StagePlace::Bucket(_) => None,
            },
            case: self.config.case,
            has_geographies: self.config.has_geographies,
            tag: format!("trunkline {name}"),
            runtime: runtime.clone(),
            session_role: OnceLock::new(),
        }
    }
}

impl SnowflakeSpec {
    fn stage(&self, name: &str, runtime: &Handle) -> Result<Box<dyn Stage>> {
        Ok(match &self.config.stage {
            StagePlace::Bucket(options) => Box::new(S3Stage::open(options.as_ref().clone(), runtime.clone())?),
            StagePlace::Internal(place) => {
                let client = Arc::clone(&self.config.client);
                Box::new(InternalStage::new(client, place, format!("trunkline {name}"), runtime.clone()))
            }
        })
    }
}

impl SinkSpec for SnowflakeSpec {
    fn open(&self, context: SinkContext) -> Result<Sink> {
        let dialect = self.dialect(&context.name, &context.runtime);
        let stage = self.stage(&context.name, &context.runtime)?;
        open_sink(Arc::new(dialect), stage, self.config.loads.clone(), context, Arc::clone(&self.refused))
    }

    fn preflight(&self, name: &str, runtime: &Handle) -> Vec<PreflightIssue> {
        let dialect = self.dialect(name, runtime);
        check(&dialect, self.stage(name, runtime), name)
    }

    fn preflight_records(&self, context: SinkContext, records: &mut RecordSample<'_>) -> Vec<PreflightIssue> {
        let dialect = self.dialect(&context.name, &context.runtime);
        let stage = self.stage(&context.name, &context.runtime);
        check_records(Arc::new(dialect), stage, &self.config.loads, context, records)
    }

    fn commit_policy(&self) -> CommitPolicy {
        self.config.loads.commit_policy()
    }

    fn destination(&self) -> Option<String> {
        let case = self.config.case;
        Some(self.config.loads.destination(&self.config.client.place(), |name| case.folded(name)))
    }

    fn supersede(&self) -> Supersede {
        self.config.loads.supersede()
    }

    fn count_rows(&self, ranges: &OffsetRanges, gaps: usize, runtime: &Handle) -> Result<Option<RowCounts>> {
        count_rows(&self.dialect("replay", runtime), &self.config.loads, ranges, gaps)
    }

    fn rows_in_the_way(&self, ranges: &OffsetRanges, runtime: &Handle) -> Result<Option<String>> {
        rows_in_the_way(&self.dialect("replay", runtime), &self.config.loads, ranges)
    }

    fn contents(&self) -> Option<Contents> {
        self.config.loads.contents(|name| self.config.case.folded(name))
    }

    fn read_contents(
        &self,
        ranges: &OffsetRanges,
        _: &dyn SinkSpec,
        runtime: &Handle,
        each: EachContent<'_>,
    ) -> Result<u64> {
        read_contents(&self.dialect("replay", runtime), &self.config.loads, ranges, each)
    }

    fn places(&self, topics: &[Arc<str>]) -> Option<Vec<String>> {
        let case = self.config.case;
        self.config.loads.places(&self.config.client.place(), |name| case.folded(name), topics)
    }

    fn plan_switch(&self, topics: &[Arc<str>], shadow: &dyn SinkSpec, runtime: &Handle) -> Result<SwitchPlan> {
        plan_switch(&self.dialect("replay", runtime), &self.config.loads, topics, shadow)
    }

    fn switch(&self, topics: &[Arc<str>], shadow: &dyn SinkSpec, run: &str, runtime: &Handle) -> Result<()> {
        switch(&self.dialect("replay", runtime), &self.config.loads, topics, shadow, run)
    }

    fn finish_switch(&self, topics: &[Arc<str>], shadow: &dyn SinkSpec, run: &str, runtime: &Handle) -> Result<()> {
        finish_switch(&self.dialect("replay", runtime), &self.config.loads, topics, shadow, run)
    }

    fn templates(&self) -> Vec<(&'static str, &Template)> {
        self.config.loads.templates()
    }
}
