//! A pod's life as its author sees it through a real API server: restarts and their back-off, init containers and sidecars,
//! what containers share, what they are given, and how they end.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::bed::{Bed, Case, phase, same, shell, terminated, waiting, walk};
use tests::stack::is_root;

#[test]
fn e2e_a_pods_life_is_told_as_a_kubelet_tells_it() {
    if !is_root("e2e_a_pods_life_is_told_as_a_kubelet_tells_it") {
        return;
    }
    let mut bed = Bed::up("lifecycle", &[]).unwrap();
    if walk(&bed, &[RESTARTS, ENDINGS, GIVEN].concat()) {
        a_token_is_swapped_in_a_running_pod(&mut bed).unwrap();
    }
    bed.down().unwrap();
}

/// A new vkubelet asks for new tokens, as an old one does when a token has lived 80 % of its time (at least 480 s: that is held
/// by `a_token_is_replaced_in_a_running_pod_before_it_ends` and `a_token_is_asked_for_again_only_after_eighty_percent_of_its_life`).
fn a_token_is_swapped_in_a_running_pod(bed: &mut Bed) -> Result<()> {
    let image = bed.registry.image("swapped", &[])?;
    let script = "cd /var/run/secrets/kubernetes.io/serviceaccount; first=$(cat token); echo ready; \
                  while [ \"$first\" = \"$(cat token)\" ]; do sleep 0.1; done; [ -n \"$(cat token)\" ] && echo swapped; sleep 1000";
    bed.pod("swapped", json!({"terminationGracePeriodSeconds": 0, "containers": [shell("main", &image, script)]}))?;
    bed.until("swapped", "it runs", |pod| phase(pod) == "Running")?;
    tests::stack::wait("it is ready", || Ok(bed.kubectl_says(&["logs", "swapped"])? == "ready\n"))?;
    let old = bed.stack.vkubelet.take().context("no vkubelet")?;
    old.terminate(Duration::from_secs(20))?;
    bed.stack.start_vkubelet()?;
    tests::stack::wait("the pod sees another token", || {
        Ok(bed.kubectl_says(&["logs", "swapped"])? == "ready\nswapped\n")
    })?;
    let pod = bed.until("swapped", "it still runs", |pod| phase(pod) == "Running")?;
    same("the restart count", &pod["status"]["containerStatuses"][0]["restartCount"], &json!(0))
}

const RESTARTS: &[Case] = &[
    ("Always restarts what succeeded, at once and then after 10 s, and says so", |bed| {
        let image = bed.registry.image("always", &[])?;
        bed.pod(
            "always",
            json!({"terminationGracePeriodSeconds": 0, "containers": [shell("main", &image, "exit 0")]}),
        )?;
        let pod = bed.until("always", "it backs off", |pod| waiting(pod)["reason"] == "CrashLoopBackOff")?;
        let status = &pod["status"]["containerStatuses"][0];
        same("the phase", phase(&pod), "Running")?;
        same("the restart count", &status["restartCount"], &json!(1))?;
        let last = &status["lastState"]["terminated"];
        same("the last end", (&last["reason"], &last["exitCode"]), (&json!("Completed"), &json!(0)))?;
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        let display = format!("always_{}({uid})", bed.namespace);
        let message = format!("back-off 10s restarting failed container=main pod={display}");
        same("the message", waiting(&pod)["message"].as_str(), Some(message.as_str()))?;
        let told = format!("Back-off restarting failed container main in pod {display}");
        bed.until_event_says("always", "Warning", "BackOff", &told)?;
        bed.until_event_says("always", "Normal", "Created", "Container created")?;
        bed.until_event_says("always", "Normal", "Started", "Container started")?;
        let pod = bed.until("always", "it was restarted again", |pod| {
            pod["status"]["containerStatuses"][0]["restartCount"] == 2 && waiting(pod)["reason"] == "CrashLoopBackOff"
        })?;
        let message = message.replace("10s", "20s");
        same("the next message", waiting(&pod)["message"].as_str(), Some(message.as_str()))?;
        let finished = |pod: &Value, at: &str| -> Result<i64> {
            let time = pod["status"]["containerStatuses"][0]["lastState"]["terminated"][at].as_str();
            Ok(time.context("no time")?.parse::<jiff::Timestamp>()?.as_second())
        };
        let pause =
            finished(&pod, "startedAt")? - last["finishedAt"].as_str().unwrap().parse::<jiff::Timestamp>()?.as_second();
        // Not too soon: it may be late on a machine that has much else to do.
        ensure!((9..=60).contains(&pause), "it waited {pause} s, not 10");
        Ok(())
    }),
    ("OnFailure restarts what failed and leaves what succeeded", |bed| {
        let image = bed.registry.image("on-failure", &[])?;
        let mut fails = shell("fails", &image, "test -e /seen/it && exit 0; touch /seen/it; exit 7");
        fails["volumeMounts"] = json!([{"name": "seen", "mountPath": "/seen"}]);
        bed.pod(
            "on-failure",
            json!({"restartPolicy": "OnFailure", "containers": [fails, shell("works", &image, "exit 0")],
            "volumes": [{"name": "seen", "emptyDir": {}}]}),
        )?;
        let pod = bed.until("on-failure", "it succeeds", |pod| phase(pod) == "Succeeded")?;
        let [fails, works] = [0, 1].map(|i| &pod["status"]["containerStatuses"][i]);
        same("restarts", (&fails["restartCount"], &works["restartCount"]), (&json!(1), &json!(0)))?;
        let last = &fails["lastState"]["terminated"];
        same("the failure", (&last["exitCode"], &last["reason"]), (&json!(7), &json!("Error")))?;
        same("the end", &fails["state"]["terminated"]["reason"], &json!("Completed"))
    }),
    ("Never leaves a failure as it is", |bed| {
        let image = bed.registry.image("never", &[])?;
        let script = "echo the last words > /dev/termination-log; exit 3";
        bed.pod("never", json!({"restartPolicy": "Never", "containers": [shell("main", &image, script)]}))?;
        let pod = bed.until("never", "it has failed", |pod| phase(pod) == "Failed")?;
        let end = terminated(&pod);
        same("the end", (&end["exitCode"], &end["reason"]), (&json!(3), &json!("Error")))?;
        same("the message", &end["message"], &json!("the last words\n"))?;
        same("the restart count", &pod["status"]["containerStatuses"][0]["restartCount"], &json!(0))?;
        let conditions = pod["status"]["conditions"].as_array().context("no conditions")?;
        let ready = conditions.iter().find(|c| c["type"] == "Ready").context("no Ready")?;
        same("Ready", (&ready["status"], &ready["reason"]), (&json!("False"), &json!("PodFailed")))
    }),
    ("init containers run in order before the others", |bed| {
        let image = bed.registry.image("ordered", &[])?;
        let step = |name: &str, list: &str| {
            let mut container = shell(name, &image, &format!("echo {name} >> /scratch/{list}; sleep 0.3"));
            container["volumeMounts"] = json!([{"name": "scratch", "mountPath": "/scratch"}]);
            container
        };
        let mut main = shell("main", &image, "cat /scratch/order");
        main["volumeMounts"] = json!([{"name": "scratch", "mountPath": "/scratch"}]);
        bed.pod(
            "ordered",
            json!({"restartPolicy": "Never", "containers": [main],
            "initContainers": [step("one", "order"), step("two", "order"), step("three", "order")],
            "volumes": [{"name": "scratch", "emptyDir": {}}]}),
        )?;
        let pod = bed.until("ordered", "it succeeds", |pod| phase(pod) == "Succeeded")?;
        same("the order", bed.kubectl_says(&["logs", "ordered", "-c", "main"])?.as_str(), "one\ntwo\nthree\n")?;
        for init in pod["status"]["initContainerStatuses"].as_array().context("no init containers")? {
            same("its end", &init["state"]["terminated"]["reason"], &json!("Completed"))?;
            same("it is ready", &init["ready"], &json!(true))?;
        }
        Ok(())
    }),
    ("an init container that fails for good fails the pod", |bed| {
        let image = bed.registry.image("init-fails", &[])?;
        bed.pod(
            "init-fails",
            json!({"restartPolicy": "Never", "containers": [shell("main", &image, "echo no")],
            "initContainers": [shell("first", &image, "exit 5"), shell("second", &image, "exit 0")]}),
        )?;
        let pod = bed.until("init-fails", "it has failed", |pod| phase(pod) == "Failed")?;
        let [first, second] = [0, 1].map(|i| &pod["status"]["initContainerStatuses"][i]["state"]);
        same("the first", &first["terminated"]["exitCode"], &json!(5))?;
        same("the second", &second["waiting"]["reason"], &json!("PodInitializing"))?;
        same("the main one", &waiting(&pod)["reason"], &json!("PodInitializing"))
    }),
    ("an init container that fails is tried again, and kubectl says Init:CrashLoopBackOff", |bed| {
        let image = bed.registry.image("init-again", &[])?;
        bed.pod(
            "init-again",
            json!({"terminationGracePeriodSeconds": 0, "containers": [shell("main", &image, "echo no")],
            "initContainers": [shell("first", &image, "exit 1")]}),
        )?;
        let backs_off =
            |pod: &Value| pod["status"]["initContainerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
        let pod = bed.until("init-again", "it backs off", backs_off)?;
        same("the phase", phase(&pod), "Pending")?;
        let table = bed.kubectl_says(&["get", "pod", "init-again", "--no-headers"])?;
        ensure!(table.contains("Init:CrashLoopBackOff") && table.contains("0/1"), "{table}");
        Ok(())
    }),
    ("a sidecar starts before the others, stays, and goes after them", |bed| {
        let image = bed.registry.image("sidecar", &[])?;
        let script = "trap 'cat /scratch/main; echo sidecar ends; exit 0' TERM; touch /scratch/sidecar; while :; do sleep 1000 & wait; done";
        let mut sidecar = shell("sidecar", &image, script);
        sidecar["restartPolicy"] = "Always".into();
        // The others wait for its start, and may be faster than what it does first.
        let script = "until test -e /scratch/sidecar; do sleep 0.1; done; echo main saw it | tee /scratch/main";
        let mut main = shell("main", &image, script);
        for container in [&mut sidecar, &mut main] {
            container["volumeMounts"] = json!([{"name": "scratch", "mountPath": "/scratch"}]);
        }
        bed.pod(
            "sidecar",
            json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 10,
            "containers": [main], "initContainers": [sidecar], "volumes": [{"name": "scratch", "emptyDir": {}}]}),
        )?;
        let pod = bed.until("sidecar", "it succeeds", |pod| phase(pod) == "Succeeded")?;
        let end = |kind: &str| pod["status"][kind][0]["state"]["terminated"].clone();
        let (own, others) = (end("initContainerStatuses"), end("containerStatuses"));
        same("the sidecar's end", &own["exitCode"], &json!(0))?;
        let times = [&own["startedAt"], &others["startedAt"], &others["finishedAt"], &own["finishedAt"]];
        let times: Vec<_> = times.iter().filter_map(|time| time.as_str()).collect();
        ensure!(times.len() == 4 && times.is_sorted(), "not one after the other: {times:?}");
        let log = bed.kubectl_says(&["logs", "sidecar", "-c", "sidecar"])?;
        same("its log", log.as_str(), "main saw it\nsidecar ends\n")
    }),
];

const ENDINGS: &[Case] = &[
    ("a pod that heeds SIGTERM ends with its own code, and its object goes", |bed| {
        let image = bed.registry.image("heeds", &[])?;
        let script = "trap 'echo told; exit 0' TERM; echo ready; while :; do sleep 1000 & wait; done";
        let took = ends(bed, "heeds", &image, script, 30, None)?;
        ensure!(took < Duration::from_secs(30), "it took {took:?}, its whole grace period");
        let end = last_end(bed, "heeds")?;
        same("the exit code", &end["exitCode"], &json!(0))?;
        bed.until_event_says("heeds", "Normal", "Killing", "Stopping container main")
    }),
    ("a pod that ignores SIGTERM is killed after its grace period", |bed| {
        let image = bed.registry.image("ignores", &[])?;
        let script = "trap '' TERM; echo ready; while :; do sleep 1; done";
        let took = ends(bed, "ignores", &image, script, 3, None)?;
        ensure!((3.0..60.0).contains(&took.as_secs_f64()), "it took {took:?}, not 3 s");
        let end = last_end(bed, "ignores")?;
        same("the exit code", &end["exitCode"], &json!(137))
    }),
    ("another grace period at deletion decides", |bed| {
        let image = bed.registry.image("shorter", &[])?;
        let script = "trap '' TERM; echo ready; while :; do sleep 1; done";
        let took = ends(bed, "shorter", &image, script, 600, Some(1))?;
        ensure!(took < Duration::from_secs(60), "it took {took:?}, not 1 s");
        Ok(())
    }),
    ("grace 0 ends at once, and nothing is left behind", |bed| {
        let image = bed.registry.image("forced", &[])?;
        let script = "trap '' TERM; echo ready; while :; do sleep 1; done";
        bed.pod(
            "forced",
            json!({"terminationGracePeriodSeconds": 600, "containers": [shell("main", &image, script)]}),
        )?;
        bed.until("forced", "it runs", |pod| phase(pod) == "Running")?;
        bed.kubectl_says(&["delete", "pod", "forced", "--grace-period=0", "--force"])?;
        bed.until_gone("forced")?;
        tests::stack::wait("the host has forgotten it", || {
            let pods = bed.stack.client(&["ps"])?;
            Ok(!tests::stack::items(&pods).iter().any(|pod| pod["name"] == "forced"))
        })
    }),
    ("what a host forbids to a debug container is told, and the pod runs on", |bed| {
        let image = bed.registry.image("changed", &[])?;
        let container = shell("main", &image, "sleep 1000");
        bed.pod("changed", json!({"terminationGracePeriodSeconds": 0, "containers": [container]}))?;
        bed.until("changed", "it runs", |pod| phase(pod) == "Running")?;
        bed.kubectl_says(&[
            "debug",
            "changed",
            "-c",
            "debugger",
            &format!("--image={image}"),
            "--attach=false",
            "--",
            "sh",
        ])?;
        // kubectl's usual profile adds SYS_PTRACE.
        bed.until_event("changed", "Failed", |text| {
            text.contains("spec.ephemeralContainers[debugger].securityContext.capabilities.add (SYS_PTRACE")
        })?;
        let pod = bed.until("changed", "it runs on", |pod| phase(pod) == "Running")?;
        same("the restart count", &pod["status"]["containerStatuses"][0]["restartCount"], &json!(0))
    }),
    ("a deadline ends the pod", |bed| {
        let image = bed.registry.image("deadline", &[])?;
        bed.pod(
            "deadline",
            json!({"activeDeadlineSeconds": 2, "terminationGracePeriodSeconds": 0,
            "containers": [shell("main", &image, "sleep 1000")]}),
        )?;
        let pod = bed.until("deadline", "it has failed", |pod| phase(pod) == "Failed")?;
        same("the reason", &pod["status"]["reason"], &json!("DeadlineExceeded"))?;
        let message = "Pod was active on the node longer than the specified deadline";
        same("the message", &pod["status"]["message"], &json!(message))
    }),
];

const GIVEN: &[Case] = &[
    ("containers of a pod share network, IPC, hostname and volumes", |bed| {
        let image = bed.registry.image("shared", &[])?;
        let serve = "hostname > /scratch/name; readlink /proc/self/ns/ipc > /scratch/ipc; readlink /proc/self/ns/uts > /scratch/uts; \
                     echo hello > /scratch/hello; nc -l -p 8080 < /scratch/hello; echo served";
        let ask = "until [ -s /scratch/uts ]; do sleep 0.1; done; \
                   until nc 127.0.0.1 8080 </dev/null 2>/dev/null; do sleep 0.1; done; \
                   [ \"$(hostname)\" = \"$(cat /scratch/name)\" ] && [ \"$(readlink /proc/self/ns/ipc)\" = \"$(cat /scratch/ipc)\" ] && \
                   [ \"$(readlink /proc/self/ns/uts)\" = \"$(cat /scratch/uts)\" ] && hostname";
        let mut containers = [shell("serves", &image, serve), shell("asks", &image, ask)];
        for container in &mut containers {
            container["volumeMounts"] = json!([{"name": "scratch", "mountPath": "/scratch"}]);
        }
        bed.pod(
            "shared",
            json!({"restartPolicy": "Never", "containers": containers, "hostname": "both",
            "volumes": [{"name": "scratch", "emptyDir": {}}]}),
        )?;
        bed.until("shared", "it succeeds", |pod| phase(pod) == "Succeeded")?;
        same("what was heard", bed.kubectl_says(&["logs", "shared", "-c", "asks"])?.as_str(), "hello\nboth\n")
    }),
    ("the status has addresses and times, and kubectl shows them", |bed| {
        let image = bed.registry.image("addressed", &[])?;
        let containers = json!([shell("main", &image, "hostname -i; sleep 1000")]);
        bed.pod("addressed", json!({"terminationGracePeriodSeconds": 0, "containers": containers}))?;
        let ready = |pod: &Value| pod["status"]["containerStatuses"][0]["ready"] == true;
        let pod = bed.until("addressed", "it is ready", ready)?;
        let status = &pod["status"];
        let ip = status["podIP"].as_str().context("no pod IP")?;
        same("the IPs", &status["podIPs"], &json!([{"ip": ip}]))?;
        ensure!(status["hostIP"].is_string() && status["hostIPs"].is_array(), "no host IP: {status}");
        let start: jiff::Timestamp = status["startTime"].as_str().context("no start time")?.parse()?;
        let made: jiff::Timestamp = pod["metadata"]["creationTimestamp"].as_str().context("no time")?.parse()?;
        let seen = jiff::Timestamp::now();
        ensure!((made.as_second()..=seen.as_second()).contains(&start.as_second()), "started {start}, made {made}");
        same("the generation", &status["observedGeneration"], &pod["metadata"]["generation"])?;
        let row = bed.kubectl_says(&["get", "pod", "addressed", "-o", "wide", "--no-headers"])?;
        let words: Vec<&str> = row.split_whitespace().collect();
        same(
            "the row",
            &[words[0], words[1], words[2], words[3], words[5], words[6]][..],
            &["addressed", "1/1", "Running", "0", ip, "test-node"][..],
        )?;
        let mut seen = String::new();
        let waited = tests::stack::wait("it sees its address", || {
            seen = bed.kubectl_says(&["logs", "addressed"])?;
            Ok(seen.trim() == ip)
        });
        waited.with_context(|| format!("it sees {seen:?}, not {ip}"))
    }),
    ("environment comes from fields, resources, ConfigMaps and Secrets", |bed| {
        let image = bed.registry.image("environment", &[])?;
        bed.create(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "env"},
            "data": {"COLOUR": "blue", "SIZE": "10"}}))?;
        bed.create(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "env"},
            "stringData": {"PASSWORD": "swordfish"}}))?;
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let mut container = shell("main", &image, "env | grep ^T_ | sort");
        container["resources"] = json!({"requests": {"cpu": "10m"}, "limits": {"memory": "64Mi"}});
        container["envFrom"] = json!([{"prefix": "T_", "configMapRef": {"name": "env"}}]);
        container["env"] = json!([
            field("T_NAME", "metadata.name"), field("T_NAMESPACE", "metadata.namespace"), field("T_UID", "metadata.uid"),
            field("T_NODE", "spec.nodeName"), field("T_IP", "status.podIP"), field("T_HOST", "status.hostIP"),
            field("T_ACCOUNT", "spec.serviceAccountName"), field("T_LABEL", "metadata.labels['app']"),
            {"name": "T_MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            {"name": "T_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "env", "key": "PASSWORD"}}},
            {"name": "T_JOINED", "value": "$(T_COLOUR)-$(T_PASSWORD)-$$(T_SIZE)-$(NOPE)"},
        ]);
        let spec = json!({"restartPolicy": "Never", "containers": [container], "nodeName": "test-node"});
        bed.create(&json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "environment", "labels": {"app": "seen"}}, "spec": spec}))?;
        let pod = bed.until("environment", "it succeeds", |pod| phase(pod) == "Succeeded")?;
        let (uid, status) = (pod["metadata"]["uid"].as_str().unwrap_or_default(), &pod["status"]);
        let seen_ip = bed.versions("environment").iter().find_map(|v| v["status"]["podIP"].as_str().map(str::to_owned));
        let wanted = format!(
            "T_ACCOUNT=default\nT_COLOUR=blue\nT_HOST={}\nT_IP={}\nT_JOINED=blue-swordfish-$(T_SIZE)-$(NOPE)\nT_LABEL=seen\n\
             T_MEMORY=64\nT_NAME=environment\nT_NAMESPACE={}\nT_NODE=test-node\nT_PASSWORD=swordfish\nT_SIZE=10\nT_UID={uid}\n",
            status["hostIP"].as_str().unwrap_or_default(),
            seen_ip.unwrap_or_default(),
            bed.namespace,
        );
        same("the environment", bed.kubectl_says(&["logs", "environment"])?.as_str(), wanted.as_str())
    }),
    ("every pod has its token, the cluster's certificate and its namespace", |bed| {
        let image = bed.registry.image("token", &[])?;
        let dir = "/var/run/secrets/kubernetes.io/serviceaccount";
        let script = format!(
            "cd {dir} && cut -d. -f2 token && cat namespace && echo && head -n 1 ca.crt && ls && \
             stat -f -c %T . && ! touch x 2>/dev/null && sleep 1000"
        );
        let mut spec = json!({"terminationGracePeriodSeconds": 0, "containers": [shell("main", &image, &script)]});
        spec["volumes"] = json!([{"name": "short", "projected": {"sources": [
            {"serviceAccountToken": {"path": "vault", "audience": "vault", "expirationSeconds": 600}}]}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "short", "mountPath": "/short"}]);
        bed.pod("token", spec)?;
        let pod = bed.until("token", "it runs", |pod| phase(pod) == "Running")?;
        let mut log = String::new();
        tests::stack::wait("it has looked at all of it", || {
            log = bed.kubectl_says(&["logs", "token"])?;
            Ok(log.ends_with("tmpfs\n"))
        })?;
        let lines: Vec<&str> = log.lines().collect();
        let claims = String::from_utf8(base64_url(lines.first().context("no token")?)?)?;
        let claims: Value = serde_json::from_str(&claims)?;
        let bound = &claims["kubernetes.io"];
        same("its pod", &bound["pod"]["uid"], &pod["metadata"]["uid"])?;
        same("its account", &bound["serviceaccount"]["name"], &json!("default"))?;
        same(
            "the rest",
            &lines[1..],
            &[&bed.namespace, "-----BEGIN CERTIFICATE-----", "ca.crt", "namespace", "token", "tmpfs"],
        )
    }),
];

/// Runs a script that prints one line when it is ready, deletes its pod, and says how long its object stayed.
fn ends(bed: &Bed, name: &str, image: &str, script: &str, grace: u32, at_deletion: Option<u32>) -> Result<Duration> {
    let containers = json!([shell("main", image, script)]);
    bed.pod(name, json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": grace, "containers": containers}))?;
    bed.until(name, "it runs", |pod| phase(pod) == "Running")?;
    tests::stack::wait("the script is ready", || Ok(bed.kubectl_says(&["logs", name])? == "ready\n"))?;
    let asked = Instant::now();
    bed.delete(name, at_deletion)?;
    bed.until_gone(name)?;
    Ok(asked.elapsed())
}

/// How the main container had ended when the object was seen last.
fn last_end(bed: &Bed, name: &str) -> Result<Value> {
    let versions = bed.versions(name);
    let end = versions.iter().rev().map(terminated).find(|end| end.is_object()).cloned();
    end.context("its end was never told")
}

/// A part of a JSON web token.
fn base64_url(text: &str) -> Result<Vec<u8>> {
    use base64::Engine as _;
    Ok(base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text)?)
}
