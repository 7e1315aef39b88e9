//! The options of a `logfile` source. [`OPTIONS`] declares them and is their user documentation.

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{Field, Schema as ArrowSchema};
use encoding_rs::Encoding;
use regex::RegexSet;
use trunkline_connector::config::{ByteSize, Mismatch, Node, OptionSpec, Section, Value, nearest};
use trunkline_connector::{Schema, host_name};

use crate::glob::Glob;
use crate::labels::{LABELS, Labels};
use crate::multiline::Multiline;
use crate::parser::{ParserSpec, RegexParser};
use crate::parser_config::{multiline, parser_spec, report_pattern, then};

/// The options of the connector.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::required(
        "paths",
        "list of globs",
        "Files to read. Relative globs start at the pipeline file's folder. `*` and `?` stay within a folder, \
         `**` crosses folders, `[a-z]`, `[!a]` and `[^a]` match one character, `{a,b}` matches either text. A \
         leading dot must be written. The source skips folders, FIFOs and sockets, follows symbolic links, and \
         reads a file with two names once.",
        "[\"/var/log/nginx/access.log*\"]",
    ),
    OptionSpec::optional(
        "exclude",
        "list of globs",
        "none",
        "Files to leave out. A glob without a `/` is compared with the file's name, any other with its path.",
        "[\"*.tmp\"]",
    ),
    OptionSpec::with_default(
        "parser",
        "`none`, or one of [Parsers](#parsers)",
        "\"none\"",
        "The format of the lines. `none`: the value is `{\"message\": \"..\"}`.",
    ),
    OptionSpec::optional(
        "pattern",
        "regular expression, or grok pattern",
        "none",
        "For `parser = \"regex\"`, with at least one group `(?P<name>..)`, and for `parser = \"grok\"`, with at least \
         one field such as `%{IP:client}`. Both require it.",
        "'(?P<level>[A-Z]+) (?P<message>.*)'",
    ),
    OptionSpec::optional(
        "patterns",
        "table of patterns",
        "none",
        "For `parser = \"grok\"`: more patterns by their names. They take precedence over the standard ones.",
        "{ ORDER_ID = '[A-Z]{2}[0-9]+' }",
    ),
    OptionSpec::optional(
        "columns",
        "list of strings",
        "the first line of each file",
        "For `parser = \"csv\"`: the names of the columns.",
        "[\"time\", \"user\", \"bytes\"]",
    ),
    OptionSpec::optional(
        "separator",
        "character",
        "`,`",
        "For `parser = \"csv\"`: stands between two fields.",
        "\";\"",
    ),
    OptionSpec::optional(
        "pair_separator",
        "character",
        "white space",
        "For `parser = \"key_value\"`: stands between two pairs.",
        "\";\"",
    ),
    OptionSpec::optional(
        "key_separator",
        "character",
        "`=`",
        "For `parser = \"key_value\"`: stands between a key and its value.",
        "\":\"",
    ),
    OptionSpec::optional(
        "types",
        "table of `string`, `int`, `float` or `bool`",
        "strings",
        "For `regex`, `grok`, `csv`, `logfmt` and `key_value`: the types of fields. A line with another value is \
         rejected; an empty value and `-` are null.",
        "{ bytes = \"int\", took = \"float\" }",
    ),
    OptionSpec::optional(
        "timestamp.field",
        "string",
        "the time that the parser reads",
        "Field with the time of the line. It becomes the Kafka timestamp, and is written as ISO 8601 in UTC.",
        "\"time\"",
    ),
    OptionSpec::optional(
        "timestamp.formats",
        "list of `rfc3339`, `unix`, `unix_ms`, `unix_us`, `unix_ns` or formats of strftime",
        "`rfc3339`",
        "Formats of `timestamp.field`; the first one that fits is used.",
        "[\"%d.%m.%Y %H:%M:%S\", \"unix_ms\"]",
    ),
    OptionSpec::optional(
        "timestamp.zone",
        "time zone",
        "`UTC`",
        "Zone of times that do not name theirs: a name such as `Europe/Berlin`, or an offset such as `+02:00`.",
        "\"Europe/Berlin\"",
    ),
    OptionSpec::optional(
        "timestamp.default_year",
        "number",
        "see below",
        "Year of times without a year (`syslog` of RFC 3164, `klog`). Without it, the year is the latest one with \
         which the time is at most a day after the last change of the file.",
        "2026",
    ),
    OptionSpec::optional(
        "then",
        "list of tables",
        "none",
        "Parsers of fields, for one format inside another: each has `field`, `parser`, and the options of that parser. \
         The field becomes an object.",
        "[{ field = \"message\", parser = \"json\" }]",
    ),
    OptionSpec::with_default(
        "partial",
        "boolean",
        "false",
        "`true`: a line that does not match is not rejected. Its record has the fields before the mismatch, and the \
         whole line as `unparsed`.",
    ),
    OptionSpec::optional(
        "include_lines",
        "list of regular expressions",
        "all lines",
        "Keeps only lines (or events) that match one of these. The others are counted as dropped.",
        "[\"ERROR\", \"WARN\"]",
    ),
    OptionSpec::optional(
        "exclude_lines",
        "list of regular expressions",
        "none",
        "Drops lines (or events) that match one of these, and counts them as dropped.",
        "['^DEBUG', 'GET /health']",
    ),
    OptionSpec::optional(
        "max_lines_per_second",
        "number",
        "no limit",
        "Drops the lines (or events) of a file that exceed this rate, and counts them as dropped, with a warning each minute. It \
         applies while a file is followed: what exists at the start, and jobs (`--until-idle`), are read whole.",
        "1_000",
    ),
    OptionSpec::optional(
        "labels",
        "table of strings",
        "none",
        "Added to each record as the object `labels`. A line that has a field of this name keeps its own.",
        "{ environment = \"production\" }",
    ),
    OptionSpec::with_default(
        "host",
        "boolean",
        "false",
        "Adds the name of the machine as `labels.host`, and as `{@host}` to templates.",
    ),
    OptionSpec::with_default(
        "kubernetes",
        "boolean",
        "false",
        "Adds `labels.namespace`, `labels.pod` and `labels.container` from paths below `/var/log/containers` and \
         `/var/log/pods`, and as `{@namespace}`, `{@pod}` and `{@container}` to templates. They are null for other paths.",
    ),
    OptionSpec::optional(
        "multiline",
        "`java`, `python`, `go`, `indented`, `csv`, `none`, or a table",
        "what `parser` needs",
        "Joins lines to events, see [Multiline](#multiline).",
        "{ start = '^[0-9]{4}-', timeout = \"1s\" }",
    ),
    OptionSpec::with_default(
        "read_from",
        "`beginning`, `end`",
        "\"beginning\"",
        "Where the source starts in files that exist at its very first start. Later files are read from their \
         beginning.",
    ),
    OptionSpec::optional(
        "ignore_older",
        "duration",
        "no limit",
        "Skips new files that were not modified for this long. A file that is modified later is read from its \
         beginning.",
        "\"7d\"",
    ),
    OptionSpec::with_default(
        "max_line_bytes",
        "size",
        "\"1MiB\"",
        "Longest line, at most `60MiB`: a record has at most 64 MiB. The source never holds more than this of a \
         line; `oversize` handles longer ones.",
    ),
    OptionSpec::with_default(
        "oversize",
        "`dead_letter`, `truncate`, `error`",
        "\"dead_letter\"",
        "Handling of longer lines. `dead_letter`: rejects the line with its beginning and its length \
         (`line.oversize`). `truncate`: keeps the beginning. `error`: stops the source before the line.",
    ),
    OptionSpec::with_default(
        "charset",
        "WHATWG label",
        "\"utf-8\"",
        "Charset of files without a byte order mark, such as `windows-1252`, `shift_jis` or `utf-16le`. A byte \
         order mark takes precedence and is removed. Invalid bytes become U+FFFD, with one warning for each \
         file.",
    ),
    OptionSpec::with_default(
        "compression",
        "`auto`, `none`, `gzip`, `zstd`, `xz`",
        "\"auto\"",
        "`auto` recognises gzip, zstd and xz by the first bytes of a file, and refuses files of other \
         compression formats. Files may have several members.",
    ),
    OptionSpec::with_default(
        "eof",
        "`auto`, `wait`, `emit`",
        "\"auto\"",
        "When a last line without newline is emitted. `auto`: after its newline while following, at once with \
         `--until-idle`. `wait`: after its newline. `emit`: after `eof_after`. In every mode it is emitted when \
         the file is finished: renamed or removed and unchanged for `rotate_wait`, or a complete compressed \
         file.",
    ),
    OptionSpec::with_default(
        "eof_after",
        "duration",
        "\"5s\"",
        "For `eof = \"emit\"`: how long the file must be unchanged.",
    ),
    OptionSpec::with_default(
        "poll_interval",
        "duration",
        "\"250ms\"",
        "Longest time between two scans where the kernel sends no notifications. Where inotify reports all changes, \
         the source reads the files that change without a scan, and scans every two seconds (with many files up to ten) and when a name appears, \
         disappears or moves. A folder that does not exist is looked for once per second. With thousands of files scans become rarer, so that they take at most 5 % of the time.",
    ),
    OptionSpec::with_default(
        "rotate_wait",
        "duration",
        "\"5s\"",
        "How long a renamed or removed file must be unchanged until it counts as finished. Lines written to it \
         later are read as long as the source keeps its descriptor, about ten minutes.",
    ),
    OptionSpec::optional(
        "remove_after",
        "duration",
        "files stay",
        "Removes a file that was read to its end and was not changed for this long, once its lines are committed in \
         Kafka. Empty files, files with an unfinished line and symbolic links stay.",
        "\"1d\"",
    ),
    OptionSpec::with_default(
        "max_open_files",
        "number",
        "256",
        "Largest number of open files; more files take turns. Files that were removed, or renamed to a path \
         that no glob matches, stay open until they are finished and may exceed it.",
    ),
    OptionSpec::with_default(
        "delimiter",
        "string",
        "\"\\n\"",
        "Ends a line. With the default, a carriage return before it is removed.",
    ),
];

/// The options of a `logfile` source, as [`OPTIONS`] documents them.
#[derive(Debug, Clone)]
pub struct LogfileOptions {
    /// Globs of the files to read.
    pub paths: Vec<Glob>,
    /// Globs of files to leave out.
    pub exclude: Vec<Glob>,
    /// The parser, with its options.
    pub parser: ParserSpec,
    /// Lines to keep: those that match one of these.
    pub include_lines: Option<RegexSet>,
    /// Lines to drop.
    pub exclude_lines: Option<RegexSet>,
    /// Limit on the lines of each file that is followed.
    pub max_lines_per_second: Option<u64>,
    /// What is added to each record.
    pub labels: Labels,
    /// Finished files are removed after this time.
    pub remove_after: Option<Duration>,
    /// Which lines make one event.
    pub multiline: Option<Multiline>,
    /// Where files begin that exist at the very first start.
    pub read_from: ReadFrom,
    /// Age from which new files are skipped.
    pub ignore_older: Option<Duration>,
    /// Longest line.
    pub max_line_bytes: usize,
    /// Handling of longer lines.
    pub oversize: Oversize,
    /// Charset of files without a byte order mark.
    pub charset: &'static Encoding,
    /// The charset is configured, so that a byte order mark can contradict it.
    pub charset_is_set: bool,
    /// Compression of the files.
    pub compression: Compression,
    /// When a last line without newline is emitted.
    pub eof: EndOfFile,
    /// For [`EndOfFile::Emit`]: how long the file must be unchanged.
    pub eof_after: Duration,
    /// Longest time between two scans.
    pub poll_interval: Duration,
    /// How long a renamed or removed file must be unchanged until it is finished.
    pub rotate_wait: Duration,
    /// Largest number of open files.
    pub max_open_files: usize,
    /// Ends a line.
    pub delimiter: String,
}

/// Where files begin at the first start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFrom {
    /// At their beginning.
    Beginning,
    /// At their end: only later lines are read.
    End,
}

/// Handling of a line that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oversize {
    /// Its beginning is emitted.
    Truncate,
    /// It is rejected with its beginning.
    DeadLetter,
    /// The source stops.
    Error,
}

/// How files are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Recognised by the first bytes.
    Auto,
    /// Not compressed.
    None,
    /// With gzip.
    Gzip,
    /// With zstd.
    Zstd,
    /// With xz.
    Xz,
}

/// When a last line without newline is emitted. In every mode it is emitted when the file is
/// finished: renamed or removed and unchanged for `rotate_wait`, or a complete compressed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndOfFile {
    /// While following, after its newline; with `--until-idle`, at once.
    Auto,
    /// After its newline.
    Wait,
    /// When the file has been unchanged for `eof_after`.
    Emit,
}

const MAX_LINE_BYTES: u64 = 60 << 20;
const MAX_OPEN_FILES: u64 = 1_000_000;

impl LogfileOptions {
    /// Reads a component's section. All problems are added to its report; the result is `None` if
    /// there are any.
    pub fn read(section: &Section<'_>) -> Option<Self> {
        section.declare(OPTIONS);
        let before = section.report.len();
        let parser = parser(section);
        let options = Self {
            paths: globs(section, "paths", true),
            exclude: globs(section, "exclude", false),
            multiline: multiline(section, &parser.kind),
            include_lines: line_patterns(section, "include_lines"),
            exclude_lines: line_patterns(section, "exclude_lines"),
            max_lines_per_second: max_lines_per_second(section),
            labels: labels(section, &parser),
            remove_after: section.optional("remove_after"),
            parser,
            read_from: section.one_of("read_from", &[("beginning", ReadFrom::Beginning), ("end", ReadFrom::End)]),
            ignore_older: section.optional("ignore_older"),
            max_line_bytes: max_line_bytes(section),
            oversize: section.one_of(
                "oversize",
                &[("dead_letter", Oversize::DeadLetter), ("truncate", Oversize::Truncate), ("error", Oversize::Error)],
            ),
            charset: charset(section),
            charset_is_set: section.table.get("charset").is_some(),
            compression: section.one_of(
                "compression",
                &[
                    ("auto", Compression::Auto),
                    ("none", Compression::None),
                    ("gzip", Compression::Gzip),
                    ("zstd", Compression::Zstd),
                    ("xz", Compression::Xz),
                ],
            ),
            eof: section
                .one_of("eof", &[("auto", EndOfFile::Auto), ("wait", EndOfFile::Wait), ("emit", EndOfFile::Emit)]),
            eof_after: section.value("eof_after"),
            poll_interval: poll_interval(section),
            rotate_wait: section.value("rotate_wait"),
            max_open_files: max_open_files(section),
            delimiter: delimiter(section),
        };
        // `finish` takes the section by value; the runtime calls it after it has read the keys that
        // all components share.
        (section.report.len() == before).then_some(options)
    }
}

impl LogfileOptions {
    /// The schema of the records, if it is known before the first line.
    pub fn schema(&self) -> Option<Arc<Schema>> {
        let schema = self.parser.schema()?;
        let Some(labels) = self.labels.field() else { return Some(schema) };
        let mut fields: Vec<Field> = schema.arrow().fields().iter().map(|field| field.as_ref().clone()).collect();
        fields.push(labels);
        Schema::new(Arc::new(ArrowSchema::new(fields))).ok().map(Arc::new)
    }
}

fn line_patterns(section: &Section<'_>, key: &'static str) -> Option<RegexSet> {
    let patterns: Vec<String> = section.optional(key)?;
    let Some(Value::Array(items)) = section.table.get(key).map(|node| &node.value) else { return None };
    let expected = "a regular expression such as `^DEBUG`";
    for (pattern, item) in patterns.iter().zip(items) {
        if let Err(error) = RegexParser::check(pattern) {
            report_pattern(section, key, item, pattern, error, expected);
        }
    }
    RegexSet::new(&patterns).ok().filter(|_| !patterns.is_empty())
}

fn labels(section: &Section<'_>, parser: &ParserSpec) -> Labels {
    let labels = Labels {
        fixed: section.optional("labels").unwrap_or_default(),
        host: if section.value("host") { host_name() } else { None },
        kubernetes: section.value("kubernetes"),
    };
    let is_taken = parser.fields().is_some_and(|fields| fields.iter().any(|field| field == LABELS));
    if is_taken && !labels.is_empty() {
        let key = ["labels", "host", "kubernetes"].into_iter().find(|key| section.table.get(key).is_some());
        if let Some((key, node)) = key.and_then(|key| Some((key, section.table.get(key)?))) {
            let mismatch = Mismatch::new("adds a field `labels`, which the parser produces, too");
            section.mismatch(key, node, mismatch, "another name of the parser's field".to_owned());
        }
    }
    labels
}

fn parser(section: &Section<'_>) -> ParserSpec {
    let spec = parser_spec(section, "none");
    ParserSpec { then: then(section, &spec.kind), partial: section.value("partial"), ..spec }
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
        let glob = if required { Glob::of_paths(&text, section.base) } else { Glob::of_exclusion(&text, section.base) };
        match glob {
            Ok(glob) => globs.push(glob),
            Err(why) => {
                let mismatch = Mismatch::new(format!("has an invalid glob: {why}"));
                section.mismatch(key, item, mismatch, "a glob such as `logs/*.log`".to_owned());
            }
        }
    }
    globs
}

/// Reports an option whose value has the right type and is not `valid`.
fn check(section: &Section<'_>, key: &'static str, valid: bool, message: String, expected: &str) {
    if !valid && let Some(node) = section.table.get(key) {
        section.mismatch(key, node, Mismatch::new(message), expected.to_owned());
    }
}

fn max_line_bytes(section: &Section<'_>) -> usize {
    let ByteSize(bytes) = section.value("max_line_bytes");
    let valid = (1..=MAX_LINE_BYTES).contains(&bytes);
    check(section, "max_line_bytes", valid, format!("is {bytes} bytes"), "a size from 1B to 60MiB");
    bytes as usize
}

fn max_lines_per_second(section: &Section<'_>) -> Option<u64> {
    let limit: u64 = section.optional("max_lines_per_second")?;
    check(section, "max_lines_per_second", limit > 0, "is 0".to_owned(), "a whole number from 1");
    Some(limit)
}

fn max_open_files(section: &Section<'_>) -> usize {
    let files: u64 = section.value("max_open_files");
    let valid = (1..=MAX_OPEN_FILES).contains(&files);
    check(section, "max_open_files", valid, format!("is {files}"), "a whole number from 1 to 1000000");
    files as usize
}

fn poll_interval(section: &Section<'_>) -> Duration {
    let interval: Duration = section.value("poll_interval");
    let expected = "a duration above zero such as `250ms`";
    check(section, "poll_interval", !interval.is_zero(), "is zero".to_owned(), expected);
    interval
}

fn charset(section: &Section<'_>) -> &'static Encoding {
    let label: String = section.value("charset");
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
        let mismatch = Mismatch { message: "is not a known charset".to_owned(), span: None, help };
        section.mismatch("charset", node, mismatch, format!("a WHATWG label such as {}", COMMON.join(", ")));
    }
    encoding_rs::UTF_8
}

fn delimiter(section: &Section<'_>) -> String {
    let delimiter: String = section.value("delimiter");
    let expected = "at least one character, such as `\"\\n\"`";
    check(section, "delimiter", !delimiter.is_empty(), "is empty".to_owned(), expected);
    delimiter
}

#[cfg(test)]
mod tests {
    use trunkline_connector::conformance::{check_options_are_read, check_options_table};

    use super::*;

    #[test]
    fn the_readme_documents_the_declared_options() {
        check_options_table(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"), OPTIONS);
    }

    #[test]
    fn declared_options_are_read() {
        check_options_are_read(OPTIONS, |section| {
            LogfileOptions::read(section);
        });
    }
}
