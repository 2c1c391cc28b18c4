//! TLS ahead of the WebSocket: bytes in and out of the same buffers, no socket.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// What all connections to one server have in common.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The name.
    #[error("{0} is no name that a certificate could have")]
    Name(String),
    /// The file of certificates.
    #[error("the certificates in {path} cannot be read: {error}")]
    Ca {
        /// Which.
        path: String,
        /// Why.
        error: String,
    },
    /// The system's certificates.
    #[error("the system has no certificates to check the server's with ({0}): name a file with `server.ca`")]
    System(String),
    /// The library.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

impl Tls {
    /// For a server of that name, whose certificate `ca` has signed, or somebody whom the system trusts.
    pub fn new(name: &str, ca: Option<&Path>) -> Result<Self, TlsError> {
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(ca)?)
            .with_no_client_auth();
        Ok(Self { config: Arc::new(config), name })
    }

    /// A new connection's half.
    pub fn session(&self) -> Result<Box<Session>, TlsError> {
        let mut connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone())?;
        // What a user has to say in one turn is bounded already; a bound here would tear it in two.
        connection.set_buffer_limit(None);
        Ok(Box::new(Session(connection)))
    }

    /// The same over a blocking stream.
    pub fn stream<S: std::io::Read + std::io::Write>(
        &self,
        stream: S,
    ) -> Result<rustls::StreamOwned<ClientConnection, S>, TlsError> {
        Ok(rustls::StreamOwned::new(ClientConnection::new(Arc::clone(&self.config), self.name.clone())?, stream))
    }
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        let failed = |error: String| TlsError::Ca { path: path.display().to_string(), error };
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))? {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            roots.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
        return if roots.is_empty() { Err(failed("there are none in it".to_owned())) } else { Ok(roots) };
    }
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added > 0 {
        return Ok(roots);
    }
    let why = found.errors.first().map_or_else(|| "none were found".to_owned(), ToString::to_string);
    Err(TlsError::System(why))
}

/// One connection's half.
#[derive(Debug)]
pub struct Session(ClientConnection);

impl Session {
    /// Whether there is something to be sent.
    pub fn wants_write(&self) -> bool {
        self.0.wants_write()
    }

    /// Takes what is to be sent, and appends what goes onto the wire; before the handshake is done that is kept.
    pub fn seal(&mut self, plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), rustls::Error> {
        self.0.writer().write_all(plain).map_err(|error| rustls::Error::General(error.to_string()))?;
        plain.clear();
        while self.0.wants_write() {
            self.0.write_tls(out).expect("a vector takes all bytes");
        }
        Ok(())
    }

    /// Takes what came off the wire, and appends what it says to `plain`.
    pub fn open(&mut self, mut wire: &[u8], plain: &mut Vec<u8>) -> Result<(), rustls::Error> {
        while !wire.is_empty() {
            self.0.read_tls(&mut wire).map_err(|error| rustls::Error::General(error.to_string()))?;
            let state = self.0.process_new_packets()?;
            let at = plain.len();
            plain.resize(at + state.plaintext_bytes_to_read(), 0);
            self.0.reader().read_exact(&mut plain[at..]).expect("so much is there to be read");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A turn may have many large messages for one connection.
    #[test]
    fn more_than_the_library_likes_to_hold_is_sealed() {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let tls = Tls { config: Arc::new(config), name: ServerName::try_from("x.example").unwrap() };
        let (mut plain, mut out) = (vec![7; 1 << 20], Vec::new());
        tls.session().unwrap().seal(&mut plain, &mut out).unwrap();
        assert!(plain.is_empty() && !out.is_empty());
    }
}
