//! Reading of pipeline files: a tree of values with their places in the file, and readers that
//! report all problems at once.
//!
//! A connector declares its options once ([`OptionSpec`]) and reads its component's table through
//! [`Section`], option by option. [`Section::finish`] then reports unknown keys, each with the
//! nearest known name.

mod options;
mod section;
mod tree;
mod units;

pub use options::{OptionDefault, OptionSpec, options_table};
pub use section::{FromNode, Mismatch, Problem, Report, Section, nearest};
pub use tree::{Key, Node, Table, Text, Value};
pub use units::{ByteSize, parse_bytes, parse_duration};
