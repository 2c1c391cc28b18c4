//! Five frames of a message between two: send in, message and stored out, mark in, tick out. One message is in
//! flight per pair, and the next is sent when the tick is there.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::calls::Calls;
use crate::contest::Sample;
use crate::crowd::{Crowd, Deadline, News, Outbox, Stretch, to_one};
use crate::others::until_quiet;
use crate::server::{Process, Trouble};

/// Two ends that talk; the even connection of a pair sends, the odd one reads.
pub trait Talk {
    /// The pair's next message.
    fn send(&mut self, pair: u32, out: &mut Vec<u8>);
    /// What an end heard; says what the end says to it, and whether a message is complete.
    fn heard(&mut self, who: u32, bytes: &mut [u8], outbox: &mut Outbox) -> Result<bool, Trouble>;
}

/// Talks for a while and counts, after a while that does not count. The crowd is connected and ready.
pub fn talk(
    server: &Process,
    crowd: &mut Crowd,
    talk: &mut dyn Talk,
    warm_up: Duration,
    measure: Duration,
) -> Result<Sample, Trouble> {
    talk_counted(server, crowd, talk, warm_up, measure, None)
}

/// The same, with the server's system calls counted as well.
pub fn talk_counted(
    server: &Process,
    crowd: &mut Crowd,
    talk: &mut dyn Talk,
    warm_up: Duration,
    measure: Duration,
    calls: Option<&Calls>,
) -> Result<Sample, Trouble> {
    // The other side's server may still be at work for what it was asked before.
    until_quiet();
    let calls_so_far = || calls.map_or(Ok(0), Calls::so_far);
    let pairs = crowd.len() / 2;
    for pair in 0..pairs {
        crowd.outbox.say_with(2 * pair, |out| talk.send(pair, out));
    }
    let begun = Instant::now();
    let (mut complete, mut calls_before, mut stretch) = (0_u64, 0, None);
    let spent = loop {
        let ends = stretch.is_some() && begun.elapsed() >= warm_up + measure;
        if ends {
            break stretch.as_ref().map(Stretch::end).expect("it has begun");
        }
        crowd.turn(Duration::from_millis(20), |who, news, outbox| {
            match news {
                News::Heard(bytes) => {
                    if talk.heard(who, bytes, outbox)? {
                        complete += 1;
                        outbox.say_with(who, |out| talk.send(who / 2, out));
                    }
                }
                News::Closed => return Err("the server hung up".into()),
                News::Connected => {}
            }
            Ok(())
        })?;
        if stretch.is_none() && begun.elapsed() >= warm_up {
            (complete, calls_before) = (0, calls_so_far()?);
            stretch = Some(Stretch::begin(server));
        }
    };
    let mut sample = Sample::of(&spent, complete);
    if calls.is_some() {
        let each = (calls_so_far()? - calls_before) as f64 / complete.max(1) as f64;
        sample.more.insert("calls".to_owned(), each.into());
    }
    for (name, ns) in &spent.threads {
        sample.more.insert(format!("us_{name}"), (*ns as f64 / complete.max(1) as f64 / 1e3).into());
    }
    // Nothing of this may be left in a socket when the next talk begins.
    let mut quiet = Instant::now();
    let deadline = Deadline::seconds(30);
    while quiet.elapsed() < Duration::from_millis(200) {
        crowd.turn(Duration::from_millis(20), |who, news, outbox| {
            if let News::Heard(bytes) = news {
                quiet = Instant::now();
                talk.heard(who, bytes, outbox)?;
            }
            Ok(())
        })?;
        deadline.check(|| "the talk does not end".to_owned())?;
    }
    Ok(sample)
}

/// Bytes of the five frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub send: usize,
    pub message: usize,
    pub stored: usize,
    pub mark: usize,
    pub tick: usize,
}

/// The five without a protocol.
pub struct Raw {
    sizes: Sizes,
    /// What each end is still to hear before it is its turn.
    left: Vec<usize>,
    word: Vec<u8>,
}

impl Raw {
    pub fn new(connections: u32, sizes: Sizes) -> Self {
        let word = vec![b'x'; sizes.send.max(sizes.mark)];
        Self { sizes, left: vec![0; connections as usize], word }
    }

    /// Whether an end has all of what it is to hear before its turn.
    pub fn has_heard_all(&self, who: u32) -> bool {
        self.left[who as usize] == 0
    }

    fn whole(&self, who: u32) -> usize {
        if who.is_multiple_of(2) { self.sizes.stored + self.sizes.tick } else { self.sizes.message }
    }
}

impl Talk for Raw {
    fn send(&mut self, pair: u32, out: &mut Vec<u8>) {
        self.left[2 * pair as usize] = self.whole(2 * pair);
        self.left[2 * pair as usize + 1] = self.whole(2 * pair + 1);
        out.extend_from_slice(&self.word[..self.sizes.send]);
    }

    fn heard(&mut self, who: u32, bytes: &mut [u8], outbox: &mut Outbox) -> Result<bool, Trouble> {
        let left = &mut self.left[who as usize];
        *left = left.checked_sub(bytes.len()).ok_or("the relay said more than it should")?;
        if *left > 0 {
            return Ok(false);
        }
        if who.is_multiple_of(2) {
            return Ok(true);
        }
        outbox.say(who, &self.word[..self.sizes.mark]);
        Ok(false)
    }
}

/// Connects the ends of a raw relay and ties them in pairs.
pub fn tie(crowd: &mut Crowd, server: &Process) -> Result<(), Trouble> {
    let tied = Cell::new(0);
    let mut react = |who: u32, news: News<'_>, outbox: &mut Outbox| -> Result<(), Trouble> {
        match news {
            News::Connected => outbox.say_with(who, |out| {
                out.extend_from_slice(&(who / 2).to_le_bytes());
                out.push((who % 2) as u8);
            }),
            News::Heard(bytes) => tied.set(tied.get() + bytes.len() as u32),
            News::Closed => return Err("the relay hung up".into()),
        }
        Ok(())
    };
    let ends = crowd.len();
    crowd.connect(&to_one(server.address), &mut react)?;
    let deadline = Deadline::seconds(30);
    while tied.get() < ends {
        crowd.turn(Duration::from_millis(5), &mut react)?;
        deadline.check(|| format!("{} of {ends} ends are tied", tied.get()))?;
    }
    Ok(())
}
