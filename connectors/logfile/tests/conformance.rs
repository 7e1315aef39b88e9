//! The conformance suite for sources.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its files has failed")]

use std::io::Write;
use std::path::PathBuf;

use trunkline_connector::SourceConnector;
use trunkline_connector::conformance::{SourceFixture, source_suite};
use trunkline_logfile::LogfileConnector;

struct LogFiles {
    folder: tempfile::TempDir,
}

impl SourceFixture for LogFiles {
    fn connector(&self) -> &dyn SourceConnector {
        &LogfileConnector
    }

    fn create(&mut self) -> u64 {
        let line =
            |n: usize| format!("10.0.0.{n} - - [17/May/2015:10:05:03 +0000] \"GET /{n} HTTP/1.1\" 200 {n} \"-\" \"x\"");
        let mut a = String::new();
        for number in 0..20 {
            a.push_str(&line(number));
            a.push_str(if number % 3 == 0 { "\r\n" } else { "\n" });
            match number {
                7 => a.push_str("no access log line\n"),
                11 => a.push('\n'),
                13 => a.push_str(&format!("{}\n", "x".repeat(500))),
                _ => {}
            }
        }
        std::fs::write(self.folder.path().join("a.log"), a).unwrap();
        let b: String = (20..35).map(|number| line(number) + "\n").collect();
        std::fs::write(self.folder.path().join("b.log"), b).unwrap();
        let c: String = (35..50).map(|number| line(number) + "\n").collect();
        let file = std::fs::File::create(self.folder.path().join("c.log.1.gz")).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        gzip.write_all(c.as_bytes()).unwrap();
        gzip.finish().unwrap();
        53
    }

    fn append(&mut self) -> u64 {
        let mut file = std::fs::OpenOptions::new().append(true).open(self.folder.path().join("b.log")).unwrap();
        file.write_all(b"::1 - - [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 1\nrejected\n").unwrap();
        2
    }

    fn options(&self) -> String {
        "paths = [\"*.log*\"]\nparser = \"combined\"\nmax_line_bytes = 400\npoll_interval = \"20ms\"".to_owned()
    }

    fn base(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    fn bad_options(&self) -> Vec<(String, &'static str)> {
        let wrong = "config.wrong_value";
        let mut bad = vec![
            (String::new(), "config.missing_key"),
            ("paths = [\"*.log\"]\npathes = 1".to_owned(), "config.unknown_key"),
            ("paths = [\"*.log\"]\nparser = \"regex\"".to_owned(), "config.missing_key"),
        ];
        for line in [
            "paths = []",
            "paths = \"*.log\"",
            "paths = [\"\"]",
            "paths = [\"a[\"]",
            "paths = [\"a***\"]",
            "paths = [\"~/logs/*.log\"]",
            "paths = [\"{a,b\"]",
            "paths = [1]",
            "paths = [\"*.log\"]\nexclude = [\"[\"]",
            "paths = [\"*.log\"]\nparser = \"cobol\"",
            "paths = [\"*.log\"]\nparser = \"grok\"\npattern = \"%{NOPE:a}\"",
            "paths = [\"*.log\"]\nparser = \"grok\"\npattern = \"(?<a>x)(?=y)\"",
            "paths = [\"*.log\"]\nparser = \"csv\"\ncolumns = []",
            "paths = [\"*.log\"]\nparser = \"csv\"\nseparator = \"ab\"",
            "paths = [\"*.log\"]\nparser = \"csv\"\ntypes = { a = \"date\" }",
            "paths = [\"*.log\"]\ncolumns = [\"a\"]",
            "paths = [\"*.log\"]\ntimestamp = { zone = \"Europe/Nowhere\" }",
            "paths = [\"*.log\"]\ntimestamp = { field = \"message\", formats = [\"%!\"] }",
            "paths = [\"*.log\"]\nparser = \"cri\"\ntimestamp = { field = \"time\" }",
            "paths = [\"*.log\"]\ntimestamp = { default_year = 20 }",
            "paths = [\"*.log\"]\nparser = \"cri\"\nthen = [{ field = \"log\", parser = \"json\" }]",
            "paths = [\"*.log\"]\nthen = 1",
            "paths = [\"*.log\"]\npartial = 1",
            "paths = [\"*.log\"]\ninclude_lines = [\"(\"]",
            "paths = [\"*.log\"]\nexclude_lines = \"a\"",
            "paths = [\"*.log\"]\nlabels = { a = 1 }",
            "paths = [\"*.log\"]\nhost = \"yes\"",
            "paths = [\"*.log\"]\nkubernetes = 1",
            "paths = [\"*.log\"]\nremove_after = \"soon\"",
            "paths = [\"*.log\"]\nparser = \"csv\"\ncolumns = [\"labels\"]\nlabels = { a = \"b\" }",
            "paths = [\"*.log\"]\nmultiline = \"cobol\"",
            "paths = [\"*.log\"]\nmultiline = {}",
            "paths = [\"*.log\"]\nmultiline = { start = \"(\" }",
            "paths = [\"*.log\"]\nmultiline = { start = \"a\", max_lines = 0 }",
            "paths = [\"*.log\"]\nparser = \"regex\"\npattern = \"(?P<a>\"",
            "paths = [\"*.log\"]\nparser = \"regex\"\npattern = \"(a)\"",
            "paths = [\"*.log\"]\nparser = \"json\"\npattern = \"(?P<a>.)\"",
            "paths = [\"*.log\"]\nread_from = \"start\"",
            "paths = [\"*.log\"]\nignore_older = \"1 fortnight\"",
            "paths = [\"*.log\"]\nmax_line_bytes = 0",
            "paths = [\"*.log\"]\nmax_line_bytes = \"1TiB\"",
            "paths = [\"*.log\"]\noversize = \"drop\"",
            "paths = [\"*.log\"]\ncharset = \"latin-0\"",
            "paths = [\"*.log\"]\ncompression = \"lzip\"",
            "paths = [\"*.log\"]\neof = \"never\"",
            "paths = [\"*.log\"]\neof_after = 5",
            "paths = [\"*.log\"]\npoll_interval = \"0s\"",
            "paths = [\"*.log\"]\nrotate_wait = \"-1s\"",
            "paths = [\"*.log\"]\nmax_open_files = 0",
            "paths = [\"*.log\"]\ndelimiter = \"\"",
        ] {
            bad.push((line.to_owned(), wrong));
        }
        bad
    }

    fn budget(&self) -> usize {
        4 << 20
    }
}

#[test]
fn log_files_pass_the_source_suite() {
    source_suite(|| LogFiles { folder: tempfile::tempdir().unwrap() });
}
