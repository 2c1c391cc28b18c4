//! Listening and accepting.
//!
//! A listener keeps up to [`ACCEPTS_AT_ONCE`] single accepts with the kernel, each with a slot
//! promised to it and a place of its own for the peer's address. A multishot accept was weighed
//! and lost: it has one place for all addresses, it takes the whole backlog in one go whatever
//! else waits for the turn, and when the table is full it has already taken (and drops) the
//! connection it has no slot for. This way the backlog waits in the kernel until there is room.

use std::cell::UnsafeCell;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::counters::RingCounters;
use crate::error::RingError;
use crate::queue::{Completion, Key, Queue, Request};
use crate::seam::{AcceptPause, Event, EventBatch, ListenerId};
use crate::table::Table;

/// Connections that one listener may add to one turn.
pub(crate) const ACCEPTS_AT_ONCE: u32 = 64;

/// Listeners that one ring can have in its life.
pub(crate) const LISTENERS_MAX: usize = 64;

const BACKOFF_FIRST_MS: u32 = 20;
const BACKOFF_LAST_MS: u32 = 1_000;

/// Accepts in a row that may fail for the peers' reasons before the listener takes a rest.
const FAILURES_MAX: u32 = 64;

/// Holds an address for one process, so that no other process starts to share it.
///
/// `SO_REUSEPORT`, which lets every shard listen on the same port, would also let a second server
/// of the same user take half of the connections in silence. A claim binds without it first,
/// which fails if anybody has the port, and only then lets the shards in. Keep it until they all
/// listen.
#[derive(Debug)]
pub struct Claim {
    address: SocketAddr,
    _socket: Socket,
}

impl Claim {
    /// The address, with the port that was chosen if port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Claims an address for this process, once, before its shards listen there.
pub fn claim(address: SocketAddr) -> Result<Claim, RingError> {
    let claimed = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // Connections of an earlier run may still be in TIME-WAIT there.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.set_reuse_port(true)?;
        let address = local_address(&socket)?;
        Ok((address, socket))
    };
    match claimed() {
        Ok((address, socket)) => Ok(Claim { address, _socket: socket }),
        Err(source) => Err(RingError::from_listen(source, address)),
    }
}

fn local_address(socket: &Socket) -> std::io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| std::io::ErrorKind::Unsupported.into())
}

/// Where the kernel writes a peer's address. Ours again when the accept has completed.
struct Place {
    address: UnsafeCell<SockAddrStorage>,
    length: UnsafeCell<libc::socklen_t>,
    /// The slot promised to the accept.
    slot: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Accepting,
    Paused(AcceptPause),
    Stopping,
    Stopped,
}

struct Listener {
    socket: Option<Socket>,
    places: Box<[Place]>,
    idle: Vec<u8>,
    state: State,
    /// Not before this time, when the system ran out of something.
    retry_ms: Option<u32>,
    backoff_ms: u32,
    failures: u32,
}

impl Listener {
    fn armed(&self) -> usize {
        self.places.len() - self.idle.len()
    }
}

/// All listeners of a ring.
#[derive(Default)]
pub(crate) struct Listeners {
    listeners: Vec<Listener>,
}

/// What the listeners need of the ring around them.
pub(crate) struct Around<'a> {
    pub(crate) queue: &'a mut Queue,
    pub(crate) table: &'a mut Table,
    pub(crate) counters: &'a mut RingCounters,
    pub(crate) now_ms: u32,
}

impl Listeners {
    pub(crate) fn add(&mut self, address: SocketAddr, backlog: u32) -> Result<(ListenerId, SocketAddr), RingError> {
        if self.listeners.len() == LISTENERS_MAX {
            return Err(RingError::TooManyListeners { limit: LISTENERS_MAX });
        }
        let (socket, local) =
            listening_socket(address, backlog).map_err(|source| RingError::from_listen(source, address))?;
        let id = ListenerId(self.listeners.len() as u8);
        self.listeners.push(Listener {
            socket: Some(socket),
            places: (0..ACCEPTS_AT_ONCE)
                .map(|_| Place {
                    address: UnsafeCell::new(SockAddrStorage::zeroed()),
                    length: UnsafeCell::new(0),
                    slot: 0,
                })
                .collect(),
            idle: (0..ACCEPTS_AT_ONCE as u8).collect(),
            state: State::Accepting,
            retry_ms: None,
            backoff_ms: BACKOFF_FIRST_MS,
            failures: 0,
        });
        Ok((id, local))
    }

    /// Takes no more connections; the socket closes when the kernel has let go of it.
    pub(crate) fn stop(&mut self, id: ListenerId, queue: &mut Queue, counters: &mut RingCounters) {
        let Some(listener) = self.listeners.get_mut(usize::from(id.0)) else {
            return;
        };
        if matches!(listener.state, State::Stopping | State::Stopped) {
            return;
        }
        listener.state = State::Stopping;
        listener.retry_ms = None;
        for place in 0..ACCEPTS_AT_ONCE {
            if !listener.idle.contains(&(place as u8)) {
                queue.cancel(key(id, place), counters);
            }
        }
        listener.close_when_quiet();
    }

    /// Gives the kernel as many accepts as there is room for.
    pub(crate) fn arm(&mut self, around: &mut Around<'_>, events: &mut EventBatch) {
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            listener.arm(ListenerId(index as u8), around, events);
        }
    }

    /// Milliseconds until a listener wants to try again.
    pub(crate) fn retry_in_ms(&self, now_ms: u32) -> Option<u32> {
        self.listeners
            .iter()
            .filter_map(|listener| listener.retry_ms)
            .map(|retry_ms| (retry_ms.wrapping_sub(now_ms) as i32).max(0) as u32)
            .min()
    }

    /// An accept has ended. Gives the slot that was opened and the peer in it.
    pub(crate) fn completed(
        &mut self,
        completion: &Completion,
        around: &mut Around<'_>,
        events: &mut EventBatch,
    ) -> Option<u32> {
        let id = ListenerId((completion.key.slot / ACCEPTS_AT_ONCE) as u8);
        let place = (completion.key.slot % ACCEPTS_AT_ONCE) as u8;
        let listener = &mut self.listeners[usize::from(id.0)];
        listener.idle.push(place);
        let slot = listener.places[usize::from(place)].slot;
        let accepted = match completion.result {
            Ok(_) => {
                listener.succeeded(id, place, around, events);
                Some(slot)
            }
            Err(code) => {
                around.table.free(slot);
                listener.failed(id, code, around, events);
                None
            }
        };
        listener.close_when_quiet();
        accepted
    }
}

impl Listener {
    fn arm(&mut self, id: ListenerId, around: &mut Around<'_>, events: &mut EventBatch) {
        let Some(socket) = &self.socket else { return };
        if matches!(self.state, State::Stopping | State::Stopped) {
            return;
        }
        if let Some(retry_ms) = self.retry_ms {
            if (retry_ms.wrapping_sub(around.now_ms) as i32) > 0 {
                return;
            }
            self.retry_ms = None;
        }
        let listener = socket.as_raw_fd();
        while around.table.has_room() {
            let Some(index) = self.idle.pop() else { break };
            let place = &mut self.places[usize::from(index)];
            place.slot = around.table.promise().expect("there is room");
            *place.length.get_mut() = size_of::<SockAddrStorage>() as libc::socklen_t;
            // SAFETY: the place is boxed, was idle, and is not touched again before this
            // accept's completion. A ring that goes away first ends its requests: see its drop.
            unsafe {
                around.queue.accept(
                    key(id, u32::from(index)),
                    listener,
                    place.slot,
                    place.address.get().cast(),
                    place.length.get(),
                    around.counters,
                );
            }
        }
        if self.armed() == 0 {
            self.pause(id, AcceptPause::TableFull, around, events);
        } else if self.state == State::Paused(AcceptPause::TableFull) {
            self.resume(id, events);
        }
    }

    fn succeeded(&mut self, id: ListenerId, place: u8, around: &mut Around<'_>, events: &mut EventBatch) {
        self.failures = 0;
        self.backoff_ms = BACKOFF_FIRST_MS;
        if self.state == State::Paused(AcceptPause::System) {
            self.resume(id, events);
        }
        around.counters.accepted += 1;
        let place = &mut self.places[usize::from(place)];
        let connection = around.table.open(place.slot, around.now_ms);
        events.push(Event::Accepted { connection, listener: id, peer: place.peer() });
    }

    fn failed(&mut self, id: ListenerId, code: i32, around: &mut Around<'_>, events: &mut EventBatch) {
        if matches!(self.state, State::Stopping | State::Stopped) {
            return;
        }
        around.counters.accept_errors += 1;
        let exhausted = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM].contains(&code);
        // Any other failure belongs to one peer, such as one that left before it was accepted.
        // Should they come without end, a rest keeps this from spinning.
        self.failures += 1;
        if exhausted || self.failures > FAILURES_MAX {
            self.retry_ms = Some(around.now_ms.wrapping_add(self.backoff_ms));
            self.backoff_ms = (self.backoff_ms * 2).min(BACKOFF_LAST_MS);
            self.pause(id, AcceptPause::System, around, events);
        }
    }

    fn pause(&mut self, id: ListenerId, cause: AcceptPause, around: &mut Around<'_>, events: &mut EventBatch) {
        if self.state == State::Accepting {
            self.state = State::Paused(cause);
            around.counters.accept_pauses += 1;
            events.push(Event::AcceptPaused { listener: id, cause });
        }
    }

    fn resume(&mut self, id: ListenerId, events: &mut EventBatch) {
        self.state = State::Accepting;
        events.push(Event::AcceptResumed { listener: id });
    }

    fn close_when_quiet(&mut self) {
        if self.state == State::Stopping && self.armed() == 0 {
            self.state = State::Stopped;
            self.socket = None;
        }
    }
}

impl Place {
    fn peer(&mut self) -> SocketAddr {
        // SAFETY: the kernel wrote `length` bytes of an address here, over zeroes or an older one.
        let address = unsafe { SockAddr::new(std::ptr::read(self.address.get_mut()), *self.length.get_mut()) };
        address.as_socket().expect("a TCP peer has an IP address and a port")
    }
}

fn key(id: ListenerId, place: u32) -> Key {
    Key::new(Request::Accept, u32::from(id.0) * ACCEPTS_AT_ONCE + place, 0)
}

fn listening_socket(address: SocketAddr, backlog: u32) -> std::io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit this; setting it on each would be a system call apiece.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    let local = local_address(&socket)?;
    Ok((socket, local))
}
