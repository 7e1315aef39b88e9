//! Reading of pipeline files: a tree of values that know where they stand in the file, and readers that report *all* problems at
//! once instead of the first.
//!
//! A connector reads its component's table through [`Section`]: each option by name and type, with its default where it has one.
//! [`Section::finish`] then reports the keys that nobody asked for, with the nearest known name.

mod section;
mod tree;
mod units;

pub use section::{FromNode, Mismatch, Problem, Report, Section, nearest};
pub use tree::{Key, Node, Table, Text, Value};
pub use units::{ByteSize, parse_bytes, parse_duration};
