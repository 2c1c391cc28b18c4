//! `ringway dev` and `ringway serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, SystemTime};

use gateway::auth::{Authenticator, DEV_AUDIENCE, DEV_ISSUER, DEV_KEY_FILE, DEV_KID, TokenOrder, secret_file, sign};
use gateway::config::{Config, LogFormat};
use gateway::node::{Node, make_directory};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use storage::seam::Class;
use wire::ids::{DeviceId, UserId};

use super::{Done, Failure, load_config, print};

/// How long the tokens are good for that `dev` prints.
const DEV_TOKEN_S: u64 = 30 * 24 * 3_600;
/// How often a process that starts looks for a signal.
const LOOKS_EVERY: Duration = Duration::from_millis(20);
/// Exit code of a process whose storage another process took over: a supervisor must not start it again
/// at once, or the two would take it from each other for ever.
const EXIT_FENCED: i32 = 78;

#[derive(clap::Args)]
pub(crate) struct DevArguments {
    /// Address and port for clients.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8800")]
    listen: SocketAddr,
    /// Where messages and keys are kept.
    #[arg(long, value_name = "DIR", default_value = "ringway-data")]
    data: PathBuf,
    /// Threads that serve clients; one per core if not given.
    #[arg(long, value_name = "N")]
    shards: Option<u16>,
    /// Serve a plain WebSocket echo at /echo, for conformance tests and raw measurements.
    #[arg(long)]
    echo: bool,
}

#[derive(clap::Args)]
pub(crate) struct ServeArguments {
    /// The configuration; `ringway config default` prints one to begin with.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// `ringway dev`.
pub(crate) fn dev(arguments: &DevArguments) -> Done {
    let mut flags =
        vec![("server.listen", arguments.listen.to_string()), ("storage.data", arguments.data.display().to_string())];
    if arguments.echo {
        flags.push(("server.echo", "true".to_owned()));
    }
    if let Some(shards) = arguments.shards {
        flags.push(("server.shards", shards.to_string()));
    }
    if std::env::var_os("RINGWAY_SERVER_INTERNAL").is_none() {
        // Beside the public port, so that a second server on another port finds its own free as well.
        let port = if arguments.listen.port() == 0 { 0 } else { arguments.listen.port().wrapping_add(1) };
        flags.push(("server.internal", SocketAddr::new(arguments.listen.ip(), port).to_string()));
    }
    let config = Config::load(None, std::env::vars(), &flags)?;
    make_directory(&config.storage.data)?;
    let auth = Authenticator::for_dev(&config)?;
    run(&config, auth, |node| print(&dev_greeting(&config, node)?))
}

/// `ringway serve`.
pub(crate) fn serve(arguments: &ServeArguments) -> Done {
    let config = load_config(&arguments.config, &[])?;
    make_directory(&config.storage.data)?;
    let auth = Authenticator::from_config(&config)?;
    run(&config, auth, |node| print(&facts(&config, node)))
}

fn run(config: &Config, auth: Authenticator, greet: impl FnOnce(&Node) -> Done) -> Done {
    start_log(config);
    // Before any thread starts, so that no signal is lost on the way.
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let Some(node) = start(config, auth, &mut signals)? else {
        tracing::info!("told to stop before everything was recovered: nothing is lost, the next start recovers it");
        return Ok(());
    };
    greet(&node)?;
    tracing::info!(address = %node.address(), internal = %node.internal(), "serving");
    let fenced = wait_for_end(&node, &mut signals);
    tracing::info!(fenced, "shutting down; a second signal ends the process at once");
    node.drain();
    while !node.is_drained() {
        if signals.pending().next().is_some() {
            return Err(Failure(
                "ended by a second signal, before clients had left and the last checkpoint".to_owned(),
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let clean = node.stop();
    tracing::info!(clean, "stopped");
    if fenced {
        eprintln!("ringway: another process took over the storage, so this one has stopped; only one may serve it");
        std::process::exit(EXIT_FENCED);
    }
    Ok(())
}

/// Starts the node; `None`: a signal came first, and the caller is to end the process.
///
/// A start may wait for a disk, for a database, or for a long journal. It shows nothing of a store and acknowledges
/// nothing, and wherever it is, a kill would do no harm: so its thread is not asked to end but ends with the process.
fn start(config: &Config, auth: Authenticator, signals: &mut Signals) -> Result<Option<Node>, Failure> {
    let (report, started) = mpsc::channel();
    let config = config.clone();
    let thread = std::thread::Builder::new().name("start".to_owned());
    let thread = thread.spawn(move || drop(report.send(Node::start(&config, auth))))?;
    loop {
        match started.recv_timeout(LOOKS_EVERY) {
            Ok(node) => return Ok(Some(node?)),
            Err(RecvTimeoutError::Timeout) if signals.pending().next().is_some() => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                let panic = thread.join().expect_err("a start that ends otherwise has reported");
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// Waits for a signal; `true`: another process took over the storage.
fn wait_for_end(node: &Node, signals: &mut Signals) -> bool {
    loop {
        if signals.pending().next().is_some() {
            return false;
        }
        if node.is_fenced() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn start_log(config: &Config) {
    let level = config.log.level.as_str();
    let filter = tracing_subscriber::EnvFilter::new(format!("{level},fjall=warn,lsm_tree=warn,glommio=warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match config.log.format {
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => log.json().init(),
    }
}

fn facts(config: &Config, node: &Node) -> String {
    let shards = config.shards();
    let class = match node.facts().class {
        Class::D1 => "d1: an acknowledged message is synced on this disk",
        Class::D2 => "d2: an acknowledged message is committed by a quorum",
    };
    format!(
        "ringway {version}\n  driver      io_uring, {shards} {unit}\n  listening   ws://{address}/ws and \
         http://{address}/v1\n  internal    http://{internal} (/health/live, /health/ready, /metrics)\n  \
         data        {data}\n  durability  {class}\n",
        version = env!("CARGO_PKG_VERSION"),
        unit = if shards == 1 { "shard" } else { "shards" },
        address = node.address(),
        internal = node.internal(),
        data = config.storage.data.display(),
    )
}

fn dev_greeting(config: &Config, node: &Node) -> Result<String, Failure> {
    let secret = secret_file(&config.storage.data.join(DEV_KEY_FILE))?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let token = |user| {
        let order = TokenOrder {
            kid: DEV_KID,
            issuer: DEV_ISSUER,
            audience: DEV_AUDIENCE,
            user: UserId(user),
            device: Some(DeviceId(1)),
            now_s: now.as_secs(),
            ttl_s: DEV_TOKEN_S,
        };
        sign(&secret, &order)
    };
    let program = std::env::current_exe()?;
    let chat = |user, to| {
        format!("{} chat --url ws://{}/ws --token {} --to {to}\n", program.display(), node.address(), token(user))
    };
    Ok(format!(
        "{}\nTwo users are ready. In two more terminals, type:\n\n{}\n{}\nMore tokens: {} token --data {} --user 3\n\
         Stop with Ctrl-C.\n",
        facts(config, node),
        chat(1, 2),
        chat(2, 1),
        program.display(),
        config.storage.data.display(),
    ))
}
