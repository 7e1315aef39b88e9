//! Compares actual records with expected ones, and shows the difference as lines.

use super::json_text::pretty;
use super::record::ExpectedRecord;

/// Unchanged lines that surround a change.
const CONTEXT: usize = 2;
/// With more lines than this, the table of the comparison would be too large.
const MAX_LINES: usize = 4000;

/// Whether the actual records match the expected ones, in order.
pub fn compare(expected: &[ExpectedRecord], actual: &[ExpectedRecord]) -> bool {
    expected.len() == actual.len() && expected.iter().zip(actual).all(|(expected, actual)| expected.matches(actual))
}

/// The difference for people: `-` lines are expected, `+` lines are actual. Parts that an expected
/// record does not name are not shown.
pub fn difference(expected: &[ExpectedRecord], actual: &[ExpectedRecord]) -> String {
    let wanted: Vec<String> = lines(expected.iter());
    let reduced: Vec<ExpectedRecord> = actual
        .iter()
        .enumerate()
        .map(|(index, actual)| match expected.get(index) {
            Some(expected) if expected.matches(actual) => expected.clone(),
            Some(expected) if expected.rejected.is_some() == actual.rejected.is_some() => reduce(expected, actual),
            _ => actual.clone(),
        })
        .collect();
    render(&edits(&wanted, &lines(reduced.iter())))
}

/// The actual record with the parts that the expected one names.
fn reduce(expected: &ExpectedRecord, actual: &ExpectedRecord) -> ExpectedRecord {
    let mut reduced = actual.clone();
    reduced.parts.retain(|name, _| expected.parts.contains_key(name));
    if reduced.output.as_deref() == Some("default") && expected.output.is_none() {
        reduced.output = None;
    }
    reduced
}

fn lines<'a>(records: impl Iterator<Item = &'a ExpectedRecord>) -> Vec<String> {
    records.flat_map(|record| pretty(&record.line()).lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edit<'a> {
    Keep(&'a str),
    Remove(&'a str),
    Add(&'a str),
}

/// The shortest edit from `old` to `new`, by the longest common subsequence.
fn edits<'a>(old: &'a [String], new: &'a [String]) -> Vec<Edit<'a>> {
    let same = |(a, b): &(&String, &String)| a == b;
    let start = old.iter().zip(new).take_while(same).count();
    let end = old[start..].iter().rev().zip(new[start..].iter().rev()).take_while(same).count();
    let (middle_old, middle_new) = (&old[start..old.len() - end], &new[start..new.len() - end]);
    let mut all: Vec<Edit<'_>> = old[..start].iter().map(|line| Edit::Keep(line)).collect();
    if middle_old.len().max(middle_new.len()) > MAX_LINES {
        all.extend(middle_old.iter().map(|line| Edit::Remove(line)));
        all.extend(middle_new.iter().map(|line| Edit::Add(line)));
    } else {
        all.extend(shortest_edits(middle_old, middle_new));
    }
    all.extend(old[old.len() - end..].iter().map(|line| Edit::Keep(line)));
    all
}

fn shortest_edits<'a>(old: &'a [String], new: &'a [String]) -> Vec<Edit<'a>> {
    let width = new.len() + 1;
    // the length of the longest common subsequence of old[row..] and new[column..]
    let mut common = vec![0u16; (old.len() + 1) * width];
    for row in (0..old.len()).rev() {
        for column in (0..new.len()).rev() {
            common[row * width + column] = match old[row] == new[column] {
                true => common[(row + 1) * width + column + 1] + 1,
                false => common[(row + 1) * width + column].max(common[row * width + column + 1]),
            };
        }
    }
    let (mut row, mut column) = (0, 0);
    let mut edits = Vec::new();
    while row < old.len() || column < new.len() {
        if row < old.len() && column < new.len() && old[row] == new[column] {
            edits.push(Edit::Keep(&old[row]));
            (row, column) = (row + 1, column + 1);
        } else if column == new.len()
            || row < old.len() && common[(row + 1) * width + column] >= common[row * width + column + 1]
        {
            edits.push(Edit::Remove(&old[row]));
            row += 1;
        } else {
            edits.push(Edit::Add(&new[column]));
            column += 1;
        }
    }
    edits
}

fn render(edits: &[Edit<'_>]) -> String {
    let is_change = |edit: &Edit<'_>| !matches!(edit, Edit::Keep(_));
    let near = |index: usize| {
        let from = index.saturating_sub(CONTEXT);
        edits[from..(index + CONTEXT + 1).min(edits.len())].iter().any(is_change)
    };
    let mut text = String::new();
    let mut omitted = false;
    for (index, edit) in edits.iter().enumerate() {
        match edit {
            Edit::Keep(_) if !near(index) => {
                omitted = true;
                continue;
            }
            _ if omitted => text.push_str("    ..\n"),
            _ => {}
        }
        omitted = false;
        let (mark, line) = match edit {
            Edit::Keep(line) => (' ', line),
            Edit::Remove(line) => ('-', line),
            Edit::Add(line) => ('+', line),
        };
        text.push_str(&format!("  {mark} {line}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(lines: &[&str]) -> Vec<ExpectedRecord> {
        lines.iter().map(|line| ExpectedRecord::parse(line).unwrap()).collect()
    }

    #[test]
    fn difference_shows_the_changed_member_with_its_surroundings() {
        let expected = records(&[r#"{"value":{"a":1,"b":2,"c":3,"d":4,"e":5}}"#, r#"{"value":1}"#]);
        let actual = records(&[r#"{"key":"k","value":{"a":1,"b":2,"c":9,"d":4,"e":5}}"#, r#"{"value":1}"#]);
        assert!(!compare(&expected, &actual));
        assert_eq!(
            difference(&expected, &actual),
            "    ..\n        \"a\": 1,\n        \"b\": 2,\n  -     \"c\": 3,\n  +     \"c\": 9,\n        \"d\": 4,\n        \"e\": 5\n"
        );
    }

    #[test]
    fn missing_and_additional_records_are_shown() {
        let both = records(&[r#"{"value":1}"#, r#"{"value":2}"#]);
        assert!(!compare(&both, &both[..1]));
        assert_eq!(difference(&both, &both[..1]).matches("\n  -").count(), 3);
        assert_eq!(difference(&both[..1], &both).matches("\n  +").count(), 3);
        assert!(compare(&both, &both));
    }
}
