//! A TCP relay between store and server, which loses the next commit or its answer, or everything.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What is lost at the next commit; the connection is cut with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// It is done, and nobody is told.
    Answer = 1,
    /// It never arrives.
    Commit = 2,
}

const NOTHING: u8 = 0;
/// A simple query as the driver sends it.
const COMMIT: &[u8] = b"COMMIT\0";

pub(super) struct Relay {
    port: u16,
    state: Arc<State>,
}

struct State {
    server: u16,
    armed: AtomicU8,
    losses: AtomicU64,
    down: AtomicBool,
    stay_down: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Relay {
    pub(super) fn start(server: u16) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let state = Arc::new(State {
            server,
            armed: AtomicU8::new(NOTHING),
            losses: AtomicU64::new(0),
            down: AtomicBool::new(false),
            stay_down: AtomicBool::new(false),
            streams: Mutex::default(),
        });
        let accepting = Arc::clone(&state);
        // Ends with the test's process; it holds nothing.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                accepting.connect(client);
            }
        });
        Relay { port, state }
    }

    /// The same database by way of this relay.
    pub(super) fn url(&self, direct: &str) -> String {
        direct.replace(&format!(":{}/", self.state.server), &format!(":{}/", self.port))
    }

    pub(super) fn lose(&self, loss: Loss) {
        self.state.armed.store(loss as u8, Ordering::SeqCst);
    }

    /// As [`Relay::lose`], and nobody gets through afterwards until [`Relay::up`].
    pub(super) fn lose_and_stay_down(&self, loss: Loss) {
        self.state.stay_down.store(true, Ordering::SeqCst);
        self.lose(loss);
    }

    pub(super) fn losses(&self) -> u64 {
        self.state.losses.load(Ordering::SeqCst)
    }

    pub(super) fn down(&self) {
        self.state.down.store(true, Ordering::SeqCst);
        self.state.cut_all();
    }

    pub(super) fn up(&self) {
        self.state.stay_down.store(false, Ordering::SeqCst);
        self.state.down.store(false, Ordering::SeqCst);
    }
}

impl State {
    fn connect(self: &Arc<State>, client: TcpStream) {
        if self.down.load(Ordering::SeqCst) {
            return;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.server)) else { return };
        let twin = |stream: &TcpStream| stream.try_clone().expect("a second handle");
        self.streams.lock().expect("unpoisoned").extend([twin(&client), twin(&server)]);
        if self.down.load(Ordering::SeqCst) {
            // It went down in between.
            self.cut_all();
        }
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_server) = (twin(&client), twin(&server));
        let state = Arc::clone(self);
        std::thread::spawn(move || state.requests(from_client, to_server));
        std::thread::spawn(move || answers(server, client));
    }

    fn requests(&self, mut client: TcpStream, mut server: TcpStream) {
        let mut buffer = [0; 16 << 10];
        while let Ok(read @ 1..) = client.read(&mut buffer) {
            let bytes = &buffer[..read];
            let commits = bytes.windows(COMMIT.len()).any(|window| window == COMMIT);
            let loss = if commits { self.armed.swap(NOTHING, Ordering::SeqCst) } else { NOTHING };
            if loss == NOTHING {
                if server.write_all(bytes).is_err() {
                    break;
                }
                continue;
            }
            if self.stay_down.load(Ordering::SeqCst) {
                self.down.store(true, Ordering::SeqCst);
            }
            // The client hears nothing from here on.
            let _ = client.shutdown(Shutdown::Both);
            if loss == Loss::Answer as u8 {
                let _ = server.write_all(bytes);
                // The server finishes what it has read, then sees that there is no more, and ends.
                let _ = server.shutdown(Shutdown::Write);
                while matches!(server.read(&mut buffer), Ok(1..)) {}
            }
            let _ = server.shutdown(Shutdown::Both);
            self.losses.fetch_add(1, Ordering::SeqCst);
            break;
        }
        let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
    }

    fn cut_all(&self) {
        for stream in self.streams.lock().expect("unpoisoned").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn answers(mut server: TcpStream, mut client: TcpStream) {
    let mut buffer = [0; 16 << 10];
    while let Ok(read @ 1..) = server.read(&mut buffer) {
        if client.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
}
