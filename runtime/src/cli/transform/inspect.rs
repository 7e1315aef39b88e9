//! `trunkline transform inspect`: what a plugin's file contains.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use trunkline_transform_host::{Host, Limits};

use super::{Exit, failed, plugin_host};
use crate::cli::output::print_data;

/// Prints the properties of a plugin.
pub(super) fn inspect(file: &Path, config: Option<&str>, as_json: bool) -> Exit {
    let config = match config.map(serde_json::from_str::<Value>) {
        None => Value::Null,
        Some(Ok(config @ Value::Object(_))) => config,
        Some(Ok(_)) => return failed(Exit::Config, "--config is not a JSON object"),
        Some(Err(error)) => return failed(Exit::Config, &format!("--config is not JSON: {error}")),
    };
    let host = match plugin_host(None) {
        Ok(host) => host,
        Err(exit) => return exit,
    };
    let bundled = if file.is_file() { None } else { file.to_str().and_then(|name| bundled(&host, name)) };
    let loaded = match bundled {
        Some(loaded) => loaded,
        None => host.load(file),
    };
    let plugin = match loaded {
        Ok(plugin) => plugin,
        Err(error) => return failed(Exit::Config, &error.to_string()),
    };
    let contents = plugin.contents();
    let started = plugin.start(&config, &Limits::default());
    let (ports, keeps_schema, rejected) = match &started {
        Ok(instance) => (Some(instance.ports().to_vec()), Some(instance.keeps_schema()), None),
        Err(error) => (None, None, Some(error)),
    };
    if as_json {
        let rejected = rejected.map(|error| json!({ "message": error.message, "key": error.key }));
        return print_data(&format!(
            "{:#}\n",
            json!({
                "name": plugin.name(),
                "kind": contents.kind,
                "interface": contents.interface,
                "bytes": plugin.wasm().len(),
                "hash": format!("{:016x}", plugin.hash()),
                "imports": contents.imports,
                "ports": ports,
                "keeps_schema": keeps_schema,
                "uses_state": plugin.uses_state(),
                "uses_timers": plugin.uses_timers(),
                "config_schema": plugin.config_schema().and_then(|schema| serde_json::from_str::<Value>(schema).ok()),
                "config_rejected": rejected,
            })
        ));
    }
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<13} {value}");
    };
    line("name", plugin.name());
    line("kind", contents.kind);
    line("interface", &contents.interface);
    line("size", &format!("{} KiB", plugin.wasm().len().div_ceil(1024)));
    line("hash", &format!("{:016x}", plugin.hash()));
    line("imports", &if contents.imports.is_empty() { "none".to_owned() } else { contents.imports.join(", ") });
    line("state", if plugin.uses_state() { "yes: it runs as a stage with its own topics" } else { "none" });
    line("timers", if plugin.uses_timers() { "yes: it is called when event time reaches them" } else { "none" });
    line("config schema", if plugin.config_schema().is_some() { "yes; --json shows it" } else { "none" });
    match (ports, rejected) {
        (Some(ports), _) => {
            line("ports", &ports.join(", "));
            line("keeps schema", if keeps_schema == Some(true) { "yes" } else { "no" });
        }
        (None, Some(error)) => {
            let key = error.key.as_ref().map(|key| format!("`{key}`: ")).unwrap_or_default();
            line("ports", &format!("unknown: this configuration is rejected: {key}{}", error.message));
            line("", "give the plugin a configuration: --config '{..}'");
        }
        (None, None) => {}
    }
    print_data(&text)
}

type Loaded = Result<trunkline_transform_host::Plugin, trunkline_transform_host::LoadError>;

fn bundled(host: &Host, name: &str) -> Option<Loaded> {
    host.bundled(name).or_else(|| host.bundled(&format!("{name}.wasm")))
}
