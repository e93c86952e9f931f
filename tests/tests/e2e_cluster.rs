//! A Deployment on a real cluster: scheduled by the real scheduler, pulled from a real registry, read and entered by the real
//! kubectl, deleted and billed.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::cluster::repository;
use tests::stack::is_root;

const REPLICAS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(120);

/// What `hack/dev up` made; gone when dropped.
struct Dev {
    name: String,
    told: String,
}

impl Dev {
    fn up(hosts: u32) -> Self {
        let mut dev = Self { name: format!("e2e{}", std::process::id()), told: String::new() };
        dev.told = dev.hack(&["up", "--hosts", &hosts.to_string()]);
        dev
    }

    fn hack(&self, arguments: &[&str]) -> String {
        run(Command::new(repository().join("hack/dev")).args(arguments).args(["--name", &self.name]))
    }

    /// What stands behind `key` in what `hack/dev` told last: the daemons come first, the addresses after them.
    fn told(&self, key: &str) -> String {
        let line = self.told.lines().rev().find_map(|line| line.strip_prefix(key)).map(str::trim);
        line.unwrap_or_else(|| panic!("hack/dev up told no {key}: {}", self.told)).to_owned()
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        run(Command::new(self.told("kubectl")).args(["--kubeconfig", &self.told("KUBECONFIG")]).args(arguments))
    }

    /// What the client prints.
    fn client_text(&self, arguments: &[&str]) -> String {
        let line = self.told("client");
        let mut words = line.split(' ');
        run(Command::new(words.next().unwrap()).args(words).args(arguments))
    }

    /// The client's answer as JSON.
    fn client(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = ["-o", "json"].iter().chain(arguments).copied().collect();
        serde_json::from_str(&self.client_text(&arguments)).unwrap()
    }

    fn pods(&self) -> Vec<Value> {
        let list: Value =
            serde_json::from_str(&self.kubectl(&["get", "pods", "-l", "app=twenty", "-o", "json"])).unwrap();
        list["items"].as_array().unwrap().clone()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let down = Command::new(repository().join("hack/dev")).args(["down", "--name", &self.name]).status();
        if !std::thread::panicking() {
            assert!(down.is_ok_and(|status| status.success()), "hack/dev down failed");
        }
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(why) => assert!(Instant::now() < end, "{what}: not so after {} s: {why}", PATIENCE.as_secs()),
        }
        sleep(Duration::from_millis(200));
    }
}

fn deployment(image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "twenty"},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": {"app": "twenty"}},
            "template": {
                "metadata": {"labels": {"app": "twenty"}},
                "spec": {
                    "terminationGracePeriodSeconds": 5,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{
                        "name": "main",
                        "image": image,
                        "command": ["sh", "-c", "trap 'exit 0' TERM; echo \"hello from $HOSTNAME\"; while :; do sleep 1 & wait; done"],
                        "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}, "limits": {"memory": "16Mi"}},
                    }],
                },
            },
        },
    })
}

#[test]
fn e2e_twenty_replicas_run_log_go_and_are_billed() {
    if !is_root("e2e_twenty_replicas_run_log_go_and_are_billed") {
        return;
    }
    let dev = Dev::up(1);
    let scratch = tempfile::tempdir().unwrap();
    let layout: PathBuf = scratch.path().join("busybox");
    let bin = PathBuf::from(dev.told("client").split(' ').next().unwrap());
    run(Command::new(bin.with_file_name("xtask")).arg("busybox-layout").arg(&layout).args(["--layers", "3"]));
    let image = format!("{}/test/busybox:1", dev.told("registry"));
    run(Command::new("skopeo")
        .args(["copy", "--quiet", "--dest-tls-verify=false"])
        .arg(format!("oci:{}:latest", layout.display()))
        .arg(format!("docker://{image}")));

    let file = scratch.path().join("twenty.json");
    std::fs::write(&file, deployment(&image).to_string()).unwrap();
    let applied = Instant::now();
    dev.kubectl(&["apply", "-f", file.to_str().unwrap()]);
    until("twenty pods running and ready", || {
        let ready = dev.kubectl(&["get", "deployment", "twenty", "-o", "jsonpath={.status.readyReplicas}"]);
        if ready == REPLICAS.to_string() {
            Ok(())
        } else {
            let pods = dev.kubectl(&["get", "pods", "-o", "wide"]);
            Err(format!("{ready} ready\n{pods}"))
        }
    });

    eprintln!("{REPLICAS} replicas were ready {:.1} s after kubectl apply", applied.elapsed().as_secs_f64());

    let pods = dev.pods();
    assert_eq!(pods.len(), REPLICAS);
    let addresses: BTreeSet<&str> = pods.iter().map(|pod| pod["status"]["podIP"].as_str().unwrap()).collect();
    assert_eq!(addresses.len(), REPLICAS, "each pod has an address of its own");
    for pod in &pods {
        let name = pod["metadata"]["name"].as_str().unwrap();
        assert_eq!(pod["spec"]["nodeName"], "nodeless");
        assert_eq!(pod["status"]["phase"], "Running");
        assert!(pod["status"]["startTime"].is_string(), "{name} has no start time");
        assert!(pod["status"]["hostIP"].is_string(), "{name} has no host address");
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
        assert_eq!(dev.kubectl(&["logs", name]).trim(), format!("hello from {name}"));
    }
    let first = pods[0]["metadata"]["name"].as_str().unwrap();
    // The third layer's file: the stack of layers is in the right order.
    assert_eq!(dev.client_text(&["exec", first, "--", "cat", "/etc/layer"]).trim(), "3");

    dev.kubectl(&["delete", "deployment", "twenty", "--wait=true"]);
    until("no pod left in the API", || {
        let left = dev.pods().len();
        if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
    });

    let uids: BTreeSet<&str> = pods.iter().map(|pod| pod["metadata"]["uid"].as_str().unwrap()).collect();
    until("twenty final bills", || {
        let bills = dev.client(&["bill"]);
        let bills = bills["items"].as_array().or_else(|| bills.as_array()).cloned().unwrap_or_default();
        let billed = bills
            .iter()
            .filter(|bill| uids.contains(bill["uid"].as_str().unwrap_or_default()) && bill["state"] == "final")
            .inspect(|bill| {
                let held = bill["duration_ns"].as_u64().unwrap();
                assert_eq!(bill["billed_seconds"].as_u64(), Some(held.div_ceil(1_000_000_000)), "{bill}");
            })
            .count();
        if billed == REPLICAS { Ok(()) } else { Err(format!("{billed} of {} bills", bills.len())) }
    });
}
