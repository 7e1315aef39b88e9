//! `trunkline transform new`: writes a project from templates in the binary.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Exit, Language, failed};
use crate::cli::output::{print_data, print_error};
use crate::plan;

macro_rules! template {
    ($path:literal) => {
        include_str!(concat!("../../../../transforms/templates/", $path))
    };
}

macro_rules! sdk {
    ($($file:literal),*) => {
        &[$((concat!("sdk/src/", $file), include_str!(concat!("../../../../transforms/sdk/src/", $file)))),*]
    };
}

/// Path and text of a file of the project.
type File = (&'static str, &'static str);

const WIT: File = ("wit/transform.wit", include_str!("../../../../transforms/wit/transform.wit"));

const SHARED: &[File] = &[
    ("transform.toml", template!("transform.toml")),
    ("config.schema.json", template!("config.schema.json")),
    ("README.md", template!("README.md")),
    (".gitignore", template!("gitignore")),
    ("pipeline.toml", template!("pipeline.toml")),
    ("tests/records.jsonl", template!("records.jsonl")),
    ("tests/expected.jsonl", template!("expected.jsonl")),
];

const RUST: &[File] = &[
    ("Cargo.toml", template!("rust/Cargo.toml.template")),
    (".cargo/config.toml", template!("rust/cargo-config.toml")),
    ("src/lib.rs", template!("rust/lib.rs")),
    ("sdk/Cargo.toml", template!("rust/sdk.Cargo.toml.template")),
];

/// The sources of the SDK: it is not published as a package.
const RUST_SDK: &[File] = sdk!(
    "allocator.rs",
    "batch.rs",
    "bindings.rs",
    "config.rs",
    "guest.rs",
    "host.rs",
    "json.rs",
    "json/scan.rs",
    "lib.rs",
    "runner.rs",
    "state.rs",
    "testing.rs",
    "timers.rs",
    "verdict.rs"
);

const PYTHON: &[File] =
    &[("app.py", template!("python/app.py")), ("trunkline_plugin.py", template!("python/trunkline_plugin.py")), WIT];

const JS: &[File] = &[
    ("app.js", template!("js/app.js")),
    ("build.js", template!("js/build.js")),
    ("package.json", template!("js/package.json")),
    ("trunkline_plugin.js", template!("js/trunkline_plugin.js")),
    ("trunkline_plugin.d.ts", template!("js/trunkline_plugin.d.ts")),
    WIT,
];

/// Creates the project.
pub(super) fn create(name: &str, language: Language, into: Option<&Path>) -> Exit {
    if let Some(error) = plan::name_error(name) {
        return failed(Exit::Config, &format!("the name `{name}` {error}; expected {}", plan::NAME_RULE));
    }
    if language == Language::Rust && !name.starts_with(|first: char| first.is_ascii_alphabetic()) {
        return failed(Exit::Config, &format!("the name `{name}` is not a package name: it must start with a letter"));
    }
    let folder = into.map_or_else(|| PathBuf::from(name), Path::to_owned);
    if fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file() {
        let message = format!("{} exists and is not empty; choose another folder with --into", folder.display());
        return failed(Exit::Config, &message);
    }
    for (path, text) in files(language) {
        let target = folder.join(path);
        let folder_of_file = target.parent().unwrap_or(&folder);
        let written = fs::create_dir_all(folder_of_file).and_then(|()| fs::write(&target, fill(text, name, language)));
        if let Err(error) = written {
            return failed(Exit::Environment, &format!("cannot write {}: {error}", target.display()));
        }
    }
    let shown = folder.display();
    print_error(format_args!(
        "created {shown}; next:\n  trunkline transform build {shown}\n  trunkline transform test {shown}"
    ));
    print_data(&format!("{shown}\n"))
}

fn files(language: Language) -> impl Iterator<Item = File> {
    let own: [&[File]; 2] = match language {
        Language::Rust => [RUST, RUST_SDK],
        Language::Python => [PYTHON, &[]],
        Language::Js => [JS, &[]],
    };
    SHARED.iter().chain(own[0]).chain(own[1]).copied()
}

fn fill(text: &str, name: &str, language: Language) -> String {
    let (language_name, source, sdk) = match language {
        Language::Rust => ("Rust", "src/lib.rs", "sdk/"),
        Language::Python => ("Python", "app.py", "trunkline_plugin.py"),
        Language::Js => ("JavaScript", "app.js", "trunkline_plugin.js"),
    };
    let toolchain = match language {
        Language::Rust => {
            "The build needs Rust, and fetches its target for WebAssembly (`rustup target add wasm32-unknown-unknown`)."
        }
        Language::Python => {
            "The build needs Python with pip, and fetches componentize-py 0.25.1 into `~/.cache/trunkline/toolchains`."
        }
        Language::Js => "The build needs Node.js with npm, and fetches componentize-js 0.23 into `node_modules`.",
    };
    // A Rust plugin imports state and timers if it uses them.
    let state = match language {
        Language::Rust => "",
        Language::Python | Language::Js => {
            "# state = true    # for `State`: the transform is then a separate stage\n\
             # timers = true   # for `Timers`, and `State`\n"
        }
    };
    text.replace("@NAME@", name)
        .replace("@STATE@", state)
        .replace("@LANGUAGE@", language.name())
        .replace("@LANGUAGE_NAME@", language_name)
        .replace("@SOURCE@", source)
        .replace("@SDK@", sdk)
        .replace("@TOOLCHAIN@", toolchain)
        .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
}
