//! `kubectl exec` and `kubectl attach` through a real API server: bytes, ends, terminals, and clients that leave.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::io::{Read, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::bed::{Bed, Case, phase, same, shell, terminated, walk};
use tests::stack::{self, is_root};

#[test]
fn e2e_kubectl_exec_and_attach_carry_what_a_kubelet_would() {
    if !is_root("e2e_kubectl_exec_and_attach_carry_what_a_kubelet_would") {
        return;
    }
    let bed = Bed::up("streams", &[]).unwrap();
    walk(&bed, CASES);
    bed.down().unwrap();
}

/// A kubectl that runs beside the test; what it prints is kept.
struct Beside {
    child: Child,
    stdin: Option<ChildStdin>,
    output: Arc<Mutex<String>>,
    /// Ends with its output.
    reader: JoinHandle<()>,
    /// What it complains of, for who reads of a failure.
    errors: Arc<Mutex<String>>,
}

fn keep(mut pipe: impl Read + Send + 'static) -> (Arc<Mutex<String>>, JoinHandle<()>) {
    let kept = Arc::<Mutex<String>>::default();
    let keeps = Arc::clone(&kept);
    let reader = std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut piece) {
            keeps.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..count]));
        }
    });
    (kept, reader)
}

impl Beside {
    fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start a kubectl")?;
        let (output, reader) = keep(child.stdout.take().context("no output")?);
        let (errors, _) = keep(child.stderr.take().context("no errors")?);
        Ok(Self { stdin: child.stdin.take(), child, output, reader, errors })
    }

    fn kubectl(bed: &Bed, arguments: &[&str]) -> Result<Self> {
        Self::start(bed.kubectl_command().args(arguments))
    }

    /// The same with a terminal of `script`'s.
    fn with_terminal(bed: &Bed, arguments: &[&str]) -> Result<Self> {
        let kubectl = bed.kubectl_command();
        let words = std::iter::once(kubectl.get_program()).chain(kubectl.get_args()).map(|w| w.to_string_lossy());
        let line: Vec<String> = words.chain(arguments.iter().map(|w| (*w).into())).map(|w| format!("'{w}'")).collect();
        let sized = format!("stty rows 33 cols 111; {}", line.join(" "));
        Self::start(Command::new("script").args(["-qefc", &sized, "/dev/null"]))
    }

    fn types(&mut self, text: &str) -> Result<()> {
        self.stdin.as_mut().context("its input is closed")?.write_all(text.as_bytes()).context("type")
    }

    fn said(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    fn until_it_says(&self, text: &str) -> Result<()> {
        let waited = stack::wait("it says what is awaited", || Ok(self.said().contains(text)));
        waited.with_context(|| format!("awaited {text:?}, it says {:?}", self.said()))
    }

    fn ends(mut self) -> Result<(Option<i32>, String)> {
        drop(self.stdin.take());
        let mut code = None;
        stack::wait("kubectl ends", || {
            code = self.child.try_wait()?;
            Ok(code.is_some())
        })?;
        eprintln!("kubectl ended with {code:?} and {:?}", self.errors.lock().unwrap());
        // All that it said has been read then.
        let said = Arc::clone(&self.output);
        self.reader.join().map_err(|_| anyhow::anyhow!("the reader has panicked"))?;
        let said = said.lock().unwrap().clone();
        Ok((code.and_then(|code| code.code()), said))
    }

    /// As by a closed laptop.
    fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop).context("wait for a killed kubectl")
    }
}

fn reader(image: &str, once: bool, tty: bool) -> Value {
    let mut container =
        shell("main", image, "echo ready; while read -r line; do echo got $line; done; echo end; exit 4");
    (container["stdin"], container["stdinOnce"], container["tty"]) = (true.into(), once.into(), tty.into());
    container
}

fn run(bed: &Bed, pod: &str, container: &Value) -> Result<()> {
    let spec = json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]});
    bed.pod(pod, spec)?;
    bed.until(pod, "it runs", |pod| phase(pod) == "Running").map(drop)
}

fn logs_say(bed: &Bed, pod: &str, text: &str) -> Result<()> {
    stack::wait("the log says it", || Ok(bed.kubectl_says(&["logs", pod])?.contains(text)))
}

const CASES: &[Case] = &[
    ("a command's output, errors and exit code are kubectl's", |bed| {
        let image = bed.registry.image("exec", &[])?;
        run(bed, "exec", &shell("main", &image, "sleep 1000"))?;
        let output = bed.kubectl(&["exec", "exec", "--", "sh", "-c", "echo out; echo err >&2; exit 3"])?;
        same("the exit code", output.status.code(), Some(3))?;
        same("the output", String::from_utf8_lossy(&output.stdout).as_ref(), "out\n")?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(errors.starts_with("err\n") && errors.contains("exit code 3"), "errors are {errors}");
        // Nothing is lost at the end, however much of it there is.
        let many = bed.kubectl_says(&["exec", "exec", "--", "sh", "-c", "seq 1 200000"])?;
        same("lines", (many.lines().count(), many.lines().last()), (200_000, Some("200000")))?;
        let failure = bed.kubectl_fails(&["exec", "exec", "--", "no-such-program"])?;
        ensure!(failure.contains("no-such-program") && failure.contains("not found"), "it says {failure}");
        let failure = bed.kubectl_fails(&["exec", "exec", "-c", "other", "--", "true"])?;
        ensure!(failure.contains("other"), "it says {failure}");
        Ok(())
    }),
    ("a command reads what kubectl reads, to its end", |bed| {
        let image = bed.registry.image("reads", &[])?;
        run(bed, "reads", &shell("main", &image, "sleep 1000"))?;
        let mut it = Beside::kubectl(bed, &["exec", "-i", "reads", "--", "sh", "-c", "cat; echo end; exit 5"])?;
        it.types("one\n")?;
        it.until_it_says("one\n")?;
        let large = "0123456789abcde\n".repeat(64 << 10);
        it.types(&large)?;
        let (code, said) = it.ends()?;
        same("the exit code", code, Some(5))?;
        same("bytes", said.len(), "one\nend\n".len() + large.len())
    }),
    ("a command with a terminal has kubectl's size", |bed| {
        let image = bed.registry.image("sized", &[])?;
        run(bed, "sized", &shell("main", &image, "sleep 1000"))?;
        let mut it = Beside::with_terminal(bed, &["exec", "-it", "sized", "--", "sh"])?;
        it.types("until [ \"$(stty size)\" = '33 111' ]; do sleep 0.1; done; tty; echo si''ze is $(stty size)\n")?;
        it.until_it_says("size is 33 111")?;
        it.types("exit 6\n")?;
        let (code, said) = it.ends()?;
        ensure!(said.contains("/dev/pts/") || said.contains("/dev/console"), "no terminal: {said}");
        same("the exit code", code, Some(6))
    }),
    ("a command ends when its kubectl is killed", |bed| {
        let image = bed.registry.image("killed", &[])?;
        run(bed, "killed", &shell("main", &image, "sleep 1000"))?;
        let it = Beside::kubectl(bed, &["exec", "killed", "--", "sh", "-c", "echo up; exec sleep 4242"])?;
        it.until_it_says("up")?;
        it.kill()?;
        let count = ["exec", "killed", "--", "sh", "-c", "ps | grep -c '[s]leep 4242' || true"];
        stack::wait("the command has ended", || Ok(bed.kubectl_says(&count)?.trim() == "0"))
    }),
    ("attach shows what a container says from now on, to its end", |bed| {
        let image = bed.registry.image("attached", &[])?;
        run(bed, "attached", &reader(&image, false, false))?;
        logs_say(bed, "attached", "ready")?;
        let mut first = Beside::kubectl(bed, &["attach", "-i", "attached"])?;
        let second = Beside::kubectl(bed, &["attach", "attached"])?;
        // Until both are attached some may be missed, never in the log.
        stack::wait("both see it", || {
            first.types("knock\n")?;
            Ok(first.said().contains("got knock") && second.said().contains("got knock"))
        })?;
        ensure!(!first.said().contains("ready"), "what was before is in the log only");
        // Leaving leaves the container as it is.
        first.kill()?;
        let mut third = Beside::kubectl(bed, &["attach", "-i", "attached"])?;
        stack::wait("the third is attached", || {
            third.types("again\n")?;
            Ok(third.said().contains("got again"))
        })?;
        second.until_it_says("got again")?;
        bed.until("attached", "it runs", |pod| phase(pod) == "Running")?;
        bed.delete("attached", Some(0))?;
        for it in [second, third] {
            it.ends()?;
        }
        bed.until_gone("attached")
    }),
    ("input for one closes with its one, and the container sees its end", |bed| {
        let image = bed.registry.image("once", &[])?;
        run(bed, "once", &reader(&image, true, false))?;
        logs_say(bed, "once", "ready")?;
        let mut it = Beside::kubectl(bed, &["attach", "-i", "once"])?;
        it.types("only\n")?;
        it.until_it_says("got only")?;
        let (code, said) = it.ends()?;
        same("the exit code", code, Some(0))?;
        ensure!(said.ends_with("end\n"), "it says {said}");
        let pod = bed.until("once", "it has ended", |pod| phase(pod) == "Failed")?;
        same("its code", &terminated(&pod)["exitCode"], &json!(4))
    }),
    ("attach to a terminal types into it and sizes it", |bed| {
        let image = bed.registry.image("terminal", &[])?;
        let mut main = shell("main", &image, "exec sh");
        (main["stdin"], main["tty"]) = (true.into(), true.into());
        run(bed, "terminal", &main)?;
        let mut it = Beside::with_terminal(bed, &["attach", "-it", "terminal"])?;
        stack::wait("the terminal answers", || {
            it.types("echo he''re\n")?;
            Ok(it.said().contains("here"))
        })?;
        it.types("until [ \"$(stty size)\" = '33 111' ]; do sleep 0.1; done; echo si''ze is $(stty size)\n")?;
        it.until_it_says("size is 33 111")?;
        it.kill()?;
        bed.kubectl_says(&["exec", "terminal", "--", "true"])?;
        let mut it = Beside::with_terminal(bed, &["attach", "-it", "terminal"])?;
        stack::wait("the terminal answers again", || {
            it.types("echo th''ere\n")?;
            Ok(it.said().contains("there"))
        })?;
        it.types("exit 0\n")?;
        it.ends()?;
        bed.until("terminal", "it has ended", |pod| phase(pod) == "Succeeded").map(drop)
    }),
    ("kubectl debug starts a container that sees its target's processes, and attaches to it", |bed| {
        let image = bed.registry.image("debugged", &[])?;
        run(bed, "debugged", &shell("main", &image, "exec sleep 4711"))?;
        let debug = ["debug", "debugged", "--image", &image, "--target", "main", "--profile", "baseline"];
        let look = ["-c", "look", "--attach=false", "--", "sh", "-c", "ps; cat /etc/image; exit 7"];
        bed.kubectl_says(&[&debug[..], &look].concat())?;
        let state = |pod: &Value, index: usize| pod["status"]["ephemeralContainerStatuses"][index]["state"].clone();
        let pod = bed.until("debugged", "the debugger has ended", |pod| !state(pod, 0)["terminated"].is_null())?;
        same("its exit code", &state(&pod, 0)["terminated"]["exitCode"], &json!(7))?;
        let said = bed.kubectl_says(&["logs", "debugged", "-c", "look"])?;
        ensure!(said.contains("sleep 4711"), "it does not see its target's processes: {said}");
        same("restarts of the pod's own", &pod["status"]["containerStatuses"][0]["restartCount"], &json!(0))?;
        let words = [&debug[..], &["-it", "-c", "shell", "--", "sh"]].concat();
        let mut it = Beside::with_terminal(bed, &words)?;
        stack::wait("the debugger answers", || {
            it.types("echo he''re\n")?;
            Ok(it.said().contains("here"))
        })?;
        it.types("exit 0\n")?;
        it.ends()?;
        bed.until("debugged", "both are told", |pod| state(pod, 1)["terminated"]["exitCode"] == 0)?;
        bed.until("debugged", "the pod goes on", |pod| phase(pod) == "Running").map(drop)
    }),
    ("an attached kubectl that does not read stalls nobody", |bed| {
        let image = bed.registry.image("stalled", &[])?;
        let script = "until [ -e /go ]; do echo tick; sleep 0.1; done; seq 1 2000000; echo done";
        run(bed, "stalled", &shell("main", &image, script))?;
        let mut command = bed.kubectl_command();
        command.args(["attach", "stalled"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut deaf = command.spawn().context("start a kubectl")?;
        // It is attached, and reads no more.
        deaf.stdout.as_mut().context("no output")?.read_exact(&mut [0; 5])?;
        bed.kubectl_says(&["exec", "stalled", "--", "touch", "/go"])?;
        let ended = bed.until("stalled", "it has ended", |pod| phase(pod) == "Succeeded");
        deaf.kill()?;
        deaf.wait()?;
        ended?;
        same("the log's end", bed.kubectl_says(&["logs", "stalled", "--tail=1"])?.as_str(), "done\n")
    }),
];
