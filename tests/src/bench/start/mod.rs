//! `start`: a pod created in the API with `nodeName` preset, image present, until a watch shows it Running; and how long it
//! takes to go.
//!
//! The same program measures any node, so a kubelet can be measured beside ours: it only needs the node's name. Single
//! starts of all nodes take turns, so that a change of the machine's mood meets all of them; each node has its burst alone.

mod pods;
mod writes;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use self::pods::{Pods, Template};
use self::writes::Writes;
use super::figure::{Better, Figure, Quantity, lower, quantile};

/// How long a pod lives before it is deleted: its process has then said how it wants to be ended, and the node is at rest.
const LIFE: Duration = Duration::from_millis(150);

/// How long the cluster's own objects of a new namespace may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is measured here.
pub const FIGURES: [Quantity; 10] = [
    lower("start.p50", "ms"),
    lower("start.p95", "ms"),
    lower("start.delete", "ms"),
    lower("start.delete_p95", "ms"),
    lower("start.burst100", "s"),
    Quantity { name: "start.burst_rate", unit: "pods/s", better: Better::Higher },
    lower("start.burst_delete", "s"),
    lower("start.status_writes", "per pod"),
    lower("start.token_requests", "per pod"),
    lower("start.events", "per pod"),
];

/// The first of [`FIGURES`] that need the burst.
const FIRST_OF_BURST: usize = 4;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// The node.
    pub node: String,
    /// Other nodes of the same cluster.
    pub peers: Vec<String>,
    /// The image, present on the nodes' hosts after one warm-up pod.
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

/// One node's measurements.
#[derive(Default)]
struct Measured {
    /// Milliseconds.
    starts: Vec<f64>,
    deletes: Vec<f64>,
    /// Seconds.
    burst: f64,
    burst_delete: f64,
    writes: Writes,
}

/// Measures those of [`FIGURES`] that are wanted, in a namespace of its own, which is removed afterwards also on failure and
/// on Ctrl-C.
pub async fn run(client: Client, options: &Options, wanted: impl Fn(&str) -> bool) -> Result<Vec<Figure>> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = namespaces
        .create(&PostParams::default(), &serde_json::from_value(json!({"metadata": {"generateName": "bench-start-"}}))?)
        .await
        .context("make a namespace for the benchmark")?
        .name_any();
    let result = tokio::select! {
        result = measure(&client, &namespace, options, &wanted) => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let gone = namespaces.delete(&namespace, &DeleteParams::default()).await;
    let measured = result?;
    gone.context("remove the benchmark's namespace")?;
    Ok(figures(options, &measured).into_iter().filter(|figure| wanted(figure.name)).collect())
}

async fn measure(
    client: &Client,
    namespace: &str,
    options: &Options,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Measured>> {
    wait_for_service_account(client, namespace).await?;
    let nodes: Vec<&str> =
        std::iter::once(&options.node).chain(&options.peers).map(std::string::String::as_str).collect();
    let mut measured: Vec<Measured> = nodes.iter().map(|_| Measured::default()).collect();
    let mut pods = Pods::watch(client.clone(), namespace);
    let template = |node| Template { node, image: &options.image, command: &options.command, token: options.token };
    for (i, &node) in nodes.iter().enumerate() {
        one(&mut pods, &template(node), &format!("warm-up-{i}")).await?;
    }
    if FIGURES[..FIRST_OF_BURST].iter().any(|figure| wanted(figure.name)) {
        for round in 0..options.singles {
            for (i, &node) in nodes.iter().enumerate() {
                let (start, delete) = one(&mut pods, &template(node), &format!("single-{round}-{i}")).await?;
                measured[i].starts.push(millis(start));
                measured[i].deletes.push(millis(delete));
            }
        }
    }
    if FIGURES[FIRST_OF_BURST..].iter().any(|figure| wanted(figure.name)) {
        for (of, &node) in measured.iter_mut().zip(&nodes) {
            burst(client, &mut pods, &template(node), options.burst, of).await?;
        }
    }
    Ok(measured)
}

/// One pod: the time to Running, and from its deletion until it is gone.
async fn one(pods: &mut Pods, template: &Template<'_>, name: &str) -> Result<(Duration, Duration)> {
    let names = [name.to_owned()];
    let created = Instant::now();
    pods.create(template, &names).await?;
    let running = pods.wait_running(&names).await?;
    tokio::time::sleep(LIFE).await;
    let asked = Instant::now();
    pods.delete(&names).await?;
    let gone = pods.wait_gone(&names).await?;
    tokio::time::sleep(LIFE).await;
    Ok((running - created, gone - asked))
}

async fn burst(
    client: &Client,
    pods: &mut Pods,
    template: &Template<'_>,
    count: usize,
    of: &mut Measured,
) -> Result<()> {
    let names: Vec<String> = (0..count).map(|i| format!("burst-{i}")).collect();
    let before = writes::settled(client).await?;
    let created = Instant::now();
    pods.create(template, &names).await?;
    of.burst = (pods.wait_running(&names).await? - created).as_secs_f64();
    // What a start causes may come after Running is seen.
    of.writes = writes::settled(client).await? - before;
    let asked = Instant::now();
    pods.delete(&names).await?;
    of.burst_delete = (pods.wait_gone(&names).await? - asked).as_secs_f64();
    Ok(())
}

/// The figures of the first measured, beside each of the others.
fn figures(options: &Options, measured: &[Measured]) -> Vec<Figure> {
    let Some((ours, peers)) = measured.split_first() else { return Vec::new() };
    let of = |m: &Measured| values(options, m);
    let counted = |place| if place < FIRST_OF_BURST { ours.starts.len() } else { options.burst };
    let mut figures = Vec::new();
    for (place, (quantity, value)) in FIGURES.iter().zip(of(ours)).enumerate() {
        if peers.is_empty() {
            figures.push(quantity.alone(value, counted(place)));
        }
        for (name, peer) in options.peers.iter().zip(peers) {
            figures.push(quantity.beside(value, counted(place), name, of(peer)[place]));
        }
    }
    figures
}

/// In the order of [`FIGURES`].
fn values(options: &Options, m: &Measured) -> [f64; FIGURES.len()] {
    let pods = count_of(options.burst);
    [
        quantile(&m.starts, 0.5),
        quantile(&m.starts, 0.95),
        quantile(&m.deletes, 0.5),
        quantile(&m.deletes, 0.95),
        m.burst,
        if m.burst > 0.0 { pods / m.burst } else { 0.0 },
        m.burst_delete,
        m.writes.status / pods,
        m.writes.tokens / pods,
        m.writes.events / pods,
    ]
}

async fn wait_for_service_account(client: &Client, namespace: &str) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if accounts.get_opt("default").await?.is_some() && maps.get_opt("kube-root-ca.crt").await?.is_some() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("the namespace got no default service account or no kube-root-ca.crt: is the controller manager running?")
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
    fn each_figure_stands_once_alone_and_once_a_peer() {
        let mut options = Options {
            node: "ours".into(),
            peers: vec![],
            image: String::new(),
            command: vec![],
            singles: 1,
            burst: 2,
            token: true,
        };
        let ours = Measured { starts: vec![10.0], burst: 1.0, ..Measured::default() };
        let peer = || Measured { starts: vec![30.0], burst: 4.0, ..Measured::default() };
        let alone = figures(&options, std::slice::from_ref(&ours));
        assert_eq!(alone.len(), FIGURES.len());
        options.peers = vec!["a".into(), "b".into()];
        let beside = figures(&options, &[ours, peer(), peer()]);
        assert_eq!(beside.len(), 2 * FIGURES.len());
        let of = |name: &str| beside.iter().find(|f| f.name == name).unwrap();
        assert_eq!(of("start.p50").ratio, Some(3.0));
        assert_eq!(of("start.burst_rate").ratio, Some(4.0));
        assert_eq!(FIGURES[FIRST_OF_BURST].name, "start.burst100");
    }
}
