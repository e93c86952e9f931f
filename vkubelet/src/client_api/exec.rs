//! Exec: an upgraded connection of [`super::frames`], bridged to the agent's stream.

use agent_api::proto::{ExecInput, ExecStart, exec_input, exec_output};
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::{HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::frames::{self, ExecEnd, Frame, PROTOCOL};
use super::{ClientApi, Problem};
use crate::pod::access::{ExecTarget, PodAccess};

/// Input frames under way: back-pressure reaches the client's pipe.
const INPUT_FRAMES: usize = 16;

pub(super) async fn exec(
    State(api): State<ClientApi>,
    Path((namespace, name)): Path<(String, String)>,
    mut request: Request,
) -> Result<Response, Problem> {
    let mut start = ExecStart { stdout: true, stderr: true, ..ExecStart::default() };
    let mut container = String::new();
    let query = request.uri().query().unwrap_or_default();
    // axum's Query keeps one value per key; a command has several.
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match key.as_ref() {
            "command" => start.command.push(value.into_owned()),
            "container" => container = value.into_owned(),
            "stdin" => start.stdin = value == "true",
            _ => return Err(Problem::bad_request(format!("{key}: unknown parameter"))),
        }
    }
    if start.command.is_empty() {
        return Err(Problem::bad_request("command: is missing"));
    }
    let offered = request.headers().get(header::UPGRADE).and_then(|v| v.to_str().ok());
    if offered != Some(PROTOCOL) {
        return Err(Problem::new(StatusCode::UPGRADE_REQUIRED, format!("upgrade to {PROTOCOL} is needed")));
    }
    let target = api.access.exec_target(&namespace, &name, &container)?;
    start.uid.clone_from(&target.uid);
    start.container.clone_from(&target.container);
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return Err(Problem::bad_request("this connection cannot be upgraded"));
    };
    tokio::spawn(async move {
        match upgrade.await {
            Ok(connection) => bridge(&api.access, &target, start, TokioIo::new(connection)).await,
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "exec upgrade failed"),
        }
    });
    let headers = [
        (header::UPGRADE, HeaderValue::from_static(PROTOCOL)),
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

async fn bridge<S>(access: &PodAccess, target: &ExecTarget, start: ExecStart, connection: S)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + 'static,
{
    let (mut reader, mut writer) = tokio::io::split(connection);
    let (inputs, stream) = mpsc::channel(INPUT_FRAMES);
    let input = |input| ExecInput { input: Some(input) };
    if inputs.send(input(exec_input::Input::Start(start))).await.is_err() {
        return;
    }
    let reading = tokio::spawn(async move {
        while let Ok(Some(frame)) = frames::read(&mut reader).await {
            let message = match frame {
                Frame::Stdin(bytes) => exec_input::Input::Stdin(bytes.into()),
                Frame::StdinEnd => exec_input::Input::StdinEof(true),
                Frame::Stdout(_) | Frame::Stderr(_) | Frame::Exit(_) => return,
            };
            if inputs.send(input(message)).await.is_err() {
                return;
            }
        }
        // The client is gone: dropping the sender ends the exec at the agent.
    });
    let end = match access.exec(target, ReceiverStream::new(stream)).await {
        Err(error) => Some(ExecEnd { code: 126, error: error.to_string() }),
        Ok(mut outputs) => loop {
            let frame = match outputs.next().await {
                None => break Some(ExecEnd { code: 126, error: "the agent ended without an exit code".to_owned() }),
                Some(Err(status)) => break Some(ExecEnd { code: 126, error: status.message().to_owned() }),
                Some(Ok(output)) => match output.output {
                    Some(exec_output::Output::Stdout(bytes)) => Frame::Stdout(bytes.into()),
                    Some(exec_output::Output::Stderr(bytes)) => Frame::Stderr(bytes.into()),
                    Some(exec_output::Output::Exit(exit)) => {
                        break Some(ExecEnd { code: exit.code, error: exit.error });
                    }
                    Some(exec_output::Output::Started(_)) | None => continue,
                },
            };
            if frames::write(&mut writer, &frame).await.is_err() {
                break None;
            }
        },
    };
    if let Some(end) = end {
        let _ = frames::write(&mut writer, &Frame::Exit(end)).await;
    }
    let _ = writer.shutdown().await;
    reading.abort();
}
