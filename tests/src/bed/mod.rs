//! A Nodeless node in a real cluster: control plane, registry, vkubelet (pods of the API server and of a manifest directory)
//! and one agent, each a real process, in a namespace of its own. Every version of its pods and every Event is kept as a
//! watcher saw it, so that a test can wait for a state, ask for one that has passed, and poll nothing.

mod cases;
mod seen;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kube::Client;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

pub use cases::{Case, walk};
pub use seen::PodEvent;

use crate::cluster::{self, Cluster};
use crate::registry::Registry;
use crate::stack::{self, Programs, Stack};
use seen::Seen;

/// The node's name, as the stack gives it.
const NODE: &str = "test-node";
/// What a script waits for that is to go on when the test says so.
pub const GO: &str = "/go";
/// Longest wait for what a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Everything that a case needs.
pub struct Bed {
    /// The control plane.
    pub cluster: Cluster,
    /// The daemons.
    pub stack: Stack,
    /// Where images come from.
    pub registry: Registry,
    /// Where the pods are.
    pub namespace: String,
    client: Client,
    seen: Arc<Seen>,
    runtime: Runtime,
    down: bool,
}

impl Bed {
    /// Starts all of it; `agent_flags` go to the agent.
    pub fn up(name: &str, agent_flags: &[&str]) -> Result<Self> {
        let cluster = Cluster::up()?;
        let layout = Programs::find()?.busybox()?;
        let registry = Registry::start(&PathBuf::from(layout.trim_start_matches("oci-layout:")))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = runtime.block_on(cluster::client(&cluster.admin_kubeconfig()))?;
        let credentials = cluster.node_credentials(NODE)?;
        let file = |name: &str| credentials.join(name).display().to_string();
        let (kubeconfig, certificate) = (file("node.kubeconfig"), file("kubelet.crt"));
        let (key, authority) = (file("kubelet.key"), file("ca.crt"));
        let vkubelet_flags = [
            ["--kubeconfig", &kubeconfig],
            ["--kubelet-listen", "127.0.0.1:0"],
            ["--node-ip", "127.0.0.1"],
            ["--tls-cert-file", &certificate],
            ["--tls-private-key-file", &key],
            ["--client-ca-file", &authority],
        ];
        let stack = Stack::up_with(name, agent_flags, vkubelet_flags.as_flattened())?;
        let namespace = format!("{name}-{}", std::process::id());
        let seen = Arc::<Seen>::default();
        let bed = Self { cluster, stack, registry, namespace, client, seen, runtime, down: false };
        bed.make_namespace()?;
        Ok(bed)
    }

    fn make_namespace(&self) -> Result<()> {
        self.create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}))?;
        self.runtime.spawn(seen::watch_pods(self.client.clone(), self.namespace.clone(), Arc::clone(&self.seen)));
        self.runtime.spawn(seen::watch_events(self.client.clone(), self.namespace.clone(), Arc::clone(&self.seen)));
        stack::wait("the namespace's default service account and the cluster's certificate", || {
            Ok(["serviceaccounts/default", "configmaps/kube-root-ca.crt"]
                .iter()
                .all(|what| self.get(&format!("/api/v1/namespaces/{}/{what}", self.namespace)).is_ok()))
        })?;
        stack::wait("the node is ready", || {
            let node = self.get(&format!("/api/v1/nodes/{NODE}"))?;
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            Ok(conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
        })
    }

    fn get(&self, path: &str) -> Result<Value> {
        let request = http::Request::get(path).body(Vec::new())?;
        Ok(self.runtime.block_on(self.client.request::<Value>(request))?)
    }

    /// Makes an object; in this bed's namespace when its kind lives in one.
    pub fn create(&self, object: &Value) -> Result<Value> {
        let kind = object["kind"].as_str().context("an object without kind")?;
        let path = match kind {
            "Namespace" => "/api/v1/namespaces".to_owned(),
            "RuntimeClass" => "/apis/node.k8s.io/v1/runtimeclasses".to_owned(),
            _ => format!("/api/v1/namespaces/{}/{}s", self.namespace, kind.to_lowercase()),
        };
        let request = http::Request::post(path).header("content-type", "application/json");
        let request = request.body(serde_json::to_vec(object)?)?;
        let made = self.runtime.block_on(self.client.request::<Value>(request));
        made.with_context(|| format!("create {kind} {}", object["metadata"]["name"]))
    }

    /// Makes a pod on this node: `spec` without node name.
    pub fn pod(&self, name: &str, mut spec: Value) -> Result<()> {
        spec["nodeName"] = NODE.into();
        self.create(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})).map(drop)
    }

    /// kubectl in this bed's namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.kubectl_command();
        command.args(arguments).output().with_context(|| format!("run kubectl {arguments:?}"))
    }

    /// The same, not started yet.
    pub fn kubectl_command(&self) -> Command {
        let mut command = self.cluster.kubectl();
        command.args(["--namespace", &self.namespace, "--cache-dir"]).arg(self.stack.path("kubectl-cache"));
        command
    }

    /// What kubectl prints; an error when it fails.
    pub fn kubectl_says(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl(arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {arguments:?} ended with {}: {errors}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until `kubectl logs` with these arguments says this: what runs may not have written yet.
    pub fn until_logs(&self, arguments: &[&str], wanted: &str) -> Result<()> {
        let mut says = String::new();
        let waited = stack::wait("the log says it", || {
            says = self.kubectl_says(&[&["logs"], arguments].concat())?;
            Ok(says == wanted)
        });
        waited.with_context(|| format!("kubectl logs {arguments:?}: is {says:?}, not {wanted:?}"))
    }

    /// Has a script go on that waits for the file [`GO`] in its root.
    pub fn go(&self, pod: &str) -> Result<()> {
        self.kubectl_says(&["exec", pod, "--", "touch", GO]).map(drop)
    }

    /// The error text of a kubectl that must fail.
    pub fn kubectl_fails(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl(arguments)?;
        ensure!(!output.status.success(), "kubectl {arguments:?} succeeded");
        Ok(String::from_utf8_lossy(&output.stderr).trim_end().to_owned())
    }

    /// Waits until the newest version of a pod is as wanted; that version.
    pub fn until(&self, pod: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        self.until_within(PATIENCE, pod, what, is_so)
    }

    /// The same with another patience.
    pub fn until_within(
        &self,
        patience: Duration,
        pod: &str,
        what: &str,
        is_so: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let found = self.seen.wait(Instant::now() + patience, |all| all.newest(pod).filter(|pod| is_so(pod)).cloned());
        found.with_context(|| {
            let newest = self.seen.look(|all| all.newest(pod).map(|pod| pod["status"].clone()));
            let events = self.events(pod).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ");
            format!("pod {pod}: not within {patience:?}: {what}; its status: {newest:?}; its events:\n  {events}")
        })
    }

    /// Waits until a pod is no longer in the API.
    pub fn until_gone(&self, pod: &str) -> Result<()> {
        let gone = self.seen.wait(Instant::now() + PATIENCE, |all| all.is_gone(pod).then_some(()));
        gone.with_context(|| format!("pod {pod} is still there after {PATIENCE:?}"))
    }

    /// Every version of a pod that was seen, oldest first.
    pub fn versions(&self, pod: &str) -> Vec<Value> {
        self.seen.look(|all| all.versions(pod).to_vec())
    }

    /// A pod's Events, oldest first.
    pub fn events(&self, pod: &str) -> Vec<PodEvent> {
        self.seen.look(|all| all.events(pod))
    }

    /// Waits for an Event of a pod whose message satisfies `is_so`; that Event.
    pub fn until_event(&self, pod: &str, reason: &str, is_so: impl Fn(&str) -> bool) -> Result<PodEvent> {
        let wanted = |event: &PodEvent| event.reason == reason && is_so(&event.message);
        let found = self.seen.wait(Instant::now() + PATIENCE, |all| all.events(pod).into_iter().find(|e| wanted(e)));
        found.with_context(|| {
            let events = self.events(pod).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ");
            format!("pod {pod} has no such Event {reason}; it has:\n  {events}")
        })
    }

    /// Waits for an Event with exactly this type, reason and message.
    pub fn until_event_says(&self, pod: &str, kind: &str, reason: &str, message: &str) -> Result<()> {
        let event = self
            .until_event(pod, reason, |text| text == message)
            .with_context(|| format!("the Event was to say: {message}"))?;
        ensure!(event.kind == kind, "Event {reason} of pod {pod} is {}, not {kind}", event.kind);
        Ok(())
    }

    /// Deletes a pod with its own grace period, or another; does not wait.
    pub fn delete(&self, pod: &str, grace: Option<u32>) -> Result<()> {
        let path = format!("/api/v1/namespaces/{}/pods/{pod}", self.namespace);
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": grace});
        let request = http::Request::delete(path).header("content-type", "application/json");
        let request = request.body(serde_json::to_vec(&options)?)?;
        self.runtime.block_on(self.client.request::<Value>(request)).map(drop).context("delete a pod")
    }

    /// Ends and removes everything: pods, namespace, daemons, node.
    pub fn down(mut self) -> Result<()> {
        self.down = true;
        self.delete_all()?;
        let names = self.seen.look(seen::All::names);
        for pod in &names {
            self.until_gone(pod)?;
        }
        self.kubectl_says(&["delete", "namespace", &self.namespace, "--wait=false"])?;
        self.stack.end_now()?;
        self.delete_node()
    }

    /// Once nobody registers it again. Without kubectl, whose cache went with the stack's directory.
    fn delete_node(&self) -> Result<()> {
        let request = http::Request::delete(format!("/api/v1/nodes/{NODE}")).body(Vec::new())?;
        self.runtime.block_on(self.client.request::<Value>(request)).map(drop).context("delete the node")
    }

    fn delete_all(&self) -> Result<()> {
        self.kubectl_says(&["delete", "pods", "--all", "--grace-period=1", "--wait=false"]).map(drop)
    }
}

impl Drop for Bed {
    /// After a failure: what [`Bed::down`] does, whatever succeeds of it.
    fn drop(&mut self) {
        if self.down {
            return;
        }
        let force = ["delete", "pods", "--all", "--grace-period=0", "--force", "--wait=false"];
        let namespace = ["delete", "namespace", &self.namespace, "--wait=false"];
        let logs = self.stack.log_tails();
        let steps = [
            self.kubectl_says(&force).map(drop),
            self.kubectl_says(&namespace).map(drop),
            self.stack.end_now(),
            self.delete_node(),
        ];
        eprintln!("{logs}");
        for error in steps.into_iter().filter_map(Result::err) {
            eprintln!("clean-up failed: {error:#}");
        }
    }
}

/// Where a waiting container's reason stands: the first main container.
pub fn waiting(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]["state"]["waiting"]
}

/// The first main container's end.
pub fn terminated(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]["state"]["terminated"]
}

/// A pod's phase.
pub fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

/// A container that runs a shell script.
pub fn shell(name: &str, image: &str, script: &str) -> Value {
    json!({"name": name, "image": image, "command": ["sh", "-c", script]})
}

/// Fails unless the two are equal.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, is: T, wanted: T) -> Result<()> {
    if is != wanted {
        bail!("{what}: is {is:?}, not {wanted:?}");
    }
    Ok(())
}
