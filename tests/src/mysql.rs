//! MySQL and MariaDB servers.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::server::Server;
use crate::{Skip, paths};

/// A real MySQL or MariaDB, started by a script in `tests/services`. Its user `cdc` has the
/// privileges that a source needs, and no others.
pub struct Mysql {
    server: Server,
    script: &'static str,
}

impl Mysql {
    /// The environment variable that [`Mysql::url`] names, and its value: the password of `cdc`.
    pub const PASSWORD: (&'static str, &'static str) = ("CDC_PASSWORD", "secret");

    /// The MySQL that all tests of this process share. Their databases have different names.
    pub fn shared() -> Result<&'static Self, Skip> {
        static SHARED: OnceLock<Result<Mysql, Skip>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref().map_err(Skip::clone)
    }

    /// Gives a session of a test the default variables, whatever the server's are.
    pub const PLAIN_SESSION: &'static str = "SET autocommit = 1, sql_select_limit = 18446744073709551615, \
        max_join_size = 18446744073709551615, sql_big_selects = 1, sql_safe_updates = 0;\n";

    /// Starts a MySQL without databases.
    pub fn start() -> Result<Self, Skip> {
        Self::start_script("mysql")
    }

    /// Starts a MariaDB without databases.
    pub fn start_mariadb() -> Result<Self, Skip> {
        Self::start_script("mariadb")
    }

    fn start_script(script: &'static str) -> Result<Self, Skip> {
        let mysql = Self { server: Server::start(script, &[], 1)?, script };
        mysql.run("CREATE USER cdc IDENTIFIED BY 'secret'");
        mysql.run("GRANT REPLICATION SLAVE, REPLICATION CLIENT, SELECT, LOCK TABLES ON *.* TO cdc");
        Ok(mysql)
    }

    /// The `url` of a source, with the password in an environment variable.
    pub fn url(&self) -> String {
        format!("mysql://cdc:${{env:CDC_PASSWORD}}@127.0.0.1:{}", self.server.port())
    }

    /// The URL of the user `cdc`, with the password.
    pub fn plain_url(&self) -> String {
        format!("mysql://cdc:{}@127.0.0.1:{}", Self::PASSWORD.1, self.server.port())
    }

    /// The URL of the user `root`.
    pub fn root_url(&self) -> String {
        format!("mysql://root@127.0.0.1:{}", self.server.port())
    }

    /// The authority that has signed its certificate; `None` if it has no certificate.
    pub fn authority(&self) -> Option<PathBuf> {
        let file = self.server.directory().join(format!("{}.data/ca.pem", self.server.port()));
        file.exists().then_some(file)
    }

    /// The id of its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Runs statements as root; returns the lines of their results, with columns separated by tabs.
    pub fn run(&self, statements: &str) -> Vec<String> {
        self.try_run(statements).unwrap_or_else(|error| panic!("{error}\n{statements}"))
    }

    /// Like [`Mysql::run`]. The first statement that fails ends the run; its message is the error.
    pub fn try_run(&self, statements: &str) -> Result<Vec<String>, String> {
        let mut client = Command::new(paths::repository().join("tests/services").join(self.script))
            .args(["client", &self.server.port().to_string()])
            .arg(self.server.directory())
            .args(["-N", "-B", "--default-character-set=utf8mb4"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The client stops reading at the first error, so that this may fail.
        let _ = client.stdin.take().unwrap().write_all([Self::PLAIN_SESSION, statements].concat().as_bytes());
        let output = client.wait_with_output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Kills it.
    pub fn kill9(&mut self) {
        self.server.end(libc::SIGKILL);
    }

    /// Stops it cleanly.
    pub fn stop(&mut self) {
        self.server.end(libc::SIGTERM);
    }

    /// Starts it again on its data.
    pub fn restart(&mut self) {
        self.server.start_again();
    }
}
