//! Bills under kills, on the whole road: vkubelet, agent, keeper and shims run as they do in service, pods come and go, and
//! each of the four kinds of process is killed (SIGKILL) at random instants. In the end everything is drained, and what
//! the ledger says is compared with an oracle that has seen neither spool nor wire nor ledger.
//!
//! | what | by whom it is told | compared with the ledger |
//! | --- | --- | --- |
//! | `[held, released)` of each sandbox | the pods' owners in the agent, in its log, when they took and let go | equal, to the nanosecond |
//! | the same of a pod that ended by itself | its status, through vkubelet to the client | equal, to the nanosecond |
//! | a sandbox exists; its control group exists; a container's process is in it | the kernel, asked every few milliseconds by a thread of this test | each such instant lies within the interval |
//! | when its manifest was written, when it was seen to be gone | this test | the interval lies between |
//! | when an agent was alive | this test | what is billed beyond the kernel's instants is short, but for the time without an agent, when resources stay held |
//!
//! Why this is fair: the instants in the first row come from the one clock that defines a bill, but they are kept, repeated
//! and recovered by the pods' owners and their own ledger; a record that spool, wire or vkubelet lose, double, cut or
//! reorder cannot be in that log. The kernel's rows hold those instants against the world: an interval that begins
//! late, ends early, has a hole, or lives on in a forgotten pod, contradicts a sample, even if all of our own books agree.
//!
//! From these follow: no overlap, no gap but where no sandbox existed, no bill for what was never held, and each
//! chain of records verifies (`GET /v1/verify`).
//!
//! `NODELESS_KILLS=200` is the full number; `NODELESS_FAULT_SEED` repeats a schedule.

#[path = "e2e_billing_kills/bill.rs"]
mod bill;
#[path = "e2e_billing_kills/churn.rs"]
mod churn;
#[path = "e2e_billing_kills/oracle.rs"]
mod oracle;
#[path = "e2e_billing_kills/victims.rs"]
mod victims;
#[path = "e2e_billing_kills/witness.rs"]
mod witness;

use std::time::{Duration, Instant};

use agent::meter::{Clock, SystemClock};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::random::Random;
use tests::stack::kernel::{has_container_processes, kill};
use tests::stack::{Stack, is_root, items, wait};

use bill::Bill;
use churn::Churn;
use oracle::Oracle;
use victims::Victims;
use witness::Witness;

/// CLOCK_BOOTTIME in nanoseconds.
fn now() -> u64 {
    SystemClock.now().boottime_ns
}

#[test]
fn e2e_kills_of_agent_shim_keeper_and_vkubelet_bill_each_nanosecond_once() -> Result<()> {
    const NAME: &str = "e2e_kills_of_agent_shim_keeper_and_vkubelet_bill_each_nanosecond_once";
    if !is_root(NAME) {
        return Ok(());
    }
    let seed = number("NODELESS_FAULT_SEED").unwrap_or_else(|| SystemClock.now().wall_ns);
    let kills = number("NODELESS_KILLS").unwrap_or(40);
    eprintln!("NODELESS_FAULT_SEED={seed} NODELESS_KILLS={kills}");
    let mut random = Random::new(seed);
    let mut stack = Stack::up_with("bill", &["--log-format", "json"], &[])?;
    wait("the host is ready", || stack.host_is_ready())?;
    let witness = Witness::of(&stack);
    let mut churn = Churn::new(stack.busybox()?);
    let mut victims = Victims::default();
    let begun = Instant::now();
    while victims.killed() < kills {
        churn.act(&stack, &mut random)?;
        victims.act(&mut stack, &mut random)?;
        std::thread::sleep(Duration::from_millis(random.below(40)));
    }
    let killing = begun.elapsed();
    victims.raise_all(&mut stack)?;
    churn.let_some_end(&stack)?;
    let told = churn.told(&stack)?;
    churn.clear(&stack)?;
    wait("all pods are gone", || Ok(items(&stack.client(&["ps"])?).is_empty()))?;
    wait("nothing is held", || Ok(std::fs::read_dir(stack.sandboxes())?.next().is_none()))?;
    wait("the agent has forgotten all pods", || forgotten(&stack))?;
    let gone = now();
    let seen = witness.end();
    let oracle = Oracle::read(&stack.path("logs/agent.log"))?;
    ensure!(oracle.pods() > 0, "no pod ran");
    wait("the ledger has heard of every release", || Ok(Bill::all(&stack)?.is_settled(&oracle)))?;
    let bill = Bill::all(&stack)?;
    bill.verify(&stack)?;
    let sum = oracle.compare(&bill)?;
    bill.compare_each_pod(&stack)?;
    oracle.compare_told(&told)?;
    let within = oracle.compare_world(&seen, &churn.put(), gone, &victims.absences())?;
    eprintln!(
        "{} in {killing:.1?} ({}); {} pods, {} sandboxes, {} pods' own times, {sum} ns billed; {within}",
        victims.killed(),
        victims.summary(),
        oracle.pods(),
        oracle.sandboxes(),
        told.len(),
    );
    stack.down()
}

#[test]
fn e2e_a_killed_shim_ends_its_sandbox_and_the_pod_fails_or_goes_on_with_its_bill_right() -> Result<()> {
    const NAME: &str = "e2e_a_killed_shim_ends_its_sandbox_and_the_pod_fails_or_goes_on_with_its_bill_right";
    if !is_root(NAME) {
        return Ok(());
    }
    let mut stack = Stack::up_with("shim", &["--log-format", "json"], &[])?;
    wait("the host is ready", || stack.host_is_ready())?;
    let image = stack.busybox()?;
    let until_told = "while ! [ -e /end ]; do sleep 0.05; done; sleep 0.5; exit 0";
    for (name, policy, script) in
        [("never", "Never", "sleep 3600"), ("always", "Always", "sleep 3600"), ("done", "OnFailure", until_told)]
    {
        stack.put_manifest(name, &churn::pod(name, &image, script, policy))?;
    }
    let pod = |stack: &Stack, name: &str| -> Result<Value> {
        let pods = stack.client(&["ps"])?;
        items(&pods).iter().find(|pod| pod["name"] == name).cloned().with_context(|| format!("no pod {name}"))
    };
    let phase = |stack: &Stack, name: &str, phase: &str| -> Result<bool> { Ok(pod(stack, name)?["phase"] == phase) };
    for name in ["never", "always", "done"] {
        wait("it runs", || phase(&stack, name, "Running"))?;
    }
    let sandbox = |stack: &Stack, name: &str| -> Result<String> {
        Ok(format!("{}-0", pod(stack, name)?["uid"].as_str().context("a uid")?))
    };
    let kill_shim = |stack: &Stack, id: &str| kill(stack.shim(id).context("a shim")?);
    for name in ["never", "always"] {
        let id = sandbox(&stack, name)?;
        let cgroup = stack.cgroup(&id).context("a control group")?;
        kill_shim(&stack, &id)?;
        wait("nothing of the sandbox is left", || Ok(!cgroup.exists() && !stack.sandboxes().join(&id).exists()))?;
    }
    wait("a pod that is never started again has failed", || phase(&stack, "never", "Failed"))?;
    let ended = &pod(&stack, "never")?["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(ended["exitCode"] == 137 && ended["reason"] == "ContainerStatusUnknown", "{ended}");
    wait("the other goes on in another sandbox", || {
        let pod = pod(&stack, "always")?;
        let container = &pod["status"]["containerStatuses"][0];
        let told = items(&pod["events"]).iter().any(|event| event["reason"] == "SandboxChanged");
        Ok(container["restartCount"] == 1 && container["state"]["running"].is_object() && told)
    })?;
    // Ends well while no agent is there, and then its shim dies: it has succeeded, and is not run again.
    let id = sandbox(&stack, "done")?;
    let cgroup = stack.cgroup(&id).context("a control group")?;
    stack.client_text(&["exec", "done", "--", "touch", "/end"])?;
    stack.agent.take().context("the agent runs")?.kill()?;
    wait("its process has ended", || Ok(!has_container_processes(&cgroup)))?;
    kill_shim(&stack, &id)?;
    stack.start_agent()?;
    wait("it has succeeded", || phase(&stack, "done", "Succeeded"))?;
    ensure!(pod(&stack, "done")?["restarts"] == 0, "it was run again");
    for name in ["never", "always", "done"] {
        stack.remove_manifest(name)?;
    }
    wait("all pods are gone", || Ok(items(&stack.client(&["ps"])?).is_empty()))?;
    let oracle = Oracle::read(&stack.path("logs/agent.log"))?;
    ensure!((oracle.pods(), oracle.sandboxes()) == (3, 4), "{oracle:?}");
    wait("the ledger has heard of every release", || Ok(Bill::all(&stack)?.is_settled(&oracle)))?;
    oracle.compare(&Bill::all(&stack)?)?;
    stack.down()
}

/// No pod's document is left in the agent's own ledger.
fn forgotten(stack: &Stack) -> Result<bool> {
    let dir = stack.path("agent-state/ledger");
    let names = std::fs::read_dir(dir).context("read the agent's ledger")?;
    let names: Vec<_> = names.flatten().map(|entry| entry.file_name()).collect();
    Ok(names.iter().all(|name| name == "epoch.json"))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
