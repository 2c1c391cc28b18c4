//! The command line: every flag is an assignment to a key of the scenario, or says what to do with the run.

use std::path::PathBuf;

use clap::Args;
use loadgen::credentials::{Credentials, CredentialsError};
use loadgen::key::TokenKey;
use loadgen::scenario::{CredentialKeys, Protocol, Scenario, ScenarioError};
use loadgen::span::Span;
use loadgen::thresholds::Threshold;
use toml::Value;

/// Who the users are.
#[derive(Args, Default)]
pub struct CredentialArguments {
    /// Data directory of a `ringway dev` server: signs the users' tokens with its key.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// File with a key that the server knows: an HS256 secret in base64url, or a private key in PEM.
    #[arg(long, value_name = "FILE")]
    jwt_key: Option<PathBuf>,
    /// Name of the key in `--jwt-key` [default: dev].
    #[arg(long)]
    kid: Option<String>,
    /// Issuer that the server expects with `--jwt-key` [default: ringway-dev].
    #[arg(long)]
    issuer: Option<String>,
    /// Audience that the server expects with `--jwt-key` [default: ringway].
    #[arg(long)]
    audience: Option<String>,
    /// File of tokens, one a line, as many as there are users.
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Command that prints tokens, one a line; it reads the users' numbers, one a line.
    #[arg(long, value_name = "COMMAND")]
    token_command: Option<String>,
}

/// Where to.
#[derive(Args, Default)]
pub struct ServerArguments {
    /// Address of the server [default: ws://127.0.0.1:8800].
    #[arg(long)]
    url: Option<String>,
    /// Connect to this address and port, whatever the name in `--url` means.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// Name that the certificate must have, if it is another than in `--url`.
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// Certificates in PEM of those who may have signed the server's.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// What is to happen.
#[derive(Args, Default)]
pub struct ScenarioArguments {
    /// A file, or one of idle, pairs, hot, offline, storm, churn, slow-readers, day, permutation [default: pairs].
    #[arg(long, value_name = "FILE|NAME")]
    scenario: Option<String>,
    /// Sets any key of the scenario, like `storm.jitter=2s`.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// One more condition, like `delivery.p99 < 20ms`.
    #[arg(long, value_name = "CONDITION")]
    threshold: Vec<Threshold>,
    #[command(flatten)]
    server: ServerArguments,
    #[command(flatten)]
    credentials: CredentialArguments,
    /// How many users; for pairs an even number [default: 100].
    #[arg(long)]
    users: Option<u32>,
    /// Number of the first user; the others follow it [default: 1].
    #[arg(long)]
    first_user: Option<u64>,
    /// Messages per second, over all users [default: 100].
    #[arg(long)]
    rate: Option<f64>,
    /// How long messages fall due: a number and ms, s, m or h [default: 10s].
    #[arg(long)]
    duration: Option<Span>,
    /// Only open sessions and beat; the same as `--scenario idle`.
    #[arg(long, conflicts_with = "scenario")]
    idle: bool,
    /// How long to hold idle sessions [default: 30s].
    #[arg(long, requires = "idle")]
    hold: Option<Span>,
    /// How fast sessions open [default: 5000].
    #[arg(long)]
    connections_per_second: Option<f64>,
    /// How long to wait for all sessions to open before messages begin anyway [default: 60s].
    #[arg(long)]
    ramp: Option<Span>,
    /// How long to wait for answers at the end [default: 10s].
    #[arg(long)]
    drain: Option<Span>,
    /// Bytes of a message [default: 128].
    #[arg(long)]
    payload_bytes: Option<i64>,
    /// Messages in flight per user; more wait, and their latency counts on [default: 32].
    #[arg(long)]
    in_flight: Option<i64>,
    /// How long after reading a read mark is sent [default: 1s].
    #[arg(long)]
    mark_every: Option<Span>,
    /// Where reconnecting begins to back off; it doubles, with full jitter [default: 1s].
    #[arg(long)]
    backoff: Option<Span>,
    /// Where backing off ends [default: 60s].
    #[arg(long)]
    backoff_max: Option<Span>,
    /// Messages evenly spaced instead of independent of each other.
    #[arg(long)]
    constant: bool,
    /// Threads, each with rings of its own [default: 1].
    #[arg(long)]
    threads: Option<u32>,
    /// Where chance begins [default: 1].
    #[arg(long)]
    seed: Option<i64>,
    /// Sends one acknowledged message in a hundred again: it must keep its seq.
    #[arg(long)]
    resend: bool,
    /// How long due messages wait for each other, to share a turn [default: 250us].
    #[arg(long)]
    tick: Option<Span>,
}

/// Assignments, as TOML.
#[derive(Default)]
struct Assignments(Vec<String>);

impl Assignments {
    fn set(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.0.push(format!("{key} = {}", value.into()));
        }
    }

    fn path(&mut self, key: &str, value: Option<&PathBuf>) {
        self.set(key, value.map(|path| path.display().to_string()));
    }

    fn span(&mut self, key: &str, value: Option<Span>) {
        self.set(key, value.map(|span| span.to_string()));
    }
}

impl ServerArguments {
    fn assign(&self, flags: &mut Assignments) {
        flags.set("server.url", self.url.clone());
        flags.set("server.address", self.address.clone());
        flags.set("server.server_name", self.server_name.clone());
        flags.path("server.ca", self.ca.as_ref());
    }
}

impl CredentialArguments {
    fn assign(&self, flags: &mut Assignments) {
        flags.path("credentials.data", self.data.as_ref());
        flags.path("credentials.jwt_key", self.jwt_key.as_ref());
        flags.set("credentials.kid", self.kid.clone());
        flags.set("credentials.issuer", self.issuer.clone());
        flags.set("credentials.audience", self.audience.clone());
        flags.path("credentials.tokens", self.tokens.as_ref());
        flags.set("credentials.command", self.token_command.clone());
    }
}

impl ScenarioArguments {
    /// One for a command that only needs to know where the server is and who the users are.
    pub fn of(server: ServerArguments, credentials: CredentialArguments) -> Self {
        Self { server, credentials, ..Self::default() }
    }

    /// The scenario: that of the file, with the flags over it.
    pub fn scenario(&self) -> Result<Scenario, ScenarioError> {
        let mut flags = Assignments::default();
        self.server.assign(&mut flags);
        self.credentials.assign(&mut flags);
        flags.set("sessions.users", self.users);
        flags.set("sessions.first_user", self.first_user.map(|user| user as i64));
        flags.set("sessions.connections_per_second", self.connections_per_second);
        flags.span("sessions.ramp", self.ramp);
        flags.span("sessions.backoff", self.backoff);
        flags.span("sessions.backoff_max", self.backoff_max);
        flags.set("sessions.threads", self.threads);
        flags.set("traffic.rate", self.rate.filter(|_| !self.idle));
        flags.span("traffic.duration", if self.idle { self.hold } else { self.duration });
        flags.span("traffic.drain", self.drain);
        flags.set("traffic.payload_bytes", self.payload_bytes);
        flags.set("traffic.in_flight", self.in_flight);
        flags.span("traffic.mark_every", self.mark_every);
        flags.set("traffic.arrivals", self.constant.then_some("constant"));
        flags.set("traffic.resend", self.resend.then_some(true));
        flags.span("traffic.tick", self.tick);
        flags.set("seed", self.seed);
        flags.0.extend(self.set.iter().map(|assignment| as_toml(assignment)));
        let name = if self.idle { Some("idle") } else { self.scenario.as_deref() };
        let mut scenario = Scenario::load(name, &flags.0)?;
        scenario.thresholds.extend(self.threshold.iter().cloned());
        Ok(scenario)
    }
}

/// A value without quotes that needs them gets them.
fn as_toml(assignment: &str) -> String {
    let Some((key, value)) = assignment.split_once('=') else { return assignment.to_owned() };
    let is_toml = toml::from_str::<toml::Table>(assignment).is_ok();
    if is_toml { assignment.to_owned() } else { format!("{} = {}", key.trim(), Value::from(value.trim())) }
}

/// Where the tokens of a scenario come from.
pub fn credentials(scenario: &Scenario) -> Result<Credentials, CredentialsError> {
    let CredentialKeys { data, jwt_key, kid, issuer, audience, tokens, command, .. } = &scenario.credentials;
    Ok(match (data, jwt_key, tokens, command) {
        (Some(data), ..) => TokenKey::of_dev(data)?.into(),
        (_, Some(file), ..) => TokenKey::of_file(file, kid, issuer, audience)?.into(),
        (_, _, Some(file), _) => Credentials::File(file.clone()),
        (.., Some(command)) => Credentials::Command(command.clone()),
        _ if scenario.protocol != Protocol::Ringway => Credentials::None,
        _ => return Err(CredentialsError::Missing),
    })
}
