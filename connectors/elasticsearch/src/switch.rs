//! Makes an index that a replay has filled the one that readers see through an alias.

use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};
use trunkline_connector::{Error, Result, SwitchPlan};

use crate::client::{Client, path_segment};
use crate::server::error_of_status;

/// An alias, as it is and as it will be.
struct Alias {
    /// Its indices, each with the properties of the alias.
    now: Map<String, Value>,
    /// The index of the shadow.
    next: String,
}

/// Plans to move the alias `live` to the index of `shadow`.
pub(crate) async fn plan(client: &Client, live: &str, shadow: &str) -> Result<SwitchPlan> {
    Ok(match read(client, live, shadow).await? {
        Ok(alias) => {
            let now: Vec<&str> = alias.now.keys().map(String::as_str).collect();
            SwitchPlan::Steps {
                effect: format!(
                    "The alias {live} names {} instead of {}, in one request: readers and the sink use it from then on, and the earlier index \
                     stays as it is.",
                    alias.next,
                    now.join(", ")
                ),
                statements: vec![format!("POST /_aliases {}", actions(live, &alias))],
            }
        }
        Err(reason) => SwitchPlan::ByHand(reason),
    })
}

/// Moves the alias, unless that was done.
pub(crate) async fn switch(client: &Client, live: &str, shadow: &str) -> Result<()> {
    let alias =
        read(client, live, shadow).await?.map_err(|reason| Error::config("elasticsearch.not_an_alias", reason))?;
    if alias.now.keys().eq([&alias.next]) {
        return Ok(());
    }
    let response = client.call_json(Method::POST, "/_aliases", &actions(live, &alias)).await?;
    if response.status.is_success() {
        return Ok(());
    }
    Err(error_of_status(&response).unwrap_or_else(|| {
        let message = format!("the alias {live} could not be moved: {}", response.describe());
        Error::config("elasticsearch.alias_refused", message)
    }))
}

/// The actions of one request, all of which are carried out, or none.
fn actions(live: &str, alias: &Alias) -> Value {
    let others = alias.now.keys().filter(|index| **index != alias.next);
    let mut actions: Vec<Value> = others.map(|index| json!({ "remove": { "index": index, "alias": live } })).collect();
    // Filter, routing and write index are those of the index that is written now.
    let is_written = |properties: &&Value| properties["is_write_index"].as_bool().unwrap_or(false);
    let properties = alias.now.values().find(is_written).or_else(|| alias.now.values().next());
    let mut add = properties.and_then(Value::as_object).cloned().unwrap_or_default();
    add.insert("index".to_owned(), alias.next.as_str().into());
    add.insert("alias".to_owned(), live.into());
    actions.push(json!({ "add": add }));
    json!({ "actions": actions })
}

/// The alias; or why there is none to move, and what to do.
async fn read(client: &Client, live: &str, shadow: &str) -> Result<Result<Alias, String>> {
    let by_hand = "set `index` of the sink to that of the shadow, move the readers to it, and let `trunkline offsets set` move the \
                   sink to the end of the run";
    let Some(now) = aliases(client, live).await? else {
        return Ok(Err(format!("`{live}` is an index and no alias, so that its name cannot move: {by_hand}")));
    };
    let next = match aliases(client, shadow).await? {
        // The shadow is written through an alias, too.
        Some(indices) => match indices.keys().next() {
            Some(index) if indices.len() == 1 => index.clone(),
            _ => return Ok(Err(format!("the shadow `{shadow}` is an alias of several indices: {by_hand}"))),
        },
        None => {
            let response = client.call(Method::HEAD, &format!("/{}", path_segment(shadow))).await?;
            if response.status == StatusCode::NOT_FOUND {
                let message = format!("the index of the shadow, `{shadow}`, does not exist");
                return Err(Error::config("elasticsearch.missing_index", message));
            }
            shadow.to_owned()
        }
    };
    Ok(Ok(Alias { now, next }))
}

/// The indices of an alias, with its properties in each; `None` if there is no such alias.
async fn aliases(client: &Client, name: &str) -> Result<Option<Map<String, Value>>> {
    let response = client.call(Method::GET, &format!("/_alias/{}", path_segment(name))).await?;
    if response.status == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let body: Option<Map<String, Value>> = serde_json::from_slice(&response.body).ok();
    match body.filter(|_| response.status.is_success()) {
        Some(indices) => {
            let properties = |(index, value): (String, Value)| (index, value["aliases"][name].clone());
            Ok(Some(indices.into_iter().map(properties).collect()))
        }
        None => Err(error_of_status(&response).unwrap_or_else(|| {
            Error::external(
                "elasticsearch.unavailable",
                format!("the alias {name} cannot be read: {}", response.describe()),
            )
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_moves_in_one_request_and_keeps_its_properties() {
        let Value::Object(now) =
            json!({ "a-1": {}, "a-2": { "is_write_index": true, "filter": { "term": { "x": 1 } } } })
        else {
            panic!("no object")
        };
        let alias = Alias { now, next: "b".to_owned() };
        assert_eq!(
            actions("a", &alias),
            json!({ "actions": [
                { "remove": { "index": "a-1", "alias": "a" } },
                { "remove": { "index": "a-2", "alias": "a" } },
                { "add": { "index": "b", "alias": "a", "is_write_index": true, "filter": { "term": { "x": 1 } } } },
            ] })
        );
    }
}
