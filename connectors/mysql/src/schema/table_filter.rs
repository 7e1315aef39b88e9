//! Which tables a source takes: globs of `database.table`, some of them exclusions.

use glob::Pattern;

/// The server's own databases.
const OWN: [&str; 4] = ["mysql", "sys", "information_schema", "performance_schema"];

/// The globs of `tables`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    chosen: Vec<(Pattern, Pattern)>,
    excluded: Vec<(Pattern, Pattern)>,
}

impl Selection {
    /// From globs as written. An error has the index of the glob that is wrong, if it is one, and what is wrong as the end of the
    /// sentence "`tables` ...".
    pub fn new(globs: &[String]) -> Result<Self, (Option<usize>, String)> {
        let mut selection = Self { chosen: Vec::new(), excluded: Vec::new() };
        for (index, glob) in globs.iter().enumerate() {
            let wrong = |why: String| (Some(index), format!("has `{glob}`, {why}"));
            let (list, glob) = match glob.strip_prefix('!') {
                Some(rest) => (&mut selection.excluded, rest),
                None => (&mut selection.chosen, glob.as_str()),
            };
            let (database, table) =
                glob.split_once('.').ok_or_else(|| wrong("which has no `.` between database and table".to_owned()))?;
            if database.is_empty() || table.is_empty() {
                return Err(wrong("where the name of the database or the table is empty".to_owned()));
            }
            let pattern = |text: &str| {
                Pattern::new(text).map_err(|error| wrong(format!("which is no glob: {} in `{text}`", error.msg)))
            };
            list.push((pattern(database)?, pattern(table)?));
        }
        if selection.chosen.is_empty() {
            return Err((None, "chooses no tables".to_owned()));
        }
        Ok(selection)
    }

    /// Could a table of this database be chosen?
    pub(crate) fn may_take_of(&self, database: &str) -> bool {
        !OWN.contains(&database) && self.chosen.iter().any(|(pattern, _)| pattern.matches(database))
    }

    /// Is a table chosen?
    pub fn takes(&self, database: &str, table: &str) -> bool {
        let among = |list: &[(Pattern, Pattern)]| list.iter().any(|(d, t)| d.matches(database) && t.matches(table));
        !OWN.contains(&database) && among(&self.chosen) && !among(&self.excluded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(globs: &[&str]) -> Result<Selection, (Option<usize>, String)> {
        Selection::new(&globs.iter().map(|glob| (*glob).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn exclusions_take_away() {
        let chosen = selection(&["shop.*", "!shop.audit_*", "crm.people"]).unwrap();
        assert!(chosen.takes("shop", "orders") && chosen.takes("crm", "people"));
        assert!(!chosen.takes("shop", "audit_1") && !chosen.takes("crm", "orders") && !chosen.takes("shops", "x"));
        assert!(!selection(&["*.*"]).unwrap().takes("mysql", "user"));
    }

    #[test]
    fn what_is_no_choice_is_told() {
        assert_eq!(selection(&["a.b", "orders"]).unwrap_err().0, Some(1));
        assert_eq!(selection(&["!a.b"]).unwrap_err().0, None);
        assert_eq!(selection(&["a.["]).unwrap_err().0, Some(0));
        assert_eq!(selection(&["."]).unwrap_err().0, Some(0));
    }
}
