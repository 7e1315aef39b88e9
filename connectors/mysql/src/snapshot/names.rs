//! Globs of `tables` that match no table, and pairs of tables that share a joined name.

use trunkline_connector::Result;
use trunkline_connector::config::nearest;

use crate::config::MysqlOptions;
use crate::connection::query::QueryConnection;
use crate::schema::table_name::TableName;

/// A glob of `tables` that matches no table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnmatchedGlob {
    /// The reason, as a sentence about `tables`.
    pub(crate) message: String,
    /// How to correct it; `None` if the table may not exist yet, or not be readable.
    pub(crate) fix: Option<String>,
}

/// The globs of `tables` that match none of these tables.
pub(crate) async fn unmatched_globs(
    options: &MysqlOptions,
    connection: &mut QueryConnection,
    tables: &[TableName],
) -> Result<Vec<UnmatchedGlob>> {
    let unmatched = options.tables.unmatched(tables);
    if unmatched.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES WHERE TABLE_TYPE = 'BASE TABLE'";
    let rows = connection.query(sql).await?;
    let names: Vec<TableName> = rows
        .iter()
        .filter_map(|row| match row.as_slice() {
            [Some(database), Some(table)] => Some(TableName::new(database, table)),
            _ => None,
        })
        .collect();
    let user = &options.connection.address.user;
    Ok(unmatched.into_iter().map(|glob| unmatched_glob(&glob, &names, user)).collect())
}

fn unmatched_glob(glob: &str, names: &[TableName], user: &str) -> UnmatchedGlob {
    let (database, table) = glob.split_once('.').unwrap_or((glob, ""));
    let message =
        |hint: &str| format!("`tables` has `{glob}`, which matches no table that the user `{user}` may read{hint}");
    let matches = |pattern: &str, name: &str, is_case_sensitive: bool| {
        let options = glob::MatchOptions { case_sensitive: is_case_sensitive, ..glob::MatchOptions::default() };
        glob::Pattern::new(pattern).is_ok_and(|pattern| pattern.matches_with(name, options))
    };
    let other_case =
        names.iter().find(|name| matches(database, &name.database, false) && matches(table, &name.table, false));
    if let Some(name) = other_case {
        let fix = match matches(database, &name.database, true) {
            true => format!("write the table's name as the server does: `{name}`"),
            false => format!("write the database's name as the server does: `{}.{table}`", name.database),
        };
        return UnmatchedGlob { message: message(": names are case-sensitive"), fix: Some(fix) };
    }
    let is_literal = |text: &str| !text.contains(['*', '?', '[']);
    let databases: Vec<&str> = names.iter().map(|name| name.database.as_str()).collect();
    let tables: Vec<&str> =
        names.iter().filter(|name| name.database == database).map(|name| name.table.as_str()).collect();
    let near = match databases.contains(&database) {
        true if is_literal(table) => nearest(table, &tables).map(|near| format!("{database}.{near}")),
        false if is_literal(database) => nearest(database, &databases).map(|near| format!("{near}.{table}")),
        _ => None,
    };
    match near {
        Some(near) => UnmatchedGlob { message: message(""), fix: Some(format!("did you mean `{near}`?")) },
        None => UnmatchedGlob { message: message(""), fix: None },
    }
}

/// Pairs of different tables with the same joined name `database.table`, which the default topic is
/// made of.
pub(crate) fn ambiguous_names(tables: &[TableName]) -> Vec<String> {
    let joined = |name: &TableName| format!("{}.{}", name.database, name.table);
    let mut names: Vec<(String, &TableName)> = tables.iter().map(|name| (joined(name), name)).collect();
    names.sort();
    names
        .windows(2)
        .filter(|pair| pair[0].0 == pair[1].0)
        .map(|pair| {
            format!(
                "the tables {} and {} have the same default topic `{}`, where rows of one replace rows of the other with the same key",
                pair[0].1, pair[1].1, pair[0].0
            )
        })
        .collect()
}

/// The remedy for ambiguous names.
pub(crate) const AMBIGUOUS_FIX: &str = "set `topic` to a template that distinguishes them, such as `{@database}-{@table}`, or exclude one of them from `tables`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmatched_globs_have_a_hint() {
        let names = [TableName::new("zoo", "Animals"), TableName::new("shop", "orders")];
        let fix = |glob: &str| unmatched_glob(glob, &names, "u").fix;
        assert_eq!(fix("ZOO.*").unwrap(), "write the database's name as the server does: `zoo.*`");
        assert_eq!(fix("zoo.animals").unwrap(), "write the table's name as the server does: `zoo.Animals`");
        assert_eq!(fix("shop.order").unwrap(), "did you mean `shop.orders`?");
        assert_eq!(fix("shoop.*").unwrap(), "did you mean `shop.*`?");
        assert_eq!(fix("other.things"), None);
    }

    #[test]
    fn tables_with_the_same_joined_name_are_found() {
        let names = [TableName::new("dd", "b.c"), TableName::new("shop", "orders"), TableName::new("dd.b", "c")];
        assert_eq!(ambiguous_names(&names).len(), 1);
        assert!(ambiguous_names(&names[..2]).is_empty());
    }
}
