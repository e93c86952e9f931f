//! What must not notice a crash: containers, logs, statuses. The agent, the keeper, a shim and vkubelet are killed under
//! running pods.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::stack::kernel::{kill, processes_with};
use tests::stack::{Stack, is_root, items, run, wait};

/// How soon after an agent's restart all is told as it is.
const RIGHT_AGAIN: Duration = Duration::from_secs(20);

/// Writes 0, 1, 2 … twenty times a second, for ever; ends on SIGTERM.
const COUNTS: &str = "trap 'exit 0' TERM; i=0; while true; do echo $i; i=$((i+1)); sleep 0.05; done";

fn pod(name: &str, image: &str, script: &str, restart: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": image, "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", script],
                "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}, "limits": {"memory": "32Mi"}},
            }],
        },
    })
}

/// Every pod's status by name.
fn statuses(stack: &Stack) -> Result<BTreeMap<String, Value>> {
    let pods = stack.client(&["ps"])?;
    let of = |p: &Value| (p["name"].as_str().unwrap_or_default().to_owned(), p["status"].clone());
    Ok(items(&pods).iter().map(of).collect())
}

fn phase_is(stack: &Stack, names: &[String], phase: &str) -> Result<bool> {
    let all = statuses(stack)?;
    Ok(names.iter().all(|name| all.get(name).is_some_and(|s| s["phase"] == phase)))
}

/// What must be the same before and after: container id and restart count of each pod.
fn identities(stack: &Stack, names: &[String]) -> Result<BTreeMap<String, Value>> {
    let all = statuses(stack)?;
    Ok(names
        .iter()
        .map(|name| {
            let container = &all[name]["containerStatuses"][0];
            (name.clone(), json!([container["containerID"], container["restartCount"], container["state"]]))
        })
        .collect())
}

/// The lines that a counting pod wrote are 0, 1, 2 … without a gap; how many.
fn counted(stack: &Stack, name: &str) -> Result<usize> {
    let text = stack.client_text(&["logs", name])?;
    for (expected, line) in text.lines().enumerate() {
        ensure!(line == expected.to_string(), "line {expected} of {name} is {line:?}");
    }
    Ok(text.lines().count())
}

fn clear(stack: &Stack, names: &[String]) -> Result<()> {
    for name in names {
        stack.remove_manifest(name)?;
    }
    wait("all pods are gone", || Ok(statuses(stack)?.is_empty()))
}

fn start(stack: &Stack, count: usize) -> Result<Vec<String>> {
    let image = stack.busybox()?;
    let names: Vec<String> = (0..count).map(|i| format!("counts-{i}")).collect();
    for name in &names {
        stack.put_manifest(name, &pod(name, &image, COUNTS, "Always"))?;
    }
    wait("all pods run", || phase_is(stack, &names, "Running"))?;
    Ok(names)
}

#[test]
fn e2e_an_agent_killed_under_twenty_pods_restarts_none_and_loses_no_line() -> Result<()> {
    if !is_root("e2e_an_agent_killed_under_twenty_pods_restarts_none_and_loses_no_line") {
        return Ok(());
    }
    let mut stack = Stack::up("agent")?;
    let mut names = start(&stack, 19)?;
    let image = stack.busybox()?;
    // Ends while the agent is away, and says when.
    let mark = format!("of {}", stack.path("").display());
    let script = format!("trap 'date +%s; exit 7' USR1; echo waits; : {mark}; while :; do sleep 0.1; done");
    stack.put_manifest("ends", &pod("ends", &image, &script, "Never"))?;
    wait("the ending pod waits", || Ok(stack.client_text(&["logs", "ends"])? == "waits\n"))?;
    wait("it runs", || phase_is(&stack, &["ends".to_owned()], "Running"))?;
    let before = identities(&stack, &names)?;
    let written = names.iter().map(|name| counted(&stack, name)).collect::<Result<Vec<_>>>()?;
    stack.agent.take().context("the agent runs")?.kill()?;
    // The oldest: what it forks has its command line for a moment.
    let pid = *processes_with(&["sh -c", &mark])?.first().context("the ending pod's process")?;
    run(Command::new("kill").args(["-USR1", &pid.to_string()]))?;
    wait("it has ended", || Ok(processes_with(&["sh -c", &mark])?.is_empty()))?;
    let gone = jiff::Timestamp::now().as_second();
    std::thread::sleep(Duration::from_secs(2)); // so that now is another second than that of its end
    stack.start_agent()?;
    let restarted = Instant::now();
    wait("the exit is told", || phase_is(&stack, &["ends".to_owned()], "Failed"))?;
    ensure!(restarted.elapsed() < RIGHT_AGAIN, "status correct only after {:?}", restarted.elapsed());
    let ended = &statuses(&stack)?["ends"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(ended["exitCode"] == 7, "{ended}");
    let told: jiff::Timestamp = ended["finishedAt"].as_str().context("finishedAt")?.parse()?;
    let log = stack.client_text(&["logs", "ends"])?;
    let said: i64 = log.lines().last().context("no word")?.parse()?;
    ensure!((said..=gone).contains(&told.as_second()), "finished at {told}, the container said {said}");
    ensure!(identities(&stack, &names)? == before, "a container was restarted or changed");
    for (name, written) in names.iter().zip(written) {
        wait("what it wrote meanwhile, and more, is there", || Ok(counted(&stack, name)? > written + 20))?;
    }
    names.push("ends".to_owned());
    clear(&stack, &names)?;
    stack.down()
}

#[test]
fn e2e_a_keeper_killed_under_pods_harms_none_and_new_pods_start() -> Result<()> {
    if !is_root("e2e_a_keeper_killed_under_pods_harms_none_and_new_pods_start") {
        return Ok(());
    }
    let stack = Stack::up("keeper")?;
    let mut names = start(&stack, 3)?;
    let before = identities(&stack, &names)?;
    kill(stack.keeper().context("a keeper")?)?;
    let image = stack.busybox()?;
    for i in 0..6 {
        // More than the warm pool holds: some need a shim from the new keeper.
        let name = format!("after-{i}");
        stack.put_manifest(&name, &pod(&name, &image, COUNTS, "Always"))?;
        names.push(name);
    }
    wait("pods start with a new keeper", || phase_is(&stack, &names, "Running"))?;
    ensure!(identities(&stack, &names[..3])? == before, "a container was restarted or changed");
    clear(&stack, &names)?;
    stack.down()
}

#[test]
fn e2e_vkubelet_killed_and_started_again_duplicates_and_deletes_nothing() -> Result<()> {
    if !is_root("e2e_vkubelet_killed_and_started_again_duplicates_and_deletes_nothing") {
        return Ok(());
    }
    let mut stack = Stack::up("vk")?;
    let names = start(&stack, 5)?;
    let before = identities(&stack, &names)?;
    for _ in 0..3 {
        stack.vkubelet.take().context("vkubelet runs")?.kill()?;
        stack.start_vkubelet()?;
        wait("all pods are seen running", || phase_is(&stack, &names, "Running"))?;
    }
    ensure!(identities(&stack, &names)? == before, "a container was restarted or changed");
    ensure!(statuses(&stack)?.len() == names.len(), "a pod was doubled or lost");
    clear(&stack, &names)?;
    stack.down()
}

#[test]
fn e2e_a_manifest_directory_that_vanishes_deletes_no_pod() -> Result<()> {
    if !is_root("e2e_a_manifest_directory_that_vanishes_deletes_no_pod") {
        return Ok(());
    }
    let stack = Stack::up("vanish")?;
    let names = start(&stack, 5)?;
    let before = identities(&stack, &names)?;
    let (manifests, aside) = (stack.path("manifests"), stack.path("manifests-aside"));
    std::fs::rename(&manifests, &aside)?;
    std::thread::sleep(Duration::from_secs(3)); // long enough for a rescan that would take it for deletions
    ensure!(identities(&stack, &names)? == before, "a pod was touched");
    std::fs::rename(&aside, &manifests)?;
    clear(&stack, &names)?;
    stack.down()
}
