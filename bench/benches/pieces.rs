//! How long the pieces of a message's way take: `cargo bench -p bench --bench pieces`.

use bench::pieces;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

fn each(c: &mut Criterion) {
    let mut group = c.benchmark_group("pieces");
    group.bench_function("decode", |b| b.iter_batched(pieces::masked_send, pieces::decode, BatchSize::SmallInput));
    group.bench_function("mask 4 KiB", |b| b.iter_batched(pieces::payload, pieces::mask, BatchSize::SmallInput));
    group.bench_function("encode", |b| b.iter_batched(pieces::room, pieces::encode, BatchSize::SmallInput));
    group.throughput(Throughput::Elements(u64::from(pieces::MESSAGES)));
    group.bench_function("route", |b| {
        let mut mailboxes = pieces::mailboxes();
        b.iter(|| pieces::route(&mut mailboxes));
    });
    group.bench_function("sequence", |b| {
        b.iter_batched_ref(pieces::rules, pieces::sequence, BatchSize::LargeInput);
    });
    group.bench_function("journal append", |b| {
        b.iter_batched_ref(pieces::journal, pieces::journal_append, BatchSize::LargeInput);
    });
    group.bench_function("view run", |b| {
        b.iter_batched_ref(pieces::rules_with_messages, pieces::view_run, BatchSize::LargeInput);
    });
    group.finish();
}

criterion_group!(benches, each);
criterion_main!(benches);
