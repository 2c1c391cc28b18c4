//! An ejabberd with its archive in a PostgreSQL of its own: both of Debian, in a directory of the run.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Peer, install};
use crate::server::{Process, Trouble, pinned, two_free_ports};

const SCHEMA: &str = "/usr/share/ejabberd/sql/pg.sql";

/// Both of them; ejabberd ends first.
pub(super) struct Ejabberd {
    pub(super) ejabberd: Process,
    pub(super) postgres: Postgres,
}

pub(super) struct Postgres(pub(super) Process);

impl Drop for Postgres {
    fn drop(&mut self) {
        // In order: what it shares with its other processes would outlive it.
        self.0.end(libc::SIGINT);
    }
}

/// Installs both, where they are missing.
pub(super) fn install(cache: &Path) -> Result<Peer, Trouble> {
    let version = |package: &str| {
        let asked = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status} ${Version}", package]).output();
        let asked = asked.map_err(|error| format!("dpkg-query cannot be run ({error}): this peer is one of Debian"))?;
        let said = String::from_utf8_lossy(&asked.stdout).into_owned();
        Ok::<_, Trouble>(said.strip_prefix("installed ").map(str::to_owned))
    };
    let wanted = ["ejabberd", "erlang-p1-pgsql", "postgresql"];
    for package in wanted {
        if version(package)?.is_none() {
            // A machine that is new, or an image of one, knows no packages yet.
            install::client(cache, Command::new("apt-get").arg("update"))?;
            let mut apt = Command::new("apt-get");
            apt.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-y", "--no-install-recommends"]);
            install::client(cache, apt.args(wanted))?;
        }
    }
    let known = |version: Option<String>| version.unwrap_or_else(|| "of an unknown version".to_owned());
    Ok(Peer {
        name: "ejabberd",
        version: format!("{} with PostgreSQL {}", known(version("ejabberd")?), known(version("postgresql")?)),
        lacks: "no sequences per conversation, and no read marks sent; mod_mam archives every message twice, once for each of the two: \
                it is acknowledged (XEP-0198) when the sender's copy is in PostgreSQL, and delivered when the receiver's is; passwords are \
                checked against PostgreSQL in the clear; no modules but disco, roster, archive and stream management; PostgreSQL as it is \
                installed",
        command: Box::new(|_| Command::new("erl")),
    })
}

/// Starts both on core 0, with so many users whose password is `secret`.
pub(super) fn start(directory: &Path, users: u32) -> Result<Ejabberd, Trouble> {
    let postgres = start_postgres(&directory.join("postgres"), users)?;
    let address = two_free_ports()?;
    let configuration = directory.join("ejabberd.yml");
    let shared = install::configurations().join("ejabberd.yml");
    let text = format!(
        "define_macro:\n  WEB_PORT: {}\n  SQL_PORT: {}\ninclude_config_file: {}\n",
        address.port(),
        postgres.0.address.port(),
        shared.display()
    );
    fs::write(&configuration, text)?;
    let mut command = pinned("erl".as_ref(), Some(0));
    // As Debian's ejabberdctl does, but without a name, so that no daemon is left behind that would know it.
    command.args(["-noinput", "+K", "true", "+P", "250000", "-mnesia", "dir"]);
    command.arg(format!("{:?}", directory.join("spool").display().to_string())).args(["-s", "ejabberd"]);
    command.env("EJABBERD_CONFIG_PATH", &configuration).env("EJABBERD_LOG_PATH", directory.join("ejabberd.log"));
    command.env("ERL_LIBS", libraries()?).env("ERL_CRASH_DUMP_BYTES", "0").env("HOME", directory).stderr(Stdio::null());
    Ok(Ejabberd { ejabberd: Process::of_peer(command, address)?, postgres })
}

/// Where Debian has ejabberd's own code, which depends on the processor.
fn libraries() -> Result<PathBuf, Trouble> {
    let has_it = |path: &PathBuf| {
        let within = fs::read_dir(path).into_iter().flatten().flatten();
        within.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("ejabberd-"))
    };
    let found = fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path()).find(has_it);
    found.ok_or_else(|| "there is no ejabberd in /usr/lib/*".into())
}

fn start_postgres(directory: &Path, users: u32) -> Result<Postgres, Trouble> {
    let programs = fs::read_dir("/usr/lib/postgresql")?.flatten().map(|entry| entry.path().join("bin")).max();
    let programs = programs.ok_or("there is no PostgreSQL in /usr/lib/postgresql")?;
    fs::create_dir_all(directory)?;
    // It refuses to run as root.
    let somebody = if fs::metadata("/proc/self")?.uid() == 0 { Some(user_and_group("postgres")?) } else { None };
    if let Some((user, group)) = somebody {
        chown(directory, Some(user), Some(group))?;
    }
    let as_somebody = |mut command: Command| {
        if let Some((user, group)) = somebody {
            command.uid(user).gid(group);
        }
        command.current_dir(directory);
        command
    };
    let mut initdb = as_somebody(Command::new(programs.join("initdb")));
    must(initdb.args(["-D", "cluster", "-U", "ejabberd", "-A", "trust", "-N"]))?;
    let address = two_free_ports()?;
    let mut command = as_somebody(pinned(&programs.join("postgres"), Some(0)));
    command.args(["-D", "cluster", "-c", "listen_addresses=127.0.0.1", "-p", &address.port().to_string(), "-k"]);
    command.arg(directory).stderr(Stdio::null());
    let postgres = Postgres(Process::of_peer(command, address)?);
    let psql = |database: &str, what: [&str; 2]| {
        let mut psql = Command::new(programs.join("psql"));
        psql.args(["-Xq", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", &address.port().to_string()]);
        must(psql.args(["-U", "ejabberd", "-d", database]).args(what))
    };
    // It listens a moment before it is ready.
    let ready = || {
        Command::new(programs.join("pg_isready"))
            .args(["-q", "-h", "127.0.0.1", "-p", &address.port().to_string()])
            .status()
    };
    for _ in 0..300 {
        if ready()?.success() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    psql("postgres", ["-c", "create database ejabberd"])?;
    psql("ejabberd", ["-f", SCHEMA])?;
    let insert =
        format!("insert into users (username, password) select n::text, 'secret' from generate_series(1, {users}) n");
    psql("ejabberd", ["-c", &insert])?;
    Ok(postgres)
}

/// Runs a program to its end; what it said, if it failed.
fn must(command: &mut Command) -> Result<(), Trouble> {
    let program = command.get_program().to_string_lossy().into_owned();
    let done = command.output().map_err(|error| format!("{program}: {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("{program} failed ({}): {}", done.status, String::from_utf8_lossy(&done.stderr).trim()).into())
}

fn user_and_group(name: &str) -> Result<(u32, u32), Trouble> {
    let users = fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find(|line| line.split(':').next() == Some(name));
    let numbers = line.and_then(|line| {
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    numbers.ok_or_else(|| format!("there is no user {name}").into())
}
