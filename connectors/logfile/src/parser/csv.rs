//! `parser = "csv"`: fields between separators (RFC 4180), with names from `columns` or from the
//! first line of each file. A field in double quotes may have separators and doubled quotes. An
//! empty field is null, `""` is the empty string.

use std::sync::Arc;

use arrow::datatypes::Field;
use memchr::memchr;
use trunkline_connector::Schema;
use trunkline_connector::json::write_string;

use super::types::{FieldType, FieldTypes};
use super::{Event, Expected, FileStart, LineParser, schema_of};

/// Longest first line with names of columns: the source keeps this much of a file's beginning.
const MAX_HEADER: usize = 1000;

/// The configured format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsvOptions {
    /// The names of the columns; `None`: the first line of each file has them.
    pub columns: Option<Vec<String>>,
    /// Between two fields.
    pub separator: u8,
    pub(crate) types: FieldTypes,
}

impl Default for CsvOptions {
    fn default() -> Self {
        Self { columns: None, separator: b',', types: FieldTypes::new() }
    }
}

impl CsvOptions {
    pub(super) fn schema(&self) -> Option<Arc<Schema>> {
        let columns = self.columns.as_ref()?;
        let field = |name: &String| {
            let field_type = self.types.get(name).copied().unwrap_or_default();
            Field::new(name, field_type.arrow(), true)
        };
        schema_of(columns.iter().map(field).collect())
    }
}

/// A running parser.
pub(super) struct CsvParser {
    options: CsvOptions,
    columns: Vec<Column>,
    unquoted: String,
}

struct Column {
    name: String,
    /// `"name":`, encoded.
    key: Vec<u8>,
    field_type: FieldType,
}

impl CsvParser {
    pub(super) fn new(options: &CsvOptions) -> Self {
        let mut parser = Self { options: options.clone(), columns: Vec::new(), unquoted: String::new() };
        if let Some(columns) = &options.columns {
            parser.set_columns(columns);
        }
        parser
    }

    fn set_columns(&mut self, names: &[String]) {
        self.columns.clear();
        for (index, name) in names.iter().enumerate() {
            let mut name = if name.is_empty() { format!("column_{}", index + 1) } else { name.clone() };
            while self.columns.iter().any(|column| column.name == name) {
                name.push('_');
            }
            let mut key = Vec::new();
            write_string(&mut key, &name);
            key.push(b':');
            let field_type = self.options.types.get(&name).copied().unwrap_or_default();
            self.columns.push(Column { name, key, field_type });
        }
    }

    /// Takes the names of the columns from the first line of a file.
    fn read_header(&mut self, line: &str) -> Result<(), Expected> {
        if line.len() > MAX_HEADER {
            let what = "a header of at most 1000 bytes; name the columns with `columns`";
            return Err(Expected { at: MAX_HEADER, what: what.to_owned() });
        }
        let mut names = Vec::new();
        let mut cells = Cells::new(line, self.options.separator);
        while let Some(cell) = cells.next_cell()? {
            names.push(cell.text.trim().replace("\"\"", "\""));
        }
        self.set_columns(&names);
        Ok(())
    }
}

impl LineParser for CsvParser {
    fn code(&self) -> &'static str {
        "parse.csv"
    }

    fn begin_file(&mut self, start: &FileStart<'_>) {
        if self.options.columns.is_some() {
            return;
        }
        self.columns.clear();
        if let Some((header, _)) = start.first.split_once('\n')
            && self.read_header(header.trim_end_matches('\r')).is_err()
        {
            // It was rejected when it was the first line. The other lines are rejected too.
            self.columns.clear();
        }
    }

    fn first_line(&mut self, line: &str) -> Result<bool, Expected> {
        if self.options.columns.is_some() {
            return Ok(false);
        }
        self.read_header(line).map(|()| true)
    }

    fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        if line.trim().is_empty() {
            return Ok(Event::Blank);
        }
        if self.columns.is_empty() {
            let what = "names of columns: the first line of the file has none";
            return Err(Expected { at: 0, what: what.to_owned() });
        }
        let mut cells = Cells::new(line, self.options.separator);
        for (index, column) in self.columns.iter().enumerate() {
            let Some(cell) = cells.next_cell()? else {
                return Err(Expected { at: line.len(), what: format!("the column `{}`", column.name) });
            };
            let before = out.len();
            out.push(if index == 0 { b'{' } else { b',' });
            out.extend_from_slice(&column.key);
            if cell.text.is_empty() && !cell.is_quoted {
                out.extend_from_slice(b"null");
                continue;
            }
            let mut text = cell.text;
            if cell.has_quotes {
                unquote(text, &mut self.unquoted);
                text = &self.unquoted;
            }
            if let Err(what) = column.field_type.write(text, out) {
                out.truncate(before);
                return Err(Expected { at: cell.at, what: format!("{what} in the column `{}`", column.name) });
            }
        }
        if let Some(at) = cells.next {
            return Err(Expected {
                at: at - 1,
                what: format!("the end of the line after {} columns", self.columns.len()),
            });
        }
        out.push(b'}');
        Ok(Event::Record(None))
    }
}

/// The fields of a line.
struct Cells<'a> {
    line: &'a str,
    separator: u8,
    /// Where the next field begins.
    next: Option<usize>,
}

/// A field of a line, as written.
struct Cell<'a> {
    at: usize,
    text: &'a str,
    is_quoted: bool,
    has_quotes: bool,
}

impl<'a> Cells<'a> {
    fn new(line: &'a str, separator: u8) -> Self {
        Self { line, separator, next: Some(0) }
    }

    fn next_cell(&mut self) -> Result<Option<Cell<'a>>, Expected> {
        let Some(at) = self.next else { return Ok(None) };
        let (line, bytes) = (self.line, self.line.as_bytes());
        if bytes.get(at) != Some(&b'"') {
            let len = memchr(self.separator, &bytes[at..]);
            let end = len.map_or(bytes.len(), |len| at + len);
            self.next = len.map(|_| end + 1);
            return Ok(Some(Cell { at, text: &line[at..end], is_quoted: false, has_quotes: false }));
        }
        let mut from = at + 1;
        let mut has_quotes = false;
        while let Some(len) = memchr(b'"', &bytes[from..]) {
            let quote = from + len;
            match bytes.get(quote + 1) {
                Some(b'"') => {
                    has_quotes = true;
                    from = quote + 2;
                }
                next if next.is_none_or(|next| *next == self.separator) => {
                    self.next = next.map(|_| quote + 2);
                    return Ok(Some(Cell { at, text: &line[at + 1..quote], is_quoted: true, has_quotes }));
                }
                _ => {
                    return Err(Expected { at: quote + 1, what: "a separator after the closing quote".to_owned() });
                }
            }
        }
        Err(Expected { at: line.len(), what: "the closing quote of a field".to_owned() })
    }
}

fn unquote(text: &str, out: &mut String) {
    out.clear();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\"\"") {
        out.push_str(before);
        out.push('"');
        rest = after;
    }
    out.push_str(rest);
}
