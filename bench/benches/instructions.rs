//! Instructions of each piece under callgrind: the same on every run. `./test instructions` runs this and holds it
//! against `bench/budgets/instructions.json`.

use bench::pieces::{self, Nowhere, Rules};
use gungraun::prelude::*;
use shard_router::Mailbox;
use std::hint::black_box;
use storage::journal::Journal;
use storage::seam::AppendGroup;

#[library_benchmark]
#[bench::one(pieces::masked_send())]
fn decode(frame: Vec<u8>) -> bool {
    black_box(pieces::decode(black_box(frame)))
}

#[library_benchmark]
#[bench::one(pieces::payload())]
fn mask(payload: Vec<u8>) -> Vec<u8> {
    black_box(pieces::mask(black_box(payload)))
}

#[library_benchmark]
#[bench::one(pieces::mailboxes())]
fn route(mut mailboxes: Vec<Mailbox>) -> (u32, Vec<Mailbox>) {
    (black_box(pieces::route(black_box(&mut mailboxes))), mailboxes)
}

#[library_benchmark]
#[bench::one(pieces::rules())]
fn sequence(mut rules: Rules) -> (u32, Rules) {
    (black_box(pieces::sequence(black_box(&mut rules))), rules)
}

#[library_benchmark]
#[bench::one(pieces::room())]
fn encode(room: Vec<u8>) -> Vec<u8> {
    black_box(pieces::encode(black_box(room)))
}

#[library_benchmark]
#[bench::one(pieces::journal())]
fn journal_append(mut journal: (Journal<Nowhere>, Vec<AppendGroup>)) -> (usize, (Journal<Nowhere>, Vec<AppendGroup>)) {
    (black_box(pieces::journal_append(black_box(&mut journal))), journal)
}

#[library_benchmark]
#[bench::one(pieces::rules_with_messages())]
fn view_run(mut rules: Rules) -> (usize, Rules) {
    (black_box(pieces::view_run(black_box(&mut rules))), rules)
}

library_benchmark_group!(
    name = pieces_of_a_message,
    benchmarks = [decode, mask, route, sequence, encode, journal_append, view_run]
);

main!(library_benchmark_groups = pieces_of_a_message);
