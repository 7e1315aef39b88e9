//! The options that the entries of a state depend on. They are an entry themselves, so that a
//! transform with changed options does not use entries that mean something else.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use trunkline_plugin::state::State;
use trunkline_plugin::stop;

/// The key of the only entry in its collection.
const KEY: &str = "";

#[derive(Debug)]
pub(crate) struct StateOptions {
    /// By name; null if an option is not set.
    options: BTreeMap<String, Value>,
    /// The options, as they are stored.
    text: Vec<u8>,
    stored: State<BTreeMap<String, Value>>,
    /// The entries that depend on them.
    collections: Vec<State<Value>>,
}

impl StateOptions {
    /// `collections`: the names of those whose entries depend on the options.
    pub(crate) fn new<const N: usize>(collections: &[&str], options: [(&str, Value); N]) -> Self {
        let options = options.map(|(name, value)| (name.to_owned(), value));
        let options = BTreeMap::from(options);
        Self {
            text: serde_json::to_vec(&options).unwrap_or_default(),
            options,
            stored: State::new("options"),
            collections: collections.iter().map(|name| State::new(name)).collect(),
        }
    }

    /// Those that make the keys of a collection.
    pub(crate) fn of_key(collection: &str, fields: &[String], expression: Option<&str>) -> Self {
        Self::new(&[collection], [("fields", json!(fields)), ("expression", json!(expression))])
    }

    /// Checks the state of the current topic partition. A state without entries gets these options.
    /// So does one that an earlier version has left, which stored none.
    pub(crate) fn check(&self) -> Result<(), String> {
        let stored = self.stored.get_all_bytes(&[KEY]).pop().flatten();
        if stored.as_ref() == Some(&self.text) {
            return Ok(());
        }
        if stored.is_some() && self.has_entries()? {
            let stored = self.stored.get(KEY)?.unwrap_or_default();
            let changed = self.options.iter().filter_map(|(name, now)| changed(name, stored.get(name), now));
            let changed: Vec<String> = changed.collect();
            if !changed.is_empty() {
                return Err(stop(&format!(
                    "its state was made with {}. Restore the option, or give the transform another name, which \
                     starts without state",
                    changed.join(", and with ")
                )));
            }
        }
        self.stored.put(KEY, &self.options)
    }

    fn has_entries(&self) -> Result<bool, String> {
        for collection in &self.collections {
            if !collection.range("", None, 1)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// An option before and now, if it differs. An option that the stored ones lack is as it was.
fn changed(name: &str, before: Option<&Value>, now: &Value) -> Option<String> {
    let before = before.filter(|before| *before != now)?;
    Some(match (before, now) {
        (Value::Null, _) => format!("no `{name}`, and it is `{now}` now"),
        (_, Value::Null) => format!("`{name} = {before}`, and the option is absent now"),
        _ => format!("`{name} = {before}`, and it is `{now}` now"),
    })
}
