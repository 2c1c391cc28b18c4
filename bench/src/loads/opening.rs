//! From accept to the answer to the second word: a connection, two round trips, and then it is open.

use std::cell::Cell;
use std::time::Duration;

use crate::crowd::{Crowd, Deadline, News, Outbox, Reach, Spent, Stretch};
use crate::server::{Process, Trouble};

/// What a client says first and second, and how it knows that it was answered.
pub trait Opening {
    /// The first word of a connection.
    fn first(&mut self, who: u32, out: &mut Vec<u8>);
    /// What came; says whether the second word is due, or that the connection is open.
    fn heard(&mut self, who: u32, bytes: &[u8]) -> Result<Step, Trouble>;
    /// The second word.
    fn second(&mut self, who: u32, out: &mut Vec<u8>);
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Waits,
    SaysSecond,
    IsOpen,
}

/// Opens a crowd, a window of it at once, and counts the server's processor time until the last is open. The
/// connections stay.
pub fn open(
    server: &Process,
    crowd: &mut Crowd,
    reach: Reach<'_>,
    opening: &mut dyn Opening,
) -> Result<Spent, Trouble> {
    let open = Cell::new(0);
    let mut react = |who: u32, news: News<'_>, outbox: &mut Outbox| -> Result<(), Trouble> {
        match news {
            News::Connected => outbox.say_with(who, |buffer| opening.first(who, buffer)),
            News::Heard(bytes) => match opening.heard(who, bytes)? {
                Step::Waits => {}
                Step::SaysSecond => outbox.say_with(who, |buffer| opening.second(who, buffer)),
                Step::IsOpen => open.set(open.get() + 1),
            },
            News::Closed => {
                let open = open.get();
                return Err(format!("the server hung up on connection {who} before it was open; {open} were").into());
            }
        }
        Ok(())
    };
    let count = crowd.len();
    let stretch = Stretch::begin(server);
    crowd.connect_until(Some(&open), reach, &mut react)?;
    let deadline = Deadline::seconds(60);
    while open.get() < count {
        crowd.turn(Duration::from_millis(5), &mut react)?;
        deadline.check(|| format!("only {} of {count} connections are open", open.get()))?;
    }
    Ok(stretch.end())
}

/// Words and answers without a meaning, of given sizes.
pub struct Raw {
    words: [Vec<u8>; 2],
    answers: [usize; 2],
    heard: Vec<usize>,
}

impl Raw {
    /// For so many connections.
    pub fn new(count: u32, words: [usize; 2], answers: [usize; 2]) -> Self {
        Self { words: words.map(|bytes| vec![b'x'; bytes]), answers, heard: vec![0; count as usize] }
    }
}

impl Opening for Raw {
    fn first(&mut self, who: u32, out: &mut Vec<u8>) {
        self.heard[who as usize] = 0;
        out.extend_from_slice(&self.words[0]);
    }

    fn heard(&mut self, who: u32, bytes: &[u8]) -> Result<Step, Trouble> {
        let heard = &mut self.heard[who as usize];
        *heard += bytes.len();
        Ok(match *heard {
            all if all == self.answers[0] + self.answers[1] => Step::IsOpen,
            first if first == self.answers[0] => Step::SaysSecond,
            _ => Step::Waits,
        })
    }

    fn second(&mut self, _: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.words[1]);
    }
}
