//! `kubectl attach`: a running container's own streams over one gRPC stream.

use agent_api::codes::Code;
use agent_api::proto::{self, exec_input::Input, exec_output::Output};
use sandbox::contract::{Attachment, Detached, SandboxError};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use super::streams::{Carried, Ours, Out, output, short, streams};
use super::{Answers, Service, answers};
use crate::errors::chain;

impl Service {
    pub(super) async fn run_attach(
        &self,
        mut inputs: impl Stream<Item = Result<proto::ExecInput, Status>> + Unpin + Send + 'static,
    ) -> Result<Answers<proto::ExecOutput>, Status> {
        let start = match inputs.next().await.transpose()?.and_then(|input| input.input) {
            Some(Input::Start(start)) => start,
            _ => return Err(Code::InvalidArgument.status("an attachment must open with its start")),
        };
        if !(start.stdin || start.stdout || start.stderr) {
            return Err(Code::InvalidArgument.status("an attachment to no stream"));
        }
        let (container, sandbox) = self.running(&start)?;
        let (theirs, ours) = streams(start.stdin, start.stdout, start.stderr && !start.tty)
            .map_err(|error| Code::Internal.status(format!("pipes could not be made: {error}")))?;
        let mut attachment =
            self.roster.world().sandboxes.attach(&sandbox, &container, theirs).await.map_err(|error| {
                let code = match error {
                    SandboxError::NotFound { .. } => Code::WrongState,
                    SandboxError::Invalid { .. } => Code::InvalidArgument,
                    SandboxError::Unsupported { .. } => Code::Unsupported,
                    _ => Code::Internal,
                };
                code.status(chain(&error))
            })?;
        if let Some(size) = start.size {
            resize(attachment.as_mut(), &size).await;
        }
        let (out, stream) = answers();
        let (board, uid) = (self.roster.world().board.clone(), start.uid);
        let attempt = move || board.get(&uid)?.containers.get(&container).filter(|c| c.running).map(|c| c.number);
        let present = attempt();
        // A pod's end takes its sandbox away, maybe before that could say that the container has ended.
        let ended = move || attempt() != present;
        tokio::spawn(attend(attachment, ours, inputs, out, ended));
        Ok(stream)
    }
}

async fn resize(attachment: &mut dyn Attachment, size: &proto::TerminalSize) {
    if let Err(error) = attachment.resize(short(size.columns), short(size.rows)).await {
        tracing::debug!(error = chain(&error), "terminal was not resized");
    }
}

/// Carries the streams until the container has ended or the caller is gone; dropping the attachment detaches.
async fn attend(
    mut attachment: Box<dyn Attachment>,
    ours: Ours,
    mut inputs: impl Stream<Item = Result<proto::ExecInput, Status>> + Unpin + Send,
    out: Out,
    ended: impl Fn() -> bool + Send,
) {
    if out.send(output(Output::Started(proto::ExecStarted {}))).await.is_err() {
        return;
    }
    let mut carried = Carried::begin(ours, &out);
    let mut more = true;
    let end = loop {
        tokio::select! {
            end = attachment.wait() => break Some(end),
            () = out.closed() => break None,
            input = inputs.next(), if more => match input.and_then(Result::ok).and_then(|i| i.input) {
                // A container that is slow to read is waited for, but not beyond its end or the caller's.
                Some(Input::Stdin(bytes)) => tokio::select! {
                    () = carried.take(bytes) => {}
                    end = attachment.wait() => break Some(end),
                    () = out.closed() => break None,
                },
                Some(Input::StdinEof(_)) => carried.end_input(),
                Some(Input::Resize(size)) => resize(attachment.as_mut(), &size).await,
                Some(Input::Start(_)) => {}
                None => {
                    more = false;
                    carried.end_input();
                }
            },
        }
    };
    let Some(end) = end else {
        carried.give_up();
        return;
    };
    // What the container wrote last goes out before its end does.
    carried.finish().await;
    let error = match end {
        Ok(Detached::TooSlow) => "output was not read in time and is cut off here; all of it is in the log".to_owned(),
        Ok(Detached::Ended | Detached::Closed) => String::new(),
        Err(_) if ended() => String::new(),
        Err(error) => chain(&error),
    };
    let code = if error.is_empty() { 0 } else { -1 };
    let _ = out.send(output(Output::Exit(proto::ExecExit { code, error }))).await;
}
