//! Values from HashiCorp Vault and AWS Secrets Manager.
//!
//! Where the stores are, and how to log in, come from the variables that the stores' own tools
//! read. A secret is fetched once, and again after [`forget`]: a reload reads all secrets again.

mod aws_secrets_manager;
mod http;
mod vault;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use trunkline_connector::config::nearest;

use super::references::Failure;

/// A secret is fetched within this time.
const FETCH_LIMIT: Duration = Duration::from_secs(15);

/// Pause before the second attempt to reach a store.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// A store of secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Store {
    Vault,
    Aws,
}

/// Secrets by store and name.
static FETCHED: Mutex<BTreeMap<(Store, String), Result<Value, FetchError>>> = Mutex::new(BTreeMap::new());

/// Why a secret cannot be had.
struct FetchError {
    /// Follows the name of the reference.
    reason: String,
    /// The next step.
    help: String,
    /// Another attempt may succeed.
    is_temporary: bool,
}

impl FetchError {
    fn permanent(reason: impl Into<String>, help: impl Into<String>) -> Self {
        Self { reason: reason.into(), help: help.into(), is_temporary: false }
    }
}

/// Forgets all fetched secrets: the next reference fetches its secret again.
pub fn forget() {
    FETCHED.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// The value of the reference `written`, whose part after the store is `name`: the name of a
/// secret, and after `#` a key of it.
pub(super) fn value(store: Store, name: &str, written: &str) -> Result<String, Failure> {
    let (name, key) = match name.rsplit_once('#') {
        Some((name, key)) => (name, Some(key)),
        None => (name, None),
    };
    let is_complete = !name.is_empty() && key != Some("");
    if !is_complete || store == Store::Vault && key.is_none() {
        let form = if store == Store::Vault { "`${vault:PATH#KEY}`" } else { "`${aws-secret:NAME#KEY}`" };
        return Err(Failure {
            message: format!("`{written}` is not a reference"),
            expected: format!("expected {form}"),
            help: Some("a secret in the store has keys and values; KEY selects a value".to_owned()),
        });
    }
    // Held while the secret is fetched, so that each one is fetched once.
    let mut fetched = FETCHED.lock().unwrap_or_else(PoisonError::into_inner);
    let secret = fetched.entry((store, name.to_owned())).or_insert_with(|| fetch(store, name));
    let secret = secret.as_ref().map_err(|error| Failure {
        message: format!("`{written}` has no value: {}", error.reason),
        expected: "expected a secret that the worker may read".to_owned(),
        help: Some(error.help.clone()),
    })?;
    select(secret, key, written)
}

/// Fetches on a separate thread: the caller may be part of an async runtime.
fn fetch(store: Store, name: &str) -> Result<Value, FetchError> {
    let fetch_once = async || {
        let fetched = tokio::time::timeout(FETCH_LIMIT, async {
            match store {
                Store::Vault => vault::fetch(name).await,
                Store::Aws => aws_secrets_manager::fetch(name).await,
            }
        });
        fetched.await.unwrap_or_else(|_| {
            let reason = format!("the store did not answer within {} seconds", FETCH_LIMIT.as_secs());
            Err(FetchError::permanent(reason, "check the network between the worker and the store"))
        })
    };
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| {
            FetchError::permanent(
                format!("the process cannot start a runtime: {error}"),
                "check the limits of the process",
            )
        })?;
        runtime.block_on(async {
            match fetch_once().await {
                Err(error) if error.is_temporary => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    fetch_once().await
                }
                fetched => fetched,
            }
        })
    };
    std::thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|_| Err(FetchError::permanent("the client of the store panicked", "please report this")))
}

/// The value of a key; without a key the secret itself.
fn select(secret: &Value, key: Option<&str>, written: &str) -> Result<String, Failure> {
    let Some(key) = key else { return Ok(text(secret)) };
    // AWS stores keys and values as the text of a JSON object.
    let parsed: Value = match secret {
        Value::String(json) => serde_json::from_str(json).unwrap_or_default(),
        other => other.clone(),
    };
    let Value::Object(entries) = &parsed else {
        return Err(Failure {
            message: format!("`{written}` has no value: the secret is a text without keys"),
            expected: "expected a secret that is a JSON object".to_owned(),
            help: Some(format!("leave out `#{key}`")),
        });
    };
    entries.get(key).map(text).ok_or_else(|| {
        let known: Vec<&str> = entries.keys().map(String::as_str).collect();
        Failure {
            message: format!("`{written}` has no value: the secret has no key `{key}`"),
            expected: match nearest(key, &known) {
                Some(meant) => format!("did you mean `#{meant}`?"),
                None => "expected a key of the secret".to_owned(),
            },
            help: None,
        }
    })
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn selected(secret: &Value, key: Option<&str>) -> Result<String, String> {
        let failed = |failure: Failure| format!("{}; {}; {:?}", failure.message, failure.expected, failure.help);
        select(secret, key, "${aws-secret:db#key}").map_err(failed)
    }

    #[test]
    fn keys_select_values_of_objects_and_of_json_texts() {
        for secret in [json!({ "user": "app", "port": 5439 }), json!(r#"{ "user": "app", "port": 5439 }"#)] {
            assert_eq!(selected(&secret, Some("user")), Ok("app".to_owned()));
            assert_eq!(selected(&secret, Some("port")), Ok("5439".to_owned()));
            let missing = selected(&secret, Some("usr")).unwrap_err();
            assert!(missing.contains("the secret has no key `usr`; did you mean `#user`?"), "{missing}");
            assert!(!missing.contains("app"), "{missing}");
        }
        assert_eq!(selected(&json!("a text"), None), Ok("a text".to_owned()));
        let keyless = selected(&json!("hunter2"), Some("user")).unwrap_err();
        assert!(keyless.contains("leave out `#user`") && !keyless.contains("hunter2"), "{keyless}");
    }

    #[test]
    fn incomplete_references_are_refused_without_a_request() {
        for (store, name) in
            [(Store::Vault, "secret/app"), (Store::Vault, "#a"), (Store::Aws, "db#"), (Store::Aws, "#a")]
        {
            let failure = value(store, name, "${..}").err().unwrap();
            assert!(failure.message.ends_with("is not a reference"), "{name}: {}", failure.message);
        }
    }
}
