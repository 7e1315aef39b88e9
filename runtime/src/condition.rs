//! [`Condition`]: an expression in CEL that selects records, for `--where`.

use trunkline_connector::{Batch, Error, RecordRef, Rejections, Result};
use trunkline_transform_host::{Host, Instance, Limits};

/// The bundled plugin that evaluates it.
const FILTER: &str = "filter.wasm";

/// A condition on records: an expression in CEL.
pub struct Condition {
    filter: Instance,
    rejections: Rejections,
    /// Records for which it has no value, because a member is missing, for example.
    undecided: u64,
    /// Why it has no value for the first of them.
    first: Option<String>,
}

impl Condition {
    /// Compiles the expression.
    ///
    /// # Errors
    /// `replay.bad_where`: with the column in the expression.
    pub fn compile(host: &Host, expression: &str) -> Result<Self> {
        Self::compile_rooted(host, expression, ("", &[]))
    }

    /// Compiles an expression with these variables, which are members of the root.
    pub fn compile_rooted(host: &Host, expression: &str, variables: (&str, &[&str])) -> Result<Self> {
        let (expanded, insertions) = expand(expression, variables);
        let plugin = host
            .bundled(FILTER)
            .ok_or_else(|| Error::internal("plugin.load", format!("the plugin {FILTER} is not bundled")))?
            .map_err(|error| Error::config("plugin.load", format!("--where: {error}")))?;
        let config = serde_json::json!({ "condition": expanded, "tombstones": "test" });
        let filter = plugin.start(&config, &Limits::default()).map_err(|error| {
            let message = with_own_columns(&error.message, &insertions);
            Error::config("replay.bad_where", format!("--where: {message}"))
        })?;
        Ok(Self { filter, rejections: Rejections::default(), undecided: 0, first: None })
    }

    /// Leaves the records in the batch for which it is true.
    pub fn retain(&mut self, batch: &mut Batch) -> Result<()> {
        let context = |error: Error| error.context("--where");
        self.filter.ready().map_err(context)?;
        self.rejections.clear();
        self.filter.process(batch, &mut self.rejections).map_err(context)?;
        self.undecided += self.rejections.len() as u64;
        if let (None, Some((_, reason))) = (&self.first, self.rejections.iter().next()) {
            self.first = Some(reason.message.clone());
        }
        Ok(())
    }

    /// How many records it had no value for, and why.
    pub fn note(&self) -> Option<String> {
        let (undecided, first) = (self.undecided, self.first.as_ref()?);
        Some(format!("{undecided} for which --where is neither true nor false; the first one: {first}"))
    }

    /// Whether it is true for a record.
    pub fn holds(&mut self, record: RecordRef<'_>) -> Result<bool> {
        let mut single = Batch::default();
        single.push_copy(record);
        self.retain(&mut single)?;
        Ok(!single.is_empty())
    }
}

/// The expression in CEL: with the root before each variable, and `==` for a single `=`, which is
/// SQL's. Also the columns of the result, from 1, before which characters were inserted, with their
/// number.
fn expand(expression: &str, (root, variables): (&str, &[&str])) -> (String, Vec<(usize, usize)>) {
    let characters: Vec<char> = expression.chars().collect();
    let (mut out, mut insertions) = (String::new(), Vec::new());
    let mut columns = 0;
    let mut at = 0;
    let mut insert = |out: &mut String, columns: &mut usize, text: &str| {
        insertions.push((*columns + 1, text.len()));
        *columns += text.len();
        out.push_str(text);
    };
    let push = |out: &mut String, columns: &mut usize, part: &[char]| {
        out.extend(part);
        *columns += part.len();
    };
    while let Some(character) = characters.get(at).copied() {
        let end = match character {
            '"' | '\'' => string_end(&characters, at),
            first if first.is_ascii_alphabetic() || first == '_' => {
                let is_part = |character: &char| character.is_ascii_alphanumeric() || *character == '_';
                let end = at + characters[at..].iter().take_while(|character| is_part(character)).count();
                let word: String = characters[at..end].iter().collect();
                let before = characters[..at].iter().rev().find(|character| !character.is_whitespace());
                let after = characters[end..].iter().find(|character| !character.is_whitespace());
                let is_prefix = characters.get(end).is_some_and(|next| matches!(next, '"' | '\''));
                let is_variable = before != Some(&'.') && after != Some(&'(') && !is_prefix;
                if is_variable && variables.contains(&word.as_str()) {
                    insert(&mut out, &mut columns, root);
                }
                end
            }
            '=' => {
                let before = at.checked_sub(1).and_then(|before| characters.get(before));
                let is_operator = matches!(before, Some('=' | '!' | '<' | '>')) || characters.get(at + 1) == Some(&'=');
                if !is_operator {
                    insert(&mut out, &mut columns, "=");
                }
                at + 1
            }
            _ => at + 1,
        };
        push(&mut out, &mut columns, &characters[at..end]);
        at = end;
    }
    (out, insertions)
}

/// The end of the string that starts at `at`.
fn string_end(characters: &[char], at: usize) -> usize {
    let mut end = at + 1;
    while let Some(character) = characters.get(end) {
        match character {
            '\\' => end += 2,
            character if *character == characters[at] => return end + 1,
            _ => end += 1,
        }
    }
    characters.len()
}

/// A message about the expanded expression, with the columns of the one that was given.
fn with_own_columns(message: &str, insertions: &[(usize, usize)]) -> String {
    const COLUMN: &str = "column ";
    let mut out = String::new();
    let mut rest = message;
    while let Some((before, after)) = rest.split_once(COLUMN) {
        let digits = after.len() - after.trim_start_matches(|character: char| character.is_ascii_digit()).len();
        out.push_str(before);
        out.push_str(COLUMN);
        match after[..digits].parse::<usize>() {
            Ok(column) => {
                let inserted: usize = insertions
                    .iter()
                    .filter(|(place, _)| *place < column)
                    .map(|(place, len)| (*len).min(column - place))
                    .sum();
                out.push_str(&(column - inserted).to_string());
            }
            Err(_) => out.push_str(&after[..digits]),
        }
        rest = &after[digits..];
    }
    out.push_str(rest);
    out
}
