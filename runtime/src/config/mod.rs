//! Reading of configuration: pipeline files and `trunkline.toml` with the place of every value, worker settings in layers, and errors
//! that show the line they are about.
//!
//! A file is read in three steps. [`Document::read`] makes a tree of values out of the TOML text and resolves `${env:X}`,
//! `${file:PATH}` and `${secret:NAME}` inside strings. Whoever knows what the file should say (the plan, the settings) then reads
//! that tree through [`trunkline_connector::config::Section`] and reports problems into one [`Report`]. [`Document::finish`] puts the
//! problems of both steps together, in the file's order, and makes sure that no resolved value is among what is shown (I8).
//! So one run shows *all* problems of a file.
//!
//! [`Report`]: trunkline_connector::config::Report

mod diagnostics;
mod document;
mod references;
mod settings;
mod syntax;

pub use diagnostics::{FileProblems, Look, json, problem_at, render, summary};
pub use document::{Document, Position};
pub use references::References;
pub use settings::{Settings, SettingsOverrides, TopicSettings};
