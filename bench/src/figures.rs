//! What is done with measured numbers: medians, bounds, and a file that says where they come from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use loadgen::random::Random;
use serde_json::{Value, json};

/// A data directory of its own, removed at the end.
pub struct Scratch {
    pub path: PathBuf,
}

impl Scratch {
    pub fn new(name: &str) -> std::io::Result<Self> {
        let path = std::env::current_dir()?.join("target").join(format!("bench-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path)?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// The middle one; the mean of the middle two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// How fast the second value grows with the first: the median over all pairs of points, which a few odd ones
/// do not move.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let pairs = points.iter().enumerate().flat_map(|(at, one)| points[at + 1..].iter().map(move |other| (one, other)));
    median(&pairs.map(|(one, other)| (other.1 - one.1) / (other.0 - one.0)).collect::<Vec<_>>())
}

/// What the second value would be at nothing: the median over the points, by their common [`slope`].
pub fn intercept(points: &[(f64, f64)]) -> f64 {
    let slope = slope(points);
    median(&points.iter().map(|(x, y)| y - slope * x).collect::<Vec<_>>())
}

/// Between which values the median lies with 95 % confidence, by resampling.
pub fn bootstrap(values: &[f64]) -> (f64, f64) {
    const SAMPLES: usize = 10_000;
    let mut random = Random::new(1, 1);
    let mut medians: Vec<_> = (0..SAMPLES)
        .map(|_| {
            let sample: Vec<_> = values.iter().map(|_| values[random.below(values.len() as u64) as usize]).collect();
            median(&sample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    (medians[SAMPLES * 25 / 1_000], medians[SAMPLES * 975 / 1_000])
}

/// Writes a result beside the others, with what one must know to read it: in `bench/results`, or where
/// `BENCH_RESULTS` says.
pub fn save(name: &str, method: &str, command: &str, result: Value) -> std::io::Result<PathBuf> {
    let directory = match std::env::var_os("BENCH_RESULTS") {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("results"),
    };
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{name}.json"));
    let mut all = json!({
        "command": command,
        "method": method,
        "commit": output("git", &["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short", "HEAD"]),
        "worktree_clean": output("git", &["-C", env!("CARGO_MANIFEST_DIR"), "status", "--porcelain", "--untracked-files=no"]).is_empty(),
        "kernel": output("uname", &["-r"]),
        "processor": processor(),
        "cores": crate::server::cores(),
        "memory_kib": field("/proc/meminfo", "MemTotal:"),
        "date": output("date", &["-u", "+%Y-%m-%dT%H:%MZ"]),
    });
    let (Value::Object(into), Value::Object(from)) = (&mut all, result) else { unreachable!("both are objects") };
    into.extend(from);
    std::fs::write(&path, format!("{all:#}\n"))?;
    Ok(path)
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(String::new, |(_, model)| model.trim().to_owned())
}

/// The first number behind a name, in files such as /proc/meminfo.
pub fn field(path: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Bytes of the objects in use in each of the kernel's caches; none where only root may look.
pub fn slab_bytes() -> BTreeMap<String, f64> {
    let text = std::fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    let caches = text.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (name, active, _, size) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        Some((name.to_owned(), active.parse::<f64>().ok()? * size.parse::<f64>().ok()?))
    });
    caches.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_hold_the_median_and_narrow_with_agreement() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        let (low, high) = bootstrap(&[1.0, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98]);
        assert!(low <= 1.0 && 1.0 <= high && high - low < 0.2, "{low} {high}");
        assert_eq!(bootstrap(&[2.0; 5]), (2.0, 2.0));
    }

    #[test]
    fn one_odd_point_does_not_move_the_slope() {
        let mut points: Vec<_> = (1..=6).map(|n| (f64::from(n), 100.0 + 3.0 * f64::from(n))).collect();
        assert!((slope(&points) - 3.0).abs() < 1e-9);
        points[0].1 += 1_000.0;
        assert!((slope(&points) - 3.0).abs() < 1e-9);
        assert!((intercept(&points) - 100.0).abs() < 1e-9);
    }
}
