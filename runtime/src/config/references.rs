//! `${env:X}`, `${file:PATH}`, `${secret:NAME}`, `${vault:PATH#KEY}` and `${aws-secret:NAME#KEY}`
//! inside strings.
//!
//! References are resolved when a file is read, and never stored. `$${` stands for `${` itself. The
//! value of any reference may be a secret: it is never shown (I8).

use std::collections::BTreeMap;
use std::env::VarError;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use trunkline_connector::config::{Node, Problem, Table, Value, nearest};

use super::document::span_within;
use super::secret_stores::{self, Store};

const FORMS: &str = "`${env:NAME}`, `${file:PATH}`, `${secret:NAME}`, `${vault:PATH#KEY}` or `${aws-secret:NAME#KEY}`";

const KINDS: [&str; 5] = ["env", "file", "secret", "vault", "aws-secret"];

/// Where the values of references come from.
#[derive(Debug, Clone, Copy)]
pub struct References<'a> {
    /// Folder of the configuration file: relative paths of `${file:PATH}` start from it.
    pub base: &'a Path,
    /// Folder with one file for each `${secret:NAME}`.
    pub secrets: Option<&'a Path>,
}

/// The result of resolving a file.
#[derive(Default)]
pub(super) struct Resolved {
    /// References without a value, and malformed ones.
    pub(super) problems: Vec<Problem>,
    /// Places of strings that could not be resolved.
    pub(super) unresolved: Vec<Range<usize>>,
    /// Places of strings that were resolved, with the first reference in each.
    pub(super) strings: Vec<(Range<usize>, String)>,
    /// Values that must not be shown, each with the reference to show instead.
    pub(super) values: Vec<(String, String)>,
}

/// The reason why a reference has no value.
pub(super) struct Failure {
    pub(super) message: String,
    pub(super) expected: String,
    pub(super) help: Option<String>,
}

impl References<'_> {
    /// Resolves all strings of a table in place.
    pub(super) fn resolve(&self, source: &str, table: &mut Table, resolved: &mut Resolved) {
        for (_, node) in &mut table.entries {
            self.resolve_node(source, node, resolved);
        }
    }

    fn resolve_node(&self, source: &str, node: &mut Node, resolved: &mut Resolved) {
        match &mut node.value {
            Value::Table(table) => self.resolve(source, table, resolved),
            Value::Array(items) => items.iter_mut().for_each(|item| self.resolve_node(source, item, resolved)),
            Value::String(text) if text.raw.contains("${") => {
                text.resolved = self.resolve_text(source, &node.span, &text.raw, resolved);
            }
            _ => {}
        }
    }

    fn resolve_text(&self, source: &str, span: &Range<usize>, raw: &str, resolved: &mut Resolved) -> String {
        let mut text = String::with_capacity(raw.len());
        let mut first_reference = None;
        let mut failed = false;
        let mut at = 0;
        while let Some(found) = raw[at..].find("${") {
            let start = at + found;
            if raw[..start].ends_with('$') {
                text.push_str(&raw[at..start - 1]);
                text.push_str("${");
                at = start + 2;
                continue;
            }
            text.push_str(&raw[at..start]);
            let end = raw[start..].find('}').map_or(raw.len(), |length| start + length + 1);
            let written = &raw[start..end];
            match self.value(written) {
                Ok(value) => {
                    text.push_str(&value);
                    resolved.values.push((value, written.to_owned()));
                    first_reference.get_or_insert_with(|| written.to_owned());
                }
                Err(failure) => {
                    failed = true;
                    resolved.problems.push(Problem {
                        code: "config.unresolved",
                        message: failure.message,
                        span: span_within(source, span, raw, start..end),
                        expected: failure.expected,
                        help: failure.help,
                    });
                }
            }
            at = end;
        }
        text.push_str(&raw[at..]);
        if failed {
            resolved.unresolved.push(span.clone());
            return raw.to_owned();
        }
        if let Some(reference) = first_reference {
            resolved.strings.push((span.clone(), reference));
        }
        text
    }

    /// The value of a reference such as `${env:X}`.
    fn value(&self, written: &str) -> Result<String, Failure> {
        let Some(inside) = written.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) else {
            return Err(Failure {
                message: "a `${` is never closed".to_owned(),
                expected: format!("expected {FORMS}"),
                help: Some("write `$${` for the characters themselves".to_owned()),
            });
        };
        let (kind, name) = inside.split_once(':').unwrap_or((inside, ""));
        if name.is_empty() || !KINDS.contains(&kind) {
            let meant = if name.is_empty() { None } else { nearest(kind, &KINDS) };
            return Err(Failure {
                message: format!("`{written}` is not a reference"),
                expected: match meant {
                    Some(meant) => format!("did you mean `${{{meant}:{name}}}`?"),
                    None => format!("expected {FORMS}"),
                },
                help: Some("write `$${` for the characters themselves".to_owned()),
            });
        }
        match kind {
            "env" => environment_variable(name),
            "file" => file(&self.base.join(name), written),
            "vault" => secret_stores::value(Store::Vault, name, written),
            "aws-secret" => secret_stores::value(Store::Aws, name, written),
            _ => self.secret(name, written),
        }
    }

    fn secret(&self, name: &str, written: &str) -> Result<String, Failure> {
        let is_plain = matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
        if !is_plain {
            return Err(Failure {
                message: format!("`{written}` is not the name of a secret"),
                expected: "expected the name of a file in the secrets folder".to_owned(),
                help: Some("`${file:PATH}` reads a file from anywhere".to_owned()),
            });
        }
        let Some(folder) = self.secrets else {
            return Err(Failure {
                message: format!("`{written}` has no value: the setting `secrets` names no folder"),
                expected: format!("expected a folder with a file `{name}`"),
                help: Some("set `secrets = \"FOLDER\"` in trunkline.toml or the variable TRUNKLINE_SECRETS".to_owned()),
            });
        };
        let path = folder.join(name);
        note_if_readable_by_others(&path);
        file(&path, written)
    }
}

/// Files of secrets that every user of the machine may read, each with whether it was reported.
static EXPOSED: Mutex<BTreeMap<PathBuf, bool>> = Mutex::new(BTreeMap::new());

fn note_if_readable_by_others(path: &Path) {
    // A file that cannot be examined fails in the next step.
    let is_open = |path: &Path, bit| path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & bit != 0);
    // A folder that others may not enter protects its files.
    if is_open(path, 0o004) && path.parent().is_none_or(|folder| is_open(folder, 0o001)) {
        EXPOSED.lock().unwrap_or_else(PoisonError::into_inner).entry(path.to_owned()).or_default();
    }
}

/// Logs a warning about each file of a secret that others may read, once.
pub fn warn_about_exposed_secrets() {
    let mut exposed = EXPOSED.lock().unwrap_or_else(PoisonError::into_inner);
    for (path, is_reported) in exposed.iter_mut().filter(|(_, is_reported)| !**is_reported) {
        tracing::warn!("every user of this machine may read the secret in {0}: chmod 600 {0}", path.display());
        *is_reported = true;
    }
}

/// The folder of secrets if no setting names one: systemd's credentials.
pub(crate) fn default_secrets() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn environment_variable(name: &str) -> Result<String, Failure> {
    std::env::var(name).map_err(|error| match error {
        VarError::NotPresent => {
            let names: Vec<String> = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            Failure {
                message: format!("the environment variable `{name}` is not set"),
                expected: match nearest(name, &names) {
                    Some(meant) => format!("did you mean `${{env:{meant}}}`?"),
                    None => "expected a variable of the worker's environment".to_owned(),
                },
                help: Some(format!("set it where trunkline is started: `export {name}=..`")),
            }
        }
        VarError::NotUnicode(_) => Failure {
            message: format!("the environment variable `{name}` is not UTF-8"),
            expected: "expected text".to_owned(),
            help: None,
        },
    })
}

/// The text of a file without the line ends that editors and `echo` append.
fn file(path: &Path, written: &str) -> Result<String, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Err(error) => Err(Failure {
            message: format!("`{written}` has no value: {}: {}", without_dot(path).display(), io_reason(&error)),
            expected: "expected a readable text file".to_owned(),
            help: path
                .parent()
                .filter(|folder| !folder.is_dir())
                .map(|folder| format!("the folder {} does not exist", without_dot(folder).display())),
        }),
    }
}

/// A path in the current folder results in `./file`; the prefix is redundant.
fn without_dot(path: &Path) -> &Path {
    path.strip_prefix(".").unwrap_or(path)
}

/// An I/O error in words, without the number of the operating system.
pub(crate) fn io_reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "the file does not exist".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
        std::io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
        _ => error.to_string(),
    }
}
