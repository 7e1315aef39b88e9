//! `trunkline json-schema`: the JSON Schema of pipeline files and of `trunkline.toml`.

use clap::{Args, ValueEnum};

use super::output::{Exit, print_data};
use crate::plan::Registry;
use crate::plan::json_schema::{pipeline_schema, settings_schema};

/// `trunkline json-schema`.
#[derive(Args)]
pub(super) struct JsonSchemaArgs {
    /// The kind of file
    #[arg(value_enum, default_value = "pipeline")]
    kind: Kind,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Pipeline files
    Pipeline,
    /// trunkline.toml
    Settings,
}

/// Prints the schema.
pub(super) fn json_schema(args: &JsonSchemaArgs) -> Exit {
    let schema = match args.kind {
        Kind::Pipeline => pipeline_schema(&Registry::new()),
        Kind::Settings => settings_schema(),
    };
    print_data(&format!("{schema:#}\n"))
}
