//! A Deployment on a real cluster: scheduled by the real scheduler, pulled from a real registry, read and entered by the real
//! kubectl, deleted and billed.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::ensure;
use serde_json::{Value, json};
use tests::dev::{Dev, until};
use tests::stack::is_root;

const REPLICAS: usize = 20;

fn pods_of(dev: &Dev) -> Vec<Value> {
    let list: Value =
        serde_json::from_str(&dev.kubectl(&["get", "pods", "-l", "app=twenty", "-o", "json"]).unwrap()).unwrap();
    list["items"].as_array().unwrap().clone()
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
    let dev = Dev::up("e2e", 1).unwrap();
    let image = dev.busybox("test/busybox:1", 3).unwrap();
    let applied = Instant::now();
    dev.apply(&deployment(&image)).unwrap();
    until("twenty pods running and ready", || {
        let ready = dev.kubectl(&["get", "deployment", "twenty", "-o", "jsonpath={.status.readyReplicas}"])?;
        let pods = || dev.kubectl(&["get", "pods", "-o", "wide"]);
        ensure!(ready == REPLICAS.to_string(), "{ready} ready\n{:?}", pods());
        Ok(())
    })
    .unwrap();

    eprintln!("{REPLICAS} replicas were ready {:.1} s after kubectl apply", applied.elapsed().as_secs_f64());

    let pods = pods_of(&dev);
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
        let greeting = format!("hello from {name}");
        until("it has greeted", || {
            let said = dev.kubectl(&["logs", name])?;
            ensure!(said.trim() == greeting, "{said}");
            Ok(())
        })
        .unwrap();
    }
    let first = pods[0]["metadata"]["name"].as_str().unwrap();
    // The third layer's file: the stack of layers is in the right order.
    assert_eq!(dev.client_text(&["exec", first, "--", "cat", "/etc/layer"]).unwrap().trim(), "3");

    dev.kubectl(&["delete", "deployment", "twenty", "--wait=true"]).unwrap();
    until("no pod left in the API", || {
        let left = pods_of(&dev).len();
        ensure!(left == 0, "{left} left");
        Ok(())
    })
    .unwrap();

    let uids: BTreeSet<&str> = pods.iter().map(|pod| pod["metadata"]["uid"].as_str().unwrap()).collect();
    until("twenty final bills", || {
        let bills = dev.client(&["bill"])?;
        let bills = bills["items"].as_array().or_else(|| bills.as_array()).cloned().unwrap_or_default();
        let billed = bills
            .iter()
            .filter(|bill| uids.contains(bill["uid"].as_str().unwrap_or_default()) && bill["state"] == "final")
            .inspect(|bill| {
                let held = bill["duration_ns"].as_u64().unwrap();
                assert_eq!(bill["billed_seconds"].as_u64(), Some(held.div_ceil(1_000_000_000)), "{bill}");
            })
            .count();
        ensure!(billed == REPLICAS, "{billed} of {} bills", bills.len());
        Ok(())
    })
    .unwrap();
}
