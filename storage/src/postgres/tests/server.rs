//! A PostgreSQL server of the test's own: directory, port, user; stopped by its pid.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_postgres::NoTls;

/// PostgreSQL does not run as root; this user is there on every machine.
const NOBODY: u32 = 65534;

pub(super) struct Server {
    directory: TempDir,
    programs: PathBuf,
    port: u16,
    child: Mutex<Child>,
    databases: AtomicU32,
}

impl Server {
    /// `None` where PostgreSQL is not installed.
    pub(super) fn start() -> Option<Server> {
        let programs = programs()?;
        let directory = tempfile::tempdir().expect("a temporary directory");
        // The directory above belongs to root, and the server has to get through.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("permissions");
        let data = directory.path().join("data");
        std::fs::create_dir(&data).expect("made");
        if is_root() {
            chown(&data, Some(NOBODY), Some(NOBODY)).expect("owner");
        }
        let made = command(&programs.join("initdb"), directory.path())
            .args(["--no-sync", "--locale=C", "-E", "UTF8", "-A", "trust", "-U", "ringway", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .expect("initdb runs");
        assert!(made.success(), "initdb");
        let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its address").port();
        let child = spawn(&programs, &data, port, &[]);
        let server = Server { directory, programs, port, child: Mutex::new(child), databases: AtomicU32::new(0) };
        server.wait_until_ready(&[]);
        Some(server)
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The address of a database that holds nothing yet.
    pub(super) fn new_database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let maintenance = self.url("postgres");
        run(&maintenance, async |client| client.batch_execute(&format!("CREATE DATABASE {name}")).await)
            .expect("a database");
        self.url(&name)
    }

    /// The number that a question has for an answer.
    pub(super) fn query(&self, url: &str, question: &str) -> i64 {
        // Around any relay.
        let (_, database) = url.rsplit_once('/').expect("an address has a database");
        let url = self.url(database);
        run(&url, async |client| client.query_one(question, &[]).await).expect("an answer").get(0)
    }

    /// Does what has no answer.
    pub(super) fn execute(&self, url: &str, statement: &str) {
        let (_, database) = url.rsplit_once('/').expect("an address has a database");
        run(&self.url(database), async |client| client.batch_execute(statement).await).expect("done");
    }

    /// As a machine that loses its server: no shutdown, and up again at once.
    pub(super) fn kill_and_start(&self) {
        self.end("KILL");
        self.start_again(&[]);
    }

    pub(super) fn restart_with(&self, options: &[&str]) {
        self.end("INT");
        self.start_again(options);
    }

    fn start_again(&self, options: &[&str]) {
        *self.child.lock().expect("unpoisoned") = spawn(&self.programs, &self.data(), self.port, options);
        self.wait_until_ready(options);
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://ringway@127.0.0.1:{}/{database}", self.port)
    }

    fn end(&self, signal: &str) {
        let mut child = self.child.lock().expect("unpoisoned");
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status();
        assert!(sent.is_ok_and(|status| status.success()));
        child.wait().expect("it ends");
    }

    /// Asks until it answers. One that was killed leaves processes that end a moment later, and until then
    /// a new one does not start.
    fn wait_until_ready(&self, options: &[&str]) {
        let started = Instant::now();
        while run(&self.url("postgres"), async |client| client.batch_execute("SELECT 1").await).is_err() {
            assert!(started.elapsed() < Duration::from_mins(1), "PostgreSQL does not start");
            let mut child = self.child.lock().expect("unpoisoned");
            if child.try_wait().expect("its state is known").is_some() {
                *child = spawn(&self.programs, &self.data(), self.port, options);
            }
            drop(child);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end("QUIT");
    }
}

fn spawn(programs: &Path, data: &Path, port: u16, options: &[&str]) -> Child {
    let above = data.parent().expect("it has one");
    command(&programs.join("postgres"), above)
        .arg("-D")
        .arg(data)
        .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
        .args(["-c", "shared_buffers=16MB", "-c", "max_connections=50", "-c", "log_min_messages=fatal"])
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("postgres runs")
}

fn command(program: &Path, directory: &Path) -> Command {
    let mut command = Command::new(program);
    // The directory that the tests run in may be closed to the server's user.
    command.current_dir(directory).env("LC_ALL", "C");
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

/// Debian keeps them out of the path, in a directory per version.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = versions.map(|version| version.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = debian.chain(std::env::split_paths(&path)).collect();
    places.sort();
    places.into_iter().rev().find(|place| place.join("initdb").exists() && place.join("postgres").exists())
}

fn run<T>(
    url: &str,
    work: impl AsyncFnOnce(&tokio_postgres::Client) -> Result<T, tokio_postgres::Error>,
) -> Result<T, tokio_postgres::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        work(&client).await
    })
}
