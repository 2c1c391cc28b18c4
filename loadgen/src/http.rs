//! Just enough of an HTTP client to read pages: one connection, one request at a time, blocking.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use wire::upgrade::read_response_head;

use crate::target::Target;
use crate::tls::{Tls, TlsError};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The connection.
    #[error("the server cannot be reached: {0}")]
    Io(#[from] std::io::Error),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The answer.
    #[error("the server's answer is not HTTP")]
    Malformed,
    /// Another status than 200.
    #[error("the server answered {status}: {body}")]
    Status {
        /// The status.
        status: u16,
        /// What came with it.
        body: String,
    },
}

trait Stream: Read + Write {}

impl<S: Read + Write> Stream for S {}

/// A connection that is kept from request to request.
pub struct HttpClient {
    host: String,
    address: SocketAddr,
    tls: Option<Tls>,
    stream: Option<Box<dyn Stream>>,
}

impl HttpClient {
    /// A client of that server; it connects when it must.
    pub fn new(target: &Target, tls: Option<Tls>) -> Self {
        Self { host: target.host.clone(), address: target.address, tls, stream: None }
    }

    /// The body of the answer to a GET. What can be tried again is tried again, for a few seconds.
    pub fn get(&mut self, target: &str, token: &str) -> Result<Vec<u8>, HttpError> {
        const ATTEMPTS: u32 = 6;
        let mut attempt = 1;
        loop {
            let error = match self.get_once(target, token) {
                Ok(body) => return Ok(body),
                Err(error) => error,
            };
            self.stream = None;
            let passing = matches!(error, HttpError::Io(_) | HttpError::Status { status: 429 | 500..=599, .. });
            if !passing || attempt == ATTEMPTS {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(100 << attempt));
            attempt += 1;
        }
    }

    fn get_once(&mut self, target: &str, token: &str) -> Result<Vec<u8>, HttpError> {
        let host = &self.host;
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n");
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(5))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                let stream: Box<dyn Stream> = match &self.tls {
                    None => Box::new(stream),
                    Some(tls) => Box::new(tls.stream(stream)?),
                };
                none.insert(stream)
            }
        };
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        let head = loop {
            read_more(stream.as_mut(), &mut answer)?;
            if let Some(head) = read_response_head(&answer).map_err(|_| HttpError::Malformed)? {
                break head;
            }
        };
        while answer.len() < head.bytes + head.body_bytes {
            read_more(stream.as_mut(), &mut answer)?;
        }
        if head.closes {
            self.stream = None;
        }
        let body = answer.split_off(head.bytes);
        if head.status == 200 {
            return Ok(body);
        }
        Err(HttpError::Status { status: head.status, body: String::from_utf8_lossy(&body).into_owned() })
    }
}

fn read_more(stream: &mut dyn Stream, into: &mut Vec<u8>) -> Result<(), HttpError> {
    let mut piece = [0; 16 * 1024];
    match stream.read(&mut piece)? {
        0 => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
        bytes => {
            into.extend_from_slice(&piece[..bytes]);
            Ok(())
        }
    }
}
