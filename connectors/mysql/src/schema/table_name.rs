//! [`TableName`]: the name of a table as a pair.
//!
//! Both parts may contain any character, a `.` included, so a joined name is ambiguous. Maps and
//! stored positions use the pair.

use std::fmt;

/// A database and a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TableName {
    pub(crate) database: String,
    pub(crate) table: String,
}

impl TableName {
    pub(crate) fn new(database: impl Into<String>, table: impl Into<String>) -> Self {
        Self { database: database.into(), table: table.into() }
    }

    /// `database.table`, with `%2E` for a `.` and `%25` for a `%` within a part: two tables never
    /// have the same key.
    pub(crate) fn key(&self) -> String {
        format!("{}.{}", escaped(&self.database), escaped(&self.table))
    }

    /// The table of a key; `None` if the text is not one.
    pub(crate) fn from_key(key: &str) -> Option<Self> {
        let (database, table) = key.split_once('.').filter(|(_, table)| !table.contains('.'))?;
        Some(Self { database: unescaped(database)?, table: unescaped(table)? })
    }
}

fn escaped(part: &str) -> String {
    part.replace('%', "%25").replace('.', "%2E")
}

fn unescaped(part: &str) -> Option<String> {
    percent_encoding::percent_decode_str(part).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

impl fmt::Display for TableName {
    /// `database.table`, with backquotes around a part that makes this ambiguous.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |name: &str| match name.contains(['.', '`', ' ']) {
            true => format!("`{}`", name.replace('`', "``")),
            false => name.to_owned(),
        };
        write!(formatter, "{}.{}", part(&self.database), part(&self.table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_different_tables_differ() {
        let names = [
            TableName::new("shop", "orders"),
            TableName::new("dd.b", "c"),
            TableName::new("dd", "b.c"),
            TableName::new("dd%2Eb", "c"),
            TableName::new("dd", "b%2Ec"),
        ];
        for (index, name) in names.iter().enumerate() {
            assert_eq!(TableName::from_key(&name.key()).as_ref(), Some(name));
            assert!(
                names[..index].iter().all(|other| other.key() != name.key() && other.to_string() != name.to_string())
            );
        }
        // The keys of names without special characters are those of earlier versions.
        assert_eq!(names[0].key(), "shop.orders");
        assert_eq!(TableName::from_key("dd.b.c"), None);
    }
}
