//! Opening connections, for load generators and, later, links between nodes.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::kernel::KernelRing;
use crate::queue::{Completion, Key, Request};
use crate::seam::{ConnectError, Event, EventBatch};
use crate::table::NO_SEND;

/// A connect under way.
pub(crate) struct Connecting {
    token: u64,
    address: SockAddr,
}

impl KernelRing {
    pub(crate) fn connect(&mut self, token: u64, address: SocketAddr, source: Option<SocketAddr>) {
        let Some(index) = self.table.promise() else {
            self.connect_failed(token, ConnectError::TableFull);
            return;
        };
        if let Err(error) = self.fill(index, address, source) {
            self.table.free(index);
            self.connect_failed(token, error_of(error.raw_os_error().unwrap_or(libc::EIO)));
            return;
        }
        let connecting = Box::new(Connecting { token, address: address.into() });
        let (pointer, length) = (connecting.address.as_ptr(), connecting.address.len());
        let slot = self.table.slot(index);
        // A promised slot sends nothing yet: the field keeps its connect for now.
        slot.send = self.connects.insert(connecting) as u32;
        slot.pending += 1;
        let key = Key::new(Request::Connect, index, slot.generation);
        // SAFETY: the address is boxed in `connects` until this request's completion.
        unsafe {
            self.queue.connect(key, pointer.cast(), length, &mut self.counters);
        }
    }

    /// Puts a socket, bound if asked for, into a promised slot.
    fn fill(&mut self, index: u32, address: SocketAddr, source: Option<SocketAddr>) -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = source {
            if source.port() == 0 {
                choose_port_when_connecting(&socket)?;
            } else {
                socket.set_reuse_address(true)?;
            }
            socket.bind(&source.into())?;
        }
        self.queue.fill_slot(index, socket.as_raw_fd())
    }

    pub(crate) fn connected(&mut self, index: u32, completion: &Completion, events: &mut EventBatch) {
        let slot = self.table.slot(index);
        let connecting = self.connects.remove(slot.send as usize);
        slot.send = NO_SEND;
        match completion.result {
            Ok(_) => {
                self.counters.connected += 1;
                let connection = self.table.open(index, self.now_ms);
                self.arming.push(index);
                events.push(Event::Connected { connection, token: connecting.token });
            }
            Err(code) => {
                self.counters.connect_errors += 1;
                events.push(Event::ConnectFailed { token: connecting.token, error: error_of(code) });
                // The slot stays promised, so that its release is nobody's `Closed`.
                let key = Key::new(Request::Release, index, slot.generation);
                self.queue.release(key, &mut self.counters);
            }
        }
    }

    fn connect_failed(&mut self, token: u64, error: ConnectError) {
        self.counters.connect_errors += 1;
        self.early.push(Event::ConnectFailed { token, error });
    }
}

fn error_of(code: i32) -> ConnectError {
    match code {
        libc::ECONNREFUSED => ConnectError::Refused,
        libc::ETIMEDOUT => ConnectError::TimedOut,
        libc::EADDRNOTAVAIL | libc::EADDRINUSE => ConnectError::NoPort,
        code => ConnectError::Failed { code },
    }
}

/// Lets the kernel choose the port when the destination is known, so that one port serves many
/// destinations: bound early, each connection would take a port of its own.
fn choose_port_when_connecting(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int that lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
