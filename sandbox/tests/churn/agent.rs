//! The process that is killed: started, asked, ended.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sandbox::sys::failpoint;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::oneshot;

use super::awake;
use super::words::{Answer, Asked, Question, SetUp, Told};

/// An operation that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Result<Answer, String>>>>>>;

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Answered(Answer),
    Refused(String),
    /// The agent was killed over it.
    Unknown,
}

/// The running program.
#[derive(Debug)]
pub struct Agent {
    child: tokio::sync::Mutex<Child>,
    pub pid: u32,
    input: tokio::sync::Mutex<ChildStdin>,
    waiting: Waiting,
    next: AtomicU64,
    opened: Mutex<Option<oneshot::Receiver<Result<Answer, String>>>>,
}

impl Agent {
    /// Starts it; [`Agent::opened`] says how that went.
    pub fn start(set_up: &SetUp, log: &Path) -> Self {
        Self::start_with(set_up, std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap())
    }

    /// Starts it with this standard error.
    pub fn start_with(set_up: &SetUp, log: impl Into<Stdio>) -> Self {
        let mut child = Command::new(&set_up.program)
            .arg("agent")
            .arg(serde_json::to_string(set_up).unwrap())
            .env(failpoint::VARIABLE, set_up.run_dir.join(failpoint::FILE))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = child.id().unwrap();
        let (told, opened) = oneshot::channel();
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::from([(0, told)]))));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let table = Arc::clone(&waiting);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                // Half a line is none: it was being written when the end came.
                let Ok(told) = serde_json::from_str::<Told>(&line) else { break };
                let waiter = table.lock().unwrap().as_mut().and_then(|table| table.remove(&told.call));
                if let Some(waiter) = waiter {
                    let _ = waiter.send(told.answer);
                }
            }
            // Dropping them tells those who wait.
            *table.lock().unwrap() = None;
        });
        let input = tokio::sync::Mutex::new(child.stdin.take().unwrap());
        let child = tokio::sync::Mutex::new(child);
        Self { child, pid, input, waiting, next: AtomicU64::new(1), opened: Mutex::new(Some(opened)) }
    }

    /// Whether it is open; asked once.
    pub async fn opened(&self) -> Outcome {
        let opened = self.opened.lock().unwrap().take().unwrap();
        outcome("open", opened).await
    }

    pub async fn ask(&self, question: Question) -> Outcome {
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        let (told, answer) = oneshot::channel();
        match self.waiting.lock().unwrap().as_mut() {
            Some(waiting) => drop(waiting.insert(call, told)),
            None => return Outcome::Unknown,
        }
        let what = format!("{question:?}");
        let mut line = serde_json::to_vec(&Asked { call, question }).unwrap();
        line.push(b'\n');
        if self.input.lock().await.write_all(&line).await.is_err() {
            return Outcome::Unknown;
        }
        outcome(&what, answer).await
    }

    /// The answer, of an agent that nobody kills meanwhile.
    pub async fn must(&self, question: Question) -> Answer {
        let what = format!("{question:?}");
        match self.ask(question).await {
            Outcome::Answered(answer) => answer,
            other => panic!("{what}: {other:?}"),
        }
    }

    pub fn is_alive(&self) -> bool {
        self.waiting.lock().unwrap().is_some()
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&self) {
        let mut child = self.child.lock().await;
        // It may be dead already.
        let _ = child.start_kill();
        child.wait().await.unwrap();
        while self.is_alive() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn outcome(what: &str, answer: oneshot::Receiver<Result<Answer, String>>) -> Outcome {
    match awake::timeout(PATIENCE, answer).await {
        Some(Ok(Ok(answer))) => Outcome::Answered(answer),
        Some(Ok(Err(refusal))) => Outcome::Refused(refusal),
        Some(Err(_)) => Outcome::Unknown,
        None => panic!("no answer within {PATIENCE:?}: {what}"),
    }
}
