//! Recognises the schema changes that the connector emits: an allow list of the words at the start
//! of a statement. No other statement leaves the connector, because statements about users contain
//! password hashes. Only the names at the start are parsed.

use super::parse::Tokenizer;

/// A schema change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Definition {
    /// The affected names: the database, if the statement has it, and the table; `None` for a
    /// statement about a database.
    names: Vec<(Option<String>, Option<String>)>,
}

impl Definition {
    /// Parses a statement about tables, indexes or databases; `None` for any other statement.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let mut words = Tokenizer::with_versioned_comments(text);
        let verb = words.next_word();
        let kind = words.next_word();
        let names = match (verb.as_str(), kind.as_str()) {
            ("TRUNCATE", "TABLE") => words.tables(&[])?,
            ("TRUNCATE", _) => {
                words = Tokenizer::with_versioned_comments(text);
                words.next_word();
                words.tables(&[])?
            }
            ("ALTER" | "CREATE", "TABLE") => {
                words.skip_condition();
                words.tables(&[])?
            }
            // MariaDB's CREATE OR REPLACE TABLE.
            ("CREATE", "OR") if words.next_word() == "REPLACE" && words.next_word() == "TABLE" => words.tables(&[])?,
            ("DROP", "TABLE" | "TABLES") => {
                words.skip_condition();
                words.tables(&[","])?
            }
            ("RENAME", "TABLE" | "TABLES") => {
                words.skip_condition();
                words.tables(&[",", "TO"])?
            }
            ("ALTER" | "CREATE" | "DROP", "DATABASE" | "SCHEMA") => {
                words.skip_condition();
                let before = words.clone();
                // ALTER DATABASE without a name refers to the session's database.
                let is_option =
                    matches!(words.next_word().as_str(), "CHARACTER" | "DEFAULT" | "COLLATE" | "ENCRYPTION" | "READ");
                words = before;
                vec![(if is_option { None } else { words.name() }, None)]
            }
            ("CREATE" | "DROP", "INDEX") => words.table_of_index()?,
            ("CREATE", "UNIQUE" | "FULLTEXT" | "SPATIAL") if words.next_word() == "INDEX" => words.table_of_index()?,
            _ => return None,
        };
        Some(Self { names })
    }

    /// The first affected database that `includes` accepts, and its affected tables. `session` is
    /// the session's database; `others` are further affected databases, from the server.
    pub(super) fn affected<'a>(
        &'a self,
        session: &'a str,
        others: &[&'a str],
        includes: impl Fn(&str) -> bool,
    ) -> Option<(&'a str, Vec<&'a str>)> {
        let database = |named: &'a Option<String>| named.as_deref().unwrap_or(session);
        let named = self.names.iter().map(|(named, _)| database(named));
        let affected = named.chain(others.iter().copied()).find(|database| includes(database))?;
        let tables = self.names.iter().filter(|(named, _)| database(named) == affected);
        Some((affected, tables.filter_map(|(_, table)| table.as_deref()).collect()))
    }
}

/// Whether the statement may contain the password of another server (`CONNECTION =
/// 'mysql://user:password@host/..'` of the engine FEDERATED).
pub(super) fn may_contain_secret(text: &str) -> bool {
    text.contains("://") && text.to_ascii_uppercase().contains("CONNECTION")
}

impl Tokenizer<'_> {
    /// Skips `IF EXISTS` and `IF NOT EXISTS`. Returns whether there was one.
    pub(super) fn skip_condition(&mut self) -> bool {
        let before = self.clone();
        if self.next_word() != "IF" {
            *self = before;
            return false;
        }
        let is_negated = self.next_word() == "NOT";
        if is_negated {
            self.next_word();
        }
        true
    }

    /// A table, and further tables after one of the separators.
    fn tables(&mut self, separators: &[&str]) -> Option<Vec<(Option<String>, Option<String>)>> {
        let mut tables = Vec::new();
        loop {
            let first = self.name()?;
            tables.push(match self.skip(b'.') {
                true => (Some(first), Some(self.name()?)),
                false => (None, Some(first)),
            });
            if !separators.iter().any(|separator| self.skip_separator(separator)) {
                return Some(tables);
            }
        }
    }

    fn skip_separator(&mut self, separator: &str) -> bool {
        if separator == "," {
            return self.skip(b',');
        }
        let before = self.clone();
        let found = self.next_word() == separator;
        if !found {
            *self = before;
        }
        found
    }

    /// The table of `name [USING BTREE] ON table`.
    fn table_of_index(&mut self) -> Option<Vec<(Option<String>, Option<String>)>> {
        self.skip_condition();
        self.name()?;
        let mut word = self.next_word();
        if word == "USING" {
            self.next_word();
            word = self.next_word();
        }
        if word == "ON" { self.tables(&[]) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn affected<'a>(definition: &'a Definition, others: &[&'a str]) -> Option<(&'a str, Vec<&'a str>)> {
        definition.affected("shop", others, |database| database == "shop" || database == "crm")
    }

    #[test]
    fn only_allowed_statements_are_parsed() {
        for (text, database, tables) in [
            ("ALTER TABLE orders ADD x INT", "shop", vec!["orders"]),
            ("/* a */ create /* b */ table if not exists `crm` . `a``b` (id INT)", "crm", vec!["a`b"]),
            ("CREATE TABLE \"crm\".\"x\" (id INT)", "crm", vec!["x"]),
            ("DROP TABLE IF EXISTS `a`,`crm`.`b`,c /* generated by server */", "shop", vec!["a", "c"]),
            ("RENAME TABLE other.a TO crm.b, c TO crm.d", "crm", vec!["b", "d"]),
            ("TRUNCATE orders", "shop", vec!["orders"]),
            ("TRUNCATE TABLE crm.orders", "crm", vec!["orders"]),
            ("CREATE UNIQUE INDEX i USING BTREE ON crm.t (a)", "crm", vec!["t"]),
            ("DROP INDEX i ON t", "shop", vec!["t"]),
            ("CREATE DATABASE IF NOT EXISTS crm", "crm", vec![]),
            ("ALTER DATABASE CHARACTER SET latin1", "shop", vec![]),
            ("/*!40000 ALTER TABLE `t` DISABLE KEYS */", "shop", vec!["t"]),
            ("CREATE TABLE t(id INT)", "shop", vec!["t"]),
            ("CREATE OR REPLACE TABLE crm.t (id INT)", "crm", vec!["t"]),
        ] {
            let definition = Definition::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(affected(&definition, &[]), Some((database, tables)), "{text}");
        }
        for text in [
            "CREATE USER a IDENTIFIED WITH x AS 'hash'",
            "/*!50003 CREATE USER a */",
            "ALTER USER a IDENTIFIED BY 'x'",
            "SET PASSWORD FOR a = 'x'",
            "GRANT ALL ON *.* TO a",
            "CREATE DEFINER=`a`@`b` TRIGGER t BEFORE INSERT ON x FOR EACH ROW SET @a = 1",
            "CREATE TEMPORARY TABLE t (id INT)",
            "CREATE OR REPLACE USER a IDENTIFIED BY 'x'",
            "CREATE SERVER s FOREIGN DATA WRAPPER mysql OPTIONS (PASSWORD 'x')",
            "CHANGE REPLICATION SOURCE TO SOURCE_PASSWORD = 'x'",
            "INSERT INTO t VALUES ('ALTER TABLE t')",
            "-- ALTER TABLE t\nDROP USER a",
            "",
        ] {
            assert_eq!(Definition::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn only_statements_about_included_databases_are_emitted() {
        let elsewhere = Definition::parse(b"ALTER TABLE other.t RENAME TO shop.t").unwrap();
        assert_eq!(affected(&elsewhere, &[]), None);
        assert_eq!(affected(&elsewhere, &["other", "shop"]), Some(("shop", vec![])));
        assert!(may_contain_secret("CREATE TABLE t (id INT) ENGINE=FEDERATED connection='mysql://u:p@h/d/t'"));
        assert!(!may_contain_secret("ALTER TABLE t ADD url TEXT DEFAULT 'http://x'"));
    }

    proptest! {
        #[test]
        fn invalid_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), at in 0usize..4) {
            let mut text = ["", "ALTER TABLE ", "RENAME TABLE ", "CREATE INDEX "][at].as_bytes().to_vec();
            text.extend_from_slice(&bytes);
            let _ = Definition::parse(&text);
        }
    }
}
