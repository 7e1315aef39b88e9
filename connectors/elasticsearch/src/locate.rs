//! The documents of single records: where they are, and whether they are still those of the
//! records.

use std::collections::HashMap;

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;
use trunkline_connector::{Batch, Error, Result};

use crate::client::{Client, path_segment};
use crate::config::Config;
use crate::document::{Appended, Observers, append};

/// The operation of a record, as its action line has it.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Action {
    #[serde(rename = "_index")]
    index: String,
    #[serde(rename = "_id")]
    id: Option<String>,
    version: Option<u64>,
}

/// A document that was found.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Hit {
    #[serde(rename = "_index")]
    index: String,
    #[serde(rename = "_version")]
    version: Option<u64>,
}

/// Looks up the documents of records. Returns one text for each record.
pub(crate) async fn find(config: &Config, records: &Batch) -> Result<Vec<String>> {
    let client = Client::new(&config.client).await?;
    let mut found = Vec::new();
    let mut ordinals: HashMap<i64, usize> = HashMap::new();
    for record in records.iter() {
        let ordinal = ordinals.entry(record.entry().offset).or_default();
        let mut body = Vec::new();
        let appended = append(&config.documents, record, *ordinal, &mut Observers::default(), &mut body);
        *ordinal += 1;
        found.push(match appended {
            Err(reason) => {
                format!("none: the sink would reject the record today: {} ({})", reason.message, reason.code)
            }
            Ok(Appended::Nothing | Appended::Held(_)) => "none: an earlier record deleted the document".to_owned(),
            Ok(Appended::Operation(_)) => {
                let (name, action) = action_of(&body)?;
                match &action.id {
                    Some(id) => describe(&name, &action, id, search(&client, &action.index, id).await?),
                    None => format!("in {}: the server has given it an id, so that it cannot be found", action.index),
                }
            }
        });
    }
    Ok(found)
}

/// The name and the members of the action line.
fn action_of(body: &[u8]) -> Result<(String, Action)> {
    let line = body.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let parsed: std::result::Result<HashMap<String, Action>, _> = serde_json::from_slice(line);
    let action = parsed.ok().and_then(|action| action.into_iter().next());
    action.ok_or_else(|| Error::internal("elasticsearch.action", "the action of a record cannot be read"))
}

/// The document with an id: through an alias or a data stream, a request for one document would
/// have to name its index.
async fn search(client: &Client, index: &str, id: &str) -> Result<Option<Hit>> {
    #[derive(Deserialize)]
    struct Answer {
        hits: Hits,
    }
    #[derive(Deserialize)]
    struct Hits {
        hits: Vec<Hit>,
    }
    let query = json!({ "query": { "ids": { "values": [id] } }, "version": true, "_source": false, "size": 1 });
    let path = format!("/{}/_search?ignore_unavailable=true", path_segment(index));
    let response = client.call_json(Method::POST, &path, &query).await?;
    if !response.status.is_success() {
        let message = format!("the document `{id}` cannot be looked up in `{index}`: {}", response.describe());
        return Err(Error::external("elasticsearch.refused", message));
    }
    let answer: Answer = serde_json::from_slice(&response.body).map_err(|error| {
        let message = format!("{}: the answer to a search in `{index}` cannot be read: {error}", response.node);
        Error::external("elasticsearch.bad_answer", message)
    })?;
    Ok(answer.hits.hits.into_iter().next())
}

/// The place of a document, and whether a later record has changed it.
fn describe(action: &str, wanted: &Action, id: &str, found: Option<Hit>) -> String {
    let Some(hit) = found else {
        let reason = match action {
            "delete" => "the record deletes it",
            _ => "a later record has deleted it, or it becomes visible with the next refresh of the index",
        };
        return format!("{}/{id}: not there ({reason})", wanted.index);
    };
    let place = format!("{}/{id}", hit.index);
    match (wanted.version, hit.version) {
        (Some(wanted), Some(version)) if version > wanted => {
            format!("{place}: version {version}, written by a later record (this one has {wanted})")
        }
        (Some(wanted), Some(version)) if version < wanted => {
            format!("{place}: version {version}, from before this record (which has {wanted})")
        }
        (_, Some(version)) => format!("{place}: version {version}"),
        (_, None) => place,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_described_with_its_version() {
        let wanted = |version| Action { index: "logs".to_owned(), id: Some("7".to_owned()), version };
        let hit = |version| Some(Hit { index: "logs-1".to_owned(), version: Some(version) });
        let described = |action, version, found| describe(action, &wanted(version), "7", found);
        assert_eq!(described("index", Some(5), hit(5)), "logs-1/7: version 5");
        assert!(described("index", Some(5), hit(6)).ends_with("version 6, written by a later record (this one has 5)"));
        assert!(described("index", Some(5), hit(4)).contains("from before this record"));
        assert_eq!(described("create", None, hit(1)), "logs-1/7: version 1");
        assert_eq!(described("delete", Some(5), None), "logs/7: not there (the record deletes it)");
        assert!(described("index", Some(5), None).contains("next refresh"));
    }

    #[test]
    fn the_action_of_a_record_is_read() {
        let body = b"{\"index\":{\"_index\":\"a\",\"_id\":\"x\",\"version\":9,\"version_type\":\"external\"}}\n{}\n";
        let action = Action { index: "a".to_owned(), id: Some("x".to_owned()), version: Some(9) };
        assert_eq!(action_of(body).unwrap(), ("index".to_owned(), action));
        assert!(action_of(b"{}\n").is_err());
    }
}
