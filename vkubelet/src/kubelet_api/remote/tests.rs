use std::time::Duration;

use agent_api::proto::{ExecExit, exec_input::Input, exec_output::Output};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::oneshot;
use tokio_stream::wrappers::ReceiverStream;

use super::order::OrderError;
use super::*;
use crate::kubelet_api::spdy::frame::{Encoder, Parser, Said};

fn order(kind: Kind, query: &str) -> Order {
    Order::parse(kind, query).unwrap()
}

#[test]
fn a_query_says_what_is_wanted_as_the_api_server_writes_it() {
    let exec = order(Kind::Exec, "command=sh&command=-c&command=a%20b&input=1&output=1&error=1&tty=1");
    assert_eq!(exec.command, ["sh", "-c", "a b"]);
    assert!(exec.stdin && exec.stdout && exec.tty && !exec.stderr, "a terminal has no errors of its own");
    let attach = order(Kind::Attach, "output=1&error=1&command=x");
    assert!(attach.command.is_empty() && attach.stderr && !attach.stdin && !attach.tty);
    assert_eq!(Order::parse(Kind::Exec, "command=a&tty=1&error=1"), Err(OrderError::NoStream));
    assert_eq!(Order::parse(Kind::Exec, "output=1"), Err(OrderError::NoCommand));
}

#[test]
fn what_is_not_asked_for_in_our_protocol_is_refused() {
    let headers = |pairs: &[(&'static str, &'static str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    };
    assert!(asks_for_spdy(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "spdy/3.1")])));
    assert!(!asks_for_spdy(&headers(&[("connection", "Upgrade"), ("upgrade", "websocket")])));
    assert!(!asks_for_spdy(&headers(&[("upgrade", "SPDY/3.1")])));
    let status = |pairs| disagreement(&headers(pairs)).map(|answer| answer.status().as_u16());
    assert_eq!(status(&[]), Some(400));
    assert_eq!(status(&[(OFFERED, "v5.channel.k8s.io"), (OFFERED, "v4.channel.k8s.io")]), None);
    assert_eq!(status(&[(OFFERED, "v5.channel.k8s.io, v4.channel.k8s.io")]), None);
    assert_eq!(status(&[(OFFERED, "v1.channel.k8s.io")]), Some(403));
}

/// A process that the test plays.
struct Played {
    begun: oneshot::Sender<mpsc::Receiver<ExecInput>>,
    outputs: Result<mpsc::Receiver<Result<ExecOutput, tonic::Status>>, String>,
}

#[async_trait]
impl Talk for Played {
    async fn begin(
        self: Box<Self>,
        inputs: mpsc::Receiver<ExecInput>,
    ) -> Result<BoxStream<'static, Result<ExecOutput, tonic::Status>>, String> {
        let _ = self.begun.send(inputs);
        Ok(ReceiverStream::new(self.outputs?).boxed())
    }
}

struct Client {
    io: DuplexStream,
    encoder: Encoder,
    parser: Parser,
    bytes: BytesMut,
}

impl Client {
    async fn open(&mut self, kinds: &[&str]) {
        for (kind, stream) in kinds.iter().zip((1..).step_by(2)) {
            let frame = self.encoder.open(stream, &[("streamtype", kind)], false);
            self.io.write_all(&frame).await.unwrap();
            assert_eq!(self.hear().await, Some(Said::Accepted { stream }));
        }
    }

    async fn send(&mut self, stream: u32, bytes: &[u8], ended: bool) {
        self.io.write_all(&self.encoder.data(stream, bytes.len(), ended)).await.unwrap();
        self.io.write_all(bytes).await.unwrap();
    }

    async fn hear(&mut self) -> Option<Said> {
        let heard = async {
            loop {
                match self.parser.next(&mut self.bytes).unwrap() {
                    // As clients do: whoever answers has read what came before.
                    Some(Said::Ping { id }) if id % 2 == 0 => {
                        self.io.write_all(&self.encoder.ping(id)).await.unwrap();
                    }
                    Some(said) => return Some(said),
                    None if self.io.read_buf(&mut self.bytes).await.unwrap() == 0 => return None,
                    None => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), heard).await.expect("something is said in time")
    }

    /// The rest of a stream, which ends with what is said next.
    async fn last(&mut self, stream: u32) -> Vec<u8> {
        let mut rest = Vec::new();
        loop {
            match self.hear().await {
                Some(Said::Data { stream: of, bytes, ended }) if of == stream => {
                    rest.extend_from_slice(&bytes);
                    if ended {
                        return rest;
                    }
                }
                other => panic!("not the end of stream {stream}: {other:?}"),
            }
        }
    }

    async fn status(&mut self, stream: u32) -> serde_json::Value {
        serde_json::from_slice(&self.last(stream).await).unwrap()
    }
}

type Outputs = mpsc::Sender<Result<ExecOutput, tonic::Status>>;

struct Stage {
    client: Client,
    outputs: Outputs,
    begun: oneshot::Receiver<mpsc::Receiver<ExecInput>>,
    session: tokio::task::JoinHandle<()>,
}

fn play(order: Order) -> Stage {
    let (io, server) = tokio::io::duplex(1 << 16);
    let (outputs, to_client) = mpsc::channel(4);
    let (begun_to, begun) = oneshot::channel();
    let talk = Box::new(Played { begun: begun_to, outputs: Ok(to_client) });
    let session = tokio::spawn(async move { session::run(server, &order, talk).await });
    let client = Client { io, encoder: Encoder::default(), parser: Parser::default(), bytes: BytesMut::new() };
    Stage { client, outputs, begun, session }
}

async fn say(outputs: &Outputs, output: Output) {
    outputs.send(Ok(ExecOutput { output: Some(output) })).await.unwrap();
}

fn exit(code: i32, error: &str) -> Output {
    Output::Exit(ExecExit { code, error: error.to_owned() })
}

async fn next(inputs: &mut mpsc::Receiver<ExecInput>) -> Input {
    let input = tokio::time::timeout(Duration::from_secs(60), inputs.recv()).await.expect("in time");
    input.expect("an input").input.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_commands_streams_and_exit_code_reach_the_client_in_order() {
    let mut it = play(order(Kind::Exec, "command=cat&input=1&output=1&error=1"));
    it.client.open(&["error", "stdin", "stdout", "stderr"]).await;
    let mut inputs = it.begun.await.unwrap();
    it.client.send(3, b"in", false).await;
    it.client.send(3, b"", true).await;
    assert_eq!(next(&mut inputs).await, Input::Stdin(Bytes::from_static(b"in")));
    assert_eq!(next(&mut inputs).await, Input::StdinEof(true));
    say(&it.outputs, Output::Stdout(Bytes::from_static(b"out"))).await;
    say(&it.outputs, Output::Stderr(Bytes::from_static(b"err"))).await;
    let data = |stream, bytes| Some(Said::Data { stream, bytes: Bytes::from_static(bytes), ended: false });
    assert_eq!(it.client.hear().await, data(5, b"out"));
    assert_eq!(it.client.hear().await, data(7, b"err"));
    say(&it.outputs, exit(3, "")).await;
    assert!(it.client.last(5).await.is_empty() && it.client.last(7).await.is_empty());
    let status = it.client.status(1).await;
    assert_eq!(
        (&status["reason"], &status["details"]["causes"][0]["message"]),
        (&"NonZeroExitCode".into(), &"3".into())
    );
    assert_eq!(it.client.hear().await, Some(Said::GoAway));
    it.session.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_terminals_size_is_read_in_pieces_of_any_length() {
    let mut it = play(order(Kind::Attach, "input=1&output=1&tty=1"));
    it.client.open(&["error", "stdin", "stdout", "resize"]).await;
    let mut inputs = it.begun.await.unwrap();
    it.client.send(7, b"{\"Width\":80,\"Height\":24}\n{\"Wid", false).await;
    assert_eq!(next(&mut inputs).await, Input::Resize(agent_api::proto::TerminalSize { columns: 80, rows: 24 }));
    it.client.send(7, b"th\":100,\"Height\":30}\n", false).await;
    assert_eq!(next(&mut inputs).await, Input::Resize(agent_api::proto::TerminalSize { columns: 100, rows: 30 }));
    it.client.send(7, b"not a size\n", false).await;
    it.client.send(3, b"x", false).await;
    assert_eq!(next(&mut inputs).await, Input::Stdin(Bytes::from_static(b"x")), "input goes on");
    // A container that has ended is no failure of the attachment, whatever its exit code.
    say(&it.outputs, exit(0, "")).await;
    it.client.last(5).await;
    assert_eq!(it.client.status(1).await["status"], "Success");
}

#[tokio::test(start_paused = true)]
async fn whatever_goes_wrong_is_said_and_never_taken_for_success() {
    for (outputs, kind, wanted) in [
        (
            vec![Ok(exit(127, "exec: \"x\": not found"))],
            Kind::Exec,
            "error executing command in container: exec: \"x\": not found",
        ),
        (vec![Err(tonic::Status::unavailable("the agent has gone"))], Kind::Exec, "the agent has gone"),
        (vec![], Kind::Attach, "without saying how it went"),
        (
            vec![Ok(exit(-1, "output was not read in time"))],
            Kind::Attach,
            "error attaching to container: output was not read in time",
        ),
    ] {
        let mut it = play(order(kind, "command=x&output=1"));
        it.client.open(&["error", "stdout"]).await;
        for output in outputs {
            it.outputs.send(output.map(|o| ExecOutput { output: Some(o) })).await.unwrap();
        }
        drop(it.outputs);
        it.client.last(3).await;
        let status = it.client.status(1).await;
        assert_eq!((&status["status"], &status["code"]), (&"Failure".into(), &500.into()));
        assert!(status["message"].as_str().unwrap().contains(wanted), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_gives_up_what_it_asked_for() {
    for rude in [false, true] {
        let mut it = play(order(Kind::Attach, "input=1&output=1"));
        it.client.open(&["error", "stdin", "stdout"]).await;
        let _inputs = it.begun.await.unwrap();
        if rude {
            drop(it.client);
        } else {
            it.client.io.write_all(&it.client.encoder.go_away(0)).await.unwrap();
        }
        tokio::time::timeout(Duration::from_secs(60), it.outputs.closed()).await.expect("the conversation is given up");
        it.session.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_not_asked_for_is_refused_and_one_that_is_missing_is_not_waited_for_for_ever() {
    let mut it = play(order(Kind::Exec, "command=x&output=1"));
    let frame = it.client.encoder.open(1, &[("streamtype", "stdin")], false);
    it.client.io.write_all(&frame).await.unwrap();
    assert_eq!(it.client.hear().await, Some(Said::Reset { stream: 1 }));
    tokio::time::timeout(Duration::from_secs(60), it.session).await.expect("it ends").unwrap();
    assert!(it.begun.await.is_err(), "nothing was begun");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_opened_later_is_refused_and_holds_up_nothing() {
    let mut it = play(order(Kind::Exec, "command=cat&input=1&output=1"));
    it.client.open(&["error", "stdin", "stdout"]).await;
    let mut inputs = it.begun.await.unwrap();
    for stream in [7, 9] {
        let frame = it.client.encoder.open(stream, &[("streamtype", "stdin")], false);
        it.client.io.write_all(&frame).await.unwrap();
        assert_eq!(it.client.hear().await, Some(Said::Reset { stream }));
    }
    // More than any queue holds: on a stream that is refused, and on those that only the client reads.
    let sending = async {
        for stream in [7, 1, 5] {
            for _ in 0..200 {
                it.client.send(stream, b"nobody wants this", false).await;
            }
        }
        it.client.send(3, b"x", false).await;
    };
    tokio::time::timeout(Duration::from_secs(60), sending).await.expect("the connection is read");
    assert_eq!(next(&mut inputs).await, Input::Stdin(Bytes::from_static(b"x")));
}
