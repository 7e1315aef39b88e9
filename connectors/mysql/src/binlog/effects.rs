//! The effects of schema changes on the set of tables and on rows, as far as row events do not show
//! them: tables that appear and disappear, and rows that vanish without a delete event.

use super::parse::Tokenizer;
use crate::schema::table_name::TableName;

/// An effect of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// A new, empty table.
    Created(TableName),
    /// A new table, unless it existed.
    MaybeCreated(TableName),
    /// A new, empty table in place of an existing one.
    Replaced(TableName),
    Dropped(TableName),
    DatabaseDropped(String),
    /// All renames of the statement, in order: old name, new name.
    Renamed(Vec<(TableName, TableName)>),
    /// The table lost or exchanged rows by this clause.
    RowsRemoved(TableName, &'static str),
}

/// The effects of a statement that runs in the database `session`.
pub(super) fn effects_of(text: &[u8], session: &str) -> Vec<Effect> {
    parse(text, session).unwrap_or_default()
}

fn parse(text: &[u8], session: &str) -> Option<Vec<Effect>> {
    let mut words = Tokenizer::with_versioned_comments(text);
    let verb = words.next_word();
    let mut kind = words.next_word();
    match verb.as_str() {
        "CREATE" => {
            let is_replacement = kind == "OR" && words.next_word() == "REPLACE";
            if is_replacement {
                kind = words.next_word();
            }
            if kind != "TABLE" {
                return None;
            }
            let is_conditional = words.skip_condition();
            let name = words.table(session)?;
            Some(vec![match (is_replacement, is_conditional) {
                (true, _) => Effect::Replaced(name),
                (false, true) => Effect::MaybeCreated(name),
                (false, false) => Effect::Created(name),
            }])
        }
        "DROP" if matches!(kind.as_str(), "TABLE" | "TABLES") => {
            words.skip_condition();
            let mut effects = Vec::new();
            loop {
                effects.push(Effect::Dropped(words.table(session)?));
                if !words.skip(b',') {
                    return Some(effects);
                }
            }
        }
        "DROP" if matches!(kind.as_str(), "DATABASE" | "SCHEMA") => {
            words.skip_condition();
            Some(vec![Effect::DatabaseDropped(words.name()?)])
        }
        "RENAME" if matches!(kind.as_str(), "TABLE" | "TABLES") => {
            words.skip_condition();
            let mut renames = Vec::new();
            loop {
                let from = words.table(session)?;
                // MariaDB accepts WAIT n and NOWAIT here.
                while !matches!(words.next_word().as_str(), "TO" | "") {}
                renames.push((from, words.table(session)?));
                if !words.skip(b',') {
                    return Some(vec![Effect::Renamed(renames)]);
                }
            }
        }
        "ALTER" => {
            let is_ignoring = kind == "IGNORE";
            while matches!(kind.as_str(), "IGNORE" | "ONLINE") {
                kind = words.next_word();
            }
            if kind != "TABLE" {
                return None;
            }
            words.skip_condition();
            let table = words.table(session)?;
            let mut effects = alterations(&table, words, session);
            if is_ignoring {
                effects.push(Effect::RowsRemoved(table, "ALTER IGNORE"));
            }
            Some(effects)
        }
        _ => None,
    }
}

/// The effects of the clauses of ALTER TABLE.
fn alterations(table: &TableName, mut words: Tokenizer<'_>, session: &str) -> Vec<Effect> {
    let mut effects = Vec::new();
    let mut previous = String::new();
    while let Some(word) = words.next_clause_word() {
        match (previous.as_str(), word.as_str()) {
            ("TRUNCATE", "PARTITION") => {
                effects.push(Effect::RowsRemoved(table.clone(), "TRUNCATE PARTITION"));
            }
            ("DROP", "PARTITION") => effects.push(Effect::RowsRemoved(table.clone(), "DROP PARTITION")),
            ("DISCARD" | "IMPORT", "TABLESPACE" | "PARTITION") => {
                effects.push(Effect::RowsRemoved(table.clone(), "DISCARD or IMPORT TABLESPACE"));
            }
            // MySQL's EXCHANGE PARTITION p WITH TABLE t; MariaDB's CONVERT TABLE t TO PARTITION p,
            // and its reverse.
            ("WITH" | "CONVERT", "TABLE") | ("TO", "TABLE") => {
                effects.push(Effect::RowsRemoved(table.clone(), "EXCHANGE or CONVERT PARTITION"));
                if let Some(other) = words.table(session) {
                    effects.push(match previous.as_str() {
                        "TO" => Effect::MaybeCreated(other),
                        "CONVERT" => Effect::Dropped(other),
                        _ => Effect::RowsRemoved(other, "EXCHANGE PARTITION"),
                    });
                }
            }
            ("RENAME", "COLUMN" | "INDEX" | "KEY" | "CONSTRAINT") => {}
            ("RENAME", "TO" | "AS") => {
                if let Some(to) = words.table(session) {
                    effects.push(Effect::Renamed(vec![(table.clone(), to)]));
                }
            }
            (_, "RENAME") => {
                let mut rest = words.clone();
                let next = rest.next_word();
                if !matches!(next.as_str(), "TO" | "AS" | "COLUMN" | "INDEX" | "KEY" | "CONSTRAINT")
                    && let Some(to) = words.table(session)
                {
                    effects.push(Effect::Renamed(vec![(table.clone(), to)]));
                }
            }
            _ => {}
        }
        previous = word;
    }
    effects
}

impl Tokenizer<'_> {
    /// A table, in the session's database unless the name has one.
    fn table(&mut self, session: &str) -> Option<TableName> {
        let first = self.name()?;
        Some(match self.skip(b'.') {
            true => TableName::new(first, self.name()?),
            false => TableName::new(session, first),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn statements_have_their_effects() {
        let name = |database: &str, table: &str| TableName::new(database, table);
        let renamed = |pairs: &[(&str, &str)]| {
            Effect::Renamed(pairs.iter().map(|(from, to)| (name("s", from), name("s", to))).collect())
        };
        let removed = |table: &str, clause| Effect::RowsRemoved(name("s", table), clause);
        for (text, effects) in [
            ("CREATE TABLE t (id INT)", vec![Effect::Created(name("s", "t"))]),
            ("create table if not exists `a.b`.`t` like u", vec![Effect::MaybeCreated(name("a.b", "t"))]),
            ("CREATE OR REPLACE TABLE t (id INT)", vec![Effect::Replaced(name("s", "t"))]),
            ("CREATE TEMPORARY TABLE t (id INT)", vec![]),
            ("CREATE OR REPLACE VIEW t AS SELECT 1", vec![]),
            (
                "DROP TABLE IF EXISTS `t`,x.`u` /* generated by server */",
                vec![Effect::Dropped(name("s", "t")), Effect::Dropped(name("x", "u"))],
            ),
            ("DROP DATABASE IF EXISTS x", vec![Effect::DatabaseDropped("x".to_owned())]),
            ("RENAME TABLE t TO t_old, `t_new` TO t", vec![renamed(&[("t", "t_old"), ("t_new", "t")])]),
            ("RENAME TABLE t WAIT 10 TO u", vec![renamed(&[("t", "u")])]),
            ("ALTER TABLE t RENAME u", vec![renamed(&[("t", "u")])]),
            ("ALTER TABLE t ADD c INT DEFAULT 1, RENAME TO `u`", vec![renamed(&[("t", "u")])]),
            ("ALTER TABLE t RENAME COLUMN a TO b, RENAME INDEX c TO d", vec![]),
            ("ALTER TABLE t ADD c VARCHAR(9) COMMENT 'RENAME TO u', ADD d INT CHECK (d > 1)", vec![]),
            ("ALTER TABLE t TRUNCATE PARTITION p1, p2", vec![removed("t", "TRUNCATE PARTITION")]),
            ("ALTER TABLE t DROP PARTITION p1", vec![removed("t", "DROP PARTITION")]),
            ("ALTER TABLE t DROP COLUMN c", vec![]),
            (
                "ALTER TABLE t EXCHANGE PARTITION p WITH TABLE u WITHOUT VALIDATION",
                vec![removed("t", "EXCHANGE or CONVERT PARTITION"), removed("u", "EXCHANGE PARTITION")],
            ),
            ("ALTER TABLE t IMPORT TABLESPACE", vec![removed("t", "DISCARD or IMPORT TABLESPACE")]),
            ("ALTER IGNORE TABLE t ADD UNIQUE (a)", vec![removed("t", "ALTER IGNORE")]),
            ("/*!40000 ALTER TABLE `t` DISABLE KEYS */", vec![]),
            ("INSERT INTO t VALUES (1)", vec![]),
        ] {
            assert_eq!(effects_of(text.as_bytes(), "s"), effects, "{text}");
        }
    }

    proptest! {
        #[test]
        fn invalid_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), at in 0usize..4) {
            let mut text = ["", "ALTER TABLE t ", "RENAME TABLE t ", "CREATE TABLE "][at].as_bytes().to_vec();
            text.extend_from_slice(&bytes);
            let _ = effects_of(&text, "s");
        }
    }
}
