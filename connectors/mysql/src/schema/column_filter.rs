//! The options `columns` and `masks`: which columns are written, and which are masked.
//!
//! Stream and snapshot apply the same filter, so a row becomes the same record whichever way it was
//! read. A masked column is a string in the schema, whatever its type was.

use std::sync::Arc;

use glob::Pattern;
use trunkline_connector::{Error, Result};

use super::column_mode::{ColumnMode, Mask};
use super::table_name::TableName;
use super::types::Column;

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
            Pattern::new(part)
                .map_err(|error| format!("has `{glob}`, which is not a valid glob: {} in `{part}`", error.msg))
        };
        Ok(Self([pattern()?, pattern()?, pattern()?]))
    }

    fn matches_table(&self, name: &TableName) -> bool {
        self.0[0].matches(&name.database) && self.0[1].matches(&name.table)
    }

    fn matches(&self, name: &TableName, column: &str) -> bool {
        self.matches_table(name) && self.0[2].matches(column)
    }
}

/// The options `columns` and `masks`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ColumnFilter {
    included: Vec<Glob>,
    excluded: Vec<Glob>,
    /// The first mask that matches a column applies.
    masks: Vec<(Vec<Glob>, Arc<Mask>)>,
}

impl ColumnFilter {
    /// Whether every column is included, and none is masked.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds the globs of `columns`. An error has the index of the wrong glob and the end of the
    /// sentence "`columns` ...".
    pub(crate) fn add_globs(&mut self, globs: &[String]) -> Result<(), (usize, String)> {
        for (index, glob) in globs.iter().enumerate() {
            let (list, glob) = match glob.strip_prefix('!') {
                Some(rest) => (&mut self.excluded, rest),
                None => (&mut self.included, glob.as_str()),
            };
            list.push(Glob::new(glob).map_err(|why| (index, why))?);
        }
        Ok(())
    }

    /// Adds a mask for the columns that match the globs. Errors as of
    /// [`add_globs`](ColumnFilter::add_globs).
    pub(crate) fn add_mask(&mut self, globs: &[String], mask: Mask) -> Result<(), (usize, String)> {
        let glob = |(index, glob): (usize, &String)| Glob::new(glob).map_err(|why| (index, why));
        let globs = globs.iter().enumerate().map(glob).collect::<Result<_, _>>()?;
        self.masks.push((globs, Arc::new(mask)));
        Ok(())
    }

    /// Whether a column is included by itself, and no mask merges its values.
    pub(crate) fn may_identify(&self, table: &TableName, column: &str) -> bool {
        let any = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(table, column));
        let is_restricted = self.included.iter().any(|glob| glob.matches_table(table));
        let mask = self.masks.iter().find(|(globs, _)| any(globs)).map(|(_, mask)| &**mask);
        (!is_restricted || any(&self.included))
            && !any(&self.excluded)
            && mask.is_none_or(|mask| matches!(mask, Mask::Hash { .. }))
    }

    /// Sets the mode of each column of a table. Columns of the key (indices) are always included,
    /// because they identify the record.
    pub(crate) fn apply(&self, table: &TableName, columns: &mut [Column], key: &[usize]) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        // A table that no including glob names keeps every column that no glob excludes.
        let is_restricted = self.included.iter().any(|glob| glob.matches_table(table));
        for (index, column) in columns.iter_mut().enumerate() {
            let any = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(table, &column.name));
            let is_key = key.contains(&index);
            if !is_key && (is_restricted && !any(&self.included) || any(&self.excluded)) {
                column.mode = ColumnMode::Exclude;
                continue;
            }
            let Some((_, mask)) = self.masks.iter().find(|(globs, _)| any(globs)) else { continue };
            if is_key && !matches!(**mask, Mask::Hash { .. }) {
                let message = format!(
                    "`masks`: column `{}` belongs to the key of {table}, and masking it would give different rows one \
                     key; mask it with `hash`, or exclude it from the globs",
                    column.name
                );
                return Err(Error::config("mysql.mask", message));
            }
            column.mode = ColumnMode::Masked(Arc::clone(mask));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::types::ColumnType;

    fn modes(filter: &ColumnFilter, table: &str) -> Vec<ColumnMode> {
        let column = |name: &str| Column::new(name.to_owned(), ColumnType::Year, true);
        let mut columns: Vec<Column> = ["id", "name", "card"].map(column).into();
        filter.apply(&TableName::new("shop", table), &mut columns, &[0]).unwrap();
        columns.into_iter().map(|column| column.mode).collect()
    }

    fn globs(globs: &[&str]) -> Vec<String> {
        globs.iter().map(|glob| (*glob).to_owned()).collect()
    }

    #[test]
    fn key_columns_and_unrestricted_tables_are_included() {
        use ColumnMode::{Exclude, Include};
        let mut filter = ColumnFilter::default();
        filter.add_globs(&globs(&["shop.people.name", "!*.*.card", "!*.*.id"])).unwrap();
        assert_eq!(modes(&filter, "people"), [Include, Include, Exclude]);
        assert_eq!(modes(&filter, "orders"), [Include, Include, Exclude]);
        let mut filter = ColumnFilter::default();
        filter.add_globs(&globs(&["shop.p*.card"])).unwrap();
        assert_eq!(modes(&filter, "people"), [Include, Exclude, Include]);
        assert_eq!(modes(&filter, "orders"), [Include, Include, Include]);
    }

    #[test]
    fn the_first_matching_mask_applies_and_key_columns_accept_only_hashes() {
        let hash = || Mask::Hash { salt: "pepper".to_owned() };
        let mut filter = ColumnFilter::default();
        filter.add_mask(&globs(&["shop.people.id"]), hash()).unwrap();
        filter.add_mask(&globs(&["*.*.card"]), Mask::Truncate(2)).unwrap();
        filter.add_mask(&globs(&["*.*.*"]), Mask::Fixed("x".to_owned())).unwrap();
        let masked = |mask| ColumnMode::Masked(Arc::new(mask));
        let fixed = || masked(Mask::Fixed("x".to_owned()));
        assert_eq!(modes(&filter, "people"), [masked(hash()), fixed(), masked(Mask::Truncate(2))]);
        let mut columns = [Column::new("id".to_owned(), ColumnType::Year, true)];
        let error = filter.apply(&TableName::new("shop", "orders"), &mut columns, &[0]).unwrap_err();
        assert_eq!(error.code, "mysql.mask");
        assert!(!format!("{filter:?}").contains("pepper"));
    }

    #[test]
    fn invalid_globs_are_reported_by_their_index() {
        let mut filter = ColumnFilter::default();
        for wrong in ["a.b", "a..c", "a.b.", "a.b.["] {
            assert_eq!(filter.add_globs(&globs(&["a.b.c", wrong])).unwrap_err().0, 1, "{wrong}");
        }
    }
}
