//! The writer: a meter on a real spool, told what to do on standard input, its records served on a Unix socket.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent::meter::{Interval, Meter, MeterError, Released, SystemClock, UsedNow, UsedProvider};
use agent::spool::{ReadError, Spool, SpoolConfig};
use agent_api::usage::Held;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

#[derive(Debug)]
struct Nothing;

#[async_trait::async_trait]
impl UsedProvider for Nothing {
    async fn used(&self, _sandbox_id: &str) -> Option<UsedNow> {
        Some(UsedNow { cpu_ns: 1, memory_bytes: 4096, ..UsedNow::default() })
    }
}

pub(crate) async fn run(dir: &Path) {
    let boot_id = std::env::var("NODELESS_FAULT_BOOT").expect("a boot id");
    let spool = SpoolConfig {
        segment_bytes: 128 * 1024,
        reserve_segments: 4,
        ..SpoolConfig::new(dir.join("spool"), "h".into(), boot_id.clone())
    };
    let meter = Meter::open_with(spool, Duration::from_secs(10), Arc::new(SystemClock), Arc::new(Nothing));
    let meter = Arc::new(meter.expect("the spool opens after any kill"));
    assert_eq!(meter.spool().health().damage, Vec::new(), "a kill never looks like damage");
    let socket = dir.join("agent.sock");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).expect("a socket");
    let spool = meter.spool().clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(spool.clone(), stream));
        }
    });
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    while let Some(command) = commands.next_line().await.expect("commands can be read") {
        let meter = Arc::clone(&meter);
        match command.split_once(' ') {
            Some(("adopt", what)) => adopt(&meter, what).await,
            Some(("start", id)) => {
                let id = id.to_owned();
                tokio::spawn(async move {
                    let started = meter.start(interval(&id)).await.expect("a start");
                    say(&format!("started {id} {}", started.boottime_ns));
                });
            }
            Some(("stop", id)) => {
                let id = id.to_owned();
                tokio::spawn(async move {
                    match meter.stop(&id, None).await {
                        Ok(stopped) => say(&format!("stopped {id} {}", stopped.boottime_ns)),
                        Err(MeterError::Unknown { .. }) => say(&format!("unknown {id}")),
                        Err(error) => panic!("{error}"),
                    }
                });
            }
            None if command == "tick" => {
                meter.tick().await.expect("a tick");
                say("ticked");
            }
            None if command == "last" => {
                let last = meter.spool().boots().into_iter().find(|boot| boot.boot_id == boot_id);
                say(&format!("last {}", last.expect("the running boot").last_seq));
            }
            _ => panic!("unknown command {command}"),
        }
    }
}

async fn adopt(meter: &Meter, what: &str) {
    let what: Value = serde_json::from_str(what).expect("JSON");
    let list = |name: &str| what[name].as_array().expect("a list").clone();
    let live: Vec<String> = list("live").iter().map(|id| id.as_str().expect("an id").to_owned()).collect();
    let released = |pair: &Value| Released {
        sandbox_id: pair[0].as_str().expect("an id").to_owned(),
        boottime_ns: pair[1].as_u64().expect("an instant"),
    };
    let released: Vec<Released> = list("released").iter().map(released).collect();
    let adopted = meter.adopt(&live, &released).await.expect("an adoption");
    assert_eq!(adopted.continued.len(), live.len(), "every live sandbox goes on");
    assert!(adopted.unmetered.is_empty());
}

/// One request on each connection; see `ledger_role` for the other side.
async fn serve(spool: Spool, stream: UnixStream) {
    let (input, mut output) = stream.into_split();
    let Ok(Some(request)) = BufReader::new(input).lines().next_line().await else { return };
    let words: Vec<&str> = request.split(' ').collect();
    let number = |word: &str| word.parse::<u64>().expect("a number");
    match words.as_slice() {
        ["boots"] => {
            let boots = spool
                .boots()
                .into_iter()
                .map(|boot| serde_json::json!([boot.boot_id, boot.last_seq, boot.acked_seq, boot.current]));
            let _ = output.write_all(format!("{}\n", Value::from_iter(boots)).as_bytes()).await;
        }
        ["records", boot_id, after, follow] => {
            let mut reader = spool.read(boot_id, number(after), *follow == "true");
            while let Some(batch) = reader.next().await {
                let bytes = match batch {
                    Ok(batch) => [
                        format!("{}\n", batch.records.len()).into_bytes(),
                        batch.records.iter().flat_map(|record| [record, &b"\n"[..]].concat()).collect(),
                    ]
                    .concat(),
                    Err(error @ ReadError::UnknownBoot { .. }) => format!("later {error}\n").into_bytes(),
                    Err(error) => format!("lost {error}\n").into_bytes(),
                };
                if output.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            let _ = output.write_all(b"end\n").await;
        }
        ["ack", boot_id, seq] => {
            let answer = match spool.ack(boot_id, number(seq)).await {
                Ok(()) => "ok\n".to_owned(),
                Err(error) => format!("failed {error}\n"),
            };
            let _ = output.write_all(answer.as_bytes()).await;
        }
        other => panic!("unknown request {other:?}"),
    }
}

fn interval(id: &str) -> Interval {
    Interval {
        pod_uid: format!("uid-{id}"),
        pod_namespace: "default".into(),
        pod_name: id.into(),
        sandbox_id: id.into(),
        held: Held { milli_cpu: 250, memory_bytes: 64 << 20, ..Held::default() },
        sandbox_kind: "namespace".into(),
        price_class: "on-demand".into(),
        images: vec![format!("sha256:{}", "a".repeat(64))],
    }
}

fn say(answer: &str) {
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(format!("@{answer}\n").as_bytes());
    let _ = output.flush();
}
