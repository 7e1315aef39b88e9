//! Which columns are written as they are, which as something else, and which not at all: the options `columns` and `masks`.
//!
//! Stream and snapshot make their tables by the same rules, so that a row is the same record whichever way it came. What is masked is a string in
//! the schema, whatever it was before.

use std::fmt;
use std::sync::Arc;

use glob::Pattern;
use sha2::{Digest as _, Sha256};
use trunkline_connector::{Error, Result, json};

use crate::format::table::Column;

/// How a column is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Shown {
    #[default]
    AsIs,
    /// Not at all.
    LeftOut,
    Masked(Arc<Mask>),
}

/// What is written instead of a value. Null stays null.
#[derive(Clone, PartialEq, Eq)]
pub enum Mask {
    /// SHA-256 of the salt and the value's text, in hexadecimal digits.
    Hash {
        /// What makes the hashes of this source unlike those of others.
        salt: String,
    },
    /// So many of the text's first characters.
    Truncate(usize),
    /// Always the same.
    Fixed(String),
}

impl fmt::Debug for Mask {
    /// Without the salt (I8).
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hash { .. } => formatter.write_str("Hash"),
            Self::Truncate(length) => write!(formatter, "Truncate({length})"),
            Self::Fixed(text) => write!(formatter, "Fixed({text:?})"),
        }
    }
}

impl Mask {
    /// Appends what stands for a value, as a JSON string.
    pub(crate) fn write(&self, out: &mut Vec<u8>, text: &str) {
        match self {
            Self::Hash { salt } => {
                let digest = Sha256::new().chain_update(salt).chain_update(text).finalize();
                out.push(b'"');
                out.extend(digest.iter().flat_map(|byte| hex_digits(*byte)));
                out.push(b'"');
            }
            Self::Truncate(length) => {
                let end = text.char_indices().nth(*length).map_or(text.len(), |(at, _)| at);
                json::write_string(out, &text[..end]);
            }
            Self::Fixed(fixed) => json::write_string(out, fixed),
        }
    }
}

/// A byte in hexadecimal.
pub(crate) fn hex_digits(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

/// A glob of `database.table.column`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Glob([Pattern; 3]);

impl Glob {
    /// An error is the end of the sentence "`columns` ...".
    fn new(glob: &str) -> Result<Self, String> {
        let mut parts = glob.splitn(3, '.');
        let mut pattern = || {
            let part = parts.next().filter(|part| !part.is_empty());
            let part = part.ok_or_else(|| format!("has `{glob}`, which is not `database.table.column`"))?;
            Pattern::new(part).map_err(|error| format!("has `{glob}`, which is no glob: {} in `{part}`", error.msg))
        };
        Ok(Self([pattern()?, pattern()?, pattern()?]))
    }

    fn is_of(&self, database: &str, table: &str) -> bool {
        self.0[0].matches(database) && self.0[1].matches(table)
    }

    fn matches(&self, database: &str, table: &str, column: &str) -> bool {
        self.is_of(database, table) && self.0[2].matches(column)
    }
}

/// The options `columns` and `masks`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    chosen: Vec<Glob>,
    excluded: Vec<Glob>,
    /// The first that fits counts.
    masks: Vec<(Vec<Glob>, Arc<Mask>)>,
}

impl Columns {
    /// Takes up the globs of `columns`. An error has the index of the glob that is wrong, and what is wrong as the end of the sentence
    /// "`columns` ...".
    pub fn choose(&mut self, globs: &[String]) -> Result<(), (usize, String)> {
        for (index, glob) in globs.iter().enumerate() {
            let (list, glob) = match glob.strip_prefix('!') {
                Some(rest) => (&mut self.excluded, rest),
                None => (&mut self.chosen, glob.as_str()),
            };
            list.push(Glob::new(glob).map_err(|why| (index, why))?);
        }
        Ok(())
    }

    /// Takes up a mask for the columns that the globs name. Errors as of [`choose`](Columns::choose).
    pub fn mask(&mut self, globs: &[String], mask: Mask) -> Result<(), (usize, String)> {
        let glob = |(index, glob): (usize, &String)| Glob::new(glob).map_err(|why| (index, why));
        let globs = globs.iter().enumerate().map(glob).collect::<Result<_, _>>()?;
        self.masks.push((globs, Arc::new(mask)));
        Ok(())
    }

    /// Settles how the columns of a table are written. Those of the key (indices) always are: records would have no identity without.
    pub(crate) fn settle(&self, database: &str, table: &str, columns: &mut [Column], key: &[usize]) -> Result<()> {
        if *self == Self::default() {
            return Ok(());
        }
        // A table that no glob chooses from keeps all that is not taken away.
        let is_chosen_from = self.chosen.iter().any(|glob| glob.is_of(database, table));
        for (index, column) in columns.iter_mut().enumerate() {
            let among = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(database, table, &column.name));
            let is_key = key.contains(&index);
            if !is_key && (is_chosen_from && !among(&self.chosen) || among(&self.excluded)) {
                column.shown = Shown::LeftOut;
                continue;
            }
            let Some((_, mask)) = self.masks.iter().find(|(globs, _)| among(globs)) else { continue };
            if is_key && !matches!(**mask, Mask::Hash { .. }) {
                let message = format!(
                    "`masks`: `{}` is of the primary key of {database}.{table}, and different rows would become one. Mask it with `hash`, or leave it \
                     out of the globs",
                    column.name
                );
                return Err(Error::config("mysql.mask", message));
            }
            column.shown = Shown::Masked(Arc::clone(mask));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::table::Kind;

    fn shown(columns: &Columns, table: &str) -> Vec<Shown> {
        let column = |name: &str| Column::new(name.to_owned(), Kind::Year, true);
        let mut described: Vec<Column> = ["id", "name", "card"].map(column).into();
        columns.settle("shop", table, &mut described, &[0]).unwrap();
        described.into_iter().map(|column| column.shown).collect()
    }

    fn globs(globs: &[&str]) -> Vec<String> {
        globs.iter().map(|glob| (*glob).to_owned()).collect()
    }

    #[test]
    fn the_key_stays_and_tables_that_nothing_is_chosen_from_stay_whole() {
        let mut columns = Columns::default();
        columns.choose(&globs(&["shop.people.name", "!*.*.card", "!*.*.id"])).unwrap();
        assert_eq!(shown(&columns, "people"), [Shown::AsIs, Shown::AsIs, Shown::LeftOut]);
        assert_eq!(shown(&columns, "orders"), [Shown::AsIs, Shown::AsIs, Shown::LeftOut]);
        let mut columns = Columns::default();
        columns.choose(&globs(&["shop.p*.card"])).unwrap();
        assert_eq!(shown(&columns, "people"), [Shown::AsIs, Shown::LeftOut, Shown::AsIs]);
        assert_eq!(shown(&columns, "orders"), [Shown::AsIs, Shown::AsIs, Shown::AsIs]);
    }

    #[test]
    fn the_first_mask_that_fits_counts_and_a_key_is_hashed_or_refused() {
        let hash = || Mask::Hash { salt: "pepper".to_owned() };
        let mut columns = Columns::default();
        columns.mask(&globs(&["shop.people.id"]), hash()).unwrap();
        columns.mask(&globs(&["*.*.card"]), Mask::Truncate(2)).unwrap();
        columns.mask(&globs(&["*.*.*"]), Mask::Fixed("x".to_owned())).unwrap();
        let masked = |mask| Shown::Masked(Arc::new(mask));
        let fixed = || masked(Mask::Fixed("x".to_owned()));
        assert_eq!(shown(&columns, "people"), [masked(hash()), fixed(), masked(Mask::Truncate(2))]);
        let mut described = [Column::new("id".to_owned(), Kind::Year, true)];
        let error = columns.settle("shop", "orders", &mut described, &[0]).unwrap_err();
        assert_eq!(error.code, "mysql.mask");
        assert!(!format!("{columns:?}").contains("pepper"));
    }

    #[test]
    fn masks_write_json() {
        let written = |mask: Mask, text: &str| {
            let mut out = Vec::new();
            mask.write(&mut out, text);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(Mask::Truncate(2), "é\"x"), r#""é\"""#);
        assert_eq!(written(Mask::Truncate(9), "ab"), r#""ab""#);
        assert_eq!(written(Mask::Fixed("a\"".to_owned()), "ab"), r#""a\"""#);
        // printf 'saltab' | sha256sum
        assert_eq!(
            written(Mask::Hash { salt: "salt".to_owned() }, "ab"),
            "\"ca45866bd925d92dec67d830773b32856155b260b0deef298267bbc9c31fa970\""
        );
    }

    #[test]
    fn what_is_no_choice_is_told() {
        let mut columns = Columns::default();
        for wrong in ["a.b", "a..c", "a.b.", "a.b.["] {
            assert_eq!(columns.choose(&globs(&["a.b.c", wrong])).unwrap_err().0, 1, "{wrong}");
        }
    }
}
