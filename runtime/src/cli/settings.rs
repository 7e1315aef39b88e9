//! `trunkline settings`: the worker settings with their variables and flags.

use serde_json::{Value, json};

use super::connectors::{option_json, push_option};
use super::output::{Exit, print_data};
use crate::config::{FLAGS, SETTINGS, example_file, variable};

/// Lists the settings, or prints an example of `trunkline.toml`.
pub(super) fn settings(example: bool, as_json: bool) -> Exit {
    if example {
        return print_data(&example_file());
    }
    if as_json {
        let list: Vec<Value> = SETTINGS
            .iter()
            .map(|setting| {
                let mut entry = option_json(setting);
                entry["variable"] = json!(variable(setting));
                entry["flag"] = json!(FLAGS.contains(&setting.key).then(|| format!("--{}", setting.key)));
                entry
            })
            .collect();
        return print_data(&format!("{:#}\n", json!(list)));
    }
    let mut text = String::from(
        "Settings of a worker. Flags override environment variables, and those override trunkline.toml.\n\
         The file is read from the current folder, or from --config FILE (TRUNKLINE_CONFIG).\n\n",
    );
    for setting in SETTINGS {
        push_option(&mut text, setting);
        let flag = if FLAGS.contains(&setting.key) { format!(", flag --{}", setting.key) } else { String::new() };
        text.push_str(&format!("      Variable {}{flag}\n", variable(setting)));
    }
    print_data(&text)
}
