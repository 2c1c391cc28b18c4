//! Instruction counts held against the recorded ones: `bench/budgets/instructions.json`.
//!
//! A piece that takes more than 3 % over its budget fails. Whoever means it so records the new count in the same
//! commit, with `--record`, and says why in its message.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::server::Trouble;

/// Growth that is let pass: below it lies what a compiler may do with unrelated code.
const GROWTH_MAX_PERCENT: u64 = 3;

#[derive(Debug, Clone, Args)]
pub struct Orders {
    /// Where gungraun left callgrind's counts.
    #[arg(long, default_value = "target/gungraun")]
    pub counts: PathBuf,
    /// The recorded counts.
    #[arg(long, default_value = "bench/budgets/instructions.json")]
    pub budgets: PathBuf,
    /// Record the counts as the new budgets.
    #[arg(long)]
    pub record: bool,
}

type Counts = BTreeMap<String, u64>;

/// Compares, or records.
pub fn run(orders: &Orders) -> Result<(), Trouble> {
    let mut counts = Counts::new();
    gather(&orders.counts, &mut counts)?;
    if counts.is_empty() {
        return Err(format!("there are no counts in {}: run ./test instructions", orders.counts.display()).into());
    }
    if orders.record {
        std::fs::write(&orders.budgets, format!("{}\n", serde_json::to_string_pretty(&counts)?))?;
        println!("recorded {} counts in {}", counts.len(), orders.budgets.display());
        return Ok(());
    }
    let budgets: Counts = serde_json::from_str(&std::fs::read_to_string(&orders.budgets)?)?;
    let (lines, failed) = compare(&counts, &budgets);
    for line in lines {
        println!("{line}");
    }
    if failed == 0 {
        return Ok(());
    }
    let advice =
        "make it cheaper again, or record the new counts in the same commit and say why: bench budgets --record";
    Err(format!("{failed} of {} pieces are over their budget of instructions; {advice}", counts.len()).into())
}

/// A line for each piece, and how many failed.
fn compare(counts: &Counts, budgets: &Counts) -> (Vec<String>, usize) {
    let (mut lines, mut failed) = (Vec::new(), 0);
    for (piece, count) in counts {
        let Some(budget) = budgets.get(piece) else {
            failed += 1;
            lines.push(format!("{piece:<18} {count:>10} instructions, and no budget: FAILED"));
            continue;
        };
        let growth = *count as f64 / (*budget).max(1) as f64 - 1.0;
        let (percent, all) = (count * 100, budget * 100);
        let verdict = if percent > all + budget * GROWTH_MAX_PERCENT {
            failed += 1;
            "FAILED"
        } else if percent < all - budget * GROWTH_MAX_PERCENT {
            "ok, and the budget is out of date: record the lower count"
        } else {
            "ok"
        };
        lines.push(format!(
            "{piece:<18} {count:>10} instructions, budget {budget:>10}, {:+.1} %: {verdict}",
            growth * 100.0
        ));
    }
    for piece in budgets.keys().filter(|piece| !counts.contains_key(*piece)) {
        failed += 1;
        lines.push(format!("{piece:<18} has a budget and was not counted: FAILED"));
    }
    (lines, failed)
}

/// `callgrind.PIECE.ID.out` in any directory below.
fn gather(directory: &Path, counts: &mut Counts) -> Result<(), Trouble> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            gather(&path, counts)?;
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(piece) = name.strip_prefix("callgrind.").and_then(|rest| rest.strip_suffix(".out")) else { continue };
        let piece = piece.split('.').next().unwrap_or(piece).to_owned();
        let count = instructions(&std::fs::read_to_string(&path)?);
        counts.insert(piece, count.ok_or_else(|| format!("{} holds no count of instructions", path.display()))?);
    }
    Ok(())
}

/// The total under `Ir`, whichever column it is.
fn instructions(text: &str) -> Option<u64> {
    let after = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let column = after("events:")?.split_whitespace().position(|event| event == "Ir")?;
    let totals = after("summary:").or_else(|| after("totals:"))?;
    totals.split_whitespace().nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(&str, u64)]) -> Counts {
        of.iter().map(|(piece, count)| ((*piece).to_owned(), *count)).collect()
    }

    #[test]
    fn growth_above_three_percent_fails_and_less_does_not() {
        let budgets = counts(&[("decode", 1_000)]);
        for (count, fails) in [(1_000, 0), (1_030, 0), (1_031, 1), (900, 0)] {
            assert_eq!(compare(&counts(&[("decode", count)]), &budgets).1, fails, "{count}");
        }
    }

    #[test]
    fn a_piece_without_a_budget_and_a_budget_without_a_piece_fail() {
        assert_eq!(compare(&counts(&[("new", 1)]), &counts(&[("old", 1)])).1, 2);
    }

    #[test]
    fn a_count_is_read_from_what_callgrind_writes() {
        let text = "version: 1\nevents: Dr Ir Dw\nfn=(1) x\n12 3 4 5\nsummary: 10 12345 7\n";
        assert_eq!(instructions(text), Some(12_345));
        assert_eq!(instructions("events: Ir\n1 2\ntotals: 77\n"), Some(77));
        assert_eq!(instructions("nothing"), None);
    }
}
