//! Writes a pod's record in the background, the newest one only; or at once, and waits.

use tokio::sync::watch;

use crate::ledger::{Ledger, LedgerError, PodRecord};

/// Writes records of one pod, in order.
pub(super) struct Saver {
    ledger: Ledger,
    /// `(number, record)` to be written.
    wanted: watch::Sender<(u64, Option<Box<PodRecord>>)>,
    /// Number of the newest record that is durable.
    written: watch::Receiver<u64>,
}

impl Saver {
    pub(super) fn new(ledger: Ledger) -> Self {
        let (wanted, mut inbox) = watch::channel((0, None::<Box<PodRecord>>));
        let (done, written) = watch::channel(0);
        let disk = ledger.clone();
        tokio::spawn(async move {
            while inbox.changed().await.is_ok() {
                loop {
                    let (number, record) = inbox.borrow_and_update().clone();
                    let Some(record) = record else { break };
                    if number == *done.borrow() {
                        break;
                    }
                    let ledger = disk.clone();
                    match tokio::task::spawn_blocking(move || ledger.save(&record)).await {
                        Ok(Ok(())) => {
                            done.send_replace(number);
                        }
                        Ok(Err(error)) => {
                            tracing::error!(error = crate::errors::chain(&error), "the ledger cannot be written; trying again");
                            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                        }
                        Err(error) => {
                            tracing::error!(%error, "the ledger writer failed; trying again");
                            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                        }
                    }
                }
            }
        });
        Self { ledger, wanted, written }
    }

    /// Written before this returns.
    pub(super) async fn save_now(&self, record: &PodRecord) -> Result<(), LedgerError> {
        self.flush().await;
        let (ledger, record) = (self.ledger.clone(), record.clone());
        match tokio::task::spawn_blocking(move || ledger.save(&record)).await {
            Ok(result) => result,
            Err(error) => Err(LedgerError::Io {
                operation: "write",
                path: "ledger".into(),
                source: std::io::Error::other(error),
            }),
        }
    }

    /// Written soon; a newer record replaces one that still waits.
    pub(super) fn save_soon(&self, record: &PodRecord) {
        let record = Some(Box::new(record.clone()));
        self.wanted.send_modify(|wanted| *wanted = (wanted.0 + 1, record));
    }

    /// Waits until everything asked for is durable.
    pub(super) async fn flush(&self) {
        let number = self.wanted.borrow().0;
        let mut written = self.written.clone();
        let _ = written.wait_for(|done| *done >= number).await;
    }
}
