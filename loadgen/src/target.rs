//! Where to connect, from where, and what goes ahead of the WebSocket.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};

use crate::scenario::{Protocol, Proxy, Scenario};
use crate::tls::{Tls, TlsError};

/// Connections from one source address: beyond two thirds of its ports, connecting becomes slow.
const CONNECTIONS_PER_SOURCE: u32 = 10_000;

/// A server.
#[derive(Debug, Clone)]
pub struct Target {
    /// For the `Host` header.
    pub host: String,
    /// Its name or address alone.
    pub name: String,
    pub address: SocketAddr,
    pub path: String,
    /// The name that its certificate must have; none without TLS.
    pub tls_name: Option<String>,
    pub proxy: Proxy,
    sources: Vec<IpAddr>,
}

/// Why there is nowhere to connect to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The address makes no sense.
    #[error("{0} is no address of a server: it must look like ws://127.0.0.1:8800 or wss://chat.example.org")]
    Malformed(String),
    /// It does, but nobody knows its name.
    #[error(
        "DNS does not know the name {name} in {url} ({error}): check how it is spelled and that this machine can ask DNS, \
         or say where to connect with --address IP:PORT"
    )]
    Unknown {
        /// The name.
        name: String,
        /// Where it stands.
        url: String,
        /// What the system says.
        error: String,
    },
}

impl Target {
    /// That of a scenario.
    pub fn of(scenario: &Scenario) -> Result<Self, TargetError> {
        let server = &scenario.server;
        let usual_path = match scenario.protocol {
            Protocol::Ringway | Protocol::Xmpp => "/ws",
            Protocol::Echo => "/echo",
            Protocol::Nats | Protocol::JetStream => "/",
        };
        let mut target = Self::of_url(&server.url, server.address, usual_path)?;
        if let (Some(name), Some(tls_name)) = (&server.server_name, &mut target.tls_name) {
            tls_name.clone_from(name);
        }
        target.proxy = server.proxy;
        target.sources.clone_from(&server.sources);
        Ok(target)
    }

    /// What its connections are made with, if it speaks TLS.
    pub fn tls(&self, scenario: &Scenario) -> Result<Option<Tls>, TlsError> {
        self.tls_name.as_deref().map(|name| Tls::new(name, scenario.server.ca.as_deref())).transpose()
    }

    /// That of a URL, connected to at `address` if there is one.
    pub fn of_url(url: &str, address: Option<SocketAddr>, usual_path: &str) -> Result<Self, TargetError> {
        let error = || TargetError::Malformed(url.to_owned());
        let (scheme, rest) = url.split_once("://").ok_or_else(error)?;
        let (tls, port) = match scheme {
            "ws" | "http" => (false, 80),
            "wss" | "https" => (true, 443),
            _ => return Err(error()),
        };
        let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let has_port = host.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok()) && host.contains(':');
        let name = if has_port { host.rsplit_once(':').map_or(host, |(name, _)| name) } else { host };
        // What is left of a port that is none would be looked for as a part of the name.
        if name.is_empty()
            || name.starts_with('[') != name.ends_with(']')
            || (name.contains(':') && !name.starts_with('['))
        {
            return Err(error());
        }
        let with_port = if has_port { host.to_owned() } else { format!("{host}:{port}") };
        let address = if let Some(address) = address {
            address
        } else {
            let unknown = |error: std::io::Error| {
                let (name, url) = (name.to_owned(), url.to_owned());
                TargetError::Unknown { name, url, error: error.to_string() }
            };
            with_port.to_socket_addrs().map_err(unknown)?.next().ok_or_else(error)?
        };
        Ok(Self {
            host: host.to_owned(),
            name: name.trim_matches(['[', ']']).to_owned(),
            address,
            path: if path.len() > 1 { path } else { usual_path }.to_owned(),
            tls_name: tls.then(|| name.trim_matches(['[', ']']).to_owned()),
            proxy: Proxy::None,
            sources: Vec::new(),
        })
    }

    /// Where the connection of the user at that place comes from; none if that does not matter.
    pub fn source(&self, place: u32) -> Option<SocketAddr> {
        if !self.sources.is_empty() {
            return Some(SocketAddr::new(self.sources[place as usize % self.sources.len()], 0));
        }
        let IpAddr::V4(address) = self.address.ip() else { return None };
        let number = place / CONNECTIONS_PER_SOURCE;
        let source = Ipv4Addr::new(127, 0, 1 + (number >> 8) as u8, 1 + (number & 0xff) as u8);
        address.is_loopback().then_some(SocketAddr::new(source.into(), 0))
    }

    /// The header that a proxy would put ahead of everything, as if the user had an address of its own.
    pub fn write_proxy_header(&self, out: &mut Vec<u8>, place: u32) {
        let [_, b, c, d] = place.to_be_bytes();
        let (source, port) = (Ipv4Addr::new(10, b, c, d), 40_000_u16);
        let IpAddr::V4(destination) = self.address.ip() else {
            // Neither version can name addresses of two families.
            match self.proxy {
                Proxy::None => {}
                Proxy::V1 => out.extend_from_slice(b"PROXY UNKNOWN\r\n"),
                Proxy::V2 => out.extend_from_slice(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"),
            }
            return;
        };
        match self.proxy {
            Proxy::None => {}
            Proxy::V1 => {
                let line = format!("PROXY TCP4 {source} {destination} {port} {}\r\n", self.address.port());
                out.extend_from_slice(line.as_bytes());
            }
            Proxy::V2 => {
                out.extend_from_slice(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
                out.extend_from_slice(&source.octets());
                out.extend_from_slice(&destination.octets());
                out.extend_from_slice(&port.to_be_bytes());
                out.extend_from_slice(&self.address.port().to_be_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Target {
        Target::of_url(url, None, "/ws").unwrap()
    }

    #[test]
    fn addresses_are_read_with_and_without_a_path_and_a_port() {
        for url in ["ws://127.0.0.1:8800", "ws://127.0.0.1:8800/ws", "http://127.0.0.1:8800/"] {
            let target = target(url);
            assert_eq!(
                (target.host.as_str(), target.address.port(), target.path.as_str()),
                ("127.0.0.1:8800", 8800, "/ws")
            );
            assert_eq!(target.tls_name, None);
        }
        let secure = target("wss://localhost/chat");
        assert_eq!(
            (secure.address.port(), secure.path.as_str(), secure.tls_name.as_deref()),
            (443, "/chat", Some("localhost"))
        );
        assert_eq!(target("ws://[::1]:80/").address, "[::1]:80".parse::<SocketAddr>().unwrap());
        for url in ["127.0.0.1:8800", "ws://", "ftp://127.0.0.1", "wss://:443", "ws://localhost:99999", "ws://[::1"] {
            let error = Target::of_url(url, None, "/ws").unwrap_err();
            assert_eq!(error, TargetError::Malformed(url.to_owned()));
        }
        // RFC 6761: nobody will ever have that name.
        let unknown = Target::of_url("wss://chat.invalid", None, "/ws").unwrap_err().to_string();
        assert!(
            unknown.contains("DNS does not know the name chat.invalid") && unknown.contains("--address"),
            "{unknown}"
        );
        let elsewhere = "127.0.0.1:9".parse().unwrap();
        assert_eq!(Target::of_url("wss://no.such.name", Some(elsewhere), "/ws").unwrap().address, elsewhere);
    }

    #[test]
    fn loopback_connections_come_from_many_addresses() {
        let loopback = target("ws://127.0.0.1:8800");
        let text = |place| loopback.source(place).unwrap().to_string();
        assert_eq!((text(9_999), text(10_000)), ("127.0.1.1:0".to_owned(), "127.0.1.2:0".to_owned()));
        assert_eq!(target("ws://192.0.2.1:80").source(1), None);
        let chosen = Target { sources: vec!["192.0.2.7".parse().unwrap(), "192.0.2.8".parse().unwrap()], ..loopback };
        assert_eq!(chosen.source(3).unwrap().to_string(), "192.0.2.8:0");
    }

    #[test]
    fn proxy_headers_are_as_their_specification_has_them() {
        let header = |proxy| {
            let mut out = Vec::new();
            Target { proxy, ..target("ws://127.0.0.1:8800") }.write_proxy_header(&mut out, 258);
            out
        };
        assert_eq!(header(Proxy::None), b"");
        assert_eq!(header(Proxy::V1), b"PROXY TCP4 10.0.1.2 127.0.0.1 40000 8800\r\n");
        assert_eq!(header(Proxy::V2), b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\x01\x02\x7f\0\0\x01\x9c\x40\x22\x60");
    }
}
