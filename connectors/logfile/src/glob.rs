//! [`Glob`]: patterns of paths, matched like a shell does, on bytes.
//!
//! `*` and `?` stay within a folder, `**` crosses folders, `[a-z]`, `[!a]` and `[^a]` match one
//! character, `{a,b}` matches either text. A leading dot must be written. File names need not be
//! UTF-8: each byte that is not part of a character counts as one.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Limit on the number of patterns that the braces of one glob stand for.
const MAX_ALTERNATIVES: usize = 1000;
/// The value that stands for byte 0 that is not part of a character; larger than every character.
const INVALID_BYTE: u32 = 0x11_0000;

/// A glob with its parsed patterns.
#[derive(Debug, Clone)]
pub struct Glob {
    /// As written in the pipeline file.
    pub written: String,
    /// One for each alternative of its braces.
    pub(crate) patterns: Vec<Pattern>,
}

/// A pattern without braces.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    /// The folder above the first wildcard.
    pub(crate) root: PathBuf,
    /// The components below it.
    pub(crate) parts: Vec<Part>,
}

/// A component of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// A name.
    Literal(OsString),
    /// A name with wildcards.
    Wildcard(Name),
    /// `**`: any number of folders.
    Recursive,
}

/// A name with wildcards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(Vec<Token>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Character(u32),
    AnyCharacter,
    AnyText,
    Class { negated: bool, ranges: Vec<(u32, u32)> },
}

impl Glob {
    /// Parses a glob of paths, relative to a folder. The error completes the sentence "the glob is
    /// invalid: ..".
    pub(crate) fn of_paths(written: &str, base: &Path) -> Result<Self, String> {
        check(written)?;
        // The folder's name may contain characters that are special in a glob.
        let base = std::path::absolute(base).map_err(|error| format!("the current folder is unknown: {error}"))?;
        let patterns =
            expand_braces(written)?.iter().map(|text| Pattern::parse(text, &base)).collect::<Result<_, _>>()?;
        Ok(Self { written: written.to_owned(), patterns })
    }

    /// Parses a glob that excludes files: without a `/` it is a pattern of names, otherwise of
    /// paths.
    pub(crate) fn of_exclusion(written: &str, base: &Path) -> Result<Self, String> {
        if written.contains('/') {
            return Self::of_paths(written, base);
        }
        check(written)?;
        let pattern = |text: &String| Ok(Pattern { root: PathBuf::new(), parts: vec![part(text)?] });
        let patterns = expand_braces(written)?.iter().map(pattern).collect::<Result<_, String>>()?;
        Ok(Self { written: written.to_owned(), patterns })
    }

    /// Whether an exclusion matches a path, hidden names included.
    pub(crate) fn excludes(&self, path: &Path) -> bool {
        self.patterns.iter().any(|pattern| {
            if pattern.root.as_os_str().is_empty() {
                return path
                    .file_name()
                    .is_some_and(|name| pattern.parts.first().is_some_and(|part| part.matches(name)));
            }
            let Ok(below) = path.strip_prefix(&pattern.root) else { return false };
            let names: Vec<&OsStr> = below.iter().collect();
            matches_parts(&pattern.parts, &names)
        })
    }
}

fn check(written: &str) -> Result<(), String> {
    if written.is_empty() {
        return Err("it is empty".to_owned());
    }
    if written == "~" || written.starts_with("~/") {
        return Err("`~` is not expanded; write the folder's path, or `${env:HOME}`".to_owned());
    }
    Ok(())
}

impl Pattern {
    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        let mut root = if text.starts_with('/') { PathBuf::from("/") } else { base.components().collect() };
        let mut parts = Vec::new();
        for component in text.split('/').filter(|component| !matches!(*component, "" | ".")) {
            match part(component)? {
                Part::Literal(name) if parts.is_empty() => root.push(name),
                Part::Recursive if parts.last() == Some(&Part::Recursive) => {}
                part => parts.push(part),
            }
        }
        match (parts.last(), root.components().next_back()) {
            // `logs/**` matches all files below, as `logs/**/*` does.
            (Some(Part::Recursive), _) => parts.push(Part::Wildcard(Name(vec![Token::AnyText]))),
            (None, Some(Component::Normal(name))) => {
                parts.push(Part::Literal(name.to_owned()));
                root.pop();
            }
            (None, _) => return Err("it names no file".to_owned()),
            _ => {}
        }
        Ok(Self { root, parts })
    }
}

fn part(text: &str) -> Result<Part, String> {
    if text == "**" {
        return Ok(Part::Recursive);
    }
    if text.contains("**") {
        return Err(format!("`**` must be a whole component of the path, but is part of `{text}`"));
    }
    if !text.contains(['*', '?', '[']) {
        return Ok(Part::Literal(OsString::from(text)));
    }
    let mut tokens = Vec::new();
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        tokens.push(match character {
            '*' => Token::AnyText,
            '?' => Token::AnyCharacter,
            '[' => {
                let (class, after) = class(rest.as_str()).map_err(|why| format!("`{text}` has {why}"))?;
                rest = after.chars();
                class
            }
            other => Token::Character(u32::from(other)),
        });
    }
    Ok(Part::Wildcard(Name(tokens)))
}

/// Parses a class after its `[`; returns it with the text after its `]`.
fn class(text: &str) -> Result<(Token, &str), String> {
    let (negated, members) = match text.strip_prefix(['!', '^']) {
        Some(members) => (true, members),
        None => (false, text),
    };
    let end = members
        .char_indices()
        .skip(1)
        .find(|(_, character)| *character == ']')
        .map(|(at, _)| at)
        .ok_or("a `[` without `]`; write `[[]` for the character `[`")?;
    if members[..end].contains("[:") {
        return Err("a named class such as `[:digit:]`; write its characters, such as `[0-9]`".to_owned());
    }
    let mut ranges = Vec::new();
    let characters: Vec<u32> = members[..end].chars().map(u32::from).collect();
    let mut at = 0;
    while let Some(&first) = characters.get(at) {
        match (characters.get(at + 1), characters.get(at + 2)) {
            (Some(&dash), Some(&last)) if dash == u32::from('-') => {
                if last < first {
                    return Err(format!("the range of `[{}]` in descending order", &members[..end]));
                }
                ranges.push((first, last));
                at += 3;
            }
            _ => {
                ranges.push((first, first));
                at += 1;
            }
        }
    }
    Ok((Token::Class { negated, ranges }, &members[end + 1..]))
}

/// The texts that a pattern with braces stands for. Braces without a comma are characters.
fn expand_braces(text: &str) -> Result<Vec<String>, String> {
    let mut done = Vec::new();
    let mut open = vec![(String::new(), text.to_owned())];
    while let Some((mut before, rest)) = open.pop() {
        let Some((start, group)) = first_group(&rest)? else {
            before.push_str(&rest);
            done.push(before);
            if done.len() + open.len() > MAX_ALTERNATIVES {
                return Err(format!("its braces stand for more than {MAX_ALTERNATIVES} patterns"));
            }
            continue;
        };
        before.push_str(&rest[..start]);
        let after = &rest[start + group.len..];
        for member in group.members.iter().rev() {
            open.push((before.clone(), format!("{member}{after}")));
        }
        if open.len() > MAX_ALTERNATIVES {
            return Err(format!("its braces stand for more than {MAX_ALTERNATIVES} patterns"));
        }
    }
    Ok(done)
}

/// The alternatives of a pair of braces.
struct Group<'a> {
    members: Vec<&'a str>,
    /// Length with the braces.
    len: usize,
}

/// The first pair of braces with a comma, outside of classes, with its position.
fn first_group(text: &str) -> Result<Option<(usize, Group<'_>)>, String> {
    let mut from = 0;
    while let Some(start) = outside_class(text, from).find(|(_, character)| *character == '{').map(|(at, _)| at) {
        let (mut depth, mut commas, mut end) = (0, Vec::new(), None);
        for (at, character) in outside_class(text, start) {
            match character {
                '{' => depth += 1,
                '}' if depth == 1 => {
                    end = Some(at);
                    break;
                }
                '}' => depth -= 1,
                ',' if depth == 1 => commas.push(at),
                _ => {}
            }
        }
        let end = end.ok_or("a `{` has no `}`; write `[{]` for the character `{`")?;
        if commas.is_empty() {
            from = start + 1;
            continue;
        }
        let starts = std::iter::once(start + 1).chain(commas.iter().map(|comma| comma + 1));
        let ends = commas.iter().copied().chain([end]);
        let members = starts.zip(ends).map(|(start, end)| &text[start..end]).collect();
        return Ok(Some((start, Group { members, len: end + 1 - start })));
    }
    Ok(None)
}

/// Characters from a position on that are not inside of `[..]`.
fn outside_class(text: &str, from: usize) -> impl Iterator<Item = (usize, char)> {
    let mut class_end = 0;
    text[from..].char_indices().map(move |(at, character)| (from + at, character)).filter(move |(at, character)| {
        if *at < class_end {
            return false;
        }
        if *character == '['
            && let Ok((_, after)) = class(&text[at + 1..])
        {
            class_end = text.len() - after.len();
        }
        true
    })
}

impl Part {
    fn matches(&self, name: &OsStr) -> bool {
        match self {
            Self::Literal(literal) => literal == name,
            Self::Wildcard(pattern) => pattern.matches(name),
            Self::Recursive => true,
        }
    }
}

impl Name {
    /// Whether the pattern matches a name like a shell: a leading dot must be written.
    pub(crate) fn matches_visible(&self, name: &OsStr) -> bool {
        let hidden = name.as_bytes().starts_with(b".");
        let dot_written = self.0.first() == Some(&Token::Character(u32::from('.')));
        (!hidden || dot_written) && self.matches(name)
    }

    fn matches(&self, name: &OsStr) -> bool {
        let characters = characters(name.as_bytes());
        let (mut token, mut at) = (0, 0);
        // Where to resume if a later token does not match: the token after the last `*`, and the
        // text that `*` covers.
        let mut resume: Option<(usize, usize)> = None;
        while at < characters.len() {
            match self.0.get(token) {
                Some(Token::AnyText) => {
                    token += 1;
                    resume = Some((token, at));
                }
                Some(other) if other.matches(characters[at]) => {
                    token += 1;
                    at += 1;
                }
                _ => {
                    let Some((after_star, covered)) = resume else { return false };
                    (token, at) = (after_star, covered + 1);
                    resume = Some((after_star, covered + 1));
                }
            }
        }
        self.0[token..].iter().all(|token| *token == Token::AnyText)
    }
}

impl Token {
    fn matches(&self, character: u32) -> bool {
        match self {
            Self::Character(expected) => *expected == character,
            Self::AnyCharacter | Self::AnyText => true,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&character)) != *negated
            }
        }
    }
}

/// The characters of a name; each byte that is not part of a character has a value of its kind.
fn characters(name: &[u8]) -> Vec<u32> {
    let mut characters = Vec::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        characters.extend(chunk.valid().chars().map(u32::from));
        characters.extend(chunk.invalid().iter().map(|byte| INVALID_BYTE + u32::from(*byte)));
    }
    characters
}

fn matches_parts(parts: &[Part], names: &[&OsStr]) -> bool {
    match (parts.split_first(), names.split_first()) {
        (None, None) => true,
        (Some((Part::Recursive, rest)), _) => (0..=names.len()).any(|skipped| matches_parts(rest, &names[skipped..])),
        (Some((part, parts)), Some((name, names))) => part.matches(name) && matches_parts(parts, names),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Glob::of_exclusion(pattern, Path::new("/srv")).unwrap().excludes(Path::new(path))
    }

    #[test]
    fn wildcards_classes_and_braces_match_like_a_shell() {
        for (pattern, name) in [
            ("*.log", "a.log"),
            ("a?.log", "aä.log"),
            ("[!a]*.log", "b.log"),
            ("[^a]*.log", "b.log"),
            ("[]a]", "]"),
            ("[a-c]x", "bx"),
            ("[[]", "["),
            ("[{]a,b}", "{a,b}"),
            ("{a,b{1,2}}.log", "b2.log"),
            ("{a,}.log", ".log"),
            ("{a}.log", "{a}.log"),
            ("*a*b*c", "xaxbaxbxc"),
        ] {
            assert!(matches(pattern, &format!("/v/{name}")), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("*.log", "a.txt"),
            ("a?.log", "a.log"),
            ("[!a]*", "a.log"),
            ("[^a]*", "a.log"),
            ("{a,b}", "c"),
            ("?", "ab"),
        ] {
            assert!(!matches(pattern, &format!("/v/{name}")), "{pattern} {name}");
        }
        assert!(matches("y/**/no/*", "/srv/y/1/2/no/.c.log") && matches("y/**/no/*", "/srv/y/no/c.log"));
        assert!(!matches("y/no/*", "/srv/y/no/1/c.log") && !matches("y/no/*", "/other/y/no/c.log"));
    }

    #[test]
    fn names_that_are_not_utf8_are_matched_by_bytes() {
        let name = OsStr::from_bytes(b"caf\xe9.log");
        let Part::Wildcard(any) = part("caf?.log").unwrap() else { panic!("no wildcard") };
        let Part::Wildcard(class) = part("caf[a-z\u{e9}].log").unwrap() else { panic!("no wildcard") };
        assert!(any.matches(name) && !class.matches(name));
    }

    #[test]
    fn hidden_names_need_a_written_dot() {
        let Part::Wildcard(any) = part("*").unwrap() else { panic!("no wildcard") };
        let Part::Wildcard(dot) = part(".*").unwrap() else { panic!("no wildcard") };
        assert!(!any.matches_visible(OsStr::new(".a")) && dot.matches_visible(OsStr::new(".a")));
    }

    #[test]
    fn globs_are_relative_to_the_pipeline_files_folder() {
        let root =
            |written: &str, base: &str| Glob::of_paths(written, Path::new(base)).unwrap().patterns[0].root.clone();
        assert_eq!(root("./logs/*.log", "/etc/pipe[1]"), Path::new("/etc/pipe[1]/logs"));
        assert_eq!(root("a.log", "/srv"), Path::new("/srv"));
        assert_eq!(root("/var/log/*/x/*.log", "/srv"), Path::new("/var/log"));
        assert_eq!(root("{a,b}/*.log", "/srv"), Path::new("/srv/a"));
    }

    #[test]
    fn invalid_globs_are_rejected_with_the_reason() {
        for (written, why) in [
            ("", "empty"),
            ("a[", "`[`"),
            ("a***", "`**`"),
            ("a**/b", "`**`"),
            ("{a,b", "`}`"),
            ("~/logs/*.log", "${env:HOME}"),
            ("[b-a]", "descending"),
            ("[[:digit:]]*", "[0-9]"),
            ("/", "names no file"),
            ("{1,2}{1,2}{1,2}{1,2}{1,2}{1,2}{1,2}{1,2}{1,2}{1,2}", "1000"),
        ] {
            let error = Glob::of_paths(written, Path::new("/srv")).unwrap_err();
            assert!(error.contains(why), "{written}: {error}");
        }
    }
}
