//! Configuration: a TOML file, overridden by the environment, overridden by flags.
//!
//! It is parsed once, here, into types that cannot be wrong, and handed down as an argument. One table
//! (`settings!` below) is the source of the types, of the defaults, of `ringway config default` and
//! of `docs/configuration.md`, so that they cannot disagree.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use value::{Bounded, List, MaybeText, Value};

use self::value::text_of;

mod value;

/// Where a setting's text came from, for error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Default,
    File(PathBuf),
    Environment(String),
    Flag,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("the defaults"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "the environment variable {name}"),
            Self::Flag => f.write_str("the command line"),
        }
    }
}

/// What is wrong with a configuration, said in one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{path} cannot be read: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: String,
    },
    /// The file is not TOML.
    #[error("{path} is not valid TOML: {error}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        error: String,
    },
    /// A key that no setting has.
    #[error("{source_name}: there is no setting `{key}`{suggestion}")]
    Unknown {
        /// Where it stands.
        source_name: String,
        /// The key as written.
        key: String,
        /// `; did you mean ...?`, or nothing.
        suggestion: String,
    },
    /// A value that the setting cannot have.
    #[error("{source_name}: `{key}` cannot be `{text}`: it must be {expected}")]
    Invalid {
        /// Where it stands.
        source_name: String,
        /// The setting.
        key: String,
        /// The value as written.
        text: String,
        /// What it may be.
        expected: String,
    },
    /// Settings that are right each for itself, and wrong together.
    #[error("{0}")]
    Together(String),
}

/// One line of the table of settings.
pub struct Setting {
    /// `section.name`.
    pub key: &'static str,
    /// The default, as text.
    pub default: &'static str,
    /// What it is, for the reference.
    pub doc: &'static [&'static str],
    /// What it may be.
    pub expected: fn() -> String,
    /// Whether TOML writes it in quotes or brackets.
    pub toml: fn(&str) -> String,
}

impl Setting {
    /// The environment variable that overrides it.
    pub fn environment(&self) -> String {
        format!("RINGWAY_{}", self.key.replace('.', "_").to_uppercase())
    }
}

macro_rules! settings {
    ($( $(#[doc = $section_doc:literal])* $section:ident: $Section:ident {
        $( $(#[doc = $doc:literal])* $name:ident: $ty:ty = $default:literal; )*
    } )*) => {
        $( $(#[doc = $section_doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $Section { $( $(#[doc = $doc])* pub $name: $ty, )* } )*

        /// Everything that an operator may decide.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Config {
            $( $(#[doc = $section_doc])* pub $section: $Section, )*
            /// The keys that tokens may be signed with.
            pub keys: Vec<KeyConfig>,
        }

        /// Every setting, in the order of the reference.
        pub const SETTINGS: &[Setting] = &[$($( Setting {
            key: concat!(stringify!($section), ".", stringify!($name)),
            default: $default,
            doc: &[$($doc),*],
            expected: <$ty as Value>::expected,
            toml: <$ty as Value>::toml,
        }, )*)*];

        /// Sections with what they are about.
        const SECTIONS: &[(&str, &[&str])] = &[$((stringify!($section), &[$($section_doc),*])),*];

        impl Config {
            fn from_texts(texts: &Texts, keys: Vec<KeyConfig>) -> Result<Self, ConfigError> {
                Ok(Self {
                    $( $section: $Section {
                        $( $name: texts.parse::<$ty>(concat!(stringify!($section), ".", stringify!($name)))?, )*
                    }, )*
                    keys,
                })
            }
        }
    };
}

settings! {
    /// Listeners and shards.
    server: ServerConfig {
        /// Address and port for clients: WebSocket and REST.
        listen: SocketAddr = "127.0.0.1:8800";
        /// Address and port of the internal listener: `/health/live`, `/health/ready`, `/metrics`. Never expose it.
        internal: SocketAddr = "127.0.0.1:8801";
        /// Threads that serve clients, each with its own ring and its own part of the users. 0: one per core.
        shards: Bounded<0, 1024> = "0";
        /// What clients see as `node` in `hello`.
        node: String = "ringway";
        /// Connections that one shard holds; above it, new ones wait in the kernel's backlog.
        connections_max: Bounded<1, 16_000_000> = "100000";
        /// TLS ends at a load balancer in front of this node. Without it, only loopback addresses may be listened on.
        behind_tls: bool = "false";
        /// Serve a plain WebSocket echo at `/echo`, for conformance tests and raw measurements.
        echo: bool = "false";
        /// The exact origins that browsers may connect from. Empty: all of them, because no cookie carries any right here.
        allowed_origins: List = "";
        /// Seconds over which clients are told to spread when this node shuts down.
        drain_s: Bounded<0, 600> = "5";
    }
    /// Where messages are kept.
    storage: StorageConfig {
        /// Which engine keeps them.
        backend: Backend = "embedded";
        /// Directory of the embedded engine and of this node's own keys.
        data: PathBuf = "ringway-data";
        /// How to reach PostgreSQL, as `postgres://user@host/database`; only for `backend = "postgres"`.
        postgres: MaybeText = "";
        /// Start although another node holds the database, which is then fenced: for one that hangs. PostgreSQL only.
        take_over: bool = "false";
        /// The least that an acknowledgement must promise. The node refuses to start on a backend that gives less.
        require_class: RequiredClass = "d1";
    }
    /// Who may connect.
    auth: AuthConfig {
        /// The `iss` that every token must carry.
        issuer: String = "ringway";
        /// The `aud` that every token must carry.
        audience: String = "ringway";
        /// Seconds by which clocks of issuer and node may differ. A session outlives its token by as long.
        leeway_s: Bounded<0, 25> = "5";
        /// Seconds for which a resume ticket is good, at most until its token expires.
        ticket_s: Bounded<1, 604_800> = "86400";
        /// Accept `?token=` in the URL of `/ws`. URLs end in logs: leave it off unless a client cannot do otherwise.
        token_in_url: bool = "false";
    }
    /// What one client, one user or one shard may use.
    limits: LimitsConfig {
        /// Bytes of a message's body.
        body_bytes_max: Bounded<1, 1_048_576> = "65536";
        /// Bytes waiting for one slow client; above it live pushes stop and it is told to pull.
        outbound_bytes_max: Bounded<4_096, 16_777_216> = "262144";
        /// Milliseconds from accept to the end of the handshake.
        handshake_ms: Bounded<100, 60_000> = "5000";
        /// Milliseconds that a client may take nothing of what is sent to it before it is cut off.
        stall_ms: Bounded<1_000, 600_000> = "30000";
        /// Milliseconds that a connection may be open without `open`, or a kept-alive HTTP connection without a request.
        idle_ms: Bounded<1_000, 600_000> = "30000";
        /// Milliseconds after which an HTTP request in progress is given up.
        request_ms: Bounded<1_000, 600_000> = "10000";
        /// Sessions of one user at the same time.
        sessions_per_user_max: Bounded<1, 10_000> = "64";
        /// Conversations of one user.
        conversations_per_user_max: Bounded<1, 1_000_000> = "10000";
        /// Conversations that one user may begin in `new_conversations_window_s`. Counted by each shard for its own
        /// part of the conversations, so that who tries everything may begin some percent more.
        new_conversations_max: Bounded<1, 1_000_000> = "10000";
        /// Seconds after which that count begins again.
        new_conversations_window_s: Bounded<1, 2_592_000> = "3600";
        /// Lists that are made for one user at the same time, and as many again for those that open a session.
        lists_per_user_max: Bounded<1, 10_000> = "32";
        /// Frames that one WebSocket may send per second; above it they are `rate_limited`.
        frames_per_second: Bounded<1, 1_000_000> = "10000";
        /// Frames beyond that which it may send at once. Eight times as many, in spite of refusals, close it with 4008.
        frames_at_once: Bounded<16, 10_000_000> = "40000";
        /// Megabytes of messages that one shard holds before they are committed; above it sends are `overloaded`.
        pending_mb_max: Bounded<1, 32> = "32";
        /// Megabytes of mail between two shards that may wait to be taken.
        mailbox_mb_max: Bounded<1, 1_024> = "16";
    }
    /// What the node writes to standard error.
    log: LogConfig {
        /// One line for people, or one JSON object per line.
        format: LogFormat = "text";
        /// Lowest level written.
        level: LogLevel = "info";
    }
}

/// A setting with a fixed set of words.
macro_rules! words {
    ($(#[doc = $doc:literal])* $Type:ident { $( $(#[doc = $variant_doc:literal])* $Variant:ident $text:literal, )* }) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $Type { $( $(#[doc = $variant_doc])* $Variant, )* }

        impl $Type {
            /// The word for it.
            pub fn as_str(self) -> &'static str { match self { $(Self::$Variant => $text,)* } }
        }

        impl Value for $Type {
            fn parse(text: &str) -> Option<Self> { match text { $($text => Some(Self::$Variant),)* _ => None } }
            fn expected() -> String { [$(concat!("`", $text, "`")),*].join(" or ") }
            fn toml(text: &str) -> String { value::quoted(text) }
        }
    };
}

words! {
    /// The engine that keeps messages.
    Backend {
        /// Our own journal and fjall, in a directory.
        Embedded "embedded",
        /// A PostgreSQL database.
        Postgres "postgres",
    }
}

words! {
    /// What an acknowledgement must promise at least.
    RequiredClass {
        /// Synced on one disk.
        D1 "d1",
        /// Committed by a quorum.
        D2 "d2",
    }
}

words! {
    /// How log lines look.
    LogFormat {
        /// For people.
        Text "text",
        /// For machines.
        Json "json",
    }
}

words! {
    /// How much is logged.
    LogLevel {
        /// Only what needs action.
        Error "error",
        /// And what is odd.
        Warn "warn",
        /// And what an operator wants to know.
        Info "info",
        /// And what a developer wants to know.
        Debug "debug",
    }
}

words! {
    /// How tokens of one key are signed. Fixed per key: a token cannot choose.
    KeyAlgorithm {
        /// HMAC with SHA-256; the file holds the secret in base64url.
        Hs256 "HS256",
        /// RSA with SHA-256; the file holds the public key in PEM.
        Rs256 "RS256",
        /// ECDSA on P-256; the file holds the public key in PEM.
        Es256 "ES256",
        /// Ed25519; the file holds the public key in PEM.
        EdDsa "EdDSA",
    }
}

/// One `[[auth.keys]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyConfig {
    /// The `kid` that tokens of this key carry.
    pub kid: String,
    /// How they are signed.
    pub algorithm: KeyAlgorithm,
    /// The file with the secret or the public key.
    pub file: PathBuf,
}

/// Raw text of every setting, and where each came from.
struct Texts(BTreeMap<&'static str, (String, Source)>);

impl Texts {
    fn defaults() -> Self {
        Self(SETTINGS.iter().map(|setting| (setting.key, (setting.default.to_owned(), Source::Default))).collect())
    }

    fn set(&mut self, key: &str, text: String, source: Source) -> Result<(), ConfigError> {
        let known = SETTINGS.iter().find(|setting| setting.key == key).ok_or_else(|| unknown(&source, key))?;
        self.0.insert(known.key, (text, source));
        Ok(())
    }

    fn parse<T: Value>(&self, key: &str) -> Result<T, ConfigError> {
        let (text, source) = &self.0[key];
        T::parse(text).ok_or_else(|| ConfigError::Invalid {
            source_name: source.to_string(),
            key: key.to_owned(),
            text: text.clone(),
            expected: T::expected(),
        })
    }
}

fn unknown(source: &Source, key: &str) -> ConfigError {
    let name = |key: &str| match source {
        Source::Environment(_) => format!("RINGWAY_{}", key.replace('.', "_").to_uppercase()),
        _ => key.to_owned(),
    };
    let known = SETTINGS.iter().map(|setting| setting.key).chain(["auth.keys"]);
    let nearest = known.map(|known| (strsim::jaro_winkler(known, key), known)).max_by(|a, b| a.0.total_cmp(&b.0));
    let suggestion = nearest
        .filter(|(similarity, _)| *similarity > 0.8)
        .map_or_else(String::new, |(_, known)| format!("; did you mean `{}`?", name(known)));
    ConfigError::Unknown { source_name: source.to_string(), key: name(key), suggestion }
}

impl Config {
    /// Reads the file (if any), then `environment`, then `flags`, each overriding the one before.
    ///
    /// `flags` are pairs of a setting's key and its text.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &[(&str, String)],
    ) -> Result<Self, ConfigError> {
        let mut texts = Texts::defaults();
        let mut keys = Vec::new();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error: error.to_string() })?;
            keys = read_toml(&mut texts, path, &text)?;
        }
        for (name, text) in environment {
            // Only the names of our own sections, so that other programs may use the prefix too.
            let Some(key) = name.strip_prefix("RINGWAY_").and_then(environment_key) else { continue };
            texts.set(&key, text, Source::Environment(name))?;
        }
        for (key, text) in flags {
            texts.set(key, text.clone(), Source::Flag)?;
        }
        let config = Self::from_texts(&texts, keys)?;
        config.check_together()?;
        Ok(config)
    }

    /// Shards to start: what is configured, or one per core.
    pub fn shards(&self) -> u16 {
        match self.server.shards.get() {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(1024) as u16),
            shards => shards as u16,
        }
    }

    fn check_together(&self) -> Result<(), ConfigError> {
        if !self.server.behind_tls && !self.server.listen.ip().is_loopback() {
            return Err(ConfigError::Together(format!(
                "`server.listen` is {}, which others can reach, and this node does not speak TLS itself: put it behind a \
                 load balancer that does and set `server.behind_tls = true`, or listen on a loopback address",
                self.server.listen
            )));
        }
        if self.storage.backend == Backend::Postgres && self.storage.postgres.get().is_none() {
            return Err(ConfigError::Together(
                "`storage.backend` is `postgres`, and `storage.postgres` does not say where it is".to_owned(),
            ));
        }
        if self.storage.backend == Backend::Embedded && self.storage.require_class == RequiredClass::D2 {
            return Err(ConfigError::Together(
                "`storage.require_class` is \"d2\", and the embedded backend acknowledges at class d1 (synced on one \
                 node's disk): choose another backend, or ask for \"d1\""
                    .to_owned(),
            ));
        }
        let mut kids: Vec<_> = self.keys.iter().map(|key| key.kid.as_str()).collect();
        kids.sort_unstable();
        if let Some([kid, _]) = kids.array_windows().find(|[kid, next]| kid == next) {
            return Err(ConfigError::Together(format!("two `[[auth.keys]]` have the kid `{kid}`")));
        }
        Ok(())
    }
}

/// `SERVER_LISTEN` to `server.listen`, if it begins like one of our sections.
fn environment_key(name: &str) -> Option<String> {
    let lower = name.to_lowercase();
    let section = SECTIONS
        .iter()
        .map(|(section, _)| *section)
        .find(|section| lower.strip_prefix(section).is_some_and(|rest| rest.starts_with('_') && rest.len() > 1))?;
    Some(format!("{section}.{}", &lower[section.len() + 1..]))
}

fn read_toml(texts: &mut Texts, path: &Path, text: &str) -> Result<Vec<KeyConfig>, ConfigError> {
    let source = Source::File(path.to_owned());
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        error: error.message().to_owned(),
    })?;
    let mut keys = Vec::new();
    for (section, value) in table {
        let toml::Value::Table(entries) = value else {
            return Err(unknown(&source, &section));
        };
        if !SECTIONS.iter().any(|(known, _)| *known == section) && entries.is_empty() {
            return Err(unknown(&source, &section));
        }
        for (name, value) in entries {
            let key = format!("{section}.{name}");
            if key == "auth.keys" {
                keys = read_keys(&source, path, value)?;
                continue;
            }
            let text = text_of(&value).ok_or_else(|| ConfigError::Invalid {
                source_name: source.to_string(),
                key: key.clone(),
                text: value.to_string(),
                expected: "a plain value or a list of strings".to_owned(),
            })?;
            texts.set(&key, text, source.clone())?;
        }
    }
    Ok(keys)
}

fn read_keys(source: &Source, path: &Path, value: toml::Value) -> Result<Vec<KeyConfig>, ConfigError> {
    let invalid = |key: &str, text: String, expected: &str| ConfigError::Invalid {
        source_name: source.to_string(),
        key: key.to_owned(),
        text,
        expected: expected.to_owned(),
    };
    let toml::Value::Array(list) = value else {
        return Err(invalid("auth.keys", value.to_string(), "a list of tables: [[auth.keys]]"));
    };
    let mut keys = Vec::new();
    for entry in list {
        let toml::Value::Table(entries) = entry else {
            return Err(invalid("auth.keys", entry.to_string(), "a table with `kid`, `algorithm` and `file`"));
        };
        let mut fields: BTreeMap<&str, String> = BTreeMap::new();
        for (name, value) in &entries {
            let known = ["kid", "algorithm", "file"].into_iter().find(|known| known == name);
            let known = known.ok_or_else(|| ConfigError::Unknown {
                source_name: source.to_string(),
                key: format!("auth.keys.{name}"),
                suggestion: "; a key has `kid`, `algorithm` and `file`".to_owned(),
            })?;
            fields.insert(known, text_of(value).unwrap_or_default());
        }
        let field =
            |name: &str| {
                fields.get(name).filter(|text| !text.is_empty()).cloned().ok_or_else(|| {
                    invalid(&format!("auth.keys.{name}"), String::new(), "given for every key, as a string")
                })
            };
        let algorithm = field("algorithm")?;
        keys.push(KeyConfig {
            kid: field("kid")?,
            algorithm: KeyAlgorithm::parse(&algorithm)
                .ok_or_else(|| invalid("auth.keys.algorithm", algorithm, &KeyAlgorithm::expected()))?,
            // Relative to the file that names it, so that the directory can be moved as a whole.
            file: path.parent().unwrap_or(Path::new("")).join(field("file")?),
        });
    }
    Ok(keys)
}

/// `ringway config default`: a file that says what is true anyway.
pub fn default_toml() -> String {
    let mut out = String::from(
        "# Ringway's settings with their defaults. The environment overrides this file, flags override both.\n",
    );
    for (section, doc) in SECTIONS {
        append(&mut out, format_args!("\n#{}\n[{section}]\n", doc.concat()));
        for setting in SETTINGS.iter().filter(|setting| setting.key.split('.').next() == Some(section)) {
            let name = &setting.key[section.len() + 1..];
            append(&mut out, format_args!("#{}\n{name} = {}\n", setting.doc.concat(), (setting.toml)(setting.default)));
        }
    }
    out.push_str(
        "\n# The keys that tokens may be signed with: one block each.\n# [[auth.keys]]\n# kid = \"2026-01\"\n\
         # algorithm = \"EdDSA\"\n# file = \"issuer-2026-01.pem\"\n",
    );
    out
}

/// `ringway config doc`: the reference, `docs/configuration.md`.
pub fn reference() -> String {
    let mut out = String::from(
        "# Configuration\n\nGenerated by `ringway config doc`; a test compares. Do not edit by hand.\n\n\
         Settings come from a TOML file (`ringway serve --config FILE`), overridden by the environment, overridden by \
         flags. Unknown settings are errors. `ringway config default` prints a file with every default, \
         `ringway config check --config FILE` says whether a file is right.\n",
    );
    for (section, doc) in SECTIONS {
        append(&mut out, format_args!("\n## [{section}]\n\n{}\n\n", doc.concat().trim()));
        out.push_str("| setting | default | may be | environment | what it is |\n| --- | --- | --- | --- | --- |\n");
        for setting in SETTINGS.iter().filter(|setting| setting.key.split('.').next() == Some(section)) {
            append(
                &mut out,
                format_args!(
                    "| `{}` | `{}` | {} | `{}` | {} |\n",
                    &setting.key[section.len() + 1..],
                    (setting.toml)(setting.default),
                    (setting.expected)(),
                    setting.environment(),
                    setting.doc.concat().trim()
                ),
            );
        }
    }
    append(
        &mut out,
        format_args!(
            "\n## [[auth.keys]]\n\nOne block per key that tokens may be signed with; only in the file. A token names its key by \
         `kid`; a token without one is checked against the only key, if there is only one. The algorithm is fixed per \
         key.\n\n| setting | may be | what it is |\n| --- | --- | --- |\n| `kid` | text | the name that tokens call it \
         by |\n| `algorithm` | {} | how tokens are signed |\n| `file` | a path, relative to this file | the secret in \
         base64url (HS256, at least 32 bytes) or the public key in PEM |\n",
            KeyAlgorithm::expected()
        ),
    );
    out
}

fn append(out: &mut String, text: std::fmt::Arguments<'_>) {
    std::fmt::Write::write_fmt(out, text).expect("writing to a string does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, environment: &[(&str, &str)], flags: &[(&str, String)]) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ringway.toml");
        std::fs::write(&path, text).unwrap();
        let environment = environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        Config::load(Some(&path), environment, flags)
    }

    #[test]
    fn the_reference_in_docs_is_the_generated_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
        let written = std::fs::read_to_string(path).unwrap();
        assert_eq!(written, reference(), "run `cargo run -- config doc > docs/configuration.md`");
    }

    #[test]
    fn the_default_file_is_valid_and_changes_nothing() {
        let plain = Config::load(None, [], &[]).unwrap();
        assert_eq!(load(&default_toml(), &[], &[]).unwrap(), plain);
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let file = "[server]\nlisten = \"127.0.0.1:1\"\nshards = 3\nnode = \"file\"";
        let environment = [("RINGWAY_SERVER_LISTEN", "127.0.0.1:2"), ("RINGWAY_SERVER_SHARDS", "4"), ("HOME", "/x")];
        let config = load(file, &environment, &[("server.listen", "127.0.0.1:3".to_owned())]).unwrap();
        assert_eq!(config.server.listen.port(), 3);
        assert_eq!(config.server.shards.get(), 4);
        assert_eq!(config.server.node, "file");
    }

    #[test]
    fn unknown_settings_are_refused_with_a_suggestion() {
        let error = load("[server]\nlisten_on = \"x\"", &[], &[]).unwrap_err().to_string();
        assert!(error.contains("no setting `server.listen_on`; did you mean `server.listen`?"), "{error}");
        let error = load("", &[("RINGWAY_SERVER_SHARD", "2")], &[]).unwrap_err().to_string();
        assert!(error.contains("did you mean `RINGWAY_SERVER_SHARDS`?"), "{error}");
        let error = load("[sever]\nlisten = \"x\"", &[], &[]).unwrap_err().to_string();
        assert!(error.contains("did you mean `server.listen`?"), "{error}");
        assert!(load("colour = 1", &[], &[]).is_err());
        assert!(
            load("[[auth.keys]]\nkid = \"a\"\nalgorithm = \"HS256\"\nfile = \"x\"\nsecret = \"y\"", &[], &[]).is_err()
        );
    }

    #[test]
    fn values_outside_their_type_are_refused_with_what_is_allowed() {
        for (text, allowed) in [
            ("[server]\nshards = 5000", "0 to 1024"),
            ("[server]\nlisten = \"localhost\"", "an address and a port"),
            ("[server]\necho = \"yes\"", "`true` or `false`"),
            ("[storage]\nbackend = \"oracle\"", "`embedded` or `postgres`"),
            ("[limits]\nhandshake_ms = -1", "100 to 60000"),
            // A session is closed within 30 s of the end of its token, the leeway included (docs/protocol.md).
            ("[auth]\nleeway_s = 26", "0 to 25"),
        ] {
            let error = load(text, &[], &[]).unwrap_err().to_string();
            assert!(error.contains(allowed), "{error}");
        }
    }

    #[test]
    fn settings_that_are_wrong_together_are_refused() {
        assert!(load("[server]\nlisten = \"0.0.0.0:80\"", &[], &[]).is_err());
        assert!(load("[server]\nlisten = \"0.0.0.0:80\"\nbehind_tls = true", &[], &[]).is_ok());
        assert!(load("[storage]\nbackend = \"postgres\"", &[], &[]).is_err());
        assert!(load("[storage]\nrequire_class = \"d2\"", &[], &[]).is_err());
        let key = "[[auth.keys]]\nkid = \"a\"\nalgorithm = \"HS256\"\nfile = \"x\"\n";
        assert!(load(&key.repeat(2), &[], &[]).is_err());
        assert_eq!(load(key, &[], &[]).unwrap().keys.len(), 1);
    }
}
