//! The simulated network: rings of the shards on one side, phones on the other.
//!
//! It keeps the rules of `ring::seam`. Between the two ends bytes wait in pipes, are cut anywhere,
//! delayed for as long as the world likes, and lost when a connection is reset.

use std::collections::VecDeque;

use ring::{CloseReason, Connection, Event, EventBatch, ListenerId, Op, Ops};
use slab::Slab;

use crate::rng::Rng;

/// Bytes that the simulated kernel takes from a send before the phone has read them.
const KERNEL_BYTES: usize = 700;

/// One connection, both ends.
#[derive(Debug)]
pub struct Link {
    pub phone: usize,
    pub shard: usize,
    connection: Connection,
    /// From the phone, not yet received.
    up: VecDeque<u8>,
    /// The phone has finished its stream, and whether the shard knows.
    up_ended: bool,
    eof_told: bool,
    /// Taken from the shard, not yet read.
    down: VecDeque<u8>,
    /// The outstanding send, and how much of it was taken.
    sending: Option<(Vec<u8>, usize)>,
    paused: bool,
    /// The shard asked for an orderly end.
    finishing: bool,
    /// The shard's handle has ended.
    ended: bool,
    /// The phone has let go.
    phone_gone: bool,
    /// Reads seldom and little.
    pub slow: bool,
}

/// What reading from a link gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    Bytes(Vec<u8>),
    /// The stream has ended or was reset.
    End,
}

/// All connections of the world.
#[derive(Debug, Default)]
pub struct Net {
    links: Slab<Link>,
    generation: u32,
}

impl Net {
    /// A phone connects to a shard.
    pub fn connect(&mut self, phone: usize, shard: usize, slow: bool, events: &mut EventBatch) -> usize {
        self.generation += 1;
        let entry = self.links.vacant_entry();
        let connection = Connection::new(0, entry.key() as u32, self.generation);
        let number = entry.key();
        entry.insert(Link {
            phone,
            shard,
            connection,
            up: VecDeque::new(),
            up_ended: false,
            eof_told: false,
            down: VecDeque::new(),
            sending: None,
            paused: false,
            finishing: false,
            ended: false,
            phone_gone: false,
            slow,
        });
        let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 1024));
        events.push(Event::Accepted { connection, listener: ListenerId(0), peer });
        number
    }

    /// The link of that number.
    pub fn link(&self, number: usize) -> Option<&Link> {
        self.links.get(number)
    }

    /// Numbers of all links.
    pub fn numbers(&self) -> impl Iterator<Item = usize> + '_ {
        self.links.iter().map(|(number, _)| number)
    }

    /// How many links there are.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The phone writes.
    pub fn write(&mut self, number: usize, bytes: &mut Vec<u8>) {
        if let Some(link) = self.links.get_mut(number)
            && !link.phone_gone
        {
            link.up.extend(bytes.drain(..));
        }
        bytes.clear();
    }

    /// The phone vanishes: with a reset, or in order behind what it wrote.
    pub fn leave(&mut self, number: usize, reset: bool, events: &mut EventBatch) {
        let Some(link) = self.links.get_mut(number) else { return };
        link.phone_gone = true;
        if link.ended {
            self.links.remove(number);
        } else if reset {
            end(link, CloseReason::Reset, events);
            self.links.remove(number);
        } else {
            link.up_ended = true;
            link.down.clear();
        }
    }

    /// Everything is cut, as when the process dies; the shards' ends are gone.
    pub fn drop_all(&mut self) {
        self.links.clear();
    }

    /// What a shard's turn wants done.
    pub fn submit(&mut self, ops: &mut Ops, events: &mut EventBatch) {
        for op in ops.drain() {
            let (Op::Send { connection, .. }
            | Op::Close { connection }
            | Op::Reset { connection }
            | Op::Shutdown { connection }
            | Op::PauseReceive { connection }
            | Op::ResumeReceive { connection }) = op
            else {
                unreachable!("a shard connects to nobody")
            };
            let number = connection.slot() as usize;
            let Some(link) = self.links.get_mut(number).filter(|link| link.connection == connection && !link.ended)
            else {
                continue;
            };
            match op {
                Op::Send { buffer, .. } => {
                    assert!(link.sending.is_none(), "one send at a time");
                    assert!(!link.finishing, "nothing is sent behind a shutdown");
                    link.sending = Some((buffer, 0));
                }
                Op::Close { .. } => end(link, CloseReason::Asked, events),
                Op::Reset { .. } => {
                    link.down.clear();
                    end(link, CloseReason::Asked, events);
                }
                Op::Shutdown { .. } => link.finishing = true,
                Op::PauseReceive { .. } => link.paused = true,
                Op::ResumeReceive { .. } => link.paused = false,
                Op::Connect { .. } => unreachable!("checked above"),
            }
            if link.ended && link.phone_gone {
                self.links.remove(number);
            }
        }
    }

    /// Whether bytes or an end wait for the shard.
    pub fn can_receive(&self, number: usize) -> bool {
        self.links.get(number).is_some_and(|link| {
            let waits = !link.up.is_empty() || (link.up_ended && !link.eof_told) || link.can_finish();
            !link.ended && !link.paused && waits
        })
    }

    /// Some of what waits arrives at the shard.
    pub fn receive(&mut self, number: usize, rng: &mut Rng, all: bool, events: &mut EventBatch) {
        let Some(link) = self.links.get_mut(number) else { return };
        if !link.up.is_empty() {
            let length =
                if all || rng.one_in(3) { link.up.len() } else { rng.between(1, link.up.len() as u64) as usize };
            let bytes: Vec<u8> = link.up.drain(..length).collect();
            if !link.finishing {
                events.push_received(link.connection, &bytes);
            }
        } else if link.up_ended && !link.eof_told {
            link.eof_told = true;
            if !link.finishing {
                events.push(Event::Eof { connection: link.connection });
            }
        } else if link.can_finish() {
            end(link, CloseReason::Finished, events);
            if link.phone_gone {
                self.links.remove(number);
            }
        }
    }

    /// Whether the kernel could take more of a send.
    pub fn can_take(&self, number: usize) -> bool {
        self.links.get(number).is_some_and(|link| {
            !link.ended && link.sending.is_some() && (link.phone_gone || link.down.len() < KERNEL_BYTES)
        })
    }

    /// The kernel takes a part of the outstanding send.
    pub fn take(&mut self, number: usize, rng: &mut Rng, all: bool, events: &mut EventBatch) {
        let Some(link) = self.links.get_mut(number) else { return };
        let Some((buffer, at)) = &mut link.sending else { return };
        let left = buffer.len() - *at;
        let room = if link.phone_gone { left } else { left.min(KERNEL_BYTES.saturating_sub(link.down.len())) };
        let length = if all || room < 2 || rng.one_in(2) { room } else { rng.between(1, room as u64) as usize };
        if !link.phone_gone {
            link.down.extend(&buffer[*at..*at + length]);
        }
        *at += length;
        if *at == buffer.len() {
            let (buffer, _) = link.sending.take().expect("just seen");
            events.push(Event::Sent { connection: link.connection, buffer });
        } else if length > 0 {
            events.push(Event::SendProgress { connection: link.connection, bytes: length as u32 });
        }
    }

    /// Whether the phone could read something, or the end.
    pub fn can_read(&self, number: usize) -> bool {
        self.links.get(number).is_some_and(|link| !link.phone_gone && (!link.down.is_empty() || link.down_ended()))
    }

    /// The phone reads some of what waits.
    pub fn read(&mut self, number: usize, rng: &mut Rng, all: bool) -> Read {
        let link = &mut self.links[number];
        if link.down.is_empty() {
            return Read::End;
        }
        let most = if link.slow && !all { link.down.len().min(64) } else { link.down.len() };
        let length = if all || rng.one_in(3) { most } else { rng.between(1, most as u64) as usize };
        Read::Bytes(link.down.drain(..length).collect())
    }
}

impl Link {
    /// Nothing more comes down.
    fn down_ended(&self) -> bool {
        self.ended || (self.finishing && self.sending.is_none())
    }

    /// Both streams have ended in order.
    fn can_finish(&self) -> bool {
        self.finishing && self.sending.is_none() && self.up_ended && self.up.is_empty()
    }
}

fn end(link: &mut Link, reason: CloseReason, events: &mut EventBatch) {
    link.ended = true;
    link.up.clear();
    let buffer = link.sending.take().map(|(buffer, _)| buffer);
    events.push(Event::Closed { connection: link.connection, reason, buffer });
}
