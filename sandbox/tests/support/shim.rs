//! The shim program as it is shipped: static, for it runs where no dynamic loader is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The program: `NODELESS_SHIM`, or else built here (in a target directory of its own, for this needs other flags than
/// the rest), or why there is none.
pub fn program() -> Result<PathBuf, String> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(|| std::env::var_os("NODELESS_SHIM").map_or_else(build, |path| Ok(path.into()))).clone()
}

fn build() -> Result<PathBuf, String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let target = workspace.join("target-shim");
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--package",
            "sandbox",
            "--bin",
            "nodeless-shim",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&target)
        .current_dir(workspace)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    if !built.status.success() {
        return Err(format!("the static shim does not build: {}", String::from_utf8_lossy(&built.stderr)));
    }
    Ok(target.join(TARGET).join("debug/nodeless-shim"))
}

/// Host processes whose command line holds `text`.
pub fn processes_with(text: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(text) {
            found.push(pid);
        }
    }
    found
}
