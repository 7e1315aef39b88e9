//! Reads the documents of indices, for `trunkline replay diff`.

use reqwest::Method;
use serde_json::{Value, json};
use trunkline_connector::{EachContent, Error, Result};

use crate::client::{Client, Response, path_segment};
use crate::config::Target;
use crate::server::error_of_status;

/// Documents of one answer.
const PAGE: usize = 1_000;

/// How long the server keeps the state of a search between two answers.
const KEPT: &str = "2m";

/// The indices of a target. `other` is the template of the target that they are compared with: its
/// indices are left out where a pattern of this target has them, too.
pub(crate) fn indices(target: &Target, other: &str) -> String {
    let (own, other) = (target.glob(), glob(other));
    if own != other && own.contains('*') && matches(own.as_bytes(), other.as_bytes()) {
        format!("{own},-{other}")
    } else {
        own
    }
}

fn glob(template: &str) -> String {
    let mut parts = template.split('{');
    let start = parts.next().unwrap_or_default().to_owned();
    parts.fold(start, |glob, part| glob + "*" + part.split_once('}').map_or("", |(_, rest)| rest))
}

/// Whether a pattern has all names of another pattern.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => {
            matches(rest, name) || name.split_first().is_some_and(|(_, name)| matches(pattern, name))
        }
        ([one, pattern @ ..], [other, name @ ..]) => one == other && matches(pattern, name),
        _ => false,
    }
}

/// Passes all documents of the indices to `each`, with the name of their index.
pub(crate) async fn documents(client: &Client, indices: &str, each: EachContent<'_>) -> Result<()> {
    let names: Vec<String> = indices.split(',').map(expression).collect();
    let refreshed = client.call(Method::POST, &format!("/{}/_refresh", names.join(","))).await?;
    check(&refreshed, indices)?;
    let path = format!("/{}/_search?scroll={KEPT}", names.join(","));
    let mut answer = page(client, &path, &json!({ "size": PAGE, "sort": ["_doc"] }), indices).await?;
    loop {
        let scroll = answer["_scroll_id"].clone();
        let hits = answer["hits"]["hits"].as_array().map(Vec::as_slice).unwrap_or_default();
        for hit in hits {
            pass(hit, each)?;
        }
        if hits.is_empty() {
            // It ends by itself, too.
            drop(client.call_json(Method::DELETE, "/_search/scroll", &json!({ "scroll_id": scroll })).await);
            return Ok(());
        }
        answer = page(client, "/_search/scroll", &json!({ "scroll": KEPT, "scroll_id": scroll }), indices).await?;
    }
}

/// A name or pattern in a path.
fn expression(name: &str) -> String {
    name.split('*').map(path_segment).collect::<Vec<_>>().join("*")
}

async fn page(client: &Client, path: &str, body: &Value, indices: &str) -> Result<Value> {
    let response = client.call_json(Method::POST, path, body).await?;
    check(&response, indices)?;
    let answer: Value = serde_json::from_slice(&response.body).map_err(|error| {
        Error::external("elasticsearch.unavailable", format!("the documents of {indices} cannot be read: {error}"))
    })?;
    let failed = answer["_shards"]["failed"].as_u64().unwrap_or(0);
    if failed > 0 || answer["timed_out"].as_bool().unwrap_or(false) {
        let message = format!("{failed} shards of {indices} did not answer: their documents are missing. Try it again");
        return Err(Error::external("elasticsearch.unavailable", message));
    }
    Ok(answer)
}

fn check(response: &Response, indices: &str) -> Result<()> {
    if response.status.is_success() {
        return Ok(());
    }
    Err(error_of_status(response).unwrap_or_else(|| {
        Error::config(
            "elasticsearch.missing_index",
            format!("the documents of {indices} cannot be read: {}", response.describe()),
        )
    }))
}

/// A document as a row: its id, and the members with a value, as text.
fn pass(hit: &Value, each: EachContent<'_>) -> Result<()> {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let id = hit["_id"].as_str().unwrap_or_default().to_owned();
    let mut row = vec![("_id".to_owned(), id)];
    if let Some(members) = hit["_source"].as_object() {
        row.extend(members.iter().filter_map(|(name, value)| Some((name.clone(), text(value)?))));
    }
    row.sort();
    let row: Vec<(&str, &str)> = row.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    each(hit["_index"].as_str().unwrap_or_default(), &row)
}

#[cfg(test)]
mod tests {
    use trunkline_connector::Template;

    use super::*;

    #[test]
    fn indices_of_the_other_side_are_left_out() {
        let of = |own: &str, other: &str| indices(&Target::Index(Template::parse(own, &["table"]).unwrap()), other);
        assert_eq!(of("orders", "orders-v2"), "orders");
        assert_eq!(of("logs-{t}", "logs-v2-{t}"), "logs-*,-logs-v2-*");
        assert_eq!(of("logs-v2-{t}", "logs-{t}"), "logs-v2-*");
        assert_eq!(of("logs-{t}", "logs-{t}"), "logs-*");
        assert_eq!(expression("-logs ä*"), "-logs%20%C3%A4*");
    }

    #[test]
    fn documents_are_rows_of_text() {
        let mut rows = Vec::new();
        let hit = json!({ "_id": "7", "_index": "i", "_source": { "a": "x", "n": 1.5, "o": { "b": [1] }, "z": null } });
        pass(&hit, &mut |index, row| {
            rows.push((index.to_owned(), format!("{row:?}")));
            Ok(())
        })
        .unwrap();
        let expected = r#"[("_id", "7"), ("a", "x"), ("n", "1.5"), ("o", "{\"b\":[1]}")]"#;
        assert_eq!(rows, [("i".to_owned(), expected.to_owned())]);
    }
}
