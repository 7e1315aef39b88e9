//! Finds the cause of a crash in the text that a language runtime wrote to stderr.
//!
//! The last line is often not the cause: Rust ends with a note about backtraces, JavaScript with a
//! stack, and the Python runtime writes the exception and then panics.

/// The cause of a crash, or `None` if the text contains only blank lines and notes.
pub(crate) fn from_stderr(text: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !is_note(line)).collect();
    python_exception(&lines).or_else(|| rust_panic(&lines)).or_else(|| javascript_error(&lines)).or_else(|| {
        let last = lines.last()?;
        Some(last.trim_start().to_owned())
    })
}

fn is_note(line: &str) -> bool {
    line.starts_with("note: ") && line.contains("RUST_BACKTRACE")
}

/// The last exception and its location: `ValueError: no (File "app.py", line 3, in process)`.
fn python_exception(lines: &[&str]) -> Option<String> {
    let start = lines.iter().rposition(|line| line.starts_with("Traceback (most recent call last)"))?;
    let traceback = &lines[start + 1..];
    let end = traceback.iter().position(|line| !line.starts_with(' '))?;
    let location = traceback[..end].iter().rev().map(|line| line.trim_start()).find(|line| line.starts_with("File "));
    Some(with_location(traceback[end], location))
}

/// The message and location of a panic: `thread '..' panicked at LOCATION:`, then the message.
fn rust_panic(lines: &[&str]) -> Option<String> {
    let (index, location) = lines.iter().enumerate().rev().find_map(|(index, line)| {
        let (_, location) = line.strip_prefix("thread ")?.split_once(" panicked at ")?;
        Some((index, location.trim_end_matches(':')))
    })?;
    Some(with_location(lines.get(index + 1)?, Some(location)))
}

/// The line before `Stack:`, and the first line of the stack.
fn javascript_error(lines: &[&str]) -> Option<String> {
    let stack = lines.iter().rposition(|line| line.trim_start().starts_with("Stack:"))?;
    let error = lines[..stack].last()?;
    Some(with_location(error.trim_start(), lines.get(stack + 1).map(|line| line.trim_start())))
}

fn with_location(message: &str, location: Option<&str>) -> String {
    match location {
        Some(location) => format!("{message} ({location})"),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_exception_is_the_reason_and_not_the_panic_of_its_runtime() {
        let text = "Traceback (most recent call last):\n  File \"app.py\", line 20, in process\n    raise ValueError(\"no\")\n\
                    ValueError: no\n\nthread '<unnamed>' (1) panicked at runtime/src/lib.rs:498:21:\nPython function threw an \
                    unexpected exception\nnote: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n";
        assert_eq!(from_stderr(text).as_deref(), Some("ValueError: no (File \"app.py\", line 20, in process)"));
        let chained = format!(
            "{text}During handling of the above exception, another exception occurred:\n\nTraceback (most \
                               recent call last):\n  File \"b.py\", line 1, in x\nKeyError: 'k'\n"
        );
        assert_eq!(from_stderr(&chained).as_deref(), Some("KeyError: 'k' (File \"b.py\", line 1, in x)"));
    }

    #[test]
    fn rust_panic_message_is_the_reason_and_not_the_note() {
        let text = "thread 'main' panicked at src/lib.rs:3:5:\nindex out of range\n\
                    note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n";
        assert_eq!(from_stderr(text).as_deref(), Some("index out of range (src/lib.rs:3:5)"));
    }

    #[test]
    fn javascript_error_is_the_reason_and_not_its_stack() {
        let text = "expected a string, received [object]\nStack:\n  encode@initializer.js:72:11\n  process@initializer.js:389:45\n\
                    Redirecting call to abort() to mozalloc_abort\n";
        assert_eq!(
            from_stderr(text).as_deref(),
            Some("expected a string, received [object] (encode@initializer.js:72:11)")
        );
    }

    #[test]
    fn other_output_ends_with_the_reason() {
        assert_eq!(from_stderr("start\n  fatal: no memory\n\n").as_deref(), Some("fatal: no memory"));
        assert_eq!(from_stderr("note: run with `RUST_BACKTRACE=1` environment variable\n\n"), None);
        assert_eq!(from_stderr(""), None);
    }
}
