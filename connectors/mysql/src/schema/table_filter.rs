//! The option `tables`: globs of `database.table`, some of them exclusions.

use glob::Pattern;

use super::table_name::TableName;

/// The server's own databases, which no glob includes.
pub(crate) const SYSTEM_DATABASES: [&str; 4] = ["mysql", "sys", "information_schema", "performance_schema"];

/// The globs of `tables`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableFilter {
    included: Vec<(Pattern, Pattern)>,
    excluded: Vec<(Pattern, Pattern)>,
}

impl TableFilter {
    /// Parses globs. An error has the index of the wrong glob, if one glob is wrong, and the end of
    /// the sentence "`tables` ...".
    pub(crate) fn new(globs: &[String]) -> Result<Self, (Option<usize>, String)> {
        let mut filter = Self { included: Vec::new(), excluded: Vec::new() };
        for (index, glob) in globs.iter().enumerate() {
            let wrong = |why: String| (Some(index), format!("has `{glob}`, {why}"));
            let (list, glob) = match glob.strip_prefix('!') {
                Some(rest) => (&mut filter.excluded, rest),
                None => (&mut filter.included, glob.as_str()),
            };
            let (database, table) = glob
                .split_once('.')
                .ok_or_else(|| wrong("which lacks the `.` between database and table".to_owned()))?;
            if database.is_empty() || table.is_empty() {
                return Err(wrong("in which the name of the database or the table is empty".to_owned()));
            }
            let pattern = |text: &str| {
                Pattern::new(text)
                    .map_err(|error| wrong(format!("which is not a valid glob: {} in `{text}`", error.msg)))
            };
            list.push((pattern(database)?, pattern(table)?));
        }
        if filter.included.is_empty() {
            return Err((None, "includes no tables".to_owned()));
        }
        Ok(filter)
    }

    /// The including globs that match none of these tables.
    pub(crate) fn unmatched(&self, tables: &[TableName]) -> Vec<String> {
        let is_matched = |(database, table): &(Pattern, Pattern)| {
            tables.iter().any(|name| database.matches(&name.database) && table.matches(&name.table))
        };
        let unmatched = self.included.iter().filter(|globs| !is_matched(globs));
        unmatched.map(|(database, table)| format!("{database}.{table}")).collect()
    }

    /// The included tables that globs without wildcards name.
    pub(crate) fn named(&self) -> Vec<TableName> {
        let is_exact = |pattern: &Pattern| !pattern.as_str().contains(['*', '?', '[']);
        let globs = self.included.iter().filter(|(database, table)| is_exact(database) && is_exact(table));
        globs
            .map(|(database, table)| TableName::new(database.as_str(), table.as_str()))
            .filter(|name| self.includes(&name.database, &name.table))
            .collect()
    }

    /// Whether a table of this database could be included.
    pub(crate) fn may_include_database(&self, database: &str) -> bool {
        !SYSTEM_DATABASES.contains(&database) && self.included.iter().any(|(pattern, _)| pattern.matches(database))
    }

    /// Whether a table is included.
    pub(crate) fn includes(&self, database: &str, table: &str) -> bool {
        let any = |list: &[(Pattern, Pattern)]| list.iter().any(|(d, t)| d.matches(database) && t.matches(table));
        !SYSTEM_DATABASES.contains(&database) && any(&self.included) && !any(&self.excluded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(globs: &[&str]) -> Result<TableFilter, (Option<usize>, String)> {
        TableFilter::new(&globs.iter().map(|glob| (*glob).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn exclusions_override_inclusions() {
        let tables = filter(&["shop.*", "!shop.audit_*", "crm.people"]).unwrap();
        assert!(tables.includes("shop", "orders") && tables.includes("crm", "people"));
        assert!(!tables.includes("shop", "audit_1") && !tables.includes("crm", "orders"));
        assert!(!tables.includes("shops", "x"));
        assert!(!filter(&["*.*"]).unwrap().includes("mysql", "user"));
        let named = filter(&["a.b", "a.c*", "[x].y", "a.d", "!a.d", "mysql.user"]).unwrap().named();
        assert_eq!(named, [TableName::new("a", "b")]);
    }

    #[test]
    fn invalid_globs_are_reported_by_their_index() {
        assert_eq!(filter(&["a.b", "orders"]).unwrap_err().0, Some(1));
        assert_eq!(filter(&["!a.b"]).unwrap_err().0, None);
        assert_eq!(filter(&["a.["]).unwrap_err().0, Some(0));
        assert_eq!(filter(&["."]).unwrap_err().0, Some(0));
    }
}
