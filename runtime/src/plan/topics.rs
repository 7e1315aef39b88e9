//! [`TopicShape`]: the topic names that a template can produce, and whether two templates can
//! produce the same one.

use trunkline_connector::Template;

use super::TopicSelector;
use super::names;

/// The names that a topic template can produce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopicShape {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Literal(char),
    /// Any one character.
    AnyChar,
    /// Any number of characters.
    AnyText,
}

impl TopicShape {
    pub(super) fn exact(topic: &str) -> Self {
        Self { pieces: topic.chars().map(Piece::Literal).collect() }
    }

    /// All of Trunkline's own topics.
    pub(super) fn internal() -> Self {
        let mut shape = Self::exact(names::INTERNAL_PREFIX);
        shape.pieces.push(Piece::AnyText);
        shape
    }

    pub(super) fn of(template: &Template) -> Self {
        let mut pieces = Vec::new();
        let pattern = template.pattern();
        let mut characters = pattern.chars();
        while let Some(character) = characters.next() {
            match character {
                // A placeholder is `.+`; a literal dot is escaped.
                '.' => {
                    characters.next();
                    pieces.extend([Piece::AnyChar, Piece::AnyText]);
                }
                '\\' => pieces.extend(characters.next().map(Piece::Literal)),
                _ => pieces.push(Piece::Literal(character)),
            }
        }
        Self { pieces }
    }

    /// Why no name of this shape is a valid topic, as the end of the sentence "`name` ...". The
    /// values of placeholders are checked per record.
    pub(super) fn error(&self) -> Option<String> {
        let literal: String = self
            .pieces
            .iter()
            .map(|piece| match piece {
                Piece::Literal(character) => *character,
                // Any allowed character.
                Piece::AnyChar | Piece::AnyText => 'x',
            })
            .collect();
        names::topic_error(&literal)
    }

    /// Can both produce the same name?
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (mine, theirs) = (&self.pieces, &other.pieces);
        // reachable[i][j]: some text is matched by the first i pieces here and the first j there.
        let mut reachable = vec![vec![false; theirs.len() + 1]; mine.len() + 1];
        reachable[0][0] = true;
        for i in 0..=mine.len() {
            for j in 0..=theirs.len() {
                if !reachable[i][j] {
                    continue;
                }
                let (next_mine, next_theirs) = (mine.get(i), theirs.get(j));
                if next_mine == Some(&Piece::AnyText) {
                    reachable[i + 1][j] = true;
                }
                if next_theirs == Some(&Piece::AnyText) {
                    reachable[i][j + 1] = true;
                }
                if let (Some(a), Some(b)) = (next_mine, next_theirs) {
                    let matches = match (a, b) {
                        (Piece::Literal(a), Piece::Literal(b)) => a == b,
                        _ => true,
                    };
                    if matches {
                        // Each consumes one character; `AnyText` may consume more.
                        let after = |piece: &Piece, at: usize| if *piece == Piece::AnyText { at } else { at + 1 };
                        reachable[after(a, i)][after(b, j)] = true;
                    }
                }
            }
        }
        reachable[mine.len()][theirs.len()]
    }
}

impl TopicSelector {
    /// The subscription of a reader of all topics that a template can produce.
    pub fn of(template: &Template) -> Self {
        match template.constant() {
            Some(topic) => Self::Exact(topic.to_owned()),
            None => Self::Pattern(format!("^{}$", template.pattern())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(template: &str) -> TopicShape {
        TopicShape::of(&Template::parse(template, &["database", "table"]).unwrap())
    }

    #[test]
    fn overlaps_are_detected_exactly() {
        for (left, right, expected) in [
            ("a.web", "a.web", true),
            ("a.web", "a.api", false),
            ("a.web", "a.we", false),
            ("a.{@database}.{@table}", "a.web", false),
            ("a.{@database}.{@table}", "a.shop.orders", true),
            ("a.{@database}.{@table}", "a..orders", false),
            ("a.{@database}.{@table}", "b.{@table}", false),
            ("{@table}", "a.dead-letters", true),
            ("{@table}-x", "y-{@table}", true),
            ("a.{@table}.z", "a.{@table}.y", false),
            ("x{@table}", "x", false),
        ] {
            assert_eq!(shape(left).overlaps(&shape(right)), expected, "{left} {right}");
            assert_eq!(shape(right).overlaps(&shape(left)), expected, "{right} {left}");
        }
        assert!(shape("{@table}").overlaps(&TopicShape::internal()));
        assert!(!shape("a.{@table}").overlaps(&TopicShape::internal()));
    }

    #[test]
    fn only_literal_text_is_checked() {
        assert_eq!(shape("a.{@table}").error(), None);
        assert!(shape("a/{@table}").error().unwrap().contains('/'));
    }

    #[test]
    fn templates_become_patterns() {
        assert_eq!(TopicSelector::of(&Template::parse("a.b", &[]).unwrap()), TopicSelector::Exact("a.b".to_owned()));
        let pattern = TopicSelector::of(&Template::parse("a.{@table}", &["table"]).unwrap());
        assert_eq!(pattern, TopicSelector::Pattern("^a\\..+$".to_owned()));
    }
}
