//! `ringway chat`'s connection: a blocking socket, a thread that reads it, frames as text.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream, ToSocketAddrs as _};
use std::sync::mpsc::Sender;
use std::time::Duration;

use wire::protocol::ClientFrame;
use wire::reader::{Event, Input, Reader};
use wire::upgrade::{UpgradeRequest, read_upgrade_response, write_upgrade_request};
use wire::websocket::{Limits, Role};
use wire::writer::{Opcode, write_frame, write_text_with};

/// What the reading thread tells.
pub(crate) enum FromServer {
    /// A frame, as JSON.
    Frame(String),
    /// The connection is over: the close code, if the server gave one.
    Closed(Option<u16>),
}

/// A connection whose handshake is done.
pub(crate) struct Socket {
    stream: TcpStream,
}

/// Where to connect, from a URL.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// Host and port.
    pub authority: String,
}

impl Endpoint {
    /// `ws://HOST:PORT`, `http://HOST:PORT` or `HOST:PORT`; anything behind the port is ignored.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        if url.starts_with("wss://") || url.starts_with("https://") {
            return Err(format!(
                "{url}: this client speaks plain WebSocket only; connect to the server behind the TLS proxy, as in ws://127.0.0.1:8800"
            ));
        }
        let rest = url.strip_prefix("ws://").or_else(|| url.strip_prefix("http://")).unwrap_or(url);
        let authority = rest.split('/').next().unwrap_or_default();
        let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        match port {
            Some(_) => Ok(Self { authority: authority.to_owned() }),
            None => Err(format!("{url}: not a server's address; it looks like ws://127.0.0.1:8800")),
        }
    }
}

impl Socket {
    /// Connects, shakes hands and starts the reading thread, which marks all it says with `number`.
    pub(crate) fn connect(
        to: &Endpoint,
        token: &str,
        number: u64,
        events: Sender<(u64, FromServer)>,
    ) -> Result<Self, String> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let failed = |error: std::io::Error| error.to_string();
        let address = to.authority.to_socket_addrs().map_err(failed)?.next().ok_or("the name has no address")?;
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        let rest = shake_hands(&mut stream, to, token)?;
        stream.set_read_timeout(None).map_err(failed)?;
        let reading = stream.try_clone().map_err(failed)?;
        std::thread::spawn(move || read_frames(reading, rest, number, &events));
        Ok(Self { stream })
    }

    /// Sends a frame.
    pub(crate) fn send(&mut self, frame: &ClientFrame<'_>) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        write_text_with(&mut bytes, Some(random()), |out| wire::json::encode_client(out, frame));
        self.stream.write_all(&bytes)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The reading thread has a descriptor of its own and would wait for ever.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Returns what the server sent behind the head of its answer.
fn shake_hands(stream: &mut TcpStream, to: &Endpoint, token: &str) -> Result<Vec<u8>, String> {
    let request = UpgradeRequest {
        host: &to.authority,
        target: "/ws",
        nonce: random(),
        subprotocol: Some("ringway.v1.json"),
        bearer: Some(token),
    };
    let mut head = Vec::new();
    write_upgrade_request(&mut head, &request);
    stream.write_all(&head).map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let bytes = stream.read(&mut piece).map_err(|error| error.to_string())?;
        if bytes == 0 {
            return Err("the server closed during the handshake".into());
        }
        answer.extend_from_slice(&piece[..bytes]);
        if let Some(head_bytes) = read_upgrade_response(&answer, &request).map_err(|error| error.to_string())? {
            return Ok(answer.split_off(head_bytes));
        }
    }
}

fn read_frames(mut stream: TcpStream, mut bytes: Vec<u8>, number: u64, events: &Sender<(u64, FromServer)>) {
    let limits = Limits { message_bytes_max: 16 << 20, ..Limits::default() };
    let mut reader = Reader::new(Role::Client);
    let mut piece = vec![0; 64 << 10];
    loop {
        let mut input = Input::new(&mut bytes);
        loop {
            match reader.next(limits, &mut input) {
                Ok(None) => break,
                Ok(Some(Event::Text(text))) => {
                    if events.send((number, FromServer::Frame(text.to_owned()))).is_err() {
                        return;
                    }
                }
                Ok(Some(Event::Ping(payload))) => {
                    let mut pong = Vec::new();
                    write_frame(&mut pong, Opcode::Pong, Some(random()), payload);
                    let _ = stream.write_all(&pong);
                }
                Ok(Some(Event::Close(close))) => {
                    let _ = events.send((number, FromServer::Closed(close.map(|close| close.code))));
                    return;
                }
                Ok(Some(Event::Binary(_) | Event::Pong(_))) => {}
                Err(_) => {
                    let _ = events.send((number, FromServer::Closed(None)));
                    return;
                }
            }
        }
        match stream.read(&mut piece) {
            Ok(read) if read > 0 => bytes = piece[..read].to_vec(),
            _ => {
                let _ = events.send((number, FromServer::Closed(None)));
                return;
            }
        }
    }
}

/// Random bytes from the system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    bytes
}
