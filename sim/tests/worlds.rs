//! A few worlds for every run of the tests; `cargo run --release -p sim -- --seeds N --from S` runs more.

use sim::world::{Figures, World};

fn live(seed: u64) -> Figures {
    let mut world = World::new(seed, None);
    if let Err(violation) = world.run() {
        panic!("seed {seed}: {violation}; replay: cargo run --release -p sim -- --seeds 1 --from {seed} --trace");
    }
    world.figures
}

#[test]
fn worlds_of_a_few_seeds_keep_every_promise() {
    let from = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let mut all = Figures::default();
    for seed in from..from + 40 {
        all.add(&live(seed));
    }
    // A world in which nothing happens proves nothing.
    assert!(all.messages > 400 && all.crashes > 20 && all.frames > 4_000, "{all:?}");
}

/// What cannot be replayed cannot be mended.
#[test]
fn the_same_seed_lives_the_same_life() {
    for seed in 7..17 {
        assert_eq!(live(seed), live(seed), "seed {seed}");
    }
}

/// Each of these seeds once showed a fault of ours.
#[test]
fn seeds_that_broke_a_promise_once_keep_it_now() {
    for seed in
        [0, 2, 3, 6, 12, 20, 23, 32, 36, 75, 99, 100, 132, 166, 1502, 2012, 1_039_156, 1_063_931, 1_117_198, 3_036_690]
    {
        live(seed);
    }
}
