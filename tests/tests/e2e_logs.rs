//! `kubectl logs` through a real API server, byte for byte as a kubelet answers.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tests::bed::{Bed, Case, GO, PATIENCE, phase, same, shell, terminated, walk};
use tests::registry::Fault;
use tests::stack::{self, is_root};

#[test]
fn e2e_kubectl_logs_says_what_a_kubelet_would() {
    if !is_root("e2e_kubectl_logs_says_what_a_kubelet_would") {
        return;
    }
    let mut bed = Bed::up("logs", &[]).unwrap();
    if walk(&bed, CASES) {
        logs_outlive_the_agent(&mut bed).unwrap();
    }
    bed.down().unwrap();
}

/// Of a finished pod, of a running container's present and previous attempt, of one that waits for its restart.
fn logs_outlive_the_agent(bed: &mut Bed) -> Result<()> {
    let ask = |bed: &Bed| -> Result<Vec<String>> {
        let questions: [&[&str]; 4] = [&["counted"], &["again"], &["again", "--previous"], &["several", "-c", "first"]];
        questions.iter().map(|words| bed.kubectl_says(&[&["logs"], *words].concat())).collect()
    };
    let before = ask(bed)?;
    bed.stack.agent.take().context("no agent")?.kill()?;
    bed.stack.start_agent()?;
    let mut after = Vec::new();
    let asked = stack::wait("the logs can be read again", || {
        after = ask(bed)?;
        Ok(after == before)
    });
    asked.with_context(|| format!("before {before:?}, after {after:?}"))
}

const CASES: &[Case] = &[
    ("a finished pod's log is whole, and its options choose from it", |bed| {
        let image = bed.registry.image("counted", &[])?;
        // Seconds apart, so that a time between them can be named.
        let script = "echo one; echo two >&2; sleep 3; echo three; printf four";
        bed.pod("counted", never(json!([shell("main", &image, script)])))?;
        let pod = bed.until("counted", "it succeeds", |pod| phase(pod) == "Succeeded")?;
        let logs = |options: &[&str]| bed.kubectl_says(&[&["logs", "counted"], options].concat());
        // No order is promised between two streams.
        let all = logs(&[])?;
        let (first, second) = if all.starts_with("two") { ("two", "one") } else { ("one", "two") };
        let whole = format!("{first}\n{second}\nthree\nfour");
        same("all", all.as_str(), whole.as_str())?;
        same("tail 2", logs(&["--tail=2"])?.as_str(), "three\nfour")?;
        same("tail 0", logs(&["--tail=0"])?.as_str(), "")?;
        same("tail 99", logs(&["--tail=99"])?, whole.clone())?;
        same("limit 6", logs(&["--limit-bytes=6"])?.as_str(), &whole[..6])?;
        same("tail 2, limit 7", logs(&["--tail=2", "--limit-bytes=7"])?.as_str(), "three\nf")?;
        same("follow", logs(&["-f"])?, whole.clone())?;
        same("since an hour", logs(&["--since=1h"])?, whole.clone())?;

        let stamped = logs(&["--timestamps"])?;
        let (mut times, mut texts) = (Vec::new(), Vec::new());
        for line in stamped.lines() {
            let (time, text) = line.split_once(' ').with_context(|| format!("no time: {line}"))?;
            // RFC 3339 with nine digits, as a kubelet prints it.
            ensure!(time.len() == "2026-11-21T04:00:00.000000000Z".len() && time.ends_with('Z'), "{time}");
            times.push(time.parse::<jiff::Timestamp>()?);
            texts.push(text);
        }
        same("the texts", texts, vec![first, second, "three", "four"])?;
        ensure!(times.is_sorted(), "{times:?}");
        let since = format!("--since-time={}", times[2]);
        same("since the third", logs(&[&since])?.as_str(), "three\nfour")?;
        let told = |at: &str| -> Result<i64> {
            Ok(terminated(&pod)[at].as_str().context("no time")?.parse::<jiff::Timestamp>()?.as_second())
        };
        let (began, ended) = (told("startedAt")?, told("finishedAt")?);
        ensure!(times.iter().all(|time| (began..=ended).contains(&time.as_second())), "{times:?}: {began} to {ended}");
        while age(times[3]) <= Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(20));
        }
        same("since a second", logs(&["--since=1s"])?.as_str(), "")
    }),
    ("a live log arrives line by line and ends with its container", |bed| {
        let image = bed.registry.image("live", &[])?;
        let script = format!("echo one; sleep 1; echo two; until [ -e {GO} ]; do sleep 0.1; done; echo three");
        bed.pod("live", never(json!([shell("main", &image, &script)])))?;
        bed.until("live", "it runs", |pod| phase(pod) == "Running")?;
        let mut follower = Follower::start(bed, &["logs", "-f", "live"])?;
        same("a line", follower.line()?.as_str(), "one\n")?;
        same("a line", follower.line()?.as_str(), "two\n")?;
        // What came, came before there was any more.
        bed.go("live")?;
        same("a line", follower.line()?.as_str(), "three\n")?;
        follower.ends()
    }),
    ("a follower that begins with the last line sees what comes, over a rotation too", |bed| {
        let image = bed.registry.image("rotated", &[])?;
        // 12 MB: more than one file of 10 MiB.
        let script = "echo begins; until [ -e /go ]; do sleep 0.1; done; i=0; while [ $i -lt 120000 ]; do echo $i-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; i=$((i+1)); done; echo end";
        bed.pod("rotated", never(json!([shell("main", &image, script)])))?;
        bed.until("rotated", "it runs", |pod| phase(pod) == "Running")?;
        let mut follower = Follower::start(bed, &["logs", "-f", "--tail=1", "rotated"])?;
        same("the last line so far", follower.line()?.as_str(), "begins\n")?;
        bed.go("rotated")?;
        for i in 0..120_000 {
            let line = follower.line()?;
            ensure!(line.starts_with(&format!("{i}-x")), "line {i} is {line:?}");
        }
        same("the last line", follower.line()?.as_str(), "end\n")?;
        follower.ends()
    }),
    ("long lines are joined from their parts", |bed| {
        let image = bed.registry.image("long", &[])?;
        // One line of 50,000 bytes, an empty one, one of exactly 16 KiB, one without an end.
        let script =
            "head -c 50000 /dev/zero | tr '\\0' a; echo; echo; head -c 16384 /dev/zero | tr '\\0' b; echo; printf c";
        bed.pod("long", never(json!([shell("main", &image, script)])))?;
        bed.until("long", "it succeeds", |pod| phase(pod) == "Succeeded")?;
        let whole = format!("{}\n\n{}\nc", "a".repeat(50_000), "b".repeat(16_384));
        ensure!(bed.kubectl_says(&["logs", "long"])? == whole, "the log is not what was written");
        let tail = bed.kubectl_says(&["logs", "long", "--tail=2"])?;
        ensure!(tail == format!("{}\nc", "b".repeat(16_384)), "the tail has {} bytes", tail.len());
        let stamped = bed.kubectl_says(&["logs", "long", "--timestamps"])?;
        let lengths: Vec<usize> = stamped.lines().map(str::len).collect();
        // A time only where a line begins.
        same("the lengths", lengths, vec![31 + 50_000, 31, 31 + 16_384, 32])
    }),
    ("bytes that are no text arrive as they were written", |bed| {
        let image = bed.registry.image("bytes", &[])?;
        bed.pod("bytes", never(json!([shell("main", &image, "printf 'a\\377\\000b\\tc\\r\\n'")])))?;
        bed.until("bytes", "it succeeds", |pod| phase(pod) == "Succeeded")?;
        same("the bytes", bed.kubectl(&["logs", "bytes"])?.stdout, b"a\xff\x00b\tc\r\n".to_vec())
    }),
    ("each container has its own log, init containers too", |bed| {
        let image = bed.registry.image("several", &[])?;
        let mut spec = never(json!([shell("a", &image, "echo from a"), shell("b", &image, "echo from b; sleep 1000")]));
        spec["initContainers"] = json!([shell("first", &image, "echo from first")]);
        bed.pod("several", spec)?;
        let ended = |pod: &Value| {
            pod["status"]["containerStatuses"][0]["state"]["terminated"].is_object() && phase(pod) == "Running"
        };
        bed.until("several", "a has ended", ended)?;
        bed.until_logs(&["several", "-c", "b"], "from b\n")?;
        same("a", bed.kubectl_says(&["logs", "several", "-c", "a"])?.as_str(), "from a\n")?;
        same("first", bed.kubectl_says(&["logs", "several", "-c", "first"])?.as_str(), "from first\n")?;
        let all = bed.kubectl_says(&["logs", "several", "--all-containers"])?;
        let mut lines: Vec<&str> = all.lines().collect();
        lines.sort_unstable();
        same("all", &lines[..], &["from a", "from b", "from first"][..])?;
        let all = bed.kubectl_says(&["logs", "several", "--all-containers", "--prefix"])?;
        // kubectl reads them in any order.
        let mut lines: Vec<&str> = all.lines().collect();
        lines.sort_unstable();
        let prefixed = ["[pod/several/a] from a", "[pod/several/b] from b", "[pod/several/first] from first"];
        same("all with prefix", &lines[..], &prefixed[..])?;
        let defaulted = bed.kubectl(&["logs", "several"])?;
        same("the default", String::from_utf8_lossy(&defaulted.stdout).as_ref(), "from a\n")?;
        let words = bed.kubectl_fails(&["logs", "several", "-c", "nosuch"])?;
        same(
            "an unknown one",
            words.as_str(),
            "error: container nosuch is not valid for pod several out of: a, b, first (init)",
        )?;
        let words = bed.kubectl_fails(&["logs", "several", "-c", "b", "--previous"])?;
        let wanted = "Error from server (BadRequest): previous terminated container \"b\" in pod \"several\" not found";
        same("no previous", words.as_str(), wanted)
    }),
    ("the previous attempt's log is there after a restart", |bed| {
        let image = bed.registry.image("again", &[])?;
        // The first attempt fails; the second one runs on.
        let script = "if [ -e /seen/it ]; then echo second; sleep 1000; fi; touch /seen/it; echo first; exit 3";
        let mut container = shell("main", &image, script);
        container["volumeMounts"] = json!([{"name": "seen", "mountPath": "/seen"}]);
        bed.pod(
            "again",
            json!({"terminationGracePeriodSeconds": 0, "containers": [container],
            "volumes": [{"name": "seen", "emptyDir": {}}]}),
        )?;
        let restarted = |pod: &Value| {
            let status = &pod["status"]["containerStatuses"][0];
            status["restartCount"] == 1 && status["state"]["running"].is_object()
        };
        let pod = bed.until("again", "it was restarted", restarted)?;
        same(
            "the last state",
            &pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"],
            &json!(3),
        )?;
        bed.until_logs(&["again"], "second\n")?;
        same("the previous", bed.kubectl_says(&["logs", "again", "--previous"])?.as_str(), "first\n")?;
        same("the same, followed", bed.kubectl_says(&["logs", "again", "-p", "-f"])?.as_str(), "first\n")
    }),
    ("a container in CrashLoopBackOff shows its last attempt", |bed| {
        let image = bed.registry.image("crashing", &[])?;
        bed.pod(
            "crashing",
            json!({"terminationGracePeriodSeconds": 0,
            "containers": [shell("main", &image, "head -c 8 /proc/sys/kernel/random/uuid; exit 1")]}),
        )?;
        let backs_off =
            |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
        let pod = bed.until("crashing", "it backs off", backs_off)?;
        same("the restart count", &pod["status"]["containerStatuses"][0]["restartCount"], &json!(1))?;
        // A kubelet's present and previous attempt are one while nothing runs; another one may begin just between the two.
        stack::wait("the present is the previous", || {
            let present = bed.kubectl_says(&["logs", "crashing"])?;
            Ok(present.len() == 8 && bed.kubectl_says(&["logs", "crashing", "--previous"])? == present)
        })
    }),
    ("a container that waits for its image says so", |bed| {
        let image = bed.registry.image("waits", &[Fault::Status(403, "DENIED")])?;
        bed.pod("waits", never(json!([shell("main", &image, "echo never")])))?;
        let backs_off =
            |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ImagePullBackOff";
        bed.until("waits", "it backs off", backs_off)?;
        let wanted = "Error from server (BadRequest): container \"main\" in pod \"waits\" is waiting to start: \
                      trying and failing to pull image";
        same("the words", bed.kubectl_fails(&["logs", "waits"])?.as_str(), wanted)
    }),
    ("a container that waits for its init container says so", |bed| {
        let image = bed.registry.image("queued", &[])?;
        let mut spec = never(json!([shell("main", &image, "echo never")]));
        spec["initContainers"] = json!([shell("first", &image, "echo here; sleep 1000")]);
        bed.pod("queued", spec)?;
        let first = |pod: &Value| pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object();
        bed.until("queued", "its init container runs", first)?;
        let wanted = "Error from server (BadRequest): container \"main\" in pod \"queued\" is waiting to start: \
                      PodInitializing";
        same("the words", bed.kubectl_fails(&["logs", "queued", "-c", "main"])?.as_str(), wanted)?;
        bed.until_logs(&["queued", "-c", "first"], "here\n")
    }),
    ("a follower ends when the pod is deleted", |bed| {
        let image = bed.registry.image("deleted", &[])?;
        let script = "trap 'echo going; exit 0' TERM; echo here; while :; do sleep 1000 & wait; done";
        bed.pod(
            "deleted",
            json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 20,
            "containers": [shell("main", &image, script)]}),
        )?;
        bed.until("deleted", "it runs", |pod| phase(pod) == "Running")?;
        let mut follower = Follower::start(bed, &["logs", "-f", "deleted"])?;
        same("its line", follower.line()?.as_str(), "here\n")?;
        bed.delete("deleted", None)?;
        same("its last line", follower.line()?.as_str(), "going\n")?;
        follower.ends()
    }),
];

fn never(containers: Value) -> Value {
    json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": containers})
}

fn age(time: jiff::Timestamp) -> Duration {
    Duration::try_from(jiff::Timestamp::now().duration_since(time)).unwrap_or_default()
}

/// A kubectl that follows, read line by line.
struct Follower {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Follower {
    fn start(bed: &Bed, arguments: &[&str]) -> Result<Self> {
        let mut command = bed.kubectl_command();
        let mut child = command.args(arguments).stdout(Stdio::piped()).spawn().context("start kubectl")?;
        let out = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, out })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.out.read_line(&mut line)?;
        Ok(line)
    }

    /// Nothing more comes, and kubectl ends well.
    fn ends(mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                let mut rest = String::new();
                self.out.read_to_string(&mut rest)?;
                ensure!(status.success() && rest.is_empty(), "kubectl ended with {status}; more came: {rest:?}");
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("kubectl still follows after {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
