//! Answered beats on sockets in random order, at a steady rate: what idle sessions cost.

use std::time::{Duration, Instant};

use loadgen::random::Random;

use crate::contest::Sample;
use crate::crowd::{Crowd, Deadline, News, Stretch};
use crate::loads::burst::shuffled;
use crate::server::{Process, Trouble};

/// Beats may wait so long to share a turn, if nothing else is said.
const TICK: Duration = Duration::from_millis(50);

/// Bytes of the answer to a beat that acknowledges nothing.
pub const ANSWER_BYTES: usize = 2 + r#"{"type":"beat","received":0}"#.len();

/// Whose turn it is to beat, in an order of chance, which goes on from one measurement to the next.
pub struct Beats {
    order: Vec<u32>,
    next: usize,
    tick: Duration,
}

impl Beats {
    /// For so many connections.
    pub fn new(count: u32, random: &mut Random) -> Self {
        Self { order: shuffled(count, random), next: 0, tick: TICK }
    }

    /// Those that are due within such a time share a turn.
    #[must_use]
    pub fn together(self, tick: Duration) -> Self {
        Self { tick, ..self }
    }

    /// `per_second` beats, each of `word` and answered by `answer_bytes`, for `seconds`.
    pub fn measure(
        &mut self,
        server: &Process,
        crowd: &mut Crowd,
        word: &[u8],
        answer_bytes: usize,
        per_second: f64,
        seconds: u64,
    ) -> Result<Sample, Trouble> {
        let length = Duration::from_secs(seconds);
        let (mut heard, mut said, begun) = (0, 0_u64, Instant::now());
        let stretch = Stretch::begin(server);
        while begun.elapsed() < length {
            let due = (begun.elapsed().as_secs_f64() * per_second) as u64;
            while said < due {
                crowd.outbox.say(self.order[self.next], word);
                self.next = (self.next + 1) % self.order.len();
                said += 1;
            }
            let tick_ends = Instant::now() + self.tick;
            loop {
                let patience = tick_ends.saturating_duration_since(Instant::now());
                crowd.turn(patience, |_, news, _| listen(news, &mut heard))?;
                if Instant::now() >= tick_ends {
                    break;
                }
            }
        }
        let deadline = Deadline::seconds(30);
        while heard < said * answer_bytes as u64 {
            crowd.turn(Duration::from_millis(5), |_, news, _| listen(news, &mut heard))?;
            deadline.check(|| format!("{} of {said} beats were answered", heard / answer_bytes as u64))?;
        }
        Ok(Sample::of(&stretch.end(), said))
    }
}

fn listen(news: News<'_>, heard: &mut u64) -> Result<(), Trouble> {
    match news {
        News::Heard(bytes) => *heard += bytes.len() as u64,
        News::Closed => return Err("the server hung up".into()),
        News::Connected => {}
    }
    Ok(())
}
