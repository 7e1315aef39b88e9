//! Sink connector `elasticsearch`: documents in Elasticsearch 7 to 9 and OpenSearch 1 to 3, each
//! indexed once.
//!
//! A delivery becomes one or more `_bulk` requests. Every document has an id that is the same in
//! each delivery of its record, and documents that change have external versions, so repeated and
//! reordered deliveries change nothing ([`trunkline_connector::IdempotentSink`]).
//!
//! In the order in which a record passes them:
//!
//! | file | subject |
//! |---|---|
//! | `config` | options |
//! | `preflight` | what `trunkline validate --check` asks the cluster |
//! | `server` | product and version of the server, data streams: checked when the sink is opened |
//! | `index_template` | the index template, and the first index of an alias |
//! | `change_event` | Debezium's envelope |
//! | `field_types` | the fields of schemas, added to the mapping of an index |
//! | `failover` | a failover of MySQL, after which binlog positions begin again |
//! | `document` | a record to an operation: index, id, version, document |
//! | `bulk_body` | the records of a delivery to the bodies of requests |
//! | `client` | nodes, authentication, TLS, requests |
//! | `aws` | signatures of requests to Amazon's services |
//! | `bulk_answer` | the server's answer to the outcome of each document |
//! | `request_limit` | the number of requests in flight, adapted to the server |
//! | `sink` | the running sink: sends, splits, decides |
//! | `audit` | counts documents by the offsets in their ids |
//! | `locate` | the documents of single records, for `trunkline trace` |
//! | `read`, `switch` | `trunkline replay diff` and `switch`: documents, the alias of readers |

mod audit;
mod aws;
mod bulk_answer;
mod bulk_body;
mod change_event;
mod client;
mod config;
mod document;
mod failover;
mod field_types;
mod index_template;
mod locate;
mod preflight;
mod read;
mod request_limit;
mod server;
mod sink;
mod switch;

use std::sync::Arc;

use trunkline_connector::config::{OptionSpec, Section};
use trunkline_connector::{
    Batch, CommitPolicy, Contents, EachContent, Error, OffsetRanges, PreflightIssue, Result, RowCounts, Sink,
    SinkConnector, SinkContext, SinkSpec, Supersede, SwitchPlan,
};

use client::Client;
use config::{Config, IdRule, Mode, Target, VersionRule};
use field_types::FieldTypes;

/// The connector `elasticsearch`.
pub struct ElasticsearchConnector;

impl SinkConnector for ElasticsearchConnector {
    fn name(&self) -> &'static str {
        "elasticsearch"
    }

    fn summary(&self) -> &'static str {
        "Documents in Elasticsearch and OpenSearch indices and data streams"
    }

    fn options(&self) -> &'static [OptionSpec] {
        config::OPTIONS
    }

    fn configure(&self, section: &Section<'_>, template_variables: &[&str]) -> Option<Box<dyn SinkSpec>> {
        Config::read(section, template_variables)
            .map(|config| Box::new(ElasticsearchSpec { config }) as Box<dyn SinkSpec>)
    }
}

struct ElasticsearchSpec {
    config: Config,
}

impl SinkSpec for ElasticsearchSpec {
    fn open(&self, context: SinkContext) -> Result<Sink> {
        let (client, product) = context.runtime.block_on(async {
            let client = Client::new(&self.config.client).await?;
            let product = server::check(&client, &self.config, &context.name).await?;
            Ok::<_, Error>((client, product))
        })?;
        let field_types = FieldTypes::new(&self.config, product, &context.name, context.schemas);
        let supersedes = context.replay.is_some_and(|replay| replay.supersedes);
        let sink =
            sink::SearchSink::new(client, &self.config, supersedes, field_types, context.runtime, context.budget);
        Ok(Sink::Idempotent(Box::new(sink)))
    }

    fn commit_policy(&self) -> CommitPolicy {
        // Larger requests are no faster on OpenSearch 2.19, and each one in flight is twice in
        // memory: as records and as a body.
        CommitPolicy { bytes: 3 << 20, ..CommitPolicy::default() }
    }

    fn preflight(&self, name: &str, runtime: &tokio::runtime::Handle) -> Vec<PreflightIssue> {
        runtime.block_on(preflight::check(&self.config, name))
    }

    fn at_least_once(&self) -> Option<(&'static str, &'static str)> {
        let documents = &self.config.documents;
        match documents.id {
            IdRule::None => Some(("id", "the server gives ids, so a repeated delivery adds its documents again")),
            _ => None,
        }
    }

    fn destination(&self) -> Option<String> {
        let mut nodes = self.config.client.nodes.clone();
        nodes.sort_unstable();
        Some(format!("{}/{}", nodes.join(","), self.config.documents.target.template().source()))
    }

    fn repeats_change_nothing(&self) -> bool {
        // Ids and versions of a document are the same in each delivery.
        !matches!(self.config.documents.id, IdRule::None) && !self.config.documents.needs_order()
    }

    fn count_rows(
        &self,
        ranges: &OffsetRanges,
        gaps: usize,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Option<RowCounts>> {
        runtime.block_on(audit::count(&self.config, ranges, gaps)).map(Some)
    }

    fn find_documents(&self, records: &Batch, runtime: &tokio::runtime::Handle) -> Result<Option<Vec<String>>> {
        runtime.block_on(locate::find(&self.config, records)).map(Some)
    }

    fn supersede(&self) -> Supersede {
        let documents = &self.config.documents;
        if documents.mode != Mode::Index {
            return Supersede::Refused(
                "only `mode = \"index\"` replaces documents: data streams and `create` keep the first one, and `update` merges \
                 each record into what is there",
            );
        }
        match (&documents.id, &documents.version) {
            (IdRule::None, _) => Supersede::Refused(
                "with `id = \"none\"` the server gives each delivery another id, so existing documents cannot be found",
            ),
            (IdRule::Offset, _) => Supersede::Documents { up_to_live: false },
            (_, VersionRule::Offset) => Supersede::Documents { up_to_live: true },
            _ => Supersede::Refused(
                "it needs `version = \"offset\"`: with another version, a record of the range could replace a later one",
            ),
        }
    }

    fn contents(&self) -> Option<Contents> {
        Some(Contents { key: vec!["_id".to_owned()], ignored: Vec::new() })
    }

    fn read_contents(
        &self,
        _: &OffsetRanges,
        other: &dyn SinkSpec,
        runtime: &tokio::runtime::Handle,
        each: EachContent<'_>,
    ) -> Result<u64> {
        let other = other.destination().unwrap_or_default();
        let other = other.rsplit_once('/').map_or("", |(_, template)| template);
        let indices = read::indices(&self.config.documents.target, other);
        runtime.block_on(async {
            let client = Client::new(&self.config.client).await?;
            read::documents(&client, &indices, each).await
        })?;
        Ok(0)
    }

    fn places(&self, topics: &[Arc<str>]) -> Option<Vec<String>> {
        let Target::Index(template) = &self.config.documents.target else { return None };
        topics.iter().map(|topic| template.for_topic(topic)).collect()
    }

    fn plan_switch(
        &self,
        topics: &[Arc<str>],
        shadow: &dyn SinkSpec,
        runtime: &tokio::runtime::Handle,
    ) -> Result<SwitchPlan> {
        let Some((live, shadow)) = self.one_index(topics, shadow) else {
            return Ok(SwitchPlan::ByHand(
                "the sink writes to several indices, or to a data stream, so that no single alias names what it wrote: set the options of \
                 the sink to those of the shadow, move the readers to it, and let `trunkline offsets set` move the sink to the end of the \
                 run"
                .to_owned(),
            ));
        };
        runtime.block_on(async { switch::plan(&Client::new(&self.config.client).await?, &live, &shadow).await })
    }

    fn switch(
        &self,
        topics: &[Arc<str>],
        shadow: &dyn SinkSpec,
        _: &str,
        runtime: &tokio::runtime::Handle,
    ) -> Result<()> {
        let Some((live, shadow)) = self.one_index(topics, shadow) else { return Ok(()) };
        runtime.block_on(async { switch::switch(&Client::new(&self.config.client).await?, &live, &shadow).await })
    }
}

impl ElasticsearchSpec {
    /// The index of this sink and that of the shadow, if each writes to one.
    fn one_index(&self, topics: &[Arc<str>], shadow: &dyn SinkSpec) -> Option<(String, String)> {
        let one = |mut places: Vec<String>| {
            places.dedup();
            places.pop().filter(|_| places.is_empty())
        };
        Some((one(self.places(topics)?)?, one(shadow.places(topics)?)?))
    }
}
