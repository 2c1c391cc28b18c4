//! Fan-out without a protocol: the same bytes to every connection, several messages merged into one send.

use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;

use loadgen::process::thread_cpu_ns;

use crate::raw::{RawRing, Request, for_ever};
use crate::server::Trouble;

/// Bytes of one message of 128 bytes as a server's frame has it, without any words around it.
pub const MESSAGE_BYTES: u32 = 132;

/// Waits for `connections`, then reads lines `MERGE PASSES` from its input: so many sends to every connection,
/// each of `MERGE` messages. Answers each with the nanoseconds of processor time that it took.
pub fn serve(address: SocketAddr, connections: u32) -> Result<(), Trouble> {
    let mut ring = RawRing::new(connections + 16, 256, 512, 0)?;
    ring.listen(address)?;
    println!("listening");
    let mut taken = Vec::with_capacity(16_384);
    let mut slots = Vec::new();
    while slots.len() < connections as usize {
        ring.turn(true, &mut taken)?;
        for completion in taken.drain(..) {
            if completion.request == Request::Accept && completion.result >= 0 {
                slots.push(completion.result as u32);
            }
        }
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (merge, passes) = line.split_once(' ').ok_or("MERGE PASSES")?;
        let (merge, passes): (u32, u32) = (merge.parse()?, passes.parse()?);
        let nothing = for_ever((merge * MESSAGE_BYTES) as usize);
        let before = thread_cpu_ns();
        for _ in 0..passes {
            for &slot in &slots {
                ring.send(slot, nothing, merge * MESSAGE_BYTES, 0)?;
            }
            // Each pass ends before the next begins: a room's next message finds its sockets empty.
            let mut left = slots.len();
            while left > 0 {
                ring.turn(true, &mut taken)?;
                for completion in taken.drain(..) {
                    if completion.result < 0 {
                        return Err(std::io::Error::from_raw_os_error(-completion.result).into());
                    }
                    left -= usize::from(completion.request == Request::Send);
                }
            }
        }
        println!("{}", thread_cpu_ns() - before);
        std::io::stdout().flush()?;
    }
    Ok(())
}
