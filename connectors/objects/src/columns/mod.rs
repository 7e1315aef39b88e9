//! From JSON values to columns.
//!
//! A [`ColumnLayout`] has the columns of a declared schema and those that were inferred from
//! values. The layout of a file is the [union] of all layouts that went into it.
//! Columns that were inferred widen freely (null → any type, integer → float, anything else →
//! text); declared ones widen only where no value changes, and otherwise conflict, which makes
//! another file. A column is inferred if its Arrow field says so in its metadata (`INFERRED`).
//! A new column starts with the type that its name has in earlier records ([`KnownTypes`]).
//!
//! Nothing is rewritten silently: where the JSON decoder of Arrow is lenient (1.5 as an integer is
//! 1, a number in a text column of a declared schema, text in an inferred number), the decoders in
//! [`strict`] refuse, and the value widens its column or its record is rejected.

mod conform;
mod decode;
mod direct;
mod finder;
mod infer;
mod layout;
mod strict;
mod text;
mod types;

pub use conform::{conform_batch, json_text};
pub use decode::{JsonDecoder, chunk_len};
pub use layout::{ColumnLayout, file_schema, union};
pub use types::{KnownTypes, TYPES, pinned_column};
