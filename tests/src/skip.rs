//! Tests that cannot run on this machine.

use std::fmt;
use std::io::Write;

/// Why a test cannot run on this machine.
#[derive(Clone, Debug)]
pub struct Skip(String);

impl Skip {
    /// A skip for this reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// Prints the line that `tests/run` counts. `test` is the name of the skipped function.
    pub fn print(&self, test: &str) {
        // The test harness discards println! output of a test that passes, as a skipped test does.
        // A single write keeps the line whole.
        let line = format!("SKIP {test}: {self}\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // On one line, because `tests/run` counts lines.
        f.write_str(&self.0.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// The value of a `Result<T, Skip>`. On `Err`, prints the reason and returns from the test.
#[macro_export]
macro_rules! need {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(skip) => {
                fn here() {}
                let name = std::any::type_name_of_val(&here);
                let skip: $crate::Skip = skip;
                skip.print(name.trim_end_matches("::here"));
                return;
            }
        }
    };
}
