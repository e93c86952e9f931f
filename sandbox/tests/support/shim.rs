//! Static programs, as they are shipped: they run where no dynamic loader is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const TARGET: &str = "x86_64-unknown-linux-gnu";

type Built = Result<PathBuf, String>;

/// The shim: `NODELESS_SHIM`, or else built here, or why there is none.
pub fn program() -> Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| given_or_built("NODELESS_SHIM", "sandbox", "nodeless-shim")).clone()
}

/// The shim as a cargo profile builds it.
pub fn built_as(profile: &str) -> Built {
    build("sandbox", "nodeless-shim", profile)
}

/// The hostile program (tests/attacker): `NODELESS_ATTACKER`, or else built here, or why there is none.
pub fn attacker() -> Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| given_or_built("NODELESS_ATTACKER", "attacker", "attacker")).clone()
}

fn given_or_built(variable: &str, package: &str, bin: &str) -> Built {
    std::env::var_os(variable).map_or_else(|| build(package, bin, "dev"), |path| Ok(path.into()))
}

/// In a target directory of its own, for this needs other flags than the rest.
fn build(package: &str, bin: &str, profile: &str) -> Built {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let target = workspace.join("target-shim");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", package, "--bin", bin, "--profile", profile])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target)
        .current_dir(workspace)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    if !built.status.success() {
        return Err(format!("the static {bin} does not build: {}", String::from_utf8_lossy(&built.stderr)));
    }
    let directory = if profile == "dev" { "debug" } else { profile };
    Ok(target.join(TARGET).join(directory).join(bin))
}
