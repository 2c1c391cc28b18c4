//! Answers by bytes alone, over one ring or many in one thread.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::raw::{RawRing, Request, for_ever};
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
    /// With several rings: look at all of them so often, and at once again while there is something to do.
    #[arg(long, default_value_t = 1)]
    pub tick_ms: u64,
}

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
}

/// No buffer goes back when this send is done.
const STATIC: u32 = 0x00ff_ffff;

/// Serves until the process is killed.
pub fn serve(orders: &Orders) -> Result<(), Trouble> {
    let buffers = if orders.rings == 1 { 4_096 } else { 512 };
    let mut rings = Vec::new();
    for number in 0..orders.rings {
        let mut ring = RawRing::new(orders.slots, buffers, 512)?;
        ring.listen(address_of(orders.listen, number))?;
        rings.push((ring, Around::new(orders)));
    }
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
            steps: if orders.serve == Serve::Steps { vec![0; orders.slots as usize] } else { Vec::new() },
            relays: if orders.serve == Serve::Relay {
                vec![Relay { side: 0, other: NOBODY }; orders.slots as usize]
            } else {
                Vec::new()
            },
            waiting: if orders.serve == Serve::Relay { vec![NOBODY; orders.slots as usize] } else { Vec::new() },
        }
    }

    fn handle(&mut self, ring: &mut RawRing, completion: super::Completion) -> std::io::Result<()> {
        let (slot, result) = (completion.slot, completion.result);
        match completion.request {
            Request::Accept => {
                if result >= 0 {
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
                    if result > 0 || result == -libc::ENOBUFS { ring.receive(slot) } else { ring.close(slot) }?;
                }
            }
            Request::Send if completion.note != STATIC => ring.buffers.give_back(completion.note as u16),
            Request::Send | Request::Close => {}
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
        }
        ring.buffers.give_back(id);
        Ok(())
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
