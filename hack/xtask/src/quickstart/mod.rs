//! The show of `hack/quickstart`: on a node that runs already, one image becomes a snapshot, one pod of it starts, logs, is
//! looked into, is billed, ends, and starts again.
//!
//! ```text
//!  POST /v1/images ─> manifest written ─> watch until first byte ─> exec ─> bill ticks ─> Succeeded ─> record final
//!        snapshot_ms                        start_ms, first_byte_ms                           manifest removed and
//!                                                                                        written again: second_start_ms
//! ```
//!
//! Everything that is told comes from the node's client API; nothing is guessed from outside. [`show`] only prints.

mod outcome;
mod pod;
mod show;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use outcome::{Outcome, Timeline};
use show::Show;

use crate::client::Client;

/// The pod's name, in namespace `default`.
const POD: &str = "quickstart";
/// Nothing on this road takes longer, but for a download.
const PATIENCE: Duration = Duration::from_secs(60);
/// A download may.
const DOWNLOAD: Duration = Duration::from_secs(1800);

#[derive(Args)]
pub(crate) struct Options {
    /// The node's client socket
    #[arg(long)]
    socket: PathBuf,
    /// The directory from which the node takes pods
    #[arg(long)]
    manifests: PathBuf,
    /// The `nodeless` program
    #[arg(long)]
    client: PathBuf,
    /// Print one JSON object and nothing else
    #[arg(long)]
    json: bool,
    /// The image
    image: String,
    /// What to run in it instead of the show's own script
    #[arg(last = true)]
    command: Vec<String>,
}

/// The image is not to be had: the user's to mend, and no fault of the node's.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a snapshot of {0}")]
pub(crate) struct NoImage(String);

pub(crate) fn run(options: Options) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let outcome = runtime.block_on(act(&options))?;
    if options.json {
        show::line(&serde_json::to_string(&outcome).context("cannot write the outcome as JSON")?);
    }
    ensure!(outcome.phase == "Succeeded", "the pod ended as {}: {}", outcome.phase, outcome.reason);
    outcome.check_bill()
}

async fn act(options: &Options) -> Result<Outcome> {
    let client = Client::new(&options.socket);
    let show = Show::new(!options.json);
    show.title(&options.image);

    let snapshot = snapshot(&client, &show, &options.image).await.with_context(|| NoImage(options.image.clone()))?;
    let manifest = pod::manifest(POD, &options.image, &options.command);
    pod::write(&options.manifests, POD, &manifest)?;

    let started = pod_until(&client, PATIENCE, "first byte of output", |pod| {
        Timeline::of(pod).first_byte_ns > 0 || pod::is_over(pod)
    })
    .await?;
    let uid = started["uid"].as_str().context("the pod has no UID")?.to_owned();
    show.timeline(&started);
    let exec = if pod::is_over(&started) { String::new() } else { exec(options)? };
    show.exec(&exec);
    let ended = bill_until_over(&client, &show, &uid).await?;
    let logs = client.text(&format!("/v1/pods/default/{POD}/logs")).await.context("cannot read the pod's log")?;
    show.logs(&logs);
    let released =
        pod_until(&client, PATIENCE, "release of what it held", |pod| Timeline::of(pod).released_ns > 0).await?;
    let record = final_record(&client, &uid).await?;
    show.record(&record);

    pod::remove(&options.manifests, POD)?;
    gone(&client).await?;
    pod::write(&options.manifests, POD, &manifest)?;
    let again = pod_until(&client, PATIENCE, "second start", |pod| {
        pod["uid"] != uid.as_str() && (Timeline::of(pod).started_ns > 0 || pod::is_over(pod))
    })
    .await?;
    pod::remove(&options.manifests, POD)?;
    gone(&client).await?;

    let outcome = Outcome::new(&options.image, snapshot, &ended, &released, &again, logs, exec, record);
    show.again(&outcome);
    Ok(outcome)
}

/// Has the image made into a snapshot, with its progress shown; how long that took.
async fn snapshot(client: &Client, show: &Show, image: &str) -> Result<Duration> {
    let begin = Instant::now();
    let mut lines = client.lines("POST", "/v1/images", Some(json!({"reference": image}))).await?;
    let mut bars = show.bars();
    while let Some(progress) = lines.next(DOWNLOAD).await? {
        if let Some(error) = progress["error"].as_str().filter(|error| !error.is_empty()) {
            bail!("{error}");
        }
        bars.update(&progress);
    }
    let took = begin.elapsed();
    bars.finish(took);
    Ok(took)
}

/// The pod, once `ready` says so.
async fn pod_until(client: &Client, patience: Duration, what: &str, ready: impl Fn(&Value) -> bool) -> Result<Value> {
    let until = Instant::now() + patience;
    let mut last = Value::Null;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "{what}: not so after {} s; {}", patience.as_secs(), pod::explain(&last));
        // A watch ends with its pod; the same file's next pod has another one.
        let mut lines = client.lines("GET", &format!("/v1/pods/default/{POD}/watch"), None).await?;
        while let Ok(Some(pod)) = lines.next(until.saturating_duration_since(Instant::now())).await.inspect_err(|_| ())
        {
            if ready(&pod) {
                return Ok(pod);
            }
            last = pod;
        }
    }
}

async fn gone(client: &Client) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while client.exists(&format!("/v1/pods/default/{POD}")).await? {
        ensure!(Instant::now() < until, "the pod is still there {} s after its manifest went", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Shows the bill as it grows, until the pod has ended.
async fn bill_until_over(client: &Client, show: &Show, uid: &str) -> Result<Value> {
    let until = Instant::now() + PATIENCE;
    let ticker = show.ticker();
    loop {
        if let Some(bill) = client.json_if_there(&format!("/billing/v1/pods/{uid}")).await? {
            ticker.tick(&bill);
        }
        let pod = client.json(&format!("/v1/pods/default/{POD}")).await?;
        if pod::is_over(&pod) {
            ticker.finish();
            return Ok(pod);
        }
        ensure!(Instant::now() < until, "the pod did not end in {} s: {}", PATIENCE.as_secs(), pod::explain(&pod));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn final_record(client: &Client, uid: &str) -> Result<Value> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(bill) = client.json_if_there(&format!("/billing/v1/pods/{uid}")).await?
            && bill["state"] == "final"
        {
            return Ok(bill);
        }
        ensure!(Instant::now() < until, "the pod's record is not final {} s after its end", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a command prints inside the running pod, asked for through the client as a person would.
fn exec(options: &Options) -> Result<String> {
    let output = Command::new(&options.client)
        .arg("--socket")
        .arg(&options.socket)
        .args(["exec", POD, "--", "sh", "-c", "id; cat /proc/1/comm; nproc"])
        .output()
        .with_context(|| format!("cannot run {}", options.client.display()))?;
    // An image of one's own may have no shell.
    if !output.status.success() && options.command.is_empty() {
        bail!("exec in the pod ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
