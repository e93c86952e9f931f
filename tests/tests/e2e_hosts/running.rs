//! Pods that run and must go on doing so.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::stack::kernel::has_container_processes;
use tests::stack::{Stack, items, wait};

/// Writes a line twenty times a second, for ever; ends on SIGTERM.
const COUNTS: &str = "trap 'exit 0' TERM; i=0; while true; do echo $i; i=$((i+1)); sleep 0.05; done";

/// Some counting pods, and how they were.
pub(crate) struct Running {
    names: Vec<String>,
    before: BTreeMap<String, Value>,
    sandboxes: Vec<String>,
}

/// Puts a counting pod with these resources.
pub(crate) fn put(stack: &Stack, name: &str, resources: Value) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": stack.busybox()?, "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", COUNTS], "resources": resources,
            }],
        },
    });
    stack.put_manifest(name, &pod)
}

/// Whether one line of a daemon's log has all of these words.
pub(crate) fn log_says(stack: &Stack, daemon: &str, words: &[&str]) -> Result<bool> {
    let text = std::fs::read_to_string(stack.path(&format!("logs/{daemon}.log"))).context("read a log")?;
    Ok(text.lines().any(|line| words.iter().all(|word| line.contains(word))))
}

impl Running {
    pub(crate) fn start(stack: &Stack, count: usize) -> Result<Self> {
        wait("the host is ready", || stack.host_is_ready())?;
        let names: Vec<String> = (0..count).map(|number| format!("counts-{number}")).collect();
        for name in &names {
            put(stack, name, json!({"requests": {"cpu": "10m", "memory": "8Mi"}}))?;
        }
        wait("all pods run", || {
            let pods = stack.client(&["ps"])?;
            Ok(items(&pods).iter().filter(|pod| pod["phase"] == "Running").count() == count)
        })?;
        let before = identities(stack, &names)?;
        let listed = std::fs::read_dir(stack.sandboxes())?.flatten();
        let sandboxes = listed.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        Ok(Self { names, before, sandboxes })
    }

    /// No container was restarted or changed.
    pub(crate) fn are_as_before(&self, stack: &Stack) -> Result<()> {
        let now = identities(stack, &self.names)?;
        ensure!(now == self.before, "was {:?}, is {now:?}", self.before);
        Ok(())
    }

    /// Lines that the first pod has written, all in order.
    pub(crate) fn lines(&self, stack: &Stack) -> Result<usize> {
        let text = stack.client_text(&["logs", &self.names[0]])?;
        for (expected, line) in text.lines().enumerate() {
            ensure!(line == expected.to_string(), "line {expected} is {line:?}");
        }
        Ok(text.lines().count())
    }

    /// How many sandboxes the host has.
    pub(crate) fn sandboxes(&self, stack: &Stack) -> Result<usize> {
        Ok(std::fs::read_dir(stack.sandboxes())?.count())
    }

    /// Each of these pods' sandboxes has processes, as the kernel sees it.
    pub(crate) fn processes_live(&self, stack: &Stack) -> bool {
        self.sandboxes.iter().all(|id| stack.cgroup(id).is_some_and(|group| has_container_processes(&group)))
    }

    /// Removes the manifest of the last.
    pub(crate) fn remove_one(&self, stack: &Stack) -> Result<()> {
        stack.remove_manifest(self.names.last().context("a pod")?)
    }

    /// Removes all manifests that are left, and waits until no pod is.
    pub(crate) fn clear(&self, stack: &Stack) -> Result<()> {
        for name in self.names.iter().filter(|name| stack.path(&format!("manifests/{name}.json")).exists()) {
            stack.remove_manifest(name)?;
        }
        wait("all pods are gone", || Ok(items(&stack.client(&["ps"])?).is_empty()))
    }
}

fn identities(stack: &Stack, names: &[String]) -> Result<BTreeMap<String, Value>> {
    let pods = stack.client(&["ps"])?;
    names
        .iter()
        .map(|name| {
            let pod = items(&pods).iter().find(|pod| pod["name"] == name.as_str());
            let container = &pod.with_context(|| format!("no pod {name}"))?["status"]["containerStatuses"][0];
            Ok((name.clone(), json!([container["containerID"], container["restartCount"], container["state"]])))
        })
        .collect()
}
