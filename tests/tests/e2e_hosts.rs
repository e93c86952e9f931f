//! Hosts and their vkubelet when something is wrong between them: doubled identities, places in use, bad flags and tokens, a
//! complete set that has lost its pods, an old vkubelet that comes back, pods that find no room. Each is said clearly, where the
//! operator looks, and nothing that runs is touched.

#[path = "e2e_hosts/ended.rs"]
mod ended;
#[path = "e2e_hosts/running.rs"]
mod running;

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::stack::{Stack, http, is_root, items, wait};

use ended::ended;
use running::{Running, log_says, put};

#[test]
fn e2e_a_second_agent_with_the_same_identity_is_refused_and_disturbs_nothing() -> Result<()> {
    if !is_root("e2e_a_second_agent_with_the_same_identity_is_refused_and_disturbs_nothing") {
        return Ok(());
    }
    let mut first = Stack::up("first")?;
    let mut twin = Stack::up("twin")?;
    let pods = Running::start(&first, 3)?;
    twin.agent.take().context("the twin's agent")?.terminate(Duration::from_secs(30))?;
    std::fs::copy(first.path("agent-state/pki/identity.json"), twin.path("agent-state/pki/identity.json"))?;
    twin.start_agent()?;
    let refusal = ["host-1", "is connected from 127.0.0.1", "must not share one identity", "--host-id of its own"];
    wait("the second agent says why it is refused", || log_says(&twin, "agent", &refusal))?;
    wait("vkubelet says whom it refuses", || {
        log_says(&first, "vkubelet", &["refused a host's connection", "HOST_CONNECTED"])
    })?;
    pods.are_as_before(&first)?;
    ensure!(items(&first.client(&["hosts"])?).len() == 1, "one host");
    // A restart of the first is no second agent, also while the second one goes on dialling.
    let last = pods.lines(&first)?;
    first.agent.take().context("the first agent")?.kill()?;
    twin.agent.take().context("the second agent")?.kill()?;
    first.start_agent()?;
    wait("the first agent is back", || first.host_is_ready())?;
    wait("its pods go on writing", || Ok(pods.lines(&first)? > last + 20))?;
    pods.are_as_before(&first)?;
    twin.down()?;
    pods.clear(&first)?;
    first.down()
}

#[test]
fn e2e_a_place_in_use_is_named_and_nothing_is_half_made() -> Result<()> {
    if !is_root("e2e_a_place_in_use_is_named_and_nothing_is_half_made") {
        return Ok(());
    }
    let stack = Stack::up("places")?;
    let pods = Running::start(&stack, 2)?;
    let busy = TcpListener::bind("127.0.0.1:0")?;
    let address = busy.local_addr()?.to_string();
    let other = stack.path("other");
    let vkubelet = |run_dir: &str| {
        let mut command = Command::new(&stack.programs().vkubelet);
        command.args(["--node-name", "other", "--pod-manifest-path"]).arg(other.join("manifests"));
        command.arg("--state-dir").arg(other.join("state")).arg("--run-dir").arg(stack.path(run_dir));
        command
    };
    std::fs::create_dir_all(&other)?;
    let listeners = ["--agent-listen", "--billing-listen", "--http-listen"];
    for wanted in listeners {
        let mut command = vkubelet("other/run");
        for flag in listeners {
            command.args([flag, if flag == wanted { &address } else { "127.0.0.1:0" }]);
        }
        ended(&mut command)?.says(&[&address, "in use", wanted])?;
        let left: Vec<_> = std::fs::read_dir(other.join("run"))?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(left.is_empty(), "{wanted}: left {left:?}");
    }
    let free = |command: &mut Command| {
        for flag in listeners {
            command.args([flag, "127.0.0.1:0"]);
        }
    };
    let mut command = vkubelet("vk-run");
    free(&mut command);
    let socket = stack.path("vk-run/vkubelet.sock");
    ended(&mut command)?.says(&[socket.to_str().context("a path")?, "another vkubelet answers there", "--run-dir"])?;
    let mut command = replaced(&stack.vkubelet_command(), "--run-dir", other.join("run").to_str().context("a path")?)?;
    let state = stack.path("vk-state");
    ended(&mut command)?.says(&[state.to_str().context("a path")?])?;

    let agent = replaced(&stack.agent_command(), "--http-listen", &address)?;
    let mut agent = replaced(&agent, "--state-dir", other.join("agent").to_str().context("a path")?)?;
    std::fs::create_dir_all(other.join("agent/pki"))?;
    std::fs::copy(stack.path("agent-state/pki/identity.json"), other.join("agent/pki/identity.json"))?;
    ended(&mut agent)?.says(&[&address, "in use", "--http-listen"])?;
    let left: Vec<_> = std::fs::read_dir(other.join("agent"))?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left.iter().all(|name| name == "pki" || name == "lock"), "left {left:?}");
    // A state directory of its own, but the run directory of the one in service.
    let mut agent = replaced(&stack.agent_command(), "--state-dir", other.join("agent").to_str().context("a path")?)?;
    let run_dir = stack.path("agent-run");
    ended(&mut agent)?.says(&["another agent is using it", run_dir.to_str().context("a path")?])?;
    ensure!(!other.join("agent/network").exists(), "it began with the network");
    // The same state directory: said before anything in it, or in the network, is touched.
    let mut agent = replaced(&stack.agent_command(), "--run-dir", other.join("agent-run").to_str().context("a path")?)?;
    let state = stack.path("agent-state");
    ended(&mut agent)?.says(&["another agent runs", state.to_str().context("a path")?])?;
    ensure!(!other.join("agent-run").exists(), "a run directory was made");

    ensure!(stack.vkubelet_is_up() && stack.host_is_ready()?, "the daemons in service were disturbed");
    pods.are_as_before(&stack)?;
    pods.clear(&stack)?;
    stack.down()
}

#[test]
fn e2e_what_is_wrong_with_a_command_line_is_said_before_any_port_is_bound() -> Result<()> {
    if !is_root("e2e_what_is_wrong_with_a_command_line_is_said_before_any_port_is_bound") {
        return Ok(());
    }
    let stack = Stack::up("flags")?;
    // Were a port bound first, the message would be about this one.
    let busy = TcpListener::bind("127.0.0.1:0")?;
    let address = busy.local_addr()?.to_string();
    let file = stack.path("config.toml");
    let config = file.to_str().context("a path")?.to_owned();
    let agent = |extra: &[&str]| -> Result<Command> {
        let mut command = replaced(&stack.agent_command(), "--http-listen", &address)?;
        command.args(extra);
        Ok(command)
    };
    let vkubelet = |extra: &[&str]| -> Result<Command> {
        let mut command = replaced(&stack.vkubelet_command(), "--http-listen", &address)?;
        command.args(extra);
        Ok(command)
    };
    ended(&mut agent(&["--pool-sise", "3"])?)?.says(&["--pool-sise", "--pool-size"])?;
    ended(&mut vkubelet(&["--node-nam", "x"])?)?.says(&["--node-nam"])?;
    std::fs::write(&file, "pool-sise = 3\n")?;
    ended(&mut agent(&["--config", &config])?)?.says(&["pool-sise", &config])?;
    std::fs::write(&file, "node-nam = \"x\"\n")?;
    ended(&mut vkubelet(&["--config", &config])?)?.says(&["node-nam", &config])?;
    std::fs::write(&file, "pool-size = \"many\"\n")?;
    ended(&mut agent(&["--config", &config])?)?.says(&["pool-size", &config])?;
    let mut client = Command::new(&stack.programs().client);
    ended(client.args(["ps", "--wyde"]))?.says(&["--wyde", "--wide"])?;
    // Root outside, nobody inside: what an agent without rights sees.
    let mut nobody = Command::new("unshare");
    nobody.arg("--user").arg(stack.agent_command().get_program()).args(stack.agent_command().get_args());
    ended(&mut nobody)?.says(&["must run as root"])?;
    stack.down()
}

#[test]
fn e2e_a_token_that_is_wrong_expired_used_up_or_of_another_ca_joins_nobody() -> Result<()> {
    if !is_root("e2e_a_token_that_is_wrong_expired_used_up_or_of_another_ca_joins_nobody") {
        return Ok(());
    }
    let stack = Stack::up("tokens")?;
    let (address, hash) = (stack.address("agent")?, stack.vkubelet_says(&["ca-hash"])?);
    let state = stack.path("other-agent");
    let join = |address: &str, token: &str, hash: &str, host: &str| {
        let mut command = Command::new(&stack.programs().agent);
        command.args(["join", address, "--token", token, "--ca-hash", hash, "--host-id", host, "--state-dir"]);
        command.arg(&state);
        command
    };
    let create = |flags: &[&str]| stack.vkubelet_says(&[&["token", "create"], flags].concat());
    let good = create(&[])?;
    let refused = ["TOKEN_REFUSED", "vkubelet token create"];
    ended(&mut join(&address, "not-a-token", &hash, "host-2"))?.says(&refused)?;
    let short = create(&["--ttl", "1s"])?;
    std::thread::sleep(Duration::from_millis(2100)); // past its second, and past a rounded one
    ended(&mut join(&address, &short, &hash, "host-2"))?.says(&refused)?;
    let of_another = create(&["--host-id", "host-9"])?;
    ended(&mut join(&address, &of_another, &hash, "host-2"))?.says(&refused)?;
    let zeros = format!("sha256:{}", "0".repeat(64));
    ended(&mut join(&address, &good, &zeros, "host-2"))?.says(&["not of the CA", "--ca-hash"])?;
    ended(&mut join(&address, &good, "sha256:beef", "host-2"))?.says(&["--ca-hash"])?;
    ended(&mut join("127.0.0.1:1", &good, &hash, "host-2"))?.says(&["127.0.0.1:1", "refused"])?;
    // Taken by another key.
    ended(&mut join(&address, &good, &hash, "host-1"))?.says(&["host-1", "another --host-id", "--rejoin"])?;
    let mut run = replaced(&stack.agent_command(), "--state-dir", state.to_str().context("a path")?)?;
    ended(&mut run)?.says(&["has not joined", "nodeless-agent join"])?;
    ensure!(stack.vkubelet_says(&["host", "list"])?.lines().count() == 1, "somebody joined");
    // After all that, a good one is good; and when it was for one host, it is used up.
    let once = create(&["--uses", "1"])?;
    ended(&mut join(&address, &once, &hash, "host-2"))?.succeeds()?;
    std::fs::remove_dir_all(&state)?;
    ended(&mut join(&address, &once, &hash, "host-3"))?.says(&refused)?;
    ensure!(stack.vkubelet_says(&["host", "list"])?.lines().count() == 2, "one more has joined");
    stack.down()
}

#[test]
fn e2e_a_mass_deletion_without_marks_is_held_until_an_operator_releases_it() -> Result<()> {
    if !is_root("e2e_a_mass_deletion_without_marks_is_held_until_an_operator_releases_it") {
        return Ok(());
    }
    let mut stack = Stack::up("brake")?;
    let pods = Running::start(&stack, 10)?;
    // vkubelet forgets its pods: whatever it tells now lacks all of them, and none has a mark.
    stack.vkubelet.take().context("vkubelet runs")?.kill()?;
    std::fs::remove_dir_all(stack.path("vk-state/manifest"))?;
    std::fs::remove_dir_all(stack.path("manifests"))?;
    std::fs::create_dir(stack.path("manifests"))?;
    stack.start_vkubelet()?;
    wait("the host holds ten pods", || Ok(held(&stack)? == 10))?;
    let shown = stack.client_text(&["hosts"])?;
    ensure!(shown.contains("Ready (10 pods held)"), "{shown}");
    wait("vkubelet is alarmed", || log_says(&stack, "vkubelet", &["ERROR", "holds a mass deletion", "hosts release"]))?;
    wait("the agent is alarmed", || log_says(&stack, "agent", &["ERROR", "without a deletion mark: held"]))?;
    let (_, metrics) = http::get(&stack.address("http")?, "/metrics", None)?;
    ensure!(metrics.contains("\nnodeless_vkubelet_pods_held_by_brake 10\n"), "{metrics}");
    let agent: Value = serde_json::from_slice(&std::fs::read(stack.path("agent-run/addresses.json"))?)?;
    let (_, metrics) = http::get(agent["http"].as_str().context("the agent's address")?, "/metrics", None)?;
    let counted = metrics.lines().find(|line| line.contains("mass_delete_brake_holds_total "));
    ensure!(counted.is_some_and(|line| !line.ends_with(" 0")), "{counted:?}");
    // They go on, and so does everything else.
    ensure!(pods.sandboxes(&stack)? == 10 && pods.processes_live(&stack), "held pods do not go on");
    put(&stack, "late", json!({}))?;
    wait("a new pod runs", || Ok(stack.client(&["ps"])?[0]["phase"] == "Running"))?;
    stack.agent.take().context("the agent runs")?.kill()?;
    stack.start_agent()?;
    wait("they are held again after a restart", || Ok(stack.host_is_ready()? && held(&stack)? == 10))?;
    ensure!(pods.processes_live(&stack), "held pods do not go on");
    let told = stack.client(&["hosts", "release", "host-1"])?;
    ensure!(told["pods"].as_array().is_some_and(|pods| pods.len() == 10), "{told}");
    wait("only the new pod is left", || Ok(pods.sandboxes(&stack)? == 1))?;
    ensure!(held(&stack)? == 0, "still held");
    let mut again = Command::new(&stack.programs().client);
    again.arg("--socket").arg(stack.path("vk-run/vkubelet.sock")).args(["hosts", "release", "host-1"]);
    ended(&mut again)?.says(&["host-1", "holds no removal"])?;
    wait("their bills are final", || {
        let records = stack.billing("/v1/records")?;
        let records = records["records"].as_array().cloned().unwrap_or_default();
        Ok(records.iter().filter(|record| record["state"] == "final").count() == 10)
    })?;
    stack.remove_manifest("late")?;
    wait("the new pod is gone", || Ok(items(&stack.client(&["ps"])?).is_empty()))?;
    stack.down()
}

#[test]
fn e2e_an_old_vkubelet_that_comes_back_is_refused_and_pods_go_on() -> Result<()> {
    if !is_root("e2e_an_old_vkubelet_that_comes_back_is_refused_and_pods_go_on") {
        return Ok(());
    }
    let mut stack = Stack::up("epoch")?;
    let pods = Running::start(&stack, 2)?;
    let epoch = stack.path("vk-state/hosts/epoch.json");
    let old = std::fs::read(&epoch)?;
    let mut newer: Value = serde_json::from_slice(&old)?;
    newer["epoch"] = (newer["epoch"].as_u64().context("an epoch")? + 1_000_000).into();
    restart(&mut stack, &serde_json::to_vec(&newer)?)?;
    wait("the newer one has taken over", || stack.host_is_ready())?;
    pods.are_as_before(&stack)?;
    // With the epoch that it took: a number is never given out twice.
    let newest = std::fs::read(&epoch)?;
    restart(&mut stack, &old)?;
    wait("the old one hears that it is old", || {
        log_says(
            &stack,
            "vkubelet",
            &["the agent refused our greeting", "EPOCH_FENCED", "another vkubelet has taken over"],
        )
    })?;
    let refused = ["a call from an overtaken vkubelet was refused"];
    wait("the agent says so too", || log_says(&stack, "agent", &refused))?;
    ensure!(items(&stack.client(&["hosts"])?).is_empty(), "a host obeys the old one");
    // What it would change does not reach the host.
    pods.remove_one(&stack)?;
    put(&stack, "of-the-old-one", json!({}))?;
    std::thread::sleep(Duration::from_secs(2)); // long enough for what must not happen
    ensure!(pods.sandboxes(&stack)? == 2 && pods.processes_live(&stack), "the old one changed something");
    restart(&mut stack, &newest)?;
    wait("the newer one is obeyed", || Ok(stack.host_is_ready()? && pods.sandboxes(&stack)? == 2))?;
    wait("what was asked of it meanwhile is done", || {
        let pods = stack.client(&["ps"])?;
        Ok(items(&pods).len() == 2
            && items(&pods).iter().any(|pod| pod["name"] == "of-the-old-one" && pod["phase"] == "Running"))
    })?;
    stack.remove_manifest("of-the-old-one")?;
    pods.clear(&stack)?;
    stack.down()
}

#[test]
fn e2e_a_pod_without_room_waits_and_says_why_and_starts_when_there_is_room() -> Result<()> {
    if !is_root("e2e_a_pod_without_room_waits_and_says_why_and_starts_when_there_is_room") {
        return Ok(());
    }
    let stack = Stack::up_with("room", &["--capacity-cpu", "300m"], &[])?;
    let asks = |milli: u32| json!({"requests": {"cpu": format!("{milli}m")}});
    put(&stack, "first", asks(200))?;
    wait("the first runs", || Ok(stack.client(&["ps"])?[0]["phase"] == "Running"))?;
    put(&stack, "second", asks(200))?;
    put(&stack, "never", asks(400))?;
    let named = |name: &str| -> Result<Value> {
        let pods = stack.client(&["ps"])?;
        items(&pods).iter().find(|pod| pod["name"] == name).cloned().with_context(|| format!("no pod {name}"))
    };
    let full = "0/1 hosts are available: 1 with insufficient cpu.";
    let small = format!("{full} None of them could take the pod even when empty.");
    for (name, why) in [("second", full), ("never", small.as_str())] {
        wait("it waits and says why", || {
            let pod = named(name)?;
            let told = items(&pod["events"]).iter().any(|e| e["reason"] == "FailedScheduling" && e["message"] == why);
            let condition = items(&pod["status"]["conditions"])
                .iter()
                .any(|c| c["reason"] == "WaitingForHost" && c["status"] == "False" && c["message"] == why);
            ensure!(pod["phase"] == "Pending" && told && condition, "{pod}");
            Ok(true)
        })?;
    }
    stack.remove_manifest("first")?;
    wait("the second starts in its room", || Ok(named("second")?["phase"] == "Running"))?;
    ensure!(named("never")?["phase"] == "Pending", "what fits nowhere waits on");
    stack.remove_manifest("second")?;
    stack.remove_manifest("never")?;
    wait("all are gone", || Ok(items(&stack.client(&["ps"])?).is_empty()))?;
    // What never held anything costs nothing.
    let page = stack.billing("/v1/records")?;
    ensure!(page["records"].as_array().is_some_and(|records| records.len() == 2), "{page}");
    stack.down()
}

/// How many pods the host holds that are not wanted any more.
fn held(stack: &Stack) -> Result<usize> {
    Ok(stack.client(&["hosts"])?[0]["held_pods"].as_array().map_or(0, Vec::len))
}

/// vkubelet is killed, its last epoch is set, and it is started again.
fn restart(stack: &mut Stack, epoch: &[u8]) -> Result<()> {
    stack.vkubelet.take().context("vkubelet runs")?.kill()?;
    std::fs::write(stack.path("vk-state/hosts/epoch.json"), epoch)?;
    stack.start_vkubelet()
}

/// The same command with another value after a flag that it has.
fn replaced(command: &Command, flag: &str, value: &str) -> Result<Command> {
    let arguments: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
    let at = arguments.iter().position(|argument| argument == flag).with_context(|| format!("no {flag}"))?;
    let mut other = Command::new(command.get_program());
    other.args(&arguments[..=at]).arg(value).args(&arguments[at + 2..]);
    Ok(other)
}
