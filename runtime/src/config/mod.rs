//! Configuration: pipeline files and `trunkline.toml` with the place of every value, worker
//! settings in layers, and errors that show the line they belong to.
//!
//! A file is read in three steps. [`Document::read`] parses the TOML text into a tree of values and
//! resolves references such as `${env:X}` and `${vault:PATH#KEY}` inside strings. The plan or the
//! settings then read the tree through [`trunkline_connector::config::Section`] and report problems
//! into one [`Report`]. [`Document::finish`] merges the problems of both steps in the file's order,
//! and removes all resolved values from them (I8). One run shows *all* problems of a file.
//!
//! [`Report`]: trunkline_connector::config::Report

mod diagnostics;
mod document;
mod otlp;
mod references;
mod secret_stores;
mod setting_layers;
mod setting_options;
mod settings;
mod syntax;

pub use diagnostics::{FileProblems, RenderStyle, Severity, json, problem_at, render, summary};
pub use document::{Document, Position};
pub use otlp::OtlpSettings;
pub(crate) use references::default_secrets;
pub use references::{References, warn_about_exposed_secrets};
pub use secret_stores::forget as forget_stored_secrets;
pub use setting_options::{FLAGS, PREFIX, SETTINGS, example_file, settings_table, variable};
pub use settings::{HttpSetting, LogFormat, Settings, SettingsOverrides, TopicSettings};
