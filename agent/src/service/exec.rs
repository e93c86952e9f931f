//! `kubectl exec`: a further process in a running container, its streams over one gRPC stream.

use agent_api::codes::Code;
use agent_api::proto::{self, exec_input::Input, exec_output::Output};
use sandbox::contract::{ExecProcess, SandboxError};
use sandbox::spec::{ExecSpec, SandboxId};
use tokio::sync::oneshot;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use super::logs::named;
use super::streams::{Carried, Ours, Out, output, short, streams};
use super::{Answers, Service, answers};
use crate::errors::chain;

/// Terminal size when the client says none.
const SIZE: (u16, u16) = (80, 24);
const SIGKILL: i32 = 9;

impl Service {
    /// The running container that is meant, and its sandbox.
    pub(super) fn running(&self, start: &proto::ExecStart) -> Result<(String, SandboxId), Status> {
        let world = self.roster.world();
        let posted = world
            .board
            .get(&start.uid)
            .ok_or_else(|| Code::NotFound.status(format!("pod {} is not on this host", start.uid)))?;
        let container = named(&posted, &start.container)?;
        let running = posted.containers.get(&container).is_some_and(|c| c.running);
        let (true, Some(sandbox)) = (running, posted.sandbox.clone()) else {
            return Err(
                Code::WrongState.status(format!("container \"{container}\" of pod \"{}\" is not running", posted.name))
            );
        };
        Ok((container, sandbox))
    }

    pub(super) async fn run_exec(
        &self,
        mut inputs: impl Stream<Item = Result<proto::ExecInput, Status>> + Unpin + Send + 'static,
    ) -> Result<Answers<proto::ExecOutput>, Status> {
        let start = match inputs.next().await.transpose()?.and_then(|input| input.input) {
            Some(Input::Start(start)) => start,
            _ => return Err(Code::InvalidArgument.status("an exec must open with its start")),
        };
        if start.command.is_empty() {
            return Err(Code::InvalidArgument.status("an exec without a command"));
        }
        let world = self.roster.world();
        let (container, sandbox) = self.running(&start)?;
        let size = start.size.map_or(SIZE, |size| (short(size.columns), short(size.rows)));
        let spec = ExecSpec {
            container,
            args: start.command,
            env: if start.tty { vec![("TERM".to_owned(), "xterm".to_owned())] } else { Vec::new() },
            cwd: None,
            tty: start.tty.then_some(size),
        };
        let (theirs, ours) = streams(start.stdin, start.stdout, start.stderr && !start.tty)
            .map_err(|error| Code::Internal.status(format!("pipes could not be made: {error}")))?;
        let (out, stream) = answers();
        // By a task of its own: a caller that leaves meanwhile leaves no process behind.
        let (started, result) = oneshot::channel();
        let sandboxes = world.sandboxes.clone();
        tokio::spawn(async move {
            if let Err(Ok(mut unwanted)) = started.send(sandboxes.exec(&sandbox, &spec, theirs).await) {
                let _ = unwanted.signal(SIGKILL).await;
            }
        });
        match result.await.map_err(|_| Code::Internal.status("the start of the process was given up"))? {
            Ok(process) => {
                tokio::spawn(attend(process, ours, inputs, out));
            }
            Err(SandboxError::Exec { message, code }) => {
                let exit = proto::ExecExit { code, error: message };
                let _ = out.send(output(Output::Exit(exit))).await;
            }
            Err(error @ SandboxError::NotFound { .. }) => return Err(Code::WrongState.status(chain(&error))),
            Err(error @ SandboxError::Invalid { .. }) => return Err(Code::InvalidArgument.status(chain(&error))),
            Err(error) => return Err(Code::Internal.status(chain(&error))),
        }
        Ok(stream)
    }
}

async fn attend(
    mut process: Box<dyn ExecProcess>,
    ours: Ours,
    mut inputs: impl Stream<Item = Result<proto::ExecInput, Status>> + Unpin + Send,
    out: Out,
) {
    if out.send(output(Output::Started(proto::ExecStarted {}))).await.is_err() {
        let _ = process.signal(SIGKILL).await;
        return;
    }
    let mut carried = Carried::begin(ours, &out);
    let mut gone = false;
    let mut more = true;
    let exit = loop {
        tokio::select! {
            exit = process.wait() => break exit,
            () = out.closed(), if !gone => {
                gone = true;
                let _ = process.signal(SIGKILL).await;
            }
            input = inputs.next(), if more => match input.and_then(Result::ok).and_then(|i| i.input) {
                // A slow process is waited for, but not beyond its end.
                Some(Input::Stdin(bytes)) => tokio::select! {
                    () = carried.take(bytes) => {}
                    exit = process.wait() => break exit,
                    () = out.closed(), if !gone => {
                        gone = true;
                        let _ = process.signal(SIGKILL).await;
                    }
                },
                Some(Input::StdinEof(_)) => carried.end_input(),
                Some(Input::Resize(size)) => {
                    if let Err(error) = process.resize(short(size.columns), short(size.rows)).await {
                        tracing::debug!(error = chain(&error), "terminal was not resized");
                    }
                }
                Some(Input::Start(_)) => {}
                None => {
                    more = false;
                    carried.end_input();
                }
            },
        }
    };
    // Everything that the process wrote goes out before its exit does.
    carried.finish().await;
    let exit = match exit {
        Ok(exit) => proto::ExecExit { code: exit.code, error: String::new() },
        Err(error) => proto::ExecExit { code: -1, error: chain(&error) },
    };
    let _ = out.send(output(Output::Exit(exit))).await;
}
