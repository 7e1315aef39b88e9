//! The options of a `logfile` source. The doc comments of [`LogfileOptions`] are the user's documentation.

use std::path::{Path, PathBuf};
use std::time::Duration;

use encoding_rs::Encoding;
use glob::Pattern;
use trunkline_connector::config::{ByteSize, Mismatch, Node, OptionSpec, Section, Value, nearest};

use crate::parser::{ParserKind, RegexParser};

/// The options of the connector.
pub(crate) const OPTIONS: &[OptionSpec] = &[];

/// Everything a `logfile` source can be told.
#[derive(Debug, Clone)]
pub struct LogfileOptions {
    /// `paths` (required): globs, relative to the pipeline file's folder. `*` and `?` stay within a folder, `**` crosses folders, a leading
    /// dot must be written. Folders, FIFOs and sockets are passed over; symbolic links are followed; a file with two names is read once.
    pub paths: Vec<Glob>,
    /// `exclude`: globs of files to leave out. One without a `/` is held against the file's name, any other against its path.
    pub exclude: Vec<Glob>,
    /// `parser` (default `none`): `none` makes `{"message": ".."}` of a line, `json` takes a line that is a JSON object as it is, `regex` takes
    /// the named groups of `pattern`, `combined` the combined log format of Apache and nginx.
    pub parser: ParserKind,
    /// `read_from` (default `beginning`): where files begin that are there when the source starts for the very first time. Files that
    /// appear later are always read from the beginning.
    pub read_from: ReadFrom,
    /// `ignore_older`: files not modified for so long are not begun. One that is modified later is read from its beginning.
    pub ignore_older: Option<Duration>,
    /// `max_line_bytes` (default `1MiB`): longer lines are handled by `oversize`.
    pub max_line_bytes: usize,
    /// `oversize` (default `dead_letter`): `truncate` keeps the first `max_line_bytes`, `dead_letter` rejects the line with its first
    /// `max_line_bytes` and its true length, `error` stops the source with its position before the line.
    pub oversize: Oversize,
    /// `charset` (default `utf-8`): a WHATWG label such as `windows-1252`, `shift_jis` or `utf-16le`. Malformed bytes become U+FFFD, with a warning.
    pub charset: &'static Encoding,
    /// `compression` (default `auto`): `auto` recognises gzip by its first bytes, `none` and `gzip` say it.
    pub compression: Compression,
    /// `eof` (default `auto`): what becomes of a last line without newline. See [`EndOfFile`].
    pub eof: EndOfFile,
    /// `eof_after` (default `5s`): for `eof = "emit"`, how long a file must be at rest.
    pub eof_after: Duration,
    /// `poll_interval` (default `250ms`): how often files are looked for where the kernel sends no notice of changes.
    pub poll_interval: Duration,
    /// `rotate_wait` (default `5s`): how long a file that was renamed or removed must be at rest before it counts as finished.
    pub rotate_wait: Duration,
    /// `max_open_files` (default 256): descriptors held at most; more files than that take turns.
    pub max_open_files: usize,
    /// `delimiter` (default newline): what ends a line. With the default, a carriage return before it is taken off too.
    pub delimiter: String,
}

/// A glob as written and as matched.
#[derive(Debug, Clone)]
pub struct Glob {
    /// As written in the pipeline file.
    pub written: String,
    /// The absolute pattern (or the bare name's, see `exclude`).
    pub pattern: Pattern,
    /// The absolute pattern's text.
    pub absolute: String,
    /// Folders above the first wildcard: the place to watch.
    pub root: PathBuf,
}

/// Where files begin at the first start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// At their beginning.
    Beginning,
    /// At their end: only what is added later is read.
    End,
}

/// What becomes of a line that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oversize {
    /// Cut off.
    Truncate,
    /// Rejected with its first part.
    DeadLetter,
    /// The source stops.
    Error,
}

/// How files are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// By the first bytes.
    Auto,
    /// Not at all.
    None,
    /// By gzip.
    Gzip,
}

/// When a last line without newline is handed out. In every mode it is when the file is known to be finished: it was renamed or removed
/// and is at rest, or is a complete gzip file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndOfFile {
    /// While following, when its newline comes; in a run with `--until-idle`, at once.
    Auto,
    /// When its newline comes.
    Wait,
    /// When the file has been at rest for `eof_after`.
    Emit,
}

const LARGEST_LINE: u64 = 256 << 20;

impl LogfileOptions {
    /// Reads a component's section; every problem goes to its report, and then the result is `None`.
    pub fn read(section: &Section<'_>) -> Option<Self> {
        let before = section.report.len();
        let options = Self {
            paths: globs(section, "paths", true),
            exclude: globs(section, "exclude", false),
            parser: parser(section),
            read_from: section.choice(
                "read_from",
                &[("beginning", ReadFrom::Beginning), ("end", ReadFrom::End)],
                ReadFrom::Beginning,
            ),
            ignore_older: section.optional("ignore_older"),
            max_line_bytes: max_line_bytes(section),
            oversize: section.choice(
                "oversize",
                &[("truncate", Oversize::Truncate), ("dead_letter", Oversize::DeadLetter), ("error", Oversize::Error)],
                Oversize::DeadLetter,
            ),
            charset: charset(section),
            compression: section.choice(
                "compression",
                &[("auto", Compression::Auto), ("none", Compression::None), ("gzip", Compression::Gzip)],
                Compression::Auto,
            ),
            eof: section.choice(
                "eof",
                &[("auto", EndOfFile::Auto), ("wait", EndOfFile::Wait), ("emit", EndOfFile::Emit)],
                EndOfFile::Auto,
            ),
            eof_after: section.or("eof_after", Duration::from_secs(5)),
            poll_interval: poll_interval(section),
            rotate_wait: section.or("rotate_wait", Duration::from_secs(5)),
            max_open_files: max_open_files(section),
            delimiter: delimiter(section),
        };
        // `finish` takes the section by value; the runtime calls it after the keys that all components share.
        (section.report.len() == before).then_some(options)
    }
}

fn globs(section: &Section<'_>, key: &'static str, required: bool) -> Vec<Glob> {
    let written: Option<Vec<String>> = if required { section.required(key) } else { section.optional(key) };
    let Some(written) = written else { return Vec::new() };
    let Some(node) = section.node(key) else { return Vec::new() };
    if required && written.is_empty() {
        section.mismatch(key, node, Mismatch::new("is empty"), "at least one glob such as `logs/*.log`".to_owned());
    }
    let items: &[Node] = if let Value::Array(items) = &node.value { items } else { &[] };
    let mut globs = Vec::new();
    for (text, item) in written.into_iter().zip(items) {
        match glob(&text, section.base, required) {
            Ok(glob) => globs.push(glob),
            Err(why) => {
                let mismatch = Mismatch::new(format!("has an item that is no glob: {why}"));
                section.mismatch(key, item, mismatch, "a glob such as `logs/*.log`".to_owned());
            }
        }
    }
    globs
}

fn glob(written: &str, base: &Path, is_path: bool) -> Result<Glob, String> {
    if written.is_empty() {
        return Err("it is empty".to_owned());
    }
    // The folder's own name may hold characters that mean something in a glob.
    let base = std::path::absolute(base).map_err(|error| format!("no current folder: {error}"))?;
    let escaped = PathBuf::from(Pattern::escape(&base.to_string_lossy()));
    let bare_name = !is_path && !written.contains('/');
    let joined = if bare_name { PathBuf::from(written) } else { escaped.join(written) };
    // Collected anew from its components: `./` in the middle goes away.
    let absolute = joined.components().collect::<PathBuf>().to_string_lossy().into_owned();
    let pattern = Pattern::new(&absolute).map_err(|error| format!("{} at character {}", error.msg, error.pos))?;
    let relative_root: PathBuf = Path::new(written)
        .components()
        .take_while(|part| !part.as_os_str().to_string_lossy().contains(['*', '?', '[']))
        .collect();
    let whole = relative_root.components().count() == Path::new(written).components().count();
    let mut root = base.join(relative_root);
    if whole {
        root.pop();
    }
    Ok(Glob { written: written.to_owned(), pattern, absolute, root: root.components().collect() })
}

fn parser(section: &Section<'_>) -> ParserKind {
    #[derive(Clone, Copy, PartialEq)]
    enum Choice {
        None,
        Json,
        Regex,
        Combined,
    }
    let choices =
        [("none", Choice::None), ("json", Choice::Json), ("regex", Choice::Regex), ("combined", Choice::Combined)];
    let choice = section.choice("parser", &choices, Choice::None);
    let pattern: Option<String> = section.optional("pattern");
    let pattern_node = section.table.get("pattern");
    match (choice, pattern, pattern_node) {
        (Choice::Regex, None, None) => {
            section.missing("pattern", "a regular expression with named groups, for `parser = \"regex\"`");
            ParserKind::None
        }
        (Choice::Regex, Some(pattern), Some(node)) => match RegexParser::new(&pattern) {
            Ok(parser) => ParserKind::Regex(parser),
            Err(error) => {
                let mismatch = Mismatch {
                    message: format!("is no pattern that can be used: {}", error.message),
                    span: error.at.and_then(|at| place_in_string(node, &pattern, at)),
                    help: error.help,
                };
                let expected = "a regular expression with named groups such as `(?P<level>[A-Z]+) (?P<message>.*)`";
                section.mismatch("pattern", node, mismatch, expected.to_owned());
                ParserKind::None
            }
        },
        (Choice::Regex, ..) | (Choice::None, _, None) => ParserKind::None,
        (choice, _, Some(node)) => {
            let mismatch = Mismatch::new("is given, but the parser is not `regex`");
            section.mismatch("pattern", node, mismatch, "`parser = \"regex\"` beside it, or no pattern".to_owned());
            match choice {
                Choice::Json => ParserKind::Json,
                Choice::Combined => ParserKind::Combined,
                _ => ParserKind::None,
            }
        }
        (Choice::Json, ..) => ParserKind::Json,
        (Choice::Combined, ..) => ParserKind::Combined,
    }
}

/// Where byte `at` of a string stands in the file, if the string stands there without escapes.
fn place_in_string(node: &Node, text: &str, at: usize) -> Option<std::ops::Range<usize>> {
    let quotes = node.span.len().checked_sub(text.len())?;
    let opening = match quotes {
        2 | 6 => quotes / 2,
        _ => return None,
    };
    let start = node.span.start + opening + at;
    Some(start..(start + 1).min(node.span.end))
}

fn max_line_bytes(section: &Section<'_>) -> usize {
    let ByteSize(bytes) = section.or("max_line_bytes", ByteSize(1 << 20));
    if !(1..=LARGEST_LINE).contains(&bytes)
        && let Some(node) = section.table.get("max_line_bytes")
    {
        section.mismatch(
            "max_line_bytes",
            node,
            Mismatch::new(format!("is {bytes} bytes")),
            "a size from 1B to 256MiB".to_owned(),
        );
        return 1 << 20;
    }
    bytes as usize
}

fn max_open_files(section: &Section<'_>) -> usize {
    let files: u64 = section.or("max_open_files", 256);
    if !(1..=1_000_000).contains(&files)
        && let Some(node) = section.table.get("max_open_files")
    {
        section.mismatch(
            "max_open_files",
            node,
            Mismatch::new(format!("is {files}")),
            "a whole number from 1 to 1000000".to_owned(),
        );
        return 256;
    }
    files as usize
}

fn poll_interval(section: &Section<'_>) -> Duration {
    let default = Duration::from_millis(250);
    let interval = section.or("poll_interval", default);
    if interval.is_zero()
        && let Some(node) = section.table.get("poll_interval")
    {
        section.mismatch(
            "poll_interval",
            node,
            Mismatch::new("is zero"),
            "a duration above zero such as `250ms`".to_owned(),
        );
        return default;
    }
    interval
}

fn charset(section: &Section<'_>) -> &'static Encoding {
    let Some(label) = section.optional::<String>("charset") else { return encoding_rs::UTF_8 };
    if let Some(encoding) = Encoding::for_label_no_replacement(label.as_bytes()) {
        return encoding;
    }
    if let Some(node) = section.table.get("charset") {
        const COMMON: [&str; 10] = [
            "utf-8",
            "utf-16le",
            "utf-16be",
            "iso-8859-1",
            "iso-8859-15",
            "windows-1252",
            "windows-1251",
            "shift_jis",
            "gb18030",
            "euc-kr",
        ];
        let help = nearest(&label, &COMMON).map(|name| format!("did you mean `{name}`?"));
        let mismatch = Mismatch { message: "is no known charset".to_owned(), span: None, help };
        section.mismatch("charset", node, mismatch, format!("a WHATWG label such as {}", COMMON.join(", ")));
    }
    encoding_rs::UTF_8
}

fn delimiter(section: &Section<'_>) -> String {
    let delimiter: String = section.or("delimiter", "\n".to_owned());
    if delimiter.is_empty()
        && let Some(node) = section.table.get("delimiter")
    {
        section.mismatch(
            "delimiter",
            node,
            Mismatch::new("is empty"),
            "at least one character, such as `\"\\n\"`".to_owned(),
        );
        return "\n".to_owned();
    }
    delimiter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_is_anchored_at_the_pipeline_files_folder() {
        let anchored = glob("./logs/*.log", Path::new("/etc/pipe[1]"), true).unwrap();
        assert_eq!(anchored.root, Path::new("/etc/pipe[1]/logs"));
        assert!(anchored.pattern.matches("/etc/pipe[1]/logs/a.log"));
        assert_eq!(glob("a.log", Path::new("/srv"), true).unwrap().root, Path::new("/srv"));
        assert_eq!(glob("/var/log/*/x/*.log", Path::new("/srv"), true).unwrap().root, Path::new("/var/log"));
        assert_eq!(glob("*.gz", Path::new("/srv"), false).unwrap().absolute, "*.gz");
        assert!(glob("a[", Path::new("/srv"), true).unwrap_err().contains("character"));
    }
}
