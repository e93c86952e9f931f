//! The peer of three programs.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::bench::milliseconds;

/// `$1` is an empty directory, `$2` the image. In a mount namespace of its own, without the v2 mount of a hybrid host, as for all
/// runtimes here; umoci's bundles ask for a terminal, which nobody has.
const SCRIPT: &str = r#"
umount /sys/fs/cgroup/unified 2>/dev/null || true
skopeo copy --quiet --src-tls-verify=false "docker://$2" "oci:$1/layout:latest" >&2
umoci unpack --image "$1/layout:latest" "$1/bundle" >/dev/null 2>&1
sed -i 's/"terminal": true/"terminal": false/' "$1/bundle/config.json"
exec runc --root "$1/runc" run --bundle "$1/bundle" nodeless-bench-peer-pull
"#;

/// Milliseconds until the container's first byte.
pub(super) fn pull(dir: &Path, image: &str) -> Result<f64> {
    let own = dir.join("pull");
    std::fs::create_dir(&own).context("make a directory for the peer")?;
    rustix::fs::sync();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", SCRIPT, "sh"]).arg(&own).arg(image);
    let taken = first_byte(command)?;
    std::fs::remove_dir_all(&own).context("remove what the peer has made")?;
    Ok(taken)
}

/// Milliseconds until the command's first byte; it must end well.
pub(in crate::bench) fn first_byte(mut command: Command) -> Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let begin = Instant::now();
    let mut child = command.spawn().context("execute a peer")?;
    let mut out = child.stdout.take().context("a pipe was asked for")?;
    let read = out.read(&mut [0]).context("read a peer's output")?;
    let taken = begin.elapsed();
    drop(out);
    let ended = child.wait_with_output().context("wait for a peer")?;
    ensure!(read == 1 && ended.status.success(), "{}: {}", ended.status, String::from_utf8_lossy(&ended.stderr));
    Ok(milliseconds(taken))
}
