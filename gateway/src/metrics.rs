//! Metrics: what shards, rings, mailboxes and the store count, as OpenMetrics text.
//!
//! Nothing is registered up front: each scrape sums what the shards published last.

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use ring::RingCounters;
use shard_router::MailCounters;
use storage::counters::StoreCounters;
use storage::seam::Space;
use wire::close::CloseCode;
use wire::protocol::ErrorCode;

use crate::driver::Published;
use crate::internal::Status;

/// Everything, as a scraper reads it.
pub(crate) fn encode(status: &Status) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot::take(status)));
    let facts = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("commit", env!("RINGWAY_BUILD_COMMIT")),
        ("profile", env!("RINGWAY_BUILD_PROFILE")),
    ];
    registry.register("ringway_build", "Which build this is", Info::new(facts.to_vec()));
    let mut out = String::new();
    encode_registry(&mut out, &registry).expect("writing to a string does not fail");
    out
}

/// One number with its name.
type Count = (&'static str, u64, &'static str);

/// All shards' numbers, summed.
#[derive(Debug)]
struct Snapshot {
    counters: Vec<(&'static str, Vec<Count>)>,
    gauges: Vec<(&'static str, Vec<Count>)>,
    closes: Vec<(String, u64)>,
    errors: Vec<(String, u64)>,
    statuses: Vec<(String, u64)>,
}

impl Snapshot {
    fn take(status: &Status) -> Self {
        let shards: Vec<Published> =
            status.shards.iter().map(|shard| shard.lock().expect("nobody panics while holding it").clone()).collect();
        let mut gateway = crate::counters::ShardCounters::default();
        let mut rules = chat::Counters::default();
        for shard in &shards {
            gateway.add(&shard.shard);
            rules.add(&shard.chat);
        }
        let labels = |codes: Vec<String>, counts: &[u64]| codes.into_iter().zip(counts.iter().copied()).collect();
        Self {
            closes: labels(CloseCode::ALL.iter().map(|code| code.number().to_string()).collect(), &gateway.closes),
            errors: labels(ErrorCode::ALL.iter().map(|code| code.as_str().to_owned()).collect(), &gateway.errors),
            statuses: labels((0..6).map(|digit| format!("{digit}xx")).collect(), &gateway.http_statuses),
            counters: vec![
                ("", gateway.all().collect()),
                ("chat_", rules.all().collect()),
                ("mail_", sum(&shards, |shard| mail_counts(&shard.mail))),
                ("ring_", sum(&shards, |shard| ring_counts(&shard.ring))),
                ("store_", store_counts(&status.store_counters)),
                #[cfg(feature = "count-allocations")]
                ("", sum(&shards, |shard| vec![("allocations", shard.allocations, "Taken from the heap by shards.")])),
            ],
            gauges: vec![
                ("", sum(&shards, connection_gauges)),
                ("chat_", sum(&shards, |shard| shard.sizes.iter().map(|(name, n)| (*name, *n, "Held now.")).collect())),
                ("store_", store_gauges(&status.store_counters)),
            ],
        }
    }

    fn write(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        for (prefix, counts) in &self.counters {
            for (name, value, help) in counts {
                let name = format!("ringway_{prefix}{name}");
                let metric = ConstCounter::new(*value);
                metric.encode(encoder.encode_descriptor(&name, tidy(help), None, metric.metric_type())?)?;
            }
        }
        for (prefix, counts) in &self.gauges {
            for (name, value, help) in counts {
                let name = format!("ringway_{prefix}{name}");
                let metric = ConstGauge::new(*value as i64);
                metric.encode(encoder.encode_descriptor(&name, tidy(help), None, metric.metric_type())?)?;
            }
        }
        for (name, label, help, values) in [
            ("ringway_closes", "code", "Closes that the server began, by code.", &self.closes),
            ("ringway_errors", "code", "Errors that clients were told, by code.", &self.errors),
            ("ringway_http_answers", "status", "Answers over HTTP, by the kind of their status.", &self.statuses),
        ] {
            let kind = ConstCounter::new(0_u64).metric_type();
            let mut family = encoder.encode_descriptor(name, tidy(help), None, kind)?;
            for (value, count) in values {
                ConstCounter::new(*count).encode(family.encode_family(&[(label, value.as_str())])?)?;
            }
        }
        #[cfg(feature = "count-allocations")]
        {
            let help = "Bytes that the process holds of the heap, by the size up to which the pieces are";
            let kind = ConstGauge::new(0_i64).metric_type();
            let mut family = encoder.encode_descriptor("ringway_heap_bytes", help, None, kind)?;
            for (bound, bytes) in crate::allocations::held() {
                ConstGauge::new(bytes).encode(family.encode_family(&[("up_to", bound.to_string().as_str())])?)?;
            }
        }
        Ok(())
    }
}

impl prometheus_client::collector::Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        self.write(&mut encoder)
    }
}

/// The encoder ends the sentence itself.
fn tidy(help: &str) -> &str {
    help.trim().trim_end_matches('.')
}

/// The same numbers of every shard, added up.
fn sum(shards: &[Published], counts: impl Fn(&Published) -> Vec<Count>) -> Vec<Count> {
    let mut sums: Vec<Count> = Vec::new();
    for shard in shards {
        for (name, value, help) in counts(shard) {
            match sums.iter_mut().find(|sum| sum.0 == name) {
                Some(sum) => sum.1 += value,
                None => sums.push((name, value, help)),
            }
        }
    }
    sums
}

fn connection_gauges(shard: &Published) -> Vec<Count> {
    vec![
        ("connections", u64::from(shard.connections), "Connections held."),
        ("connection_bytes", shard.connection_bytes as u64, "Bytes of memory held for connections."),
        ("queue_bytes", shard.queue_bytes as u64, "Of these, for what waits to be sent, and kept for reuse."),
        ("shards_serving", u64::from(shard.is_serving), "Shards that serve clients."),
    ]
}

fn mail_counts(mail: &MailCounters) -> Vec<Count> {
    vec![
        ("letters", mail.letters, "Letters between owners."),
        ("batches", mail.batches, "Batches of letters that left."),
        ("batches_held", mail.batches_held, "Batches that found their channel full."),
        ("requests_refused", mail.requests_refused, "Requests refused because a mailbox was full."),
        ("events_collapsed", mail.events_collapsed, "Events that became dirty marks because a mailbox was full."),
        ("signals_dropped", mail.signals_dropped, "Signals dropped because a mailbox was full."),
        ("dirty_all", mail.dirty_all, "Times that one letter stood for too many dirty marks."),
        ("doorbells", mail.doorbells, "Doorbells rung."),
    ]
}

fn ring_counts(ring: &RingCounters) -> Vec<Count> {
    vec![
        ("accepted", ring.accepted, "Connections accepted."),
        ("closed", ring.closed, "Connections closed."),
        ("bytes_in", ring.bytes_in, "Bytes received."),
        ("bytes_out", ring.bytes_out, "Bytes that the kernel took."),
        ("system_calls", ring.system_calls, "Calls of io_uring_enter."),
        ("submissions", ring.submissions, "Requests handed to the kernel."),
        ("completions", ring.completions, "Completions taken from the kernel."),
        ("completion_overflows", ring.completion_overflows, "Times the completion queue had overflowed."),
        ("short_writes", ring.short_writes, "Sends that the kernel took only in part."),
        ("buffers_exhausted", ring.buffers_exhausted, "Times that no receive buffer was left."),
        ("promoted", ring.promoted, "Connections that went from idle to hot."),
        ("demoted", ring.demoted, "Connections that went from hot back to idle."),
        ("greedy", ring.greedy, "Connections that used too many receive buffers at once."),
        ("accept_pauses", ring.accept_pauses, "Times a listener paused."),
        ("accept_errors", ring.accept_errors, "Accepts that failed."),
        ("doorbells", ring.doorbells, "Doorbell rings that woke a ring."),
    ]
}

fn store_counts(store: &StoreCounters) -> Vec<Count> {
    let rows = |space: Space| (store.rows[space as usize].get(), store.row_bytes[space as usize].get());
    vec![
        ("batches", store.batches.get(), "Batches committed, each with one sync."),
        ("groups", store.groups.get(), "Groups answered."),
        ("bytes", store.bytes.get(), "Bytes written to the journal."),
        ("commit_us", store.commit_us.get(), "Microseconds in write and sync."),
        ("segments_removed", store.segments_removed.get(), "Journal segments removed."),
        ("checkpoints", store.checkpoints.get(), "Checkpoints done."),
        (
            "recovered_records",
            store.recovered_records.get(),
            "Records that the start found behind the last checkpoint.",
        ),
        ("recovered_bytes", store.recovered_bytes.get(), "Bytes of them."),
        ("history_rows", rows(Space::History).0, "Messages handed to the views."),
        ("history_row_bytes", rows(Space::History).1, "Bytes of them."),
        ("dedup_rows", rows(Space::Dedup).0, "Ids of messages handed to the views."),
        ("dedup_row_bytes", rows(Space::Dedup).1, "Bytes of them."),
        ("head_rows", rows(Space::Heads).0, "Heads of conversations handed to the views."),
        ("head_row_bytes", rows(Space::Heads).1, "Bytes of them."),
        ("member_rows", rows(Space::Members).0, "Memberships handed to the views."),
        ("member_row_bytes", rows(Space::Members).1, "Bytes of them."),
        ("ingest_failures", store.ingest_failures.get(), "Ingestions into the views that failed and were tried again."),
        ("refused_full", store.refused_full.get(), "Parts refused because the disk was full."),
        ("refused_behind", store.refused_behind.get(), "Parts refused because the views lag."),
        ("refused_unavailable", store.refused_unavailable.get(), "Parts refused because the store was unavailable."),
        ("reads", store.reads.get(), "Reads answered."),
        ("reads_damaged", store.reads_damaged.get(), "Reads that found damage."),
    ]
}

fn store_gauges(store: &StoreCounters) -> Vec<Count> {
    vec![
        ("lag_bytes", store.lag_bytes.get(), "Bytes of journal that the views do not cover."),
        ("segments", store.segments.get(), "Journal segments on disk."),
        ("checkpoint_ms", store.checkpoint_ms.get(), "Milliseconds that the last checkpoint took."),
    ]
}
