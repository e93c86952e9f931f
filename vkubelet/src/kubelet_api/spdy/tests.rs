use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::connection::{Connection, Opened};
use super::frame::{Encoder, Parser, ProtocolError, Reset, Said};

fn parsed(bytes: &[u8]) -> Result<Vec<Said>, ProtocolError> {
    let (mut parser, mut bytes, mut said) = (Parser::default(), BytesMut::from(bytes), Vec::new());
    while let Some(one) = parser.next(&mut bytes)? {
        said.push(one);
    }
    Ok(said)
}

/// What a client says, by its own encoder.
fn conversation() -> Vec<u8> {
    let mut encoder = Encoder::default();
    let mut bytes = Vec::new();
    for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
        bytes.extend_from_slice(&encoder.open(stream, &[("streamtype", kind)], false));
    }
    bytes.extend_from_slice(&encoder.data(3, 5, true));
    bytes.extend_from_slice(b"hello");
    bytes.extend_from_slice(&encoder.accept(9));
    bytes.extend_from_slice(&encoder.ping(7));
    bytes.extend_from_slice(&encoder.reset(1, Reset::Cancel));
    bytes.extend_from_slice(&encoder.go_away(5));
    bytes
}

fn open(stream: u32, kind: &str) -> Said {
    Said::Open { stream, headers: vec![("streamtype".to_owned(), kind.to_owned())], ended: false }
}

#[test]
fn what_is_encoded_is_understood_headers_after_headers() {
    let said = parsed(&conversation()).unwrap();
    let wanted = vec![
        open(1, "error"),
        open(3, "stdin"),
        open(5, "stdout"),
        Said::Data { stream: 3, bytes: Bytes::from_static(b"hello"), ended: true },
        Said::Accepted { stream: 9 },
        Said::Ping { id: 7 },
        Said::Reset { stream: 1 },
        Said::GoAway,
    ];
    assert_eq!(said, wanted);
}

/// A header block by another implementation (Python's zlib, with the dictionary), for the stream type `error`.
#[test]
fn a_block_of_another_implementation_is_understood() {
    let block = hex::decode(ANOTHERS).unwrap();
    let mut frame = vec![0x80, 3, 0, 1, 0, 0, 0, u8::try_from(block.len() + 10).unwrap(), 0, 0, 0, 1];
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&block);
    assert_eq!(parsed(&frame).unwrap(), [open(1, "error")]);
}

const ANOTHERS: &str = "78f9e3c6a7c202a62346703a2b294a4dcc851625aca9a08006000000ffff";

#[test]
fn what_is_too_much_or_unknown_ends_the_connection() {
    let control = |kind: u16, length: u32| {
        let mut frame = BytesMut::new();
        frame.put_u16(0x8003);
        frame.put_u16(kind);
        frame.put_u32(length);
        frame.resize(8 + 16, 0);
        frame
    };
    assert_eq!(parsed(&control(4, 1 << 20)), Err(ProtocolError::Long { kind: 4, length: 1 << 20 }));
    assert_eq!(parsed(&control(5, 0)), Err(ProtocolError::Control { kind: 5 }));
    assert_eq!(parsed(&control(6, 2)), Err(ProtocolError::Control { kind: 6 }));
    assert!(matches!(parsed(&control(1, 12)), Err(ProtocolError::Headers(_))));
    // A small block that inflates to a large one.
    let bomb = "x".repeat(20 << 10);
    let frame = Encoder::default().open(1, &[("bomb", &bomb)], false);
    assert_eq!(parsed(&frame), Err(ProtocolError::Headers("is too long")));
    let names: Vec<String> = (0..40).map(|n| format!("n{n}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    let frame = Encoder::default().open(1, &many, false);
    assert_eq!(parsed(&frame), Err(ProtocolError::Headers("has too many headers")));
    let frame = Encoder::default().open(1, &[("a", "1"), ("A", "2")], false);
    assert!(matches!(parsed(&frame), Err(ProtocolError::Headers(_))));
}

proptest! {
    #[test]
    fn frames_may_be_cut_anywhere(cuts in proptest::collection::vec(1_usize..40, 1..60)) {
        let whole = conversation();
        let (mut parser, mut bytes, mut said, mut cuts) = (Parser::default(), BytesMut::new(), Vec::new(), cuts.iter().cycle());
        let mut rest = whole.as_slice();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            bytes.extend_from_slice(piece);
            rest = after;
            while let Some(one) = parser.next(&mut bytes).unwrap() {
                match (said.last_mut(), one) {
                    // Data comes in pieces.
                    (Some(Said::Data { stream, bytes, ended }), Said::Data { stream: s, bytes: more, ended: e }) if *stream == s => {
                        let mut all = bytes.to_vec();
                        all.extend_from_slice(&more);
                        (*bytes, *ended) = (all.into(), e);
                    }
                    (_, one) => said.push(one),
                }
            }
        }
        prop_assert_eq!(said, parsed(&whole).unwrap());
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0_u16..12) {
        let _ = parsed(&bytes);
        let mut control = BytesMut::new();
        control.put_u16(0x8003);
        control.put_u16(kind);
        control.put_u32(u32::try_from(bytes.len()).unwrap());
        control.extend_from_slice(&bytes);
        let _ = parsed(&control);
    }
}

/// A client of a served connection.
struct Client {
    io: DuplexStream,
    encoder: Encoder,
    parser: Parser,
    bytes: BytesMut,
}

impl Client {
    fn new() -> (Self, Connection) {
        let (io, server) = tokio::io::duplex(1 << 16);
        let client = Self { io, encoder: Encoder::default(), parser: Parser::default(), bytes: BytesMut::new() };
        (client, Connection::new(server))
    }

    async fn open(&mut self, stream: u32, kind: &str) {
        let frame = self.encoder.open(stream, &[("streamtype", kind)], false);
        self.io.write_all(&frame).await.unwrap();
    }

    async fn send(&mut self, stream: u32, bytes: &[u8], ended: bool) {
        self.io.write_all(&self.encoder.data(stream, bytes.len(), ended)).await.unwrap();
        self.io.write_all(bytes).await.unwrap();
    }

    /// The next thing said but for the server's own pings, which it answers; `None` at the end.
    async fn hear(&mut self) -> Option<Said> {
        let heard = async {
            loop {
                match self.parser.next(&mut self.bytes).unwrap() {
                    // Of one that has gone nobody reads the answer.
                    Some(Said::Ping { id }) if id % 2 == 0 => drop(self.io.write_all(&self.encoder.ping(id)).await),
                    Some(said) => return Some(said),
                    None if self.io.read_buf(&mut self.bytes).await.unwrap() == 0 => return None,
                    None => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), heard).await.expect("something is said in time")
    }
}

async fn next(connection: &mut Connection) -> Opened {
    tokio::time::timeout(Duration::from_secs(60), connection.opened()).await.expect("in time").expect("a stream")
}

#[tokio::test]
async fn streams_are_opened_accepted_read_and_written() {
    let (mut client, mut connection) = Client::new();
    client.open(1, "stdin").await;
    let mut stdin = next(&mut connection).await;
    assert_eq!((stdin.stream, stdin.header("streamtype")), (1, Some("stdin")));
    connection.outbound().accept(1).await.unwrap();
    assert_eq!(client.hear().await, Some(Said::Accepted { stream: 1 }));
    client.send(1, b"in", false).await;
    client.send(1, b"", true).await;
    assert_eq!(stdin.data.recv().await.as_deref(), Some(&b"in"[..]));
    assert_eq!(stdin.data.recv().await, None);
    connection.outbound().data(1, Bytes::from_static(b"out"), true).await.unwrap();
    assert_eq!(client.hear().await, Some(Said::Data { stream: 1, bytes: Bytes::from_static(b"out"), ended: true }));
    client.io.write_all(&client.encoder.ping(5)).await.unwrap();
    assert_eq!(client.hear().await, Some(Said::Ping { id: 5 }));
}

#[tokio::test]
async fn numbers_that_are_even_or_not_new_and_too_many_streams_are_reset() {
    let (mut client, mut connection) = Client::new();
    for (stream, known) in [(4, false), (7, true), (5, false), (7, false)] {
        client.open(stream, "x").await;
        if known {
            next(&mut connection).await;
        } else {
            assert_eq!(client.hear().await, Some(Said::Reset { stream }), "{stream}");
        }
    }
    let mut kept = Vec::new();
    for stream in (11..11 + 128).step_by(2) {
        client.open(stream, "x").await;
        kept.push(next(&mut connection).await);
    }
    client.open(1001, "x").await;
    assert_eq!(client.hear().await, Some(Said::Reset { stream: 1001 }));
}

#[tokio::test]
async fn data_that_nobody_wants_holds_nothing_up() {
    let (mut client, mut connection) = Client::new();
    client.open(1, "stdout").await;
    drop(next(&mut connection).await);
    let piece = vec![0; 32 << 10];
    for _ in 0..100 {
        client.send(1, &piece, false).await;
    }
    client.io.write_all(&client.encoder.ping(5)).await.unwrap();
    assert_eq!(client.hear().await, Some(Said::Ping { id: 5 }));
}

#[tokio::test]
async fn a_client_that_is_gone_or_leaving_is_noticed() {
    let (mut client, connection) = Client::new();
    client.io.write_all(&client.encoder.go_away(0)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), connection.left().cancelled()).await.expect("it is leaving");
    let (client, mut connection) = Client::new();
    drop(client);
    assert!(connection.opened().await.is_none());
    tokio::time::timeout(Duration::from_secs(60), connection.left().cancelled()).await.expect("it is gone");
}

/// The reader waits for a stream's queue and sees nothing; the pings do.
#[tokio::test(start_paused = true)]
async fn a_client_that_goes_while_its_input_is_not_taken_is_noticed() {
    let (mut client, mut connection) = Client::new();
    client.open(1, "stdin").await;
    let stdin = next(&mut connection).await;
    let piece = vec![0; 32 << 10];
    while tokio::time::timeout(Duration::from_millis(100), client.send(1, &piece, false)).await.is_ok() {}
    let left = connection.left();
    assert!(!left.is_cancelled());
    drop(client);
    tokio::time::timeout(Duration::from_secs(60), left.cancelled()).await.expect("it is gone");
    drop(stdin);
}

#[tokio::test(start_paused = true)]
async fn all_that_was_said_arrives_before_the_end() {
    let (mut client, connection) = Client::new();
    let out = connection.outbound().clone();
    let finishing = tokio::spawn(async move {
        out.data(3, Bytes::from_static(b"last"), true).await.unwrap();
        connection.finish().await;
    });
    assert_eq!(client.hear().await, Some(Said::Data { stream: 3, bytes: Bytes::from_static(b"last"), ended: true }));
    assert_eq!(client.hear().await, Some(Said::GoAway));
    assert_eq!(client.hear().await, None);
    finishing.await.unwrap();
}

/// `kubectl exec … | less`: whoever reads gets the status, or would take what came for all.
#[tokio::test(start_paused = true)]
async fn a_client_that_reads_slowly_gets_all_that_was_said() {
    const PIECES: usize = 64;
    const PIECE: usize = 16 << 10;
    let (mut client, connection) = Client::new();
    let out = connection.outbound().clone();
    let finishing = tokio::spawn(async move {
        for _ in 0..PIECES {
            out.data(3, Bytes::from(vec![7; PIECE]), false).await.unwrap();
        }
        out.data(1, Bytes::from_static(b"status"), true).await.unwrap();
        connection.finish().await;
    });
    let (mut size, mut read, mut status) = (0, 0, Vec::new());
    loop {
        match client.hear().await {
            Some(Said::Data { stream: 3, bytes, .. }) => size += bytes.len(),
            Some(Said::Data { stream: 1, bytes, ended }) => {
                status.extend_from_slice(&bytes);
                if ended {
                    break;
                }
            }
            other => panic!("{size} bytes came, then {other:?}"),
        }
        // A page, not what one read happens to bring.
        if size / PIECE > read {
            read = size / PIECE;
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
    }
    assert_eq!((size, status.as_slice()), (PIECES * PIECE, &b"status"[..]));
    assert_eq!(client.hear().await, Some(Said::GoAway));
    finishing.await.unwrap();
}

/// What is in the socket is not with the client yet: it would be lost if the socket were closed and the client said a word.
#[tokio::test(start_paused = true)]
async fn a_connection_lasts_until_its_client_has_read_all_or_has_gone() {
    const HOUR: Duration = Duration::from_secs(3600);
    for stays in [true, false] {
        let (mut client, connection) = Client::new();
        let out = connection.outbound().clone();
        let mut finishing = tokio::spawn(async move {
            out.data(1, Bytes::from_static(b"status"), true).await.unwrap();
            connection.finish().await;
        });
        tokio::time::timeout(HOUR, &mut finishing).await.expect_err("it has read nothing, and is here");
        if stays {
            assert!(matches!(client.hear().await, Some(Said::Data { stream: 1, .. })));
            assert_eq!(client.hear().await, Some(Said::GoAway));
        } else {
            drop(client);
        }
        tokio::time::timeout(HOUR, finishing).await.expect("it ends").unwrap();
    }
}

/// One that answers no ping, and stays, is not kept for ever.
#[tokio::test(start_paused = true)]
async fn a_client_that_never_answers_is_left_in_the_end() {
    let (client, connection) = Client::new();
    let finishing = tokio::spawn(connection.finish());
    tokio::time::timeout(Duration::from_secs(9 * 3600), finishing).await.expect("it ends").unwrap();
    drop(client);
}
