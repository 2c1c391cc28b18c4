//! Where peers come from: package registries, through their ordinary clients, into `target/bench-peers`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Peer, Peers};
use crate::server::Trouble;

/// The version of the Python package with uWebSockets in it.
const SOCKETIFY: &str = "0.0.31";

const NO_USERS: &str = "no users, tokens or sessions; an echo, as the library's own example has it";

type Install = fn(&Path) -> Result<Peer, Trouble>;

/// Servers that echo over WebSocket.
pub(super) fn websocket(only: &[String]) -> Peers {
    let all: [(&str, Install); 4] = [
        ("uWebSockets", uwebsockets),
        ("tokio-tungstenite", |cache| on_tokio(cache, "tokio-tungstenite", "tungstenite")),
        ("tokio-websockets", |cache| on_tokio(cache, "tokio-websockets", "websockets")),
        ("ws", ws),
    ];
    install(&all, only)
}

/// Servers that keep messages.
pub(super) fn durable(only: &[String]) -> Peers {
    install(&[("NATS JetStream", nats), ("ejabberd", super::ejabberd::install)], only)
}

fn install(all: &[(&'static str, Install)], only: &[String]) -> Peers {
    let mut peers = Peers { had: Vec::new(), absent: Vec::new() };
    let cache = match cache() {
        Ok(cache) => cache,
        Err(trouble) => {
            peers.absent.extend(all.iter().map(|(name, _)| (*name, trouble.to_string())));
            return peers;
        }
    };
    for (name, install) in all {
        if !only.is_empty() && !only.iter().any(|wanted| wanted.eq_ignore_ascii_case(name)) {
            continue;
        }
        match install(&cache) {
            Ok(peer) => peers.had.push(peer),
            Err(trouble) => peers.absent.push((name, trouble.to_string())),
        }
    }
    peers
}

/// `BENCH_PEERS`, or beside the build: `target/release/bench` and `target/bench-peers`.
fn cache() -> Result<PathBuf, Trouble> {
    let program = std::env::current_exe()?;
    let target = program.parent().and_then(Path::parent).ok_or("this program is in no target directory")?;
    let cache = std::env::var_os("BENCH_PEERS").map_or_else(|| target.join("bench-peers"), PathBuf::from);
    std::fs::create_dir_all(&cache)?;
    Ok(cache)
}

/// The sources of the peers, which are in this crate's directory.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

/// How peers of the load generator are set up, here and wherever else.
pub(super) fn configurations() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../loadgen/peers")
}

/// Runs a registry's client; what it says goes to a log.
pub(super) fn client(cache: &Path, command: &mut Command) -> Result<(), Trouble> {
    let program = command.get_program().to_string_lossy().into_owned();
    let log = cache.join(format!("{}.log", Path::new(&program).file_name().unwrap_or_default().to_string_lossy()));
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
    eprintln!("  {program} ... (log in {})", log.display());
    let status = command.stdout(file.try_clone()?).stderr(file).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program} failed ({status}); see {}", log.display()).into()),
        Err(error) => Err(format!("{program} cannot be run ({error}): install it").into()),
    }
}

/// The servers of `bench/peers`, built once and again when they change.
fn build(cache: &Path) -> Result<PathBuf, Trouble> {
    let target = cache.join("cargo");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--locked", "--manifest-path"]).arg(sources().join("Cargo.toml"));
    client(cache, cargo.env("CARGO_TARGET_DIR", &target))?;
    Ok(target.join("release"))
}

fn on_tokio(cache: &Path, name: &'static str, program: &str) -> Result<Peer, Trouble> {
    let program = build(cache)?.join(program);
    let lock = std::fs::read_to_string(sources().join("Cargo.lock"))?;
    let at = lock.split("[[package]]").find(|package| package.contains(&format!("name = \"{name}\"\n")));
    let version = at.and_then(|package| package.split("version = \"").nth(1)?.split('"').next());
    let version = version.unwrap_or("of an unknown version").to_owned();
    let command = move |address: std::net::SocketAddr| argument(&program, &address.to_string());
    Ok(Peer { name, version, lacks: NO_USERS, command: Box::new(command) })
}

fn argument(program: &Path, argument: &str) -> Command {
    let mut command = Command::new(program);
    command.arg(argument);
    command
}

fn uwebsockets(cache: &Path) -> Result<Peer, Trouble> {
    let program = build(cache)?.join("uwebsockets");
    let directory = cache.join(format!("socketify-{SOCKETIFY}"));
    let library = directory.join("src/socketify/libsocketify_linux_amd64.so");
    if !library.exists() {
        let pip = ["-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--disable-pip-version-check"];
        let mut python = Command::new("python3");
        python.args(pip).arg(format!("socketify=={SOCKETIFY}")).arg("--dest").arg(cache);
        client(cache, &mut python)?;
        let mut tar = Command::new("tar");
        client(cache, tar.arg("xzf").arg(directory.with_extension("31.tar.gz")).arg("-C").arg(cache))?;
    }
    let command = move |address: std::net::SocketAddr| {
        let mut command = argument(&program, &address.to_string());
        command.arg(&library);
        command
    };
    // Its library wants libuv, and says so only when it is loaded.
    let mut tried = command("127.0.0.1:0".parse()?);
    let mut tried = tried.stderr(std::process::Stdio::piped()).spawn()?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    if tried.try_wait()?.is_some() {
        let said = std::io::read_to_string(tried.stderr.take().expect("it was asked for"))?;
        return Err(format!("{} (it needs Debian's libuv1)", said.trim()).into());
    }
    tried.kill()?;
    tried.wait()?;
    Ok(Peer {
        name: "uWebSockets",
        version: format!("of socketify {SOCKETIFY}"),
        lacks: "no users, tokens or sessions; the C library as that package builds it, over libuv, without compression, an echo in the \
                message handler",
        command: Box::new(command),
    })
}

fn ws(cache: &Path) -> Result<Peer, Trouble> {
    let directory = cache.join("ws");
    std::fs::create_dir_all(&directory)?;
    for file in ["package.json", "echo.mjs"] {
        std::fs::copy(sources().join("ws").join(file), directory.join(file))?;
    }
    let package = directory.join("node_modules/ws/package.json");
    if !package.exists() {
        let mut npm = Command::new("npm");
        npm.current_dir(&directory);
        client(cache, npm.args(["install", "--no-audit", "--no-fund", "--loglevel=error"]))?;
    }
    let package: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(package)?)?;
    let version =
        format!("{} on Node {}", package["version"].as_str().unwrap_or("?"), version_of("node", "--version")?);
    let command = move |address: std::net::SocketAddr| {
        let mut command = argument(Path::new("node"), "echo.mjs");
        command.arg(address.to_string()).current_dir(&directory);
        command
    };
    Ok(Peer { name: "ws", version, lacks: NO_USERS, command: Box::new(command) })
}

fn nats(cache: &Path) -> Result<Peer, Trouble> {
    let go = cache.join("go");
    let program = go.join("bin/nats-server");
    if !program.exists() {
        let mut install = Command::new("go");
        install.env("GOPATH", &go).env("GOFLAGS", "-modcacherw").env("GOBIN", go.join("bin"));
        client(cache, install.args(["install", "github.com/nats-io/nats-server/v2@latest"]))?;
    }
    let version = version_of(&program.to_string_lossy(), "--version")?;
    Ok(Peer {
        name: "NATS JetStream",
        version,
        lacks: "no conversations, sequences per conversation, marks or ticks, no users whose tokens are checked; a message is delivered by a \
                plain subscription, before it is on the disk; one stream on files with sync_interval: always, published with \
                acknowledgement, without an id to be told apart by; nothing is read out of the stream",
        command: Box::new(move |_| Command::new(&program)),
    })
}

fn version_of(program: &str, flag: &str) -> Result<String, Trouble> {
    let output = Command::new(program).arg(flag).output().map_err(|error| format!("{program}: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
