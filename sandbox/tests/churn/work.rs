//! What is done with sandboxes while somebody is killed, and how it is set right afterwards.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use sandbox::contract::SandboxEvent;
use sandbox::spec::SandboxId;
use serde_json::json;

use super::agent::{Agent, Outcome};
use super::oracle::{Container, Known, Pod};
use super::random::Random;
use super::words::{Answer, Question};
use crate::support::image;

/// The layer that all containers have.
pub const LAYER: &str = "sha256:busybox";

/// Where pods and containers come from: names are never used again.
#[derive(Debug)]
pub struct Maker {
    directory: PathBuf,
    next: AtomicU32,
}

impl Maker {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, next: AtomicU32::new(0) }
    }

    fn number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub fn pod(&self) -> Pod {
        let name = format!("pod-{}", self.number());
        let log_dir = self.directory.join("logs").join(&name);
        let spec = json!({ "hostname": name, "log_dir": log_dir, "labels": { "pod.name": name } });
        let spec = serde_json::from_value(spec).unwrap();
        Pod::new(SandboxId(name), spec)
    }

    /// A container that runs until it is killed, or ends with a code of its own.
    pub fn container(&self, ends: bool) -> Container {
        let number = self.number();
        let code = ends.then_some((number % 100 + 1) as i32);
        let script = code.map_or_else(|| "exec sleep 100000".to_owned(), |code| format!("echo {number}; exit {code}"));
        let spec = json!({
            "name": format!("c{number}"),
            "attempt": 0,
            "args": ["/bin/sh", "-c", script],
            "env": [["PATH", "/bin"]],
            "cwd": "/",
            "user": { "uid": 0, "gid": 0 },
            "rootfs": {
                "layers": [{ "id": LAYER, "path": image::layer().unwrap() }],
                "writable": self.directory.join("writable").join(number.to_string()),
                "writable_limit": number.is_multiple_of(5).then_some(4 << 20),
            },
            "resources": { "pids_limit": 50 },
        });
        let spec = serde_json::from_value(spec).unwrap();
        Container::new(spec, code)
    }
}

/// Goes on with a sandbox until it is done or something is refused; what was refused is told by the second.
pub async fn live(agent: Arc<Agent>, maker: Arc<Maker>, mut pod: Pod, mut random: Random) -> (Pod, Vec<String>) {
    let mut complaints = Vec::new();
    if pod.prepared == Known::Never {
        pod.prepared = Known::Perhaps;
        if done(&agent, Question::Prepare(pod.id.clone()), &mut complaints).await.is_none() {
            return (pod, complaints);
        }
        pod.prepared = Known::Surely;
        let configure = Question::Configure(pod.id.clone(), pod.spec.clone());
        if done(&agent, configure, &mut complaints).await.is_none() {
            return (pod, complaints);
        }
    }
    for step in 0..3 {
        let container = maker.container(step == 1 || (step == 2 && random.chance(50)));
        let question = Question::Start(pod.id.clone(), container.spec.clone());
        pod.containers.push(container);
        let Some(Answer::Started(started)) = done(&agent, question, &mut complaints).await else {
            return (pod, complaints);
        };
        let container = pod.containers.last_mut().unwrap();
        container.started = Some(started);
        if container.ends.is_none() && random.chance(70) {
            let exec = Question::Exec(pod.id.clone(), container.spec.name.clone(), vec!["true".into()]);
            match done(&agent, exec, &mut complaints).await {
                Some(Answer::Code(0)) => {}
                Some(other) => complaints.push(format!("exec in {}: {other:?}", pod.id)),
                None => return (pod, complaints),
            }
        }
    }
    if random.chance(50) {
        pod.destroyed = Known::Perhaps;
        if done(&agent, Question::Destroy(pod.id.clone()), &mut complaints).await.is_some() {
            pod.destroyed = Known::Surely;
        }
    }
    (pod, complaints)
}

async fn done(agent: &Agent, question: Question, complaints: &mut Vec<String>) -> Option<Answer> {
    let what = format!("{question:?}");
    match agent.ask(question).await {
        Outcome::Answered(answer) => Some(answer),
        Outcome::Refused(why) => {
            complaints.push(format!("{}: {why}", what.chars().take(60).collect::<String>()));
            None
        }
        Outcome::Unknown => {
            complaints.push("the agent is gone".to_owned());
            None
        }
    }
}

/// After everything runs again the sandbox is whole and stays, or it is gone (none). Finds out which by asking as a caller
/// does that has lost its memory of what was answered, and judges it.
pub async fn settle(agent: Arc<Agent>, maker: Arc<Maker>, mut pod: Pod, keep: bool) -> Result<Option<Pod>, String> {
    let id = pod.id.clone();
    let found = || async {
        match agent.must(Question::List).await {
            Answer::Listed(listed) => listed.into_iter().find(|listed| listed.id == id),
            other => panic!("{other:?}"),
        }
    };
    let Some(mut listed) = found().await else {
        return match (pod.prepared, pod.destroyed) {
            (Known::Surely, Known::Never) => Err("it was made and is not there".to_owned()),
            _ => Ok(None),
        };
    };
    match pod.destroyed {
        Known::Surely => return Err("it was destroyed and is there".to_owned()),
        Known::Perhaps => return destroy(&agent, &id).await,
        Known::Never => {}
    }
    // The kernel closes a dead shim's sockets in its own time.
    while pod.lost && listed.alive {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        listed = found().await.ok_or("a lost sandbox is not listed")?;
    }
    if pod.lost {
        let events = events(&agent, &id, "", 0).await?;
        pod.judge(&events, &[])?;
        return destroy(&agent, &id).await;
    }
    if !listed.alive {
        return Err("its shim is dead, and nobody killed it".to_owned());
    }
    ask(&agent, Question::Prepare(id.clone())).await?;
    ask(&agent, Question::Configure(id.clone(), pod.spec.clone())).await?;
    for container in &mut pod.containers {
        match ask(&agent, Question::Start(id.clone(), container.spec.clone())).await? {
            Answer::Started(started) => {
                if *container.started.get_or_insert_with(|| started.clone()) != started {
                    return Err(format!("{} was started again: {started:?}", container.spec.name));
                }
            }
            other => return Err(format!("{other:?}")),
        }
    }
    // Its end says that everything before it has been told.
    let last = maker.container(true);
    let name = last.spec.name.clone();
    ask(&agent, Question::Start(id.clone(), last.spec.clone())).await?;
    pod.containers.push(last);
    let brief: Vec<String> =
        pod.containers.iter().filter(|c| c.ends.is_some()).map(|c| c.spec.name.clone()).chain([name]).collect();
    let mut told = Vec::new();
    for name in &brief {
        told = events(&agent, &id, name, 0).await?;
    }
    // Streams end with what was asked for: the longest has all.
    for name in &brief {
        let other = events(&agent, &id, name, 0).await?;
        if other.len() > told.len() {
            told = other;
        }
    }
    pod.judge(&told, &brief.iter().map(String::as_str).collect::<Vec<_>>())?;
    for container in pod.containers.iter().filter(|container| container.ends.is_none() && !container.killed) {
        let exec = Question::Exec(id.clone(), container.spec.name.clone(), vec!["true".into()]);
        match ask(&agent, exec).await? {
            Answer::Code(0) => {}
            other => return Err(format!("exec in {}: {other:?}", container.spec.name)),
        }
        let pid = container.started.as_ref().map_or(0, |started| started.pid);
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if !command.contains("sleep") {
            return Err(format!("process {pid} of {} is {command:?}", container.spec.name));
        }
    }
    pod.stub_killed = false;
    if keep { Ok(Some(pod)) } else { destroy(&agent, &id).await }
}

async fn destroy(agent: &Agent, id: &SandboxId) -> Result<Option<Pod>, String> {
    ask(agent, Question::Destroy(id.clone())).await.map(|_| None)
}

async fn ask(agent: &Agent, question: Question) -> Result<Answer, String> {
    let what = format!("{question:?}");
    match agent.ask(question).await {
        Outcome::Answered(answer) => Ok(answer),
        other => Err(format!("{}: {other:?}", what.chars().take(100).collect::<String>())),
    }
}

async fn events(agent: &Agent, id: &SandboxId, name: &str, attempt: u32) -> Result<Vec<SandboxEvent>, String> {
    match ask(agent, Question::Events(id.clone(), name.to_owned(), attempt)).await? {
        Answer::Events(events) => Ok(events),
        other => Err(format!("{other:?}")),
    }
}
