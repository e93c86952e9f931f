//! Pods that come and go by their manifests: some end by themselves, some are started again and again, some are removed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use tests::random::Random;
use tests::stack::{Stack, items, wait};

use super::now;

/// Manifests at once.
const MOST: usize = 14;
/// From this number on some are removed.
const SOME: usize = 5;
/// Between two changes, at most.
const PAUSE_MS: u64 = 250;
/// Runs until it is told to end.
const STEADY: &str = "trap 'exit 0' TERM; while true; do sleep 0.1; done";
/// Hears no signal but SIGKILL.
const DEAF: &str = "trap '' TERM; while true; do sleep 0.1; done";

/// The manifests.
pub(crate) struct Churn {
    image: String,
    present: Vec<String>,
    put: BTreeMap<String, u64>,
    next: Instant,
}

/// A pod's own times, as its status tells them.
pub(crate) struct Told {
    pub(crate) uid: String,
    pub(crate) held: u64,
    pub(crate) released: u64,
}

impl Churn {
    pub(crate) fn new(image: String) -> Self {
        Self { image, present: Vec::new(), put: BTreeMap::new(), next: Instant::now() }
    }

    /// When each manifest was written, by the pod's name.
    pub(crate) fn put(&self) -> BTreeMap<String, u64> {
        self.put.clone()
    }

    /// Writes or removes a manifest when it is time.
    pub(crate) fn act(&mut self, stack: &Stack, random: &mut Random) -> Result<()> {
        if Instant::now() < self.next {
            return Ok(());
        }
        self.next = Instant::now() + Duration::from_millis(random.below(PAUSE_MS));
        if self.present.len() >= MOST || (self.present.len() >= SOME && random.below(2) == 0) {
            let at = usize::try_from(random.below(self.present.len() as u64))?;
            stack.remove_manifest(&self.present.swap_remove(at))
        } else {
            let kind = random.below(8);
            let seconds = format!("{}.{}", random.below(2), random.below(10));
            self.add(stack, kind, &seconds)
        }
    }

    fn add(&mut self, stack: &Stack, kind: u64, seconds: &str) -> Result<()> {
        let name = format!("p-{:04}", self.put.len());
        let ends = |code: u32| format!("sleep {seconds}; exit {code}");
        let (policy, script) = match kind {
            0 => ("Never", ends(0)),
            1 => ("Never", ends(3)),
            2 => ("OnFailure", ends(1)),
            3 => ("Always", ends(0)),
            4 => ("Always", DEAF.to_owned()),
            5 => ("Never", STEADY.to_owned()),
            _ => ("Always", STEADY.to_owned()),
        };
        let mut pod = pod(&name, &self.image, &script, policy);
        if kind == 1 {
            // A program that is not there: never runs, and is billed until that is known.
            pod["spec"]["containers"][0]["command"] = json!(["/no/such/program"]);
        }
        if kind == 6 {
            let init = container("init", &self.image, &format!("sleep {seconds}"));
            let beside = container("beside", &self.image, STEADY);
            pod["spec"]["initContainers"] = json!([init]);
            pod["spec"]["containers"].as_array_mut().expect("a list").push(beside);
        }
        self.put.insert(name.clone(), now());
        stack.put_manifest(&name, &pod)?;
        self.present.push(name);
        Ok(())
    }

    /// With everybody alive: some pods that end by themselves, and stay to tell of it.
    pub(crate) fn let_some_end(&mut self, stack: &Stack) -> Result<()> {
        let first = self.put.len();
        for kind in [0, 1, 0] {
            self.add(stack, kind, "0.2")?;
        }
        let names: Vec<String> = (first..first + 3).map(|number| format!("p-{number:04}")).collect();
        wait("pods end by themselves", || {
            let pods = stack.client(&["ps"])?;
            let ended = |name: &String| {
                let pod = items(&pods).iter().find(|pod| pod["name"] == name.as_str());
                pod.is_some_and(|pod| pod["timeline"]["released_boottime_ns"].as_u64().unwrap_or_default() > 0)
            };
            let Some(name) = names.iter().find(|name| !ended(name)) else { return Ok(true) };
            let pod = items(&pods).iter().find(|pod| pod["name"] == name.as_str());
            bail!("{name}: {}", pod.map_or_else(|| "not seen".to_owned(), Value::to_string))
        })
    }

    /// The times of all pods that have ended by themselves and are still there.
    pub(crate) fn told(&self, stack: &Stack) -> Result<Vec<Told>> {
        let pods = stack.client(&["ps"])?;
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        let told = |pod: &Value| Told {
            uid: pod["uid"].as_str().unwrap_or_default().to_owned(),
            held: number(&pod["timeline"]["held_boottime_ns"]),
            released: number(&pod["timeline"]["released_boottime_ns"]),
        };
        let ended = |pod: &&Value| ["Succeeded", "Failed"].iter().any(|phase| pod["phase"] == *phase);
        let all: Vec<Told> = items(&pods).iter().filter(ended).map(told).filter(|told| told.released > 0).collect();
        ensure!(all.len() >= 3, "only {} pods told their times", all.len());
        Ok(all)
    }

    /// Removes every manifest.
    pub(crate) fn clear(&mut self, stack: &Stack) -> Result<()> {
        self.present.drain(..).try_for_each(|name| stack.remove_manifest(&name))
    }
}

/// A pod of one container.
pub(crate) fn pod(name: &str, image: &str, script: &str, policy: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": policy,
            "terminationGracePeriodSeconds": 1,
            "containers": [container("main", image, script)],
        },
    })
}

fn container(name: &str, image: &str, script: &str) -> Value {
    json!({
        "name": name, "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script],
        "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}, "limits": {"memory": "32Mi"}},
    })
}
