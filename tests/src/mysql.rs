//! A MySQL server, or MariaDB.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::server::Server;
use crate::{Skip, repository};

/// A real MySQL or MariaDB of one test, through the scripts in `tests/services`. Its user `cdc` may do what a source needs, and no more.
pub struct Mysql {
    server: Server,
    script: &'static str,
}

impl Mysql {
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

    /// The `url` of a source on it, with the password in the environment variable `CDC_PASSWORD`.
    pub fn url(&self) -> String {
        format!("mysql://cdc:${{env:CDC_PASSWORD}}@127.0.0.1:{}", self.server.port())
    }

    /// The same with the password in it.
    pub fn plain_url(&self) -> String {
        format!("mysql://cdc:{}@127.0.0.1:{}", Self::PASSWORD.1, self.server.port())
    }

    /// The address for somebody who may do everything.
    pub fn root_url(&self) -> String {
        format!("mysql://root@127.0.0.1:{}", self.server.port())
    }

    /// Where it listens, on the loopback address.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The variable that [`Mysql::url`] names, and its value.
    pub const PASSWORD: (&'static str, &'static str) = ("CDC_PASSWORD", "secret");

    /// Runs statements; gives the lines that they print, columns separated by tabs.
    pub fn run(&self, statements: &str) -> Vec<String> {
        self.try_run(statements).unwrap_or_else(|error| panic!("{error}\n{statements}"))
    }

    /// The same; the error is what the client says of the first statement that fails, and ends them.
    pub fn try_run(&self, statements: &str) -> Result<Vec<String>, String> {
        let mut client = Command::new(repository().join("tests/services").join(self.script))
            .args(["client", &self.server.port().to_string()])
            .arg(self.server.directory())
            .args(["-N", "-B", "--default-character-set=utf8mb4"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A client that has met an error reads no more.
        let _ = client.stdin.take().unwrap().write_all(statements.as_bytes());
        let output = client.wait_with_output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// A crash.
    pub fn kill9(&mut self) {
        self.server.end(libc::SIGKILL);
    }

    /// A clean stop.
    pub fn stop(&mut self) {
        self.server.end(libc::SIGTERM);
    }

    /// Starts it again with its data.
    pub fn restart(&mut self) {
        self.server.start_again();
    }
}
