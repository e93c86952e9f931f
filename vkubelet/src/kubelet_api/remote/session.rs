//! One exec or attachment: the client's streams on one side, the agent's on the other.

use std::time::Duration;

use agent_api::proto::{ExecInput, TerminalSize, exec_input::Input, exec_output::Output};
use bytes::Bytes;
use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::Talk;
use super::order::{Kind, Order};
use super::status;
use crate::kubelet_api::spdy::connection::{Connection, Gone, Opened, Outbound};
use crate::kubelet_api::spdy::frame::Reset;

/// Time for a client to open all of its streams (the kubelet's `streamCreationTimeout`).
const OPENED_WITHIN: Duration = Duration::from_secs(30);
/// Input under way: back-pressure reaches the client.
const INPUTS: usize = 16;
/// Longest size of a terminal as JSON; a client that sends more without one is not listened to.
const LONGEST_SIZE: usize = 4 << 10;

/// The client's streams.
#[derive(Default)]
struct Streams {
    error: Option<Opened>,
    stdin: Option<Opened>,
    stdout: Option<Opened>,
    stderr: Option<Opened>,
    resize: Option<Opened>,
}

impl Streams {
    /// Takes all that the order needs. `None`: the client has gone.
    async fn collect(connection: &mut Connection, order: &Order) -> Option<Self> {
        let mut streams = Self::default();
        while !streams.complete(order) {
            let opened = connection.opened().await?;
            let (number, kind) = (opened.stream, opened.header("streamtype").unwrap_or_default().to_owned());
            let place = match kind.as_str() {
                "error" => Some(&mut streams.error),
                "stdin" if order.stdin => Some(&mut streams.stdin),
                "stdout" if order.stdout => Some(&mut streams.stdout),
                "stderr" if order.stderr => Some(&mut streams.stderr),
                "resize" if order.tty => Some(&mut streams.resize),
                _ => None,
            };
            match place.filter(|place| place.is_none()) {
                Some(place) => {
                    *place = Some(opened);
                    connection.outbound().accept(number).await.ok()?;
                }
                None => connection.outbound().reset(number, Reset::Refused).await.ok()?,
            }
        }
        Some(streams)
    }

    fn complete(&self, order: &Order) -> bool {
        self.error.is_some()
            && self.stdin.is_some() == order.stdin
            && self.stdout.is_some() == order.stdout
            && self.stderr.is_some() == order.stderr
            && self.resize.is_some() == order.tty
    }
}

/// Serves an upgraded connection to its end.
pub async fn run<S>(io: S, order: &Order, talk: Box<dyn Talk>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut connection = Connection::new(io);
    let collected = tokio::time::timeout(OPENED_WITHIN, Streams::collect(&mut connection, order)).await;
    let Ok(Some(streams)) = collected else { return };
    // What nobody serves must not hold up what is served.
    if connection.no_more().await.is_err() {
        return;
    }
    let numbers = Numbers::of(&streams);
    let left = connection.left();
    let end = tokio::select! {
        end = carry(&connection, order, talk, streams) => end,
        // Whatever was asked for is given up with it.
        () = left.cancelled() => return,
    };
    if let Some(end) = end
        && numbers.end(connection.outbound(), &end).await.is_ok()
    {
        connection.finish().await;
    }
}

/// Where output goes.
#[derive(Clone, Copy)]
struct Numbers {
    error: Option<u32>,
    stdout: Option<u32>,
    stderr: Option<u32>,
}

impl Numbers {
    fn of(streams: &Streams) -> Self {
        let number = |opened: &Option<Opened>| opened.as_ref().map(|opened| opened.stream);
        Self { error: number(&streams.error), stdout: number(&streams.stdout), stderr: number(&streams.stderr) }
    }

    /// Output ends before the status is said: a client that has the status may leave.
    async fn end(self, out: &Outbound, status: &Value) -> Result<(), Gone> {
        for stream in [self.stdout, self.stderr].into_iter().flatten() {
            out.data(stream, Bytes::new(), true).await?;
        }
        match self.error {
            Some(stream) => out.data(stream, status.to_string().into(), true).await,
            None => Ok(()),
        }
    }
}

/// Carries bytes until the process has ended; what to tell the client. `None`: it cannot be told anything.
async fn carry(connection: &Connection, order: &Order, talk: Box<dyn Talk>, streams: Streams) -> Option<Value> {
    let numbers = Numbers::of(&streams);
    let (inputs_to, inputs) = mpsc::channel(INPUTS);
    let _stdin = streams.stdin.map(|opened| AbortOnDropHandle::new(tokio::spawn(feed(opened, inputs_to.clone()))));
    let _resize = streams.resize.map(|opened| AbortOnDropHandle::new(tokio::spawn(resize(opened, inputs_to.clone()))));
    // What a client says on the streams that are for its ears is discarded as it comes.
    drop((streams.error, streams.stdout, streams.stderr));
    // Without a client's word nothing more goes in, and what is open stays open.
    let _open = inputs_to;
    let failed = |why: &str| Some(status::failed(order.kind, why));
    let mut outputs = match talk.begin(inputs).await {
        Ok(outputs) => outputs,
        Err(why) => return failed(&why),
    };
    let out = connection.outbound();
    loop {
        let (stream, bytes) = match outputs.next().await {
            None => return failed("the host ended the conversation without saying how it went"),
            Some(Err(status)) => return failed(status.message()),
            Some(Ok(output)) => match output.output {
                Some(Output::Stdout(bytes)) => (numbers.stdout, bytes),
                Some(Output::Stderr(bytes)) => (numbers.stderr, bytes),
                Some(Output::Exit(exit)) if !exit.error.is_empty() => return failed(&exit.error),
                Some(Output::Exit(_)) if order.kind == Kind::Attach => return Some(status::success()),
                Some(Output::Exit(exit)) => return Some(status::exited(exit.code)),
                Some(Output::Started(_)) | None => continue,
            },
        };
        if let (Some(stream), false) = (stream, bytes.is_empty())
            && out.data(stream, bytes, false).await.is_err()
        {
            return None;
        }
    }
}

fn input(input: Input) -> ExecInput {
    ExecInput { input: Some(input) }
}

/// The client's input, and its end.
async fn feed(mut opened: Opened, to: mpsc::Sender<ExecInput>) {
    while let Some(bytes) = opened.data.recv().await {
        if to.send(input(Input::Stdin(bytes))).await.is_err() {
            return;
        }
    }
    let _ = to.send(input(Input::StdinEof(true))).await;
}

/// A terminal's size, as client-go writes it.
#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

/// Sizes of the client's terminal: JSON objects one after the other, in pieces of any length.
async fn resize(mut opened: Opened, to: mpsc::Sender<ExecInput>) {
    let mut text: Vec<u8> = Vec::new();
    while let Some(bytes) = opened.data.recv().await {
        text.extend_from_slice(&bytes);
        let mut sizes = serde_json::Deserializer::from_slice(&text).into_iter::<Size>();
        let mut newest = None;
        let broken = loop {
            match sizes.next() {
                Some(Ok(size)) => newest = Some(size),
                Some(Err(error)) => break !error.is_eof(),
                None => break false,
            }
        };
        let read = sizes.byte_offset();
        if let Some(Size { width, height }) = newest {
            let size = TerminalSize { columns: width.into(), rows: height.into() };
            if to.send(input(Input::Resize(size))).await.is_err() {
                return;
            }
        }
        text.drain(..read);
        if broken || text.len() > LONGEST_SIZE {
            return;
        }
    }
}
