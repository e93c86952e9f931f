//! Deletes pairs, many at once.
//!
//! Deleting a link waits for the kernel's grace periods, 16 to 19 ms each; deleting a group waits once for all of them.
//! While one deletion runs, further ones queue up and form the next group: one link is deleted at once, a hundred in two.

use rtnetlink::{Handle, LinkUnspec};
use tokio::sync::{mpsc, oneshot};

use super::plug::{self, PlugError, io_error, is_absent};

/// IFLA_GROUP of pairs about to be deleted ("nl", then 1).
const DOOMED: u32 = 0x6e6c_0001;
const LARGEST_GROUP: usize = 512;

struct Order {
    names: Vec<String>,
    done: oneshot::Sender<Result<(), PlugError>>,
}

#[derive(Debug)]
pub(super) struct Unplugger {
    orders: mpsc::UnboundedSender<Order>,
}

impl Unplugger {
    /// Starts the task that deletes; it ends with this value.
    pub(super) fn start(handle: Handle) -> Unplugger {
        let (orders, mut queue) = mpsc::unbounded_channel::<Order>();
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while queue.recv_many(&mut batch, LARGEST_GROUP).await > 0 {
                let names: Vec<&str> = batch.iter().flat_map(|order| order.names.iter().map(String::as_str)).collect();
                let outcome = delete_all(&handle, &names).await;
                for order in batch.drain(..) {
                    let outcome = match &outcome {
                        Ok(()) => Ok(()),
                        Err(failure) => Err(failure.again()),
                    };
                    // Who does not wait any more has dropped the receiver.
                    let _ = order.done.send(outcome);
                }
            }
        });
        Unplugger { orders }
    }

    /// Deletes these links; absent ones are fine.
    pub(super) async fn unplug(&self, names: Vec<String>) -> Result<(), PlugError> {
        let (done, finished) = oneshot::channel();
        self.orders.send(Order { names, done }).map_err(|_| PlugError::Closing)?;
        finished.await.map_err(|_| PlugError::Closing)?
    }
}

/// A failure that concerns each order of the batch.
struct Failure {
    step: &'static str,
    link: String,
    kind: std::io::ErrorKind,
    message: String,
}

impl Failure {
    fn again(&self) -> PlugError {
        let source = std::io::Error::new(self.kind, self.message.clone());
        PlugError::Netlink { step: self.step, link: self.link.clone(), source }
    }
}

async fn delete_all(handle: &Handle, names: &[&str]) -> Result<(), Failure> {
    let failed = |step, link: &str| {
        let link = link.to_owned();
        move |error: std::io::Error| Failure { step, link, kind: error.kind(), message: error.to_string() }
    };
    if let [name] = names {
        return plug::delete(handle, name).await.map_err(failed("delete", name));
    }
    for name in names {
        let message = LinkUnspec::new_with_name(name).link_group(DOOMED).build();
        match handle.link().set(message).execute().await.map_err(io_error) {
            Err(error) if is_absent(&error) => {}
            outcome => outcome.map_err(failed("mark for deletion", name))?,
        }
    }
    let group = rtnetlink::LinkMessageBuilder::<LinkUnspec>::new().link_group(DOOMED).build();
    match handle.link().del_with_message(group).execute().await.map_err(io_error) {
        Err(error) if is_absent(&error) => Ok(()),
        outcome => outcome.map_err(failed("delete", "a group of links")),
    }
}
