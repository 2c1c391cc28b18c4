//! Build facts, for `ringway version` and for the results of `ringway-loadgen`.

use std::process::Command;

fn main() {
    let commit = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned());
    let rustc = Command::new(std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned()))
        .arg("--version")
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned());
    let fact = |name: &str| std::env::var(name).unwrap_or_default();
    println!("cargo:rustc-env=RINGWAY_BUILD_COMMIT={commit}");
    println!("cargo:rustc-env=RINGWAY_BUILD_RUSTC={rustc}");
    println!("cargo:rustc-env=RINGWAY_BUILD_PROFILE={}", fact("PROFILE"));
    println!("cargo:rustc-env=RINGWAY_BUILD_TARGET={}", fact("TARGET"));
    // A commit moves one of these; where the source is no checkout, neither exists and nothing is asked again.
    for path in ["../.git/HEAD", "../.git/logs/HEAD"] {
        if std::path::Path::new(path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    println!("cargo:rerun-if-changed=../gateway/build.rs");
}
