//! Answers by bytes alone, over one ring or many in one thread.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::raw::websocket::{self, FRAME_BYTES_MAX};
use crate::raw::{RawRing, Request, for_ever, listener};
use crate::server::Trouble;

/// What is said to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Serve {
    /// The same bytes back.
    Echo,
    /// The n-th word of a connection is answered by the n-th of the sizes, the last of them from then on.
    Steps,
    /// Between two connections: see `Relay`.
    Relay,
    /// The upgrade of a WebSocket, and then its frames back.
    Websocket,
}

/// How a raw server is started.
#[derive(Debug, Clone, Args)]
pub struct Orders {
    /// The address of the first ring; the others listen on the same port of 127.0.1.1, 127.0.2.1 and so on.
    #[arg(long)]
    pub listen: SocketAddr,
    #[arg(long, value_enum, default_value = "echo")]
    pub serve: Serve,
    /// Bytes of the answers, as `serve` has them.
    #[arg(long, value_delimiter = ',')]
    pub sizes: Vec<u32>,
    #[arg(long, default_value_t = 1)]
    pub rings: u32,
    /// Connections per ring.
    #[arg(long, default_value_t = 16_384)]
    pub slots: u32,
    /// With several rings: all at the first address. One ring accepts after the other, until a tenth of its slots is left.
    #[arg(long)]
    pub one_address: bool,
    /// With several rings: look at all of them so often, and at once again while there is something to do.
    #[arg(long, default_value_t = 1)]
    pub tick_ms: u64,
}

/// Connections that may come while a ring hands over to the next; three times as many still find a slot.
const ON_THE_WAY_MAX: u32 = 1_024;

/// Where the ring of a number listens.
pub fn address_of(first: SocketAddr, ring: u32) -> SocketAddr {
    if ring == 0 { first } else { SocketAddr::from(([127, 0, ring as u8, 1], first.port())) }
}

/// A relay's connection: who it is, and to which slot it is tied.
///
/// ```text
/// first word    pair (u32, little endian), side (u8); when both have come, a byte goes to each
/// side 0 says   a message: `sizes[0]` bytes go to the other side, `sizes[1]` bytes back
/// side 1 says   a mark: `sizes[2]` bytes go to the other side
/// ```
#[derive(Debug, Clone, Copy)]
struct Relay {
    side: u8,
    other: u32,
}

const NOBODY: u32 = u32::MAX;

/// What one ring's connections are up to.
struct Around {
    serve: Serve,
    sizes: Vec<u32>,
    /// Zeros, which live for ever.
    nothing: *const u8,
    /// `Steps`: how many words of a slot were answered.
    steps: Vec<u8>,
    /// `Relay`: by slot.
    relays: Vec<Relay>,
    /// `Relay`: the slot that came first, by pair.
    waiting: Vec<u32>,
    /// `Websocket`: beginnings of frames, by slot; seldom any.
    beginnings: HashMap<u32, Vec<u8>>,
    /// Those for whom there was no buffer: to ask again at once would be to ask in vain.
    starved: VecDeque<u32>,
    /// Accepted so far.
    accepted: u32,
}

/// No buffer goes back when this send is done.
const STATIC: u32 = 0x00ff_ffff;

/// Serves until the process is killed.
pub fn serve(orders: &Orders) -> Result<(), Trouble> {
    let buffers = if orders.rings == 1 { 4_096 } else { 512 };
    let room = if orders.serve == Serve::Websocket { FRAME_BYTES_MAX } else { 0 };
    let shared = if orders.one_address { Some(listener(orders.listen)?) } else { None };
    let mut rings = Vec::new();
    for number in 0..orders.rings {
        let mut ring = RawRing::new(orders.slots, buffers, 512, room)?;
        match &shared {
            None => ring.listen(address_of(orders.listen, number))?,
            Some(listener) if number == 0 => ring.accept_from(Rc::clone(listener))?,
            Some(_) => {}
        }
        rings.push((ring, Around::new(orders)));
    }
    let (mut accepts, full) = (0, orders.slots - orders.slots / 10);
    println!("listening");
    let mut taken = Vec::with_capacity(16_384);
    loop {
        let mut has_come = false;
        for (ring, around) in &mut rings {
            ring.turn(orders.rings == 1, &mut taken)?;
            has_come |= !taken.is_empty();
            for completion in taken.drain(..) {
                around.handle(ring, completion)?;
            }
            for _ in 0..ring.buffers.left() {
                let Some(slot) = around.starved.pop_front() else { break };
                ring.receive(slot)?;
            }
        }
        if let Some(listener) = &shared
            && accepts + 1 < rings.len()
            && rings[accepts].1.accepted >= full - ON_THE_WAY_MAX
        {
            rings[accepts].0.accept_no_more()?;
            accepts += 1;
            rings[accepts].0.accept_from(Rc::clone(listener))?;
        }
        if !has_come && orders.rings > 1 {
            std::thread::sleep(Duration::from_millis(orders.tick_ms));
        }
    }
}

impl Around {
    fn new(orders: &Orders) -> Self {
        let largest = orders.sizes.iter().copied().max().unwrap_or(0).max(1);
        Self {
            serve: orders.serve,
            sizes: orders.sizes.clone(),
            nothing: for_ever(largest as usize),
            steps: if matches!(orders.serve, Serve::Steps | Serve::Websocket) {
                vec![0; orders.slots as usize]
            } else {
                Vec::new()
            },
            relays: if orders.serve == Serve::Relay {
                vec![Relay { side: 0, other: NOBODY }; orders.slots as usize]
            } else {
                Vec::new()
            },
            waiting: if orders.serve == Serve::Relay { vec![NOBODY; orders.slots as usize] } else { Vec::new() },
            beginnings: HashMap::new(),
            starved: VecDeque::new(),
            accepted: 0,
        }
    }

    fn handle(&mut self, ring: &mut RawRing, completion: super::Completion) -> std::io::Result<()> {
        let (slot, result) = (completion.slot, completion.result);
        match completion.request {
            Request::Accept => {
                if result >= 0 {
                    self.accepted += 1;
                    self.begin(result as usize);
                    ring.receive(result as u32)?;
                }
                if !completion.more() {
                    ring.accept()?;
                }
            }
            Request::Receive => {
                match (completion.buffer(), result) {
                    (Some(id), 1..) => self.answer(ring, slot, id, result as u32)?,
                    (Some(id), _) => ring.buffers.give_back(id),
                    (None, _) => {}
                }
                if !completion.more() {
                    match result {
                        1.. => ring.receive(slot)?,
                        _ if result == -libc::ENOBUFS => self.starved.push_back(slot),
                        _ => ring.close(slot)?,
                    }
                }
            }
            Request::Send if completion.note != STATIC => ring.buffers.give_back(completion.note as u16),
            Request::Send | Request::Close | Request::Cancel => {}
        }
        Ok(())
    }

    fn begin(&mut self, slot: usize) {
        if let Some(steps) = self.steps.get_mut(slot) {
            *steps = 0;
        }
        if let Some(relay) = self.relays.get_mut(slot) {
            relay.other = NOBODY;
        }
        self.beginnings.remove(&(slot as u32));
    }

    fn answer(&mut self, ring: &mut RawRing, slot: u32, id: u16, bytes: u32) -> std::io::Result<()> {
        match self.serve {
            Serve::Echo => return ring.send(slot, ring.buffers.start(id), bytes, u32::from(id)),
            Serve::Steps => {
                let step = &mut self.steps[slot as usize];
                let size = self.sizes[usize::from(*step).min(self.sizes.len() - 1)];
                *step = step.saturating_add(1);
                ring.send(slot, self.nothing, size, STATIC)?;
            }
            Serve::Relay => self.relay(ring, slot, id, bytes)?,
            Serve::Websocket => return self.websocket(ring, slot, id, bytes as usize),
        }
        ring.buffers.give_back(id);
        Ok(())
    }

    fn websocket(&mut self, ring: &mut RawRing, slot: u32, id: u16, bytes: usize) -> std::io::Result<()> {
        let room = ring.buffers.room(id);
        let mut filled = bytes;
        if let Some(beginning) = self.beginnings.remove(&slot) {
            room.copy_within(..bytes, beginning.len());
            room[..beginning.len()].copy_from_slice(&beginning);
            filled += beginning.len();
        }
        let is_upgraded = &mut self.steps[slot as usize];
        let turned = match *is_upgraded {
            0 => websocket::upgrade(room, filled),
            _ => websocket::turn_around(&mut room[..filled]),
        };
        let Some(turned) = turned.filter(|turned| filled - turned.used < FRAME_BYTES_MAX) else {
            // Whoever speaks something else is not answered.
            ring.buffers.give_back(id);
            return Ok(());
        };
        *is_upgraded |= u8::from(turned.out > 0);
        if turned.used < filled {
            self.beginnings.insert(slot, room[turned.used..filled].to_vec());
        }
        if turned.out == 0 {
            ring.buffers.give_back(id);
            return Ok(());
        }
        ring.send(slot, ring.buffers.start(id), turned.out as u32, u32::from(id))
    }

    fn relay(&mut self, ring: &mut RawRing, slot: u32, id: u16, bytes: u32) -> std::io::Result<()> {
        let Relay { side, other } = self.relays[slot as usize];
        match (other, side) {
            (NOBODY, _) => {
                if let Some(other) = self.tie(slot, ring.buffers.bytes(id, bytes as usize)) {
                    ring.send(slot, self.nothing, 1, STATIC)?;
                    ring.send(other, self.nothing, 1, STATIC)?;
                }
            }
            (other, 0) => {
                ring.send(other, self.nothing, self.sizes[0], STATIC)?;
                ring.send(slot, self.nothing, self.sizes[1], STATIC)?;
            }
            (other, _) => ring.send(other, self.nothing, self.sizes[2], STATIC)?,
        }
        Ok(())
    }

    /// The slot at the other end, when both have come.
    fn tie(&mut self, slot: u32, word: &[u8]) -> Option<u32> {
        let &[a, b, c, d, side] = word else { return None };
        let waiting = self.waiting.get_mut(u32::from_le_bytes([a, b, c, d]) as usize)?;
        self.relays[slot as usize].side = side;
        match std::mem::replace(waiting, NOBODY) {
            NOBODY => {
                *waiting = slot;
                None
            }
            other => {
                self.relays[slot as usize].other = other;
                self.relays[other as usize].other = slot;
                Some(other)
            }
        }
    }
}
