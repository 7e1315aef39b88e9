//! The terminal of `trunkline top`: raw mode, keys, and frames of styled lines. A screen of one
//! table needs no library for it.

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _, stdin, stdout};
use std::mem::MaybeUninit;
use std::time::Duration;

/// The look of a part of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Look {
    #[default]
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
    Warning,
}

impl Look {
    /// The parameters of the control sequence that turns it on.
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Bold => "0;1",
            Self::Dim => "0;2",
            Self::Good => "0;32",
            Self::Bad => "0;31",
            Self::Warning => "0;33",
        }
    }
}

/// A line of a frame.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Line {
    parts: Vec<(Look, String)>,
    is_selected: bool,
}

impl Line {
    pub(super) fn of(look: Look, text: impl Into<String>) -> Self {
        Self { parts: vec![(look, text.into())], is_selected: false }
    }

    pub(super) fn add(mut self, look: Look, text: impl Into<String>) -> Self {
        self.parts.push((look, text.into()));
        self
    }

    pub(super) fn selected(mut self, is_selected: bool) -> Self {
        self.is_selected = is_selected;
        self
    }

    /// The control sequences and the text, cut to a width. Control characters of texts are
    /// replaced: an error may contain anything.
    fn render(&self, width: usize) -> String {
        let mut text = String::new();
        let mut left = width;
        for (look, part) in &self.parts {
            let _ = write!(text, "\x1b[{}{}m", look.code(), if self.is_selected { ";7" } else { "" });
            let shown = part.chars().take(left).map(|character| if character.is_control() { '?' } else { character });
            let before = text.len();
            text.extend(shown);
            left -= text[before..].chars().count();
        }
        if self.is_selected {
            text.push_str(&" ".repeat(left));
        }
        text.push_str("\x1b[0m");
        text
    }

    #[cfg(test)]
    pub(super) fn text(&self) -> String {
        self.parts.iter().map(|(_, text)| text.as_str()).collect()
    }
}

/// A key that was pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Enter,
    Escape,
    Interrupt,
}

/// The keys in bytes that a terminal sent.
pub(super) fn keys(mut bytes: &[u8]) -> Vec<Key> {
    const SEQUENCES: [(&[u8], Key); 10] = [
        (b"\x1b[A", Key::Up),
        (b"\x1b[B", Key::Down),
        (b"\x1b[C", Key::Right),
        (b"\x1b[D", Key::Left),
        (b"\x1bOA", Key::Up),
        (b"\x1bOB", Key::Down),
        (b"\x1bOC", Key::Right),
        (b"\x1bOD", Key::Left),
        (b"\x1b[5~", Key::PageUp),
        (b"\x1b[6~", Key::PageDown),
    ];
    let mut found = Vec::new();
    while let Some(first) = bytes.first() {
        if let Some((sequence, key)) = SEQUENCES.iter().find(|(sequence, _)| bytes.starts_with(sequence)) {
            found.push(*key);
            bytes = &bytes[sequence.len()..];
            continue;
        }
        if bytes.len() > 2 && bytes.starts_with(b"\x1b[") {
            // An unknown sequence ends with a letter or `~`.
            let end = bytes[2..].iter().position(|byte| (0x40..=0x7e).contains(byte));
            bytes = end.map_or(&[], |end| &bytes[end + 3..]);
            continue;
        }
        match first {
            b'\r' | b'\n' => found.push(Key::Enter),
            0x1b => found.push(Key::Escape),
            0x03 => found.push(Key::Interrupt),
            byte if byte.is_ascii_graphic() => found.push(Key::Char(char::from(*byte))),
            _ => {}
        }
        bytes = &bytes[1..];
    }
    found
}

/// A terminal in raw mode, on its alternate screen. Dropping it restores the terminal.
pub(super) struct Terminal {
    original: libc::termios,
    last: (Vec<String>, (usize, usize)),
}

impl Terminal {
    pub(super) fn open() -> io::Result<Self> {
        let mut attributes = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the call fills the attributes, or fails.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, attributes.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has succeeded.
        let original = unsafe { attributes.assume_init() };
        let mut raw = original;
        raw.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN);
        raw.c_iflag &= !(libc::IXON | libc::ICRNL);
        raw.c_cc[libc::VMIN] = 0;
        raw.c_cc[libc::VTIME] = 0;
        set(&raw)?;
        let terminal = Self { original, last: Default::default() };
        // The alternate screen, without a cursor and without line breaks at the right edge.
        send("\x1b[?1049h\x1b[?25l\x1b[?7l")?;
        Ok(terminal)
    }

    /// Columns and lines.
    pub(super) fn size(&self) -> (usize, usize) {
        let mut size = MaybeUninit::<libc::winsize>::zeroed();
        // SAFETY: the call fills the size; a failure leaves zeros, which are a valid value.
        let size = unsafe {
            libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, size.as_mut_ptr());
            size.assume_init()
        };
        let or = |number: u16, default: usize| if number == 0 { default } else { usize::from(number) };
        (or(size.ws_col, 80), or(size.ws_row, 24))
    }

    /// Shows a frame. Only lines that changed are written.
    pub(super) fn show(&mut self, lines: &[Line]) -> io::Result<()> {
        let (width, height) = self.size();
        let rendered: Vec<String> = lines.iter().take(height).map(|line| line.render(width)).collect();
        let is_resized = self.last.1 != (width, height);
        let mut text = String::new();
        if is_resized {
            text.push_str("\x1b[2J");
        }
        for (index, line) in rendered.iter().enumerate() {
            if is_resized || self.last.0.get(index) != Some(line) {
                let _ = write!(text, "\x1b[{};1H\x1b[2K{line}", index + 1);
            }
        }
        if rendered.len() < self.last.0.len() {
            let _ = write!(text, "\x1b[{};1H\x1b[J", rendered.len() + 1);
        }
        self.last = (rendered, (width, height));
        send(&text)
    }

    /// The keys that were pressed, after at most this time. An error is the end of the input.
    pub(super) fn keys(&self, wait: Duration) -> io::Result<Vec<Key>> {
        let mut descriptor = libc::pollfd { fd: libc::STDIN_FILENO, events: libc::POLLIN, revents: 0 };
        let milliseconds = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the descriptor lives longer than the call.
        let ready = unsafe { libc::poll(&mut descriptor, 1, milliseconds) };
        if ready <= 0 {
            // A changed window size interrupts the wait.
            return Ok(Vec::new());
        }
        let mut bytes = [0; 64];
        match stdin().lock().read(&mut bytes)? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the terminal was closed")),
            length => Ok(keys(&bytes[..length])),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Nothing more can be done if the terminal is gone.
        let _ = send("\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l");
        let _ = set(&self.original);
    }
}

fn set(attributes: &libc::termios) -> io::Result<()> {
    // SAFETY: the attributes are those that the terminal returned, with changed flags.
    match unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSAFLUSH, attributes) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn send(text: &str) -> io::Result<()> {
    let mut stdout = stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_from_the_bytes_of_terminals() {
        let pressed = keys(b"j\x1b[A\x1bOB\x1b[6~\r\x1b[1;5Cq\x03\x1b");
        let expected = [
            Key::Char('j'),
            Key::Up,
            Key::Down,
            Key::PageDown,
            Key::Enter,
            Key::Char('q'),
            Key::Interrupt,
            Key::Escape,
        ];
        assert_eq!(pressed, expected);
        assert_eq!(keys("ä\x1b[200".as_bytes()), []);
    }

    #[test]
    fn lines_are_cut_and_control_characters_replaced() {
        let line = Line::of(Look::Bold, "é\x1b[2J").add(Look::Bad, "abc");
        assert_eq!(line.render(20), "\x1b[0;1mé?[2J\x1b[0;31mabc\x1b[0m");
        assert_eq!(line.render(2), "\x1b[0;1mé?\x1b[0;31m\x1b[0m");
        let selected = Line::of(Look::Plain, "ab").selected(true);
        assert_eq!(selected.render(4), "\x1b[0;7mab  \x1b[0m");
    }
}
