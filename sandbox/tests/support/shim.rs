//! Static programs, as they are shipped: they run where no dynamic loader is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const TARGET: &str = "x86_64-unknown-linux-gnu";

type Built = Result<PathBuf, String>;

/// The shim: `NODELESS_SHIM`, or else built here, or why there is none.
pub fn program() -> Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| given_or("NODELESS_SHIM", || built_as("dev"))).clone()
}

/// The shim as a cargo profile builds it.
pub fn built_as(profile: &str) -> Built {
    build(&["--package", "sandbox", "--bin", "nodeless-shim", "--profile", profile], profile, "nodeless-shim")
}

/// The hostile program (tests/attacker): `NODELESS_ATTACKER`, or else built here, or why there is none.
pub fn attacker() -> Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    let built = || build(&["--package", "attacker", "--bin", "attacker"], "dev", "attacker");
    BUILT.get_or_init(|| given_or("NODELESS_ATTACKER", built)).clone()
}

/// The program that the churn tests kill (agent's side, keeper and shim with failpoints): `NODELESS_CHURN_AGENT`, or else
/// built here, or why there is none.
pub fn churn_agent() -> Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    let what = ["--package", "sandbox", "--example", "churn-agent", "--features", "failpoints"];
    BUILT.get_or_init(|| given_or("NODELESS_CHURN_AGENT", || build(&what, "dev", "examples/churn-agent"))).clone()
}

fn given_or(variable: &str, build: impl FnOnce() -> Built) -> Built {
    std::env::var_os(variable).map_or_else(build, |path| Ok(path.into()))
}

/// In a target directory of its own, for this needs other flags than the rest.
fn build(what: &[&str], profile: &str, path: &str) -> Built {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let target = workspace.join("target-shim");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--target", TARGET, "--target-dir"])
        .arg(&target)
        .args(what)
        .current_dir(workspace)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    if !built.status.success() {
        return Err(format!("the static {path} does not build: {}", String::from_utf8_lossy(&built.stderr)));
    }
    let directory = if profile == "dev" { "debug" } else { profile };
    Ok(target.join(TARGET).join(directory).join(path))
}
