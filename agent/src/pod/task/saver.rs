//! Writes a pod's record in the background, the newest one only; or at once, and waits.

use std::time::Duration;

use tokio::sync::watch;

use crate::ledger::{Ledger, LedgerError, PodRecord};

/// Changes are gathered for this long: what a pod's start changes is one write. Nothing is lost with them that the shim does not know.
const GATHER: Duration = Duration::from_millis(200);
/// How long a flush is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after a failed write.
const RETRY: Duration = Duration::from_secs(1);

/// Writes records of one pod, in order.
pub(super) struct Saver {
    ledger: Ledger,
    /// `(number, record)` to be written.
    wanted: watch::Sender<(u64, Option<Box<PodRecord>>)>,
    /// Number up to which somebody waits.
    urgent: watch::Sender<u64>,
    /// Number of the newest record that is durable.
    written: watch::Receiver<u64>,
}

impl Saver {
    pub(super) fn new(ledger: Ledger) -> Self {
        let (wanted, mut inbox) = watch::channel((0, None::<Box<PodRecord>>));
        let (done, written) = watch::channel(0);
        let urgent = watch::Sender::new(0);
        let mut hurry = urgent.subscribe();
        let disk = ledger.clone();
        tokio::spawn(async move {
            while inbox.changed().await.is_ok() {
                let gathered = *done.borrow();
                tokio::select! {
                    () = tokio::time::sleep(GATHER) => {}
                    // Somebody waits, or nobody will ever write more: at once.
                    _ = hurry.wait_for(|number| *number > gathered) => {}
                }
                loop {
                    let (number, record) = inbox.borrow_and_update().clone();
                    let Some(record) = record else { break };
                    if number == *done.borrow() {
                        break;
                    }
                    let ledger = disk.clone();
                    let error = match tokio::task::spawn_blocking(move || ledger.save(&record)).await {
                        Ok(Ok(())) => {
                            done.send_replace(number);
                            break;
                        }
                        Ok(Err(error)) => crate::errors::chain(&error),
                        Err(error) => error.to_string(),
                    };
                    tracing::error!(error, "the ledger cannot be written; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        });
        Self { ledger, wanted, urgent, written }
    }

    /// Written before this returns.
    pub(super) async fn save_now(&self, record: &PodRecord) -> Result<(), LedgerError> {
        self.flush().await;
        let (ledger, record) = (self.ledger.clone(), record.clone());
        match tokio::task::spawn_blocking(move || ledger.save(&record)).await {
            Ok(result) => result,
            Err(error) => {
                Err(LedgerError::Io { operation: "write", path: "ledger".into(), source: std::io::Error::other(error) })
            }
        }
    }

    /// Written soon; a newer record replaces one that still waits.
    pub(super) fn save_soon(&self, record: &PodRecord) {
        let record = Some(Box::new(record.clone()));
        self.wanted.send_modify(|wanted| *wanted = (wanted.0 + 1, record));
    }

    /// Waits until everything asked for is durable, but not for ever: a full disk must not keep a pod from being released,
    /// which is what makes room. (What a crash then loses is the last exit's story; a sandbox that the ledger does not know is destroyed.)
    pub(super) async fn flush(&self) {
        let number = self.wanted.borrow().0;
        self.urgent.send_if_modified(|waiting| {
            let more = number > *waiting;
            *waiting = number.max(*waiting);
            more
        });
        let mut written = self.written.clone();
        let durable = written.wait_for(|done| *done >= number);
        if tokio::time::timeout(PATIENCE, durable).await.is_err() {
            tracing::error!("the ledger has not been written for a while; going on without it");
        }
    }
}
