//! Builds the bundled plugins for wasm32-unknown-unknown with a separate call of cargo.

#[path = "build_plugin.rs"]
mod build_plugin;

use std::path::Path;
use std::{env, fs};

/// Library names of the packages in `transforms/plugins` that `src/bundled.rs` embeds.
const BUNDLED: [&str; 2] = ["mask", "standard"];

fn main() {
    let manifest_dir = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let out_dir = env::var("OUT_DIR").unwrap_or_default();
    let transforms = Path::new(&manifest_dir).join("..");
    for watched in [
        "plugins/Cargo.toml",
        "plugins/Cargo.lock",
        "plugins/mask",
        "plugins/standard",
        "sdk/src",
        "sdk/Cargo.toml",
        "wit",
        "host/build_plugin.rs",
        "plugins/.cargo/config.toml",
    ] {
        println!("cargo::rerun-if-changed={}", transforms.join(watched).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    // the variables that `transforms/toolchain` prints
    for variable in ["TRUNKLINE_WASM_RUSTC", "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out_dir = Path::new(&out_dir);
    for name in BUNDLED {
        let built = build_plugin::build(&transforms.join("plugins"), name, &out_dir.join("plugins-target"));
        let copied = built.and_then(|wasm| {
            fs::copy(&wasm, out_dir.join(format!("{name}.wasm")))
                .map_err(|error| format!("cannot copy {}: {error}", wasm.display()))
        });
        if let Err(message) = copied {
            println!("cargo::error={}", message.replace('\n', " "));
        }
    }
}
