//! `ringway dev` and `ringway serve`.

use std::net::SocketAddr;
use std::path::PathBuf;

use gateway::config::Config;
use gateway::node::Node;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Done, load_config, print};

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
    let mut flags = vec![
        ("server.listen", arguments.listen.to_string()),
        ("storage.data", arguments.data.display().to_string()),
        ("server.echo", arguments.echo.to_string()),
    ];
    if let Some(shards) = arguments.shards {
        flags.push(("server.shards", shards.to_string()));
    }
    run(&Config::load(None, std::env::vars(), &flags)?)
}

/// `ringway serve`.
pub(crate) fn serve(arguments: &ServeArguments) -> Done {
    run(&load_config(&arguments.config, &[])?)
}

fn run(config: &Config) -> Done {
    // Before any thread starts, so that no signal is lost on the way.
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let node = Node::start(config)?;
    print(&format!("listening on {} with {} shard(s)\n", node.address(), config.shards()))?;
    signals.forever().next();
    node.stop()?;
    Ok(())
}
