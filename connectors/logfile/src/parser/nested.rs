//! [`ParserSpec`] and [`Parser`]: a format with the options that all formats share.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};
use memchr::memmem;
use trunkline_connector::json::{key_is, members, text, write_string};
use trunkline_connector::{Reason, Schema};

use super::time::{Clock, Instant, TimeFormat, Zone};
use super::{Event, Expected, FileStart, LineParser, ParserKind, reason, schema_of};

/// The field that has the line, for `partial`.
pub(crate) const UNPARSED: &str = "unparsed";

/// What a pipeline file says about parsing.
#[derive(Debug, Clone)]
pub struct ParserSpec {
    /// The format of the line.
    pub kind: ParserKind,
    /// The parsers of fields.
    pub then: Vec<(String, ParserSpec)>,
    /// Lines that do not match become records with the fields before the mismatch.
    pub partial: bool,
    pub(crate) time: TimeOptions,
}

/// The option `timestamp`.
#[derive(Debug, Clone, Default)]
pub(crate) struct TimeOptions {
    pub(crate) field: Option<TimeField>,
    pub(crate) zone: Option<Zone>,
    pub(crate) default_year: Option<i64>,
}

/// A field that holds the time of the record.
#[derive(Debug, Clone)]
pub(crate) struct TimeField {
    pub(crate) name: String,
    pub(crate) formats: Vec<TimeFormat>,
}

/// A running parser with its options.
pub struct Parser {
    format: Box<dyn LineParser>,
    then: Vec<(String, Parser)>,
    partial: bool,
    field: Option<TimeField>,
    clock: Clock,
    /// The code of the last error.
    failed: &'static str,
    /// Texts and values of nested parsers.
    text: String,
    value: Vec<u8>,
}

impl ParserSpec {
    /// A format without further options.
    pub fn new(kind: ParserKind) -> Self {
        Self { kind, then: Vec::new(), partial: false, time: TimeOptions::default() }
    }

    /// The schema of the records, if it is known before the first line.
    pub fn schema(&self) -> Option<Arc<Schema>> {
        let schema = self.kind.schema()?;
        let mut fields: Vec<Field> = schema.arrow().fields().iter().map(|field| field.as_ref().clone()).collect();
        if let Some(time) = &self.time.field {
            for field in fields.iter_mut().filter(|field| *field.name() == time.name) {
                let zone = Some("+00:00".into());
                *field = Field::new(&time.name, DataType::Timestamp(TimeUnit::Microsecond, zone), true);
            }
        }
        for (name, spec) in &self.then {
            let nested = spec.schema()?;
            for field in fields.iter_mut().filter(|field| field.name() == name) {
                *field = Field::new(name, DataType::Struct(nested.arrow().fields().clone()), true);
            }
        }
        if self.partial {
            fields.push(super::text(UNPARSED));
        }
        schema_of(fields)
    }

    /// The fields of its records; `None` if each line decides.
    pub fn fields(&self) -> Option<Vec<String>> {
        let mut names: BTreeSet<String> = BTreeSet::new();
        if matches!(self.kind, ParserKind::None) {
            names.insert("message".to_owned());
        } else {
            names.extend(self.kind.schema()?.arrow().fields().iter().map(|field| field.name().clone()));
        }
        for (name, spec) in &self.then {
            names.extend(spec.fields()?.into_iter().map(|nested| format!("{name}.{nested}")));
        }
        if self.partial {
            names.insert(UNPARSED.to_owned());
        }
        Some(names.into_iter().collect())
    }

    /// Creates the parser.
    pub fn parser(&self) -> Parser {
        let mut clock = Clock::new(self.time.zone.as_ref(), self.time.default_year);
        let now = jiff::Timestamp::now().as_millisecond();
        clock.begin_file(&FileStart { first: "", modified: now });
        let format = self.kind.line_parser(clock.clone());
        Parser {
            failed: format.code(),
            format,
            then: self.then.iter().map(|(name, spec)| (name.clone(), spec.parser())).collect(),
            partial: self.partial,
            field: self.time.field.clone(),
            clock,
            text: String::new(),
            value: Vec::new(),
        }
    }
}

impl Parser {
    /// The lines that follow are of this file.
    pub fn begin_file(&mut self, start: &FileStart<'_>) {
        self.clock.begin_file(start);
        self.format.begin_file(start);
        for (_, parser) in &mut self.then {
            parser.begin_file(start);
        }
    }

    /// Parses the first line of a file, which may be a header.
    pub fn parse_first(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        if self.takes_header(line)? { Ok(Event::Blank) } else { self.parse(line, out) }
    }

    /// Passes the first line of a file. Whether it is a header and no record.
    pub(crate) fn takes_header(&mut self, line: &str) -> Result<bool, Expected> {
        let header = self.format.first_line(line);
        if header.is_err() {
            self.failed = self.format.code();
        }
        header
    }

    /// Appends the JSON of a line to `out`. After an error `out` may hold a part of it, which the
    /// caller removes.
    pub fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        let start = out.len();
        let parsed = self.parse_whole(line, out, start);
        match parsed {
            Err(_) if self.partial => {
                self.keep_part(line, out, start);
                Ok(Event::Record(None))
            }
            Ok(Event::Record(time)) if self.partial => {
                out.truncate(out.len() - 1);
                out.extend_from_slice(if out.len() == start + 1 { b"" } else { b"," });
                out.extend_from_slice(b"\"unparsed\":null}");
                Ok(Event::Record(time))
            }
            other => other,
        }
    }

    fn parse_whole(&mut self, line: &str, out: &mut Vec<u8>, start: usize) -> Result<Event, Expected> {
        let mut event = match self.format.parse(line, out) {
            Ok(event) => event,
            Err(expected) => {
                self.failed = self.format.code();
                return Err(expected);
            }
        };
        if event == Event::Blank {
            return Ok(event);
        }
        if let Some(field) = self.field.take() {
            let time = self.replace_time(&field, line, out, start);
            self.field = Some(field);
            if let Some(instant) = time? {
                event = Event::Record(Some(instant.milliseconds()));
            }
        }
        for index in 0..self.then.len() {
            if let Some(time) = self.parse_field(index, line, out, start)?
                && event == Event::Record(None)
            {
                event = Event::Record(Some(time));
            }
        }
        Ok(event)
    }

    /// Writes the time of the record's time field in UTC.
    fn replace_time(
        &mut self,
        field: &TimeField,
        line: &str,
        out: &mut Vec<u8>,
        start: usize,
    ) -> Result<Option<Instant>, Expected> {
        let Some((range, written)) = member(&out[start..], &field.name) else { return Ok(None) };
        if written == "null" && out[start + range.start] != b'"' {
            return Ok(None);
        }
        let parsed = field.formats.iter().find_map(|format| format.parse(&written, &mut self.clock));
        self.value.clear();
        if let Some(instant) = parsed
            && instant.write(&mut self.value, 6)
        {
            out.splice(start + range.start..start + range.end, self.value.iter().copied());
            return Ok(Some(instant));
        }
        self.failed = "parse.timestamp";
        let at = memmem::find(line.as_bytes(), written.as_bytes()).unwrap_or(0);
        let what = format!("a time as `{}`, in one of the formats of `timestamp`", field.name);
        // What `partial` keeps must have the type of the field.
        out.splice(start + range.start..start + range.end, *b"null");
        Err(Expected { at, what })
    }

    /// Replaces the text of a field by what its own parser makes of it. A field that is absent or
    /// null stays so.
    fn parse_field(
        &mut self,
        index: usize,
        line: &str,
        out: &mut Vec<u8>,
        start: usize,
    ) -> Result<Option<i64>, Expected> {
        let (name, parser) = &mut self.then[index];
        let Some((range, written)) = member(&out[start..], name) else { return Ok(None) };
        if out[start + range.start] != b'"' {
            return Ok(None);
        }
        self.text.clear();
        self.text.push_str(&written);
        drop(written);
        self.value.clear();
        let parsed = parser.parse(&self.text, &mut self.value);
        let place = start + range.start..start + range.end;
        match parsed {
            Ok(Event::Record(time)) => {
                out.splice(place, self.value.iter().copied());
                Ok(time)
            }
            Ok(Event::Blank) => {
                out.splice(place, *b"null");
                Ok(None)
            }
            Err(Expected { at, what }) => {
                self.failed = parser.failed;
                out.splice(place, *b"null");
                // The text is usually in the line as it is. The last occurrence is the likely one.
                let found = memmem::rfind(line.as_bytes(), self.text.as_bytes());
                Err(match found {
                    Some(begin) => Expected { at: begin + at, what },
                    None => Expected { at: 0, what: format!("{what} at byte {at} of the field `{name}`") },
                })
            }
        }
    }

    /// Replaces what was written of a line that does not match by a record: the complete members, and
    /// the line.
    fn keep_part(&mut self, line: &str, out: &mut Vec<u8>, start: usize) {
        let kept = members(&out[start..]).map_while(Result::ok).map(|member| member.range.end).last();
        out.truncate(start + kept.unwrap_or(0));
        out.push(if kept.is_some() { b',' } else { b'{' });
        out.extend_from_slice(b"\"unparsed\":");
        write_string(out, line);
        out.push(b'}');
    }

    /// The reason of a rejection.
    pub fn reason(&self, line: &str, expected: &Expected) -> Reason {
        reason(self.failed, line, expected)
    }
}

/// The place of a member's value, and its text. The last occurrence counts.
fn member<'j>(json: &'j [u8], name: &str) -> Option<(std::ops::Range<usize>, Cow<'j, str>)> {
    let found = members(json).map_while(Result::ok).filter(|member| key_is(member.key, name)).last()?;
    Some((found.range, text(found.value)?))
}
