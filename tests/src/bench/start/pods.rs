//! The benchmark's pods, as a watch shows them.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;

/// How long nothing may happen before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests on their way at once.
const AT_ONCE: usize = 16;

/// What pods are made of.
pub(super) struct Template<'a> {
    pub(super) node: &'a str,
    pub(super) image: &'a str,
    pub(super) command: &'a [String],
    pub(super) token: bool,
}

/// What the watch saw of a pod.
enum Seen {
    Running(String, Instant),
    Failed(String, String),
    Gone(String, Instant),
}

/// The pods of one namespace.
pub(super) struct Pods {
    api: Api<Pod>,
    seen: mpsc::UnboundedReceiver<Seen>,
}

impl Template<'_> {
    fn pod(&self, name: &str) -> Result<Pod> {
        Ok(serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "nodeName": self.node,
                "automountServiceAccountToken": self.token,
                "tolerations": [{"operator": "Exists"}],
                "containers": [{
                    "name": "main", "image": self.image, "command": self.command, "imagePullPolicy": "IfNotPresent",
                    "resources": {"requests": {"cpu": "1m", "memory": "4Mi"}},
                }],
            },
        }))?)
    }
}

impl Pods {
    /// Begins to watch.
    pub(super) fn watch(client: Client, namespace: &str) -> Self {
        let api: Api<Pod> = Api::namespaced(client, namespace);
        let (sender, seen) = mpsc::unbounded_channel();
        let watched = api.clone();
        tokio::spawn(async move {
            let stream = watcher(watched, watcher::Config::default()).default_backoff();
            pin_mut!(stream);
            while let Some(event) = stream.next().await {
                let news = match event {
                    Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => running(&pod),
                    Ok(watcher::Event::Delete(pod)) => Some(Seen::Gone(pod.name_any(), Instant::now())),
                    _ => None,
                };
                if let Some(news) = news
                    && sender.send(news).is_err()
                {
                    return;
                }
            }
        });
        Self { api, seen }
    }

    pub(super) async fn create(&self, template: &Template<'_>, names: &[String]) -> Result<()> {
        let pods: Vec<Pod> = names.iter().map(|name| template.pod(name)).collect::<Result<_>>()?;
        futures::stream::iter(pods)
            .map(|pod| async move { self.api.create(&PostParams::default(), &pod).await })
            .buffer_unordered(AT_ONCE)
            .try_for_each(|_| async { Ok(()) })
            .await
            .context("create pods")
    }

    /// With the grace period that a pod has by default.
    pub(super) async fn delete(&self, names: &[String]) -> Result<()> {
        futures::stream::iter(names)
            .map(|name| async move { self.api.delete(name, &DeleteParams::default()).await })
            .buffer_unordered(AT_ONCE)
            .try_for_each(|_| async { Ok(()) })
            .await
            .context("delete pods")
    }

    /// Waits until every named pod runs; the instant at which the last one was seen running.
    pub(super) async fn wait_running(&mut self, names: &[String]) -> Result<Instant> {
        let mut left: HashSet<&str> = names.iter().map(String::as_str).collect();
        let mut last = Instant::now();
        while !left.is_empty() {
            let seen = match self.next().await {
                Ok(seen) => seen,
                Err(error) => {
                    let name = left.iter().min().copied().unwrap_or_default();
                    let why = self.why(name).await;
                    return Err(error.context(format!("{} pods do not run; pod {name}: {why}", left.len())));
                }
            };
            match seen {
                Seen::Running(name, at) if left.remove(name.as_str()) => last = at,
                Seen::Failed(name, message) => bail!("pod {name} failed: {message}"),
                Seen::Running(..) | Seen::Gone(..) => {}
            }
        }
        Ok(last)
    }

    /// Waits until no named pod is left; the instant at which the last one was seen to go.
    pub(super) async fn wait_gone(&mut self, names: &[String]) -> Result<Instant> {
        let mut left: HashSet<&str> = names.iter().map(String::as_str).collect();
        let mut last = Instant::now();
        while !left.is_empty() {
            if let Seen::Gone(name, at) = self.next().await?
                && left.remove(name.as_str())
            {
                last = at;
            }
        }
        Ok(last)
    }

    /// What the pod's status says of why it waits.
    async fn why(&self, name: &str) -> String {
        let status = match self.api.get_status(name).await {
            Ok(pod) => pod.status.unwrap_or_default(),
            Err(error) => return error.to_string(),
        };
        let containers = status.container_statuses.unwrap_or_default();
        let waiting = containers.into_iter().find_map(|c| c.state?.waiting);
        let (reason, message) = waiting.map_or((status.reason, status.message), |w| (w.reason, w.message));
        let phase = status.phase.unwrap_or_default();
        format!("{phase} {} {}", reason.unwrap_or_default(), message.unwrap_or_default())
    }

    async fn next(&mut self) -> Result<Seen> {
        tokio::time::timeout(PATIENCE, self.seen.recv())
            .await
            .context("no news of the pods for a minute")?
            .context("the watch ended")
    }
}

fn running(pod: &Pod) -> Option<Seen> {
    let status = pod.status.as_ref()?;
    match status.phase.as_deref()? {
        "Running" => Some(Seen::Running(pod.name_any(), Instant::now())),
        "Failed" => Some(Seen::Failed(pod.name_any(), status.message.clone().unwrap_or_default())),
        _ => None,
    }
}
