//! Writes and rotates a web server's access log.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::Random;

const METHODS: [&str; 4] = ["GET", "GET", "POST", "HEAD"];
const REFERERS: [&str; 3] = ["-", "https://www.example.com/", "https://search.example.org/?q=log%20files&hl=en"];
const AGENTS: [&str; 4] = [
    "-",
    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.4 Safari/605.1.15",
    "curl/8.14.1",
];

/// 1 March 2026, in seconds since 1970.
const MARCH: u64 = 1_772_323_200;

/// Writes lines of the combined format. One seed gives the same lines every time. Each line has a
/// unique path, `/item/{number}`. Timestamps are 2.5 s apart, from 1 March 2026 on: 100,000 lines
/// are three days. After 31 days they begin again at 1 March.
pub struct LogWriter {
    path: PathBuf,
    file: File,
    random: Random,
    first: u64,
    lines: u64,
    bytes: u64,
}

impl LogWriter {
    /// An empty log at `path`.
    pub fn new(path: impl Into<PathBuf>, seed: u64) -> Self {
        Self::starting_at(path, seed, 0)
    }

    /// An empty log whose lines are numbered from `first`: several logs then have no path in
    /// common.
    pub fn starting_at(path: impl Into<PathBuf>, seed: u64, first: u64) -> Self {
        let path = path.into();
        let file = open(&path);
        Self { path, file, random: Random::new(seed), first, lines: 0, bytes: 0 }
    }

    /// Appends lines.
    pub fn append(&mut self, lines: u64) {
        let mut text = String::new();
        for _ in 0..lines {
            self.line(&mut text);
        }
        self.file.write_all(text.as_bytes()).unwrap();
    }

    /// Appends any bytes. They are not counted as lines.
    pub fn append_raw(&mut self, bytes: &[u8]) {
        self.file.write_all(bytes).unwrap();
    }

    /// The time of the line with this number: seconds since 1 March.
    pub fn second(number: u64) -> u64 {
        number * 5 / 2 % (31 * 86_400)
    }

    /// The same of a Unix timestamp in seconds.
    pub fn second_of(unix: u64) -> u64 {
        unix - MARCH
    }

    /// The number of lines written.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// The sum of the field `bytes` over all lines.
    pub fn bytes(&self) -> i64 {
        self.bytes as i64
    }

    /// The log's size: the byte offset of the next line.
    pub fn size(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }

    /// logrotate's `create`: renames the log and creates a new one.
    pub fn rotate(&mut self, to: &Path) {
        fs::rename(&self.path, to).unwrap();
        self.file = open(&self.path);
    }

    /// logrotate's `copytruncate`: copies the log and truncates it.
    pub fn copy_truncate(&mut self, to: &Path) {
        fs::copy(&self.path, to).unwrap();
        self.file.set_len(0).unwrap();
    }

    /// logrotate's `compress`: compresses a rotated log into `{path}.gz` and removes it. The new
    /// file appears complete and with the log's modification time.
    pub fn gzip(path: &Path) {
        let unfinished = path.with_added_extension("tmp");
        let mut packed = GzEncoder::new(File::create(&unfinished).unwrap(), Compression::fast());
        packed.write_all(&fs::read(path).unwrap()).unwrap();
        let file = packed.finish().unwrap();
        file.set_modified(fs::metadata(path).unwrap().modified().unwrap()).unwrap();
        fs::rename(unfinished, path.with_added_extension("gz")).unwrap();
        fs::remove_file(path).unwrap();
    }

    fn line(&mut self, text: &mut String) {
        use std::fmt::Write;
        let number = self.first + self.lines;
        self.lines += 1;
        let random = &mut self.random;
        let address = random.number().to_be_bytes();
        let [a, b, c, d, ..] = address;
        let user = if random.below(10) == 0 { "alice" } else { "-" };
        let second = Self::second(number);
        let (day, hour, minute) = (second / 86_400 + 1, second / 3600 % 24, second / 60 % 60);
        let method = random.pick(&METHODS);
        let status = 200 + random.below(4) * 100;
        let size = random.below(100_000);
        self.bytes += if size < 5_000 { 0 } else { size };
        let size = if size < 5_000 { "-".to_owned() } else { size.to_string() };
        let (referer, agent) = (random.pick(&REFERERS), random.pick(&AGENTS));
        writeln!(
            text,
            r#"{a}.{b}.{c}.{d} - {user} [{day:02}/Mar/2026:{hour:02}:{minute:02}:{:02} +0000] "{method} /item/{number} HTTP/1.1" {status} {size} "{referer}" "{agent}""#,
            second % 60
        )
        .unwrap();
    }
}

fn open(path: &Path) -> File {
    // Append mode, as in a real server: after copytruncate the next line is at offset 0.
    OpenOptions::new().create(true).append(true).open(path).unwrap()
}
