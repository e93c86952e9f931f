//! `start`: a pod created in the API with `nodeName` preset, image present, until a watch shows it Running.
//!
//! The same program measures any node, so a kubelet can be measured beside ours: it only needs the node's name.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, pin_mut};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;

use super::figure::{Figure, quantile};

/// How long a single pod may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// The node.
    pub node: String,
    /// The image, present on the node's hosts after one warm-up pod.
    pub image: String,
    /// The container's command; it must keep running and end on SIGTERM.
    pub command: Vec<String>,
    /// Pods started one after the other.
    pub singles: usize,
    /// Pods started at once.
    pub burst: usize,
    /// With the service-account token volume.
    pub token: bool,
}

/// Runs it all in a namespace of its own, which is removed afterwards also on failure.
pub async fn run(client: Client, options: &Options) -> Result<Vec<Figure>> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = namespaces
        .create(&PostParams::default(), &serde_json::from_value(json!({"metadata": {"generateName": "bench-start-"}}))?)
        .await
        .context("make a namespace for the benchmark")?
        .name_any();
    let result = measure(client, &namespace, options).await;
    let gone = namespaces.delete(&namespace, &DeleteParams::default()).await;
    let figures = result?;
    gone.context("remove the benchmark's namespace")?;
    Ok(figures)
}

async fn measure(client: Client, namespace: &str, options: &Options) -> Result<Vec<Figure>> {
    wait_for_service_account(&client, namespace).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut seen = watch(pods.clone());
    let bench = Bench { pods, options };
    bench.one(&mut seen, "warm-up").await?;
    let mut singles = Vec::with_capacity(options.singles);
    for i in 0..options.singles {
        singles.push(millis(bench.one(&mut seen, &format!("single-{i}")).await?));
    }
    let before = writes(&client).await?;
    let (burst, names) = bench.burst(&mut seen).await?;
    let after = writes(&client).await?;
    bench.delete(&mut seen, &names).await?;
    let per_pod = |kind: &str| {
        let count = after.get(kind).unwrap_or(&0.0) - before.get(kind).unwrap_or(&0.0);
        count / count_of(options.burst)
    };
    Ok(vec![
        Figure::alone("start.p50", quantile(&singles, 0.5), "ms", singles.len()),
        Figure::alone("start.p95", quantile(&singles, 0.95), "ms", singles.len()),
        Figure::alone("start.burst100", burst.as_secs_f64(), "s", options.burst),
        Figure::alone("start.burst_rate", count_of(options.burst) / burst.as_secs_f64(), "pods/s", options.burst),
        Figure::alone("start.status_writes", per_pod("status"), "per pod", options.burst),
        Figure::alone("start.token_requests", per_pod("token"), "per pod", options.burst),
        Figure::alone("start.events", per_pod("events"), "per pod", options.burst),
    ])
}

struct Bench<'a> {
    pods: Api<Pod>,
    options: &'a Options,
}

/// What the watch saw of a pod.
enum Seen {
    Running(String, Instant),
    Failed(String, String),
    Gone(String),
}

impl Bench<'_> {
    fn pod(&self, name: &str) -> Result<Pod> {
        let o = self.options;
        Ok(serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": o.node,
                "automountServiceAccountToken": o.token,
                "terminationGracePeriodSeconds": 1,
                "tolerations": [{"operator": "Exists"}],
                "containers": [{
                    "name": "main", "image": o.image, "command": o.command, "imagePullPolicy": "IfNotPresent",
                    "resources": {"requests": {"cpu": "1m", "memory": "4Mi"}},
                }],
            },
        }))?)
    }

    /// Starts one pod, waits for Running, deletes it, waits until it is gone. Returns the time to Running.
    async fn one(&self, seen: &mut mpsc::UnboundedReceiver<Seen>, name: &str) -> Result<Duration> {
        let pod = self.pod(name)?;
        let began = Instant::now();
        self.pods.create(&PostParams::default(), &pod).await.context("create a pod")?;
        let at = wait_running(seen, &[name.to_owned()]).await?;
        self.delete(seen, &[name.to_owned()]).await?;
        Ok(at - began)
    }

    async fn burst(&self, seen: &mut mpsc::UnboundedReceiver<Seen>) -> Result<(Duration, Vec<String>)> {
        let names: Vec<String> = (0..self.options.burst).map(|i| format!("burst-{i}")).collect();
        let made: Vec<Pod> = names.iter().map(|name| self.pod(name)).collect::<Result<_>>()?;
        let began = Instant::now();
        futures::stream::iter(made)
            .map(|pod| async move { self.pods.create(&PostParams::default(), &pod).await })
            .buffer_unordered(16)
            .try_collect::<Vec<_>>()
            .await
            .context("create the burst's pods")?;
        let last = wait_running(seen, &names).await?;
        Ok((last - began, names))
    }

    async fn delete(&self, seen: &mut mpsc::UnboundedReceiver<Seen>, names: &[String]) -> Result<()> {
        for name in names {
            self.pods.delete(name, &DeleteParams::default()).await.context("delete a pod")?;
        }
        let mut left: std::collections::HashSet<&str> = names.iter().map(String::as_str).collect();
        while !left.is_empty() {
            if let Seen::Gone(name) = next(seen).await? {
                left.remove(name.as_str());
            }
        }
        Ok(())
    }
}

async fn next(seen: &mut mpsc::UnboundedReceiver<Seen>) -> Result<Seen> {
    tokio::time::timeout(PATIENCE, seen.recv())
        .await
        .context("no news of the pods for two minutes")?
        .context("the watch ended")
}

/// Waits until every named pod runs; the instant at which the last one was seen running.
async fn wait_running(seen: &mut mpsc::UnboundedReceiver<Seen>, names: &[String]) -> Result<Instant> {
    let mut left: HashMap<&str, ()> = names.iter().map(|n| (n.as_str(), ())).collect();
    let mut last = Instant::now();
    while !left.is_empty() {
        match next(seen).await? {
            Seen::Running(name, at) => {
                if left.remove(name.as_str()).is_some() {
                    last = at;
                }
            }
            Seen::Failed(name, message) => bail!("pod {name} failed: {message}"),
            Seen::Gone(_) => {}
        }
    }
    Ok(last)
}

fn watch(pods: Api<Pod>) -> mpsc::UnboundedReceiver<Seen> {
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let stream = watcher(pods, watcher::Config::default()).default_backoff();
        pin_mut!(stream);
        while let Some(event) = stream.next().await {
            let news = match event {
                Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => running(&pod),
                Ok(watcher::Event::Delete(pod)) => Some(Seen::Gone(pod.name_any())),
                _ => None,
            };
            if let Some(news) = news
                && sender.send(news).is_err()
            {
                return;
            }
        }
    });
    receiver
}

fn running(pod: &Pod) -> Option<Seen> {
    let status = pod.status.as_ref()?;
    match status.phase.as_deref()? {
        "Running" => Some(Seen::Running(pod.name_any(), Instant::now())),
        "Failed" => Some(Seen::Failed(pod.name_any(), status.message.clone().unwrap_or_default())),
        _ => None,
    }
}

async fn wait_for_service_account(client: &Client, namespace: &str) -> Result<()> {
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(client.clone(), namespace);
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let account = accounts.get_opt("default").await?.is_some();
        let ready = account && !maps.list(&ListParams::default()).await?.items.is_empty();
        if ready {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("the namespace got no default service account or no kube-root-ca.crt: is the controller manager running?")
}

/// The API server's own count of writes: pod statuses, tokens, events.
async fn writes(client: &Client) -> Result<BTreeMap<&'static str, f64>> {
    let text = client.request_text(http::Request::get("/metrics").body(vec![])?).await.context("read /metrics")?;
    Ok(count_writes(&text))
}

fn count_writes(metrics: &str) -> BTreeMap<&'static str, f64> {
    let mut counts = BTreeMap::new();
    for line in metrics.lines().filter(|l| l.starts_with("apiserver_request_total{")) {
        let Some((labels, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let has = |pair: &str| labels.contains(pair);
        let writes = ["PATCH", "PUT", "POST"].iter().any(|verb| has(&format!("verb=\"{verb}\"")));
        let kind = if has("resource=\"pods\"") && has("subresource=\"status\"") {
            "status"
        } else if has("resource=\"serviceaccounts\"") && has("subresource=\"token\"") {
            "token"
        } else if has("resource=\"events\"") {
            "events"
        } else {
            continue;
        };
        if writes {
            *counts.entry(kind).or_default() += value.parse::<f64>().unwrap_or_default();
        }
    }
    counts
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[allow(clippy::cast_precision_loss, reason = "a few hundred pods")]
fn count_of(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writes_of_the_three_kinds_are_counted() {
        let metrics = "\
apiserver_request_total{code=\"200\",resource=\"pods\",scope=\"resource\",subresource=\"status\",verb=\"PATCH\"} 3\n\
apiserver_request_total{code=\"200\",resource=\"pods\",scope=\"resource\",subresource=\"\",verb=\"GET\"} 9\n\
apiserver_request_total{code=\"201\",resource=\"serviceaccounts\",subresource=\"token\",verb=\"POST\"} 2\n\
apiserver_request_total{code=\"201\",resource=\"events\",subresource=\"\",verb=\"POST\"} 4\n";
        let counts = count_writes(metrics);
        assert_eq!(counts, BTreeMap::from([("events", 4.0), ("status", 3.0), ("token", 2.0)]));
    }
}
