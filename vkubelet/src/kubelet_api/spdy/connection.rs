//! One connection: a task that reads, a task that writes.
//!
//! The reader hands each stream's data to its queue and waits when that is full: the client's TCP connection is what holds it
//! back. While it waits it does not see the client leave; the writer's own pings find that out.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::frame::{Encoder, Parser, Reset, Said};
use super::headers::Headers;

/// Read at once.
const PIECE: usize = 32 << 10;
/// Pieces of a stream that may wait for who serves it.
const PIECES: usize = 32;
/// Streams open at a time.
const MOST_STREAMS: usize = 64;
/// Messages that may wait for the client.
const OUTBOUND: usize = 16;
/// How often a client is asked whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(15);
/// A connection on which nothing was said for so long is over (the kubelet's `streamingConnectionIdleTimeout`).
const IDLE: Duration = Duration::from_secs(4 * 3600);
/// The ping that asks a client whether it has read all; others never come so far.
const LAST_PING: u32 = 0x7fff_fffe;
/// How long a client may take to leave once it has read all that was said to it, and to read it once it is leaving.
const LEAVE: Duration = Duration::from_secs(10);
/// How long what it still sends is read after that, so that nothing on its way to it is lost.
const LINGER: Duration = Duration::from_secs(2);

/// A stream that the client has opened; it waits for [`Outbound::accept`] or [`Outbound::reset`].
#[derive(Debug)]
pub struct Opened {
    /// Its number.
    pub stream: u32,
    /// Its headers.
    pub headers: Headers,
    /// Its data, to the end that the client says.
    pub data: mpsc::Receiver<Bytes>,
}

impl Opened {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug)]
enum Order {
    Accept(u32),
    Reset(u32, Reset),
    Data(u32, Bytes, bool),
    Ping(u32),
    GoAway,
}

/// The client cannot be told anything any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client has gone")]
pub struct Gone;

/// What is said to the client. Clones say it on the same connection.
#[derive(Debug, Clone)]
pub struct Outbound(mpsc::Sender<Order>);

impl Outbound {
    async fn say(&self, order: Order) -> Result<(), Gone> {
        self.0.send(order).await.map_err(|_| Gone)
    }

    /// Accepts a stream.
    ///
    /// # Errors
    /// The client has gone, here and below.
    pub async fn accept(&self, stream: u32) -> Result<(), Gone> {
        self.say(Order::Accept(stream)).await
    }

    /// Refuses or gives up a stream.
    pub async fn reset(&self, stream: u32, why: Reset) -> Result<(), Gone> {
        self.say(Order::Reset(stream, why)).await
    }

    /// Data of a stream, and whether it is the last. Waits for a client that is slow to read.
    pub async fn data(&self, stream: u32, bytes: Bytes, ended: bool) -> Result<(), Gone> {
        self.say(Order::Data(stream, bytes, ended)).await
    }
}

/// A connection that is served.
#[derive(Debug)]
pub struct Connection {
    opened: mpsc::Receiver<Opened>,
    outbound: Outbound,
    /// The client has read all that was said before the last ping.
    read: CancellationToken,
    /// The client has gone or is leaving.
    left: CancellationToken,
    /// The connection is given up.
    over: CancellationToken,
}

impl Connection {
    /// Serves an upgraded connection.
    pub fn new<S>(io: S) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(io);
        let (opened_to, opened) = mpsc::channel(MOST_STREAMS);
        let (orders_to, orders) = mpsc::channel(OUTBOUND);
        let [read, left, over] = [(); 3].map(|()| CancellationToken::new());
        let outbound = Outbound(orders_to);
        let reading = Reading {
            opened: opened_to,
            outbound: outbound.clone(),
            read: read.clone(),
            left: left.clone(),
            over: over.clone(),
        };
        tokio::spawn(reading.run(reader));
        tokio::spawn(write(writer, orders, left.clone(), over.clone()));
        Self { opened, outbound, read, left, over }
    }

    /// The next stream that the client opens. `None`: it has gone.
    pub async fn opened(&mut self) -> Option<Opened> {
        self.opened.recv().await
    }

    /// Refuses every stream that the client opens from now on, and those that were not taken yet.
    ///
    /// # Errors
    /// The client has gone.
    pub async fn no_more(&mut self) -> Result<(), Gone> {
        self.opened.close();
        while let Ok(opened) = self.opened.try_recv() {
            self.outbound.reset(opened.stream, Reset::Refused).await?;
        }
        Ok(())
    }

    /// What is said to the client.
    #[must_use]
    pub fn outbound(&self) -> &Outbound {
        &self.outbound
    }

    /// Ends when the client has gone or is leaving.
    #[must_use]
    pub fn left(&self) -> CancellationToken {
        self.left.clone()
    }

    /// Ends the connection once all that was said has been read by the client: a socket that is closed while the client still
    /// sends (its pings) would take back what is on the way to it, megabytes of it.
    ///
    /// A client that reads slowly (`| less`) takes its time for what was said: the status is the last of it, and without one
    /// it would think that all had come. It answers a ping once it has read what came before.
    pub async fn finish(self) {
        let reading = async {
            self.outbound.say(Order::Ping(LAST_PING)).await.ok()?;
            self.read.cancelled().await;
            Some(())
        };
        let leaving = async {
            self.left.cancelled().await;
            tokio::time::sleep(LEAVE).await;
        };
        tokio::select! {
            _ = tokio::time::timeout(IDLE, reading) => {}
            () = leaving => {}
            () = self.over.cancelled() => return,
        }
        let _ = tokio::time::timeout(LEAVE, self.left.cancelled()).await;
        let _ = tokio::time::timeout(LINGER, self.outbound.say(Order::GoAway)).await;
        // The reader goes on meanwhile.
        let _ = tokio::time::timeout(LINGER, self.over.cancelled()).await;
        self.over.cancel();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

struct Reading {
    opened: mpsc::Sender<Opened>,
    outbound: Outbound,
    read: CancellationToken,
    left: CancellationToken,
    over: CancellationToken,
}

impl Reading {
    async fn run<S: AsyncRead>(self, mut io: ReadHalf<S>) {
        let over = self.over.clone();
        tokio::select! {
            () = self.read(&mut io) => {}
            () = over.cancelled() => {}
        }
        self.left.cancel();
        self.over.cancel();
    }

    async fn read<S: AsyncRead>(&self, io: &mut ReadHalf<S>) {
        let mut parser = Parser::default();
        let mut streams: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
        let mut newest = 0;
        let mut bytes = BytesMut::with_capacity(PIECE);
        loop {
            loop {
                match parser.next(&mut bytes) {
                    Ok(Some(said)) => {
                        if self.heard(said, &mut streams, &mut newest).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "SPDY connection is given up");
                        return;
                    }
                }
            }
            bytes.reserve(PIECE);
            match tokio::time::timeout(IDLE, io.read_buf(&mut bytes)).await {
                Ok(Ok(1..)) => {}
                _ => return,
            }
        }
    }

    async fn heard(
        &self,
        said: Said,
        streams: &mut HashMap<u32, mpsc::Sender<Bytes>>,
        newest: &mut u32,
    ) -> Result<(), Gone> {
        match said {
            Said::Open { stream, headers, ended } => {
                if stream % 2 == 0 || stream <= *newest {
                    return self.outbound.reset(stream, Reset::Protocol).await;
                }
                *newest = stream;
                streams.retain(|_, queue| !queue.is_closed());
                let (queue, data) = mpsc::channel(PIECES);
                if streams.len() >= MOST_STREAMS || self.opened.try_send(Opened { stream, headers, data }).is_err() {
                    return self.outbound.reset(stream, Reset::Refused).await;
                }
                if !ended {
                    streams.insert(stream, queue);
                }
            }
            Said::Data { stream, bytes, ended } => {
                if let Some(queue) = streams.get(&stream) {
                    // Nobody wants it: it is discarded.
                    let _ = if bytes.is_empty() { Ok(()) } else { queue.send(bytes).await };
                }
                if ended {
                    streams.remove(&stream);
                }
            }
            Said::Reset { stream } => drop(streams.remove(&stream)),
            Said::Ping { id: LAST_PING } => self.read.cancel(),
            // Even numbers are answers to ours.
            Said::Ping { id } if id % 2 == 1 => self.outbound.say(Order::Ping(id)).await?,
            Said::GoAway => {
                streams.clear();
                self.left.cancel();
            }
            Said::Ping { .. } | Said::Accepted { .. } | Said::Nothing => {}
        }
        Ok(())
    }
}

async fn write<S: AsyncWrite>(
    mut io: WriteHalf<S>,
    mut orders: mpsc::Receiver<Order>,
    left: CancellationToken,
    over: CancellationToken,
) {
    let mut encoder = Encoder::default();
    let mut pings = tokio::time::interval(PING_EVERY);
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    pings.reset();
    let mut ping = 0_u32;
    let writing = async {
        let mut accepted = 0;
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                _ = pings.tick() => {
                    ping = ping.wrapping_add(2) & 0x7fff_ffff;
                    Some(Order::Ping(ping.max(2)))
                }
            };
            let written = match order {
                None => return,
                Some(Order::Accept(stream)) => {
                    accepted = stream;
                    io.write_all(&encoder.accept(stream)).await
                }
                Some(Order::Reset(stream, why)) => io.write_all(&encoder.reset(stream, why)).await,
                Some(Order::Ping(id)) => io.write_all(&encoder.ping(id)).await,
                Some(Order::Data(stream, bytes, ended)) => {
                    match io.write_all(&encoder.data(stream, bytes.len(), ended)).await {
                        Ok(()) => io.write_all(&bytes).await,
                        failed => failed,
                    }
                }
                Some(Order::GoAway) => {
                    let _ = io.write_all(&encoder.go_away(accepted)).await;
                    let _ = io.shutdown().await;
                    return;
                }
            };
            if written.is_err() || io.flush().await.is_err() {
                left.cancel();
                over.cancel();
                return;
            }
        }
    };
    tokio::select! {
        () = writing => {}
        () = over.cancelled() => {}
    }
}
