//! CNI's bridge plugin, asked as a runtime asks it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::stack::run;

/// Where Debian puts the plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// Where a container's network namespace is.
pub(super) fn path(id: &str) -> String {
    format!("/run/netns/{id}")
}

/// Makes a network namespace and connects it.
pub(super) fn add(dir: &Path, id: &str) -> Result<()> {
    run(Command::new("ip").args(["netns", "add", id]))?;
    ask("ADD", dir, id)
}

/// Disconnects it and removes it.
pub(super) fn delete(dir: &Path, id: &str) -> Result<()> {
    ask("DEL", dir, id)?;
    run(Command::new("ip").args(["netns", "delete", id])).map(drop)
}

fn ask(what: &str, dir: &Path, id: &str) -> Result<()> {
    let config = json!({
        "cniVersion": "0.4.0", "name": "bench", "type": "bridge", "bridge": "bench0", "isGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": dir.join("cni"),
            "ranges": [[{"subnet": "10.97.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}],
        },
    });
    let mut command = Command::new(format!("{PLUGINS}/bridge"));
    command.env("CNI_COMMAND", what).env("CNI_CONTAINERID", id).env("CNI_NETNS", path(id));
    command.env("CNI_IFNAME", "eth0").env("CNI_PATH", PLUGINS);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("execute CNI's bridge plugin")?;
    let mut input = child.stdin.take().context("a pipe was asked for")?;
    input.write_all(config.to_string().as_bytes()).context("configure CNI's bridge plugin")?;
    drop(input);
    let ended = child.wait_with_output().context("wait for CNI's bridge plugin")?;
    ensure!(ended.status.success(), "CNI {what} of {id}: {}", String::from_utf8_lossy(&ended.stdout));
    Ok(())
}
