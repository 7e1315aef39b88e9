//! Counts the documents of offsets, for `trunkline audit`: ids of the form
//! `topic+partition+offset` name their records.
//!
//! Servers do not search for the beginning of an id, so all ids of the sink's indices are read,
//! page by page, without the documents. Memory: a bit for each offset.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use trunkline_connector::{Error, OffsetRanges, Result, RowCount, RowCounts, TopicPartition};

use crate::client::{Client, Response, path_segment};
use crate::config::{Config, IdRule};
use crate::server::error_of_status;

/// Documents of one page: servers allow no more.
const PAGE: usize = 10_000;

/// How long a server keeps the search between two pages.
const KEEP: &str = "2m";

/// A page of ids.
#[derive(Deserialize)]
struct Page<'a> {
    _scroll_id: Option<String>,
    _shards: Shards,
    #[serde(borrow, default)]
    hits: Hits<'a>,
}

#[derive(Deserialize)]
struct Shards {
    failed: u32,
}

#[derive(Default, Deserialize)]
struct Hits<'a> {
    #[serde(borrow, default)]
    hits: Vec<Hit<'a>>,
}

#[derive(Deserialize)]
struct Hit<'a> {
    #[serde(borrow)]
    _id: Cow<'a, str>,
}

/// Counts the documents of these offsets. At most `gaps` ranges without a document are listed for
/// each topic partition.
pub(crate) async fn count(config: &Config, ranges: &OffsetRanges, gaps: usize) -> Result<RowCounts> {
    let target = config.documents.target.glob();
    let instead = match config.documents.id {
        IdRule::Offset | IdRule::Automatic => None,
        IdRule::Key | IdRule::Template(_) => Some("ids are from keys or fields, so a document has many records"),
        IdRule::None => Some("the server gives ids, so a document does not name its record"),
    };
    if let Some(reason) = instead {
        return Err(unsupported(reason));
    }
    let client = Client::new(&config.client).await?;
    let target_path = path_segment(&target);
    // Documents are counted when they can be searched.
    let refreshed = client.call(Method::POST, &format!("/{target_path}/_refresh?ignore_unavailable=true")).await?;
    check(&refreshed, &target)?;
    let mut found = Found::new(ranges);
    let filter = "filter_path=_scroll_id,_shards.failed,hits.hits._id";
    let query = json!({"size": PAGE, "_source": false, "sort": ["_doc"], "query": {"match_all": {}}});
    let path = format!("/{target_path}/_search?scroll={KEEP}&ignore_unavailable=true&{filter}");
    let mut response = client.call_json(Method::POST, &path, &query).await?;
    loop {
        check(&response, &target)?;
        let page: Page<'_> = serde_json::from_slice(&response.body).map_err(|error| {
            Error::external(
                "elasticsearch.bad_answer",
                format!("{}: a page of ids cannot be read: {error}", response.node),
            )
        })?;
        if page._shards.failed > 0 {
            let message = format!(
                "{} shards of {target} did not answer; audit it when the cluster is healthy",
                page._shards.failed
            );
            return Err(Error::external("elasticsearch.unavailable", message));
        }
        page.hits.hits.iter().for_each(|hit| found.add(&hit._id));
        // Without indices there is nothing to continue.
        let Some(id) = page._scroll_id else { break };
        if page.hits.hits.is_empty() {
            // If it fails, the server ends the search by itself.
            let _ = client.call_json(Method::DELETE, "/_search/scroll", &json!({"scroll_id": id})).await;
            break;
        }
        let next = json!({"scroll": KEEP, "scroll_id": id});
        response = client.call_json(Method::POST, &format!("/_search/scroll?{filter}"), &next).await?;
    }
    if matches!(config.documents.id, IdRule::Automatic) && found.unnamed > 0 && !found.has_named() {
        return Err(unsupported("change events have ids from keys, so a document has many records"));
    }
    Ok(found.into_counts(&target, gaps))
}

fn unsupported(reason: &str) -> Error {
    let message = format!(
        "an audit counts documents by their offsets, and here {reason}. Compare the number of documents with that of the rows at \
         the source, or replay into an index with `id = \"offset\"` (trunkline replay --into) and audit that"
    );
    Error::config("audit.unsupported", message)
}

/// The error of an answer to a search.
fn check(response: &Response, target: &str) -> Result<()> {
    if response.status.is_success() {
        return Ok(());
    }
    if let Some(error) = error_of_status(response) {
        return Err(error);
    }
    let advice = match response.status {
        StatusCode::FORBIDDEN => {
            format!(
                "give the user or API key the index privileges `read` and `maintenance` (OpenSearch: `read` and `indices_monitor`, \
                 `indices:admin/refresh*`) on {target}"
            )
        }
        StatusCode::NOT_FOUND => {
            format!("{target} has no index, or the search took longer than {KEEP} between two pages")
        }
        _ => "the server must support searches with `scroll`, which OpenSearch Serverless does not".to_owned(),
    };
    Err(Error::config("audit.unsupported", format!("{}; {advice}", response.describe())))
}

/// The documents that were found.
struct Found<'r> {
    ranges: &'r OffsetRanges,
    by_topic: HashMap<&'r str, HashMap<i32, PartitionCount>>,
    unnamed: u64,
}

#[derive(Default)]
struct PartitionCount {
    range: (i64, i64),
    documents: u64,
    offsets: OffsetSet,
}

impl<'r> Found<'r> {
    fn new(ranges: &'r OffsetRanges) -> Self {
        let mut by_topic: HashMap<&str, HashMap<i32, PartitionCount>> = HashMap::new();
        for (partition, range) in ranges {
            let count = PartitionCount { range: *range, ..PartitionCount::default() };
            by_topic.entry(&partition.topic).or_default().insert(partition.partition, count);
        }
        Self { ranges, by_topic, unnamed: 0 }
    }

    fn add(&mut self, id: &str) {
        let Some((topic, partition, offset)) = place(id) else {
            self.unnamed += 1;
            return;
        };
        // Other ids name records of topics, or offsets, that were not asked for.
        if let Some(count) = self.by_topic.get_mut(topic).and_then(|counts| counts.get_mut(&partition))
            && (count.range.0..count.range.1).contains(&offset)
        {
            count.documents += 1;
            count.offsets.insert(offset);
        }
    }

    fn has_named(&self) -> bool {
        self.by_topic.values().flat_map(HashMap::values).any(|count| count.documents > 0)
    }

    fn into_counts(self, table: &str, gaps: usize) -> RowCounts {
        let count_of = |partition: &TopicPartition| {
            let count = self.by_topic.get(partition.topic.as_ref())?.get(&partition.partition)?;
            Some(RowCount {
                table: table.to_owned(),
                partition: partition.clone(),
                rows: count.documents,
                offsets: count.offsets.len,
                extremes: count.offsets.extremes()?,
                gaps: count.offsets.gaps(gaps),
            })
        };
        RowCounts { partitions: self.ranges.keys().filter_map(count_of).collect(), unnamed: self.unnamed }
    }
}

/// Topic, partition and offset of an id; a transform's later records of one offset have a fourth
/// part.
fn place(id: &str) -> Option<(&str, i32, i64)> {
    let mut parts = id.split('+');
    let place = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let ordinal: Option<u32> = parts.next().map(str::parse).transpose().ok()?;
    (ordinal != Some(0) && parts.next().is_none()).then_some(place)
}

/// Offsets of one block.
const BLOCK: i64 = 1 << 16;

/// A set of offsets, with a bit for each.
#[derive(Default)]
struct OffsetSet {
    blocks: BTreeMap<i64, Box<[u64]>>,
    len: u64,
}

impl OffsetSet {
    fn insert(&mut self, offset: i64) {
        let block = self.blocks.entry(offset.div_euclid(BLOCK));
        let block = block.or_insert_with(|| vec![0; BLOCK as usize / 64].into_boxed_slice());
        let at = offset.rem_euclid(BLOCK) as usize;
        if let Some(word) = block.get_mut(at / 64) {
            self.len += u64::from(*word >> (at % 64) & 1 == 0);
            *word |= 1 << (at % 64);
        }
    }

    /// In ascending order.
    fn iter(&self) -> impl DoubleEndedIterator<Item = i64> {
        self.blocks.iter().flat_map(|(block, words)| {
            let is_set = move |at: &i64| words.get(*at as usize / 64).is_some_and(|word| word >> (at % 64) & 1 == 1);
            (0..BLOCK).filter(is_set).map(move |at| block * BLOCK + at)
        })
    }

    fn extremes(&self) -> Option<(i64, i64)> {
        Some((self.iter().next()?, self.iter().next_back()?))
    }

    /// The longest ranges between the extremes without an offset of the set, each from the first to
    /// the last.
    fn gaps(&self, most: usize) -> Vec<(i64, i64)> {
        let neighbours = self.iter().zip(self.iter().skip(1));
        let mut gaps: Vec<(i64, i64)> = Vec::new();
        for (before, after) in neighbours.filter(|(before, after)| after - before > 1) {
            gaps.push((before + 1, after - 1));
            if gaps.len() >= 2 * most.max(1) {
                longest(&mut gaps, most);
            }
        }
        longest(&mut gaps, most);
        gaps
    }
}

/// Keeps the longest ranges.
fn longest(gaps: &mut Vec<(i64, i64)>, most: usize) {
    gaps.sort_by_key(|(first, last)| (first - last, *first));
    gaps.truncate(most);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_name_their_records() {
        assert_eq!(place("shop.orders+3+41207"), Some(("shop.orders", 3, 41207)));
        assert_eq!(place("t+0+7+2"), Some(("t", 0, 7)));
        for other in ["", "7", "t+0", "t+0+x", "t+0+7+", "t+0+7+0", "t+0+7+1+1", "{\"id\":1}"] {
            assert_eq!(place(other), None, "{other}");
        }
    }

    #[test]
    fn documents_are_counted_by_offset() {
        let (one, two) = (TopicPartition::new("t", 0), TopicPartition::new("t", 1));
        let ranges = OffsetRanges::from([(one.clone(), (0, 300_000)), (two, (0, 10))]);
        let mut found = Found::new(&ranges);
        let ids = ["t+0+5", "t+0+4", "t+0+4+1", "t+0+200000", "t+0+7", "t+0+300000", "t+2+1", "u+0+1", "x"];
        ids.iter().for_each(|id| found.add(id));
        assert!(found.has_named());
        let counts = found.into_counts("logs-*", 2);
        let expected = RowCount {
            table: "logs-*".to_owned(),
            partition: one,
            rows: 5,
            offsets: 4,
            extremes: (4, 200_000),
            gaps: vec![(8, 199_999), (6, 6)],
        };
        assert_eq!(counts, RowCounts { partitions: vec![expected], unnamed: 1 });
    }

    #[test]
    fn the_longest_gaps_are_listed() {
        let mut offsets = OffsetSet::default();
        (0..1_000).map(|n| n * (n + 1) / 2).for_each(|offset| offsets.insert(offset));
        assert_eq!(offsets.gaps(2), [(498_502, 499_499), (497_504, 498_500)]);
        assert_eq!(offsets.gaps(0), []);
        assert_eq!((offsets.len, OffsetSet::default().extremes()), (1_000, None));
    }
}
