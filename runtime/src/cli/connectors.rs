//! `trunkline connectors`: what pipeline files may name.

use serde_json::json;

use super::output::{Exit, print_data};
use crate::plan::Registry;

pub(super) fn connectors(as_json: bool) -> Exit {
    let registry = Registry::new();
    let sources = registry.source_names().into_iter().map(|name| ("source", name));
    let sinks = registry.sink_names().into_iter().map(|name| ("sink", name));
    let all: Vec<(&str, &str)> = sources.chain(sinks).collect();
    if as_json {
        let list: Vec<_> = all.iter().map(|(kind, name)| json!({"kind": kind, "name": name})).collect();
        print_data(&format!("{:#}\n", json!(list)));
    } else {
        for (kind, name) in all {
            print_data(&format!("{kind:<8}{name}\n"));
        }
    }
    Exit::Ok
}
