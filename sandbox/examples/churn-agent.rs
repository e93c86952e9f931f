//! The program that the churn tests kill: the agent's side of sandboxes by orders from standard input, and, as the same file,
//! the keeper and the shims, all with failpoints.
#![allow(clippy::unwrap_used, reason = "a test program: whoever started it sees it fail")]

#[path = "../tests/churn/words.rs"]
mod words;

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use sandbox::contract::{SandboxError, SandboxEvent, Sandboxes, Stdio};
use sandbox::namespace::{Config, NamespaceSandboxes};
use sandbox::spec::{ExecSpec, SandboxId};
use words::{Answer, Asked, Question, SetUp, Told};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let role = arguments.next().and_then(|role| role.into_string().ok()).unwrap_or_default();
    let result: Result<(), Box<dyn std::error::Error>> = match role.as_str() {
        "keeper" => sandbox::keeper::main(arguments).map_err(Into::into),
        "agent" => agent(&arguments.next().unwrap().into_string().unwrap()),
        _ => Err("usage: churn-agent agent SETUP | keeper …".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("churn-agent {role}: {error}: {:?}", error.source().map(ToString::to_string));
            ExitCode::FAILURE
        }
    }
}

fn agent(set_up: &str) -> Result<(), Box<dyn std::error::Error>> {
    let set_up: SetUp = serde_json::from_str(set_up)?;
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_max_level(tracing::Level::WARN).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let config = Config {
        run_dir: set_up.run_dir,
        shim_program: set_up.program,
        cgroup_parent: set_up.cgroup_parent,
        layer_dirs: set_up.layer_dirs,
        pool_size: set_up.pool_size,
        ahead_dir: set_up.ahead_dir,
        limit_writable: true,
    };
    let sandboxes = Arc::new(runtime.block_on(NamespaceSandboxes::open(config))?);
    let output = Arc::new(Mutex::new(std::io::stdout()));
    tell(&output, &Told { call: 0, answer: Ok(Answer::Done) });
    for line in std::io::stdin().lock().lines() {
        let Asked { call, question } = serde_json::from_str(&line?)?;
        let (sandboxes, output) = (Arc::clone(&sandboxes), Arc::clone(&output));
        runtime.spawn(async move {
            let answer = answer(&sandboxes, question).await.map_err(|error| described(&error));
            tell(&output, &Told { call, answer });
        });
    }
    // Whoever gave orders has gone: as an agent that is told to stop.
    Ok(())
}

fn tell(output: &Mutex<std::io::Stdout>, told: &Told) {
    let mut line = serde_json::to_vec(told).unwrap();
    line.push(b'\n');
    let mut output = output.lock().unwrap();
    // Nobody listens any more: then nobody needs to know.
    let _ = output.write_all(&line).and_then(|()| output.flush());
}

fn described(error: &SandboxError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

async fn answer(sandboxes: &NamespaceSandboxes, question: Question) -> Result<Answer, SandboxError> {
    match question {
        Question::Prepare(id) => sandboxes.prepare(&id).await.map(|_| Answer::Done),
        Question::Configure(id, spec) => sandboxes.configure(&id, &spec).await.map(|()| Answer::Done),
        Question::Start(id, spec) => sandboxes.start(&id, &spec).await.map(Answer::Started),
        Question::Exec(id, container, args) => {
            let spec = ExecSpec { container, args, env: Vec::new(), cwd: None, tty: None };
            let mut process = sandboxes.exec(&id, &spec, Stdio::default()).await?;
            process.wait().await.map(|exit| Answer::Code(exit.code))
        }
        Question::Destroy(id) => sandboxes.destroy(&id).await.map(|()| Answer::Done),
        Question::List => sandboxes.list().await.map(Answer::Listed),
        Question::Events(id, container, attempt) => events(sandboxes, &id, &container, attempt).await,
        Question::Release(ids) => sandboxes.release_layers(&ids).await.map(|()| Answer::Done),
        Question::Reset => sandboxes.reset().await.map(|()| Answer::Done),
    }
}

async fn events(
    sandboxes: &NamespaceSandboxes,
    id: &SandboxId,
    last: &str,
    last_attempt: u32,
) -> Result<Answer, SandboxError> {
    let mut stream = sandboxes.events(id).await?;
    let mut events = Vec::new();
    while let Some(event) = stream.recv().await {
        let ends = matches!(&event, SandboxEvent::Exited { container, attempt, .. }
            if container == last && *attempt == last_attempt);
        events.push(event);
        if ends {
            break;
        }
    }
    Ok(Answer::Events(events))
}
