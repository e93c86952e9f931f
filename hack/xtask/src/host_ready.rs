//! `host-ready HOST`: waits until the node lists HOST as one that takes pods, and says why when it does not. The only
//! such wait: `hack/quickstart`, `hack/dev` and the guests call it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::client::Client;

/// An agent dials in and is synced in well under a second, on an emulated processor in some.
const PATIENCE: Duration = Duration::from_secs(60);
/// A host that says for so long that something is short will not change its mind by itself.
const PRESSED: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(20);

#[derive(Args)]
pub(crate) struct Options {
    /// The host's id
    host: String,
    /// The node's client socket
    #[arg(long)]
    socket: PathBuf,
    /// The agent's process: when it ends, waiting does too
    #[arg(long)]
    agent_pid: Option<u32>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(wait(options))
}

async fn wait(options: &Options) -> Result<()> {
    let client = Client::new(&options.socket);
    let begin = Instant::now();
    let mut pressed: Option<Instant> = None;
    loop {
        let hosts = client.json("/v1/hosts").await?;
        let state = state(&hosts, &options.host);
        match &state {
            State::Ready => return Ok(()),
            State::Pressed(why) => {
                if pressed.get_or_insert_with(Instant::now).elapsed() > PRESSED {
                    bail!("host {} takes no pods: {why}", options.host);
                }
            }
            State::Absent | State::Busy(_) => pressed = None,
        }
        if let Some(pid) = options.agent_pid
            && !Path::new("/proc").join(pid.to_string()).join("exe").exists()
        {
            bail!("the agent of host {} has ended", options.host);
        }
        if begin.elapsed() > PATIENCE {
            let patience = PATIENCE.as_secs();
            match state {
                State::Busy(why) => bail!("host {} does not take pods after {patience} s: {why}", options.host),
                _ => bail!("host {} has not connected after {patience} s", options.host),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// Not listed, or not connected.
    Absent,
    /// Something is short there: memory, disk, process ids.
    Pressed(String),
    /// Connected, and not ready for another reason.
    Busy(String),
}

fn state(hosts: &Value, id: &str) -> State {
    let mut items = hosts["items"].as_array().into_iter().flatten();
    let Some(host) = items.find(|host| host["id"] == id && host["connected"] == true) else {
        return State::Absent;
    };
    let conditions: Vec<&str> = host["conditions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let short: Vec<&str> =
        conditions.iter().copied().filter(|c| c.split(':').next().is_some_and(|t| t.ends_with("Pressure"))).collect();
    match (short.is_empty(), conditions.is_empty()) {
        (false, _) => State::Pressed(short.join("; ")),
        _ if host["ready"] == true => State::Ready,
        (true, false) => State::Busy(conditions.join("; ")),
        (true, true) => State::Busy("it is not synced yet".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_host_without_disk_is_told_by_its_cause_and_another_ones_readiness_does_not_count() {
        let hosts = |ready: bool, conditions: &[&str]| {
            json!({"items": [{"id": "other", "connected": true, "ready": true, "conditions": []},
                {"id": "one", "connected": true, "ready": ready, "conditions": conditions}]})
        };
        assert_eq!(state(&hosts(true, &[]), "one"), State::Ready);
        assert_eq!(state(&hosts(true, &[]), "two"), State::Absent);
        assert_eq!(state(&hosts(false, &[]), "one"), State::Busy("it is not synced yet".into()));
        assert_eq!(state(&hosts(false, &["Ready: X y"]), "one"), State::Busy("Ready: X y".into()));
        assert_eq!(
            state(&hosts(false, &["DiskPressure: A b", "Ready: X y"]), "one"),
            State::Pressed("DiskPressure: A b".into())
        );
        assert_eq!(state(&hosts(true, &["DiskPressure: A b"]), "one"), State::Pressed("DiskPressure: A b".into()));
        let away = json!({"items": [{"id": "one", "connected": false, "ready": true, "conditions": []}]});
        assert_eq!(state(&away, "one"), State::Absent);
    }
}
