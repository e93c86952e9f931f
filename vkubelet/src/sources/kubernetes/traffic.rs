//! Which requests give way: the API server's time goes first to what a pod's start waits for, then to telling about it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Requests on their way that somebody waits for. Clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Traffic {
    urgent: Arc<watch::Sender<usize>>,
}

/// An urgent request, until it is dropped.
#[derive(Debug)]
pub(crate) struct Urgent<'a>(&'a Traffic);

impl Default for Traffic {
    fn default() -> Self {
        Self { urgent: Arc::new(watch::Sender::new(0)) }
    }
}

impl Traffic {
    /// To be held while the request is on its way.
    pub(crate) fn urgent(&self) -> Urgent<'_> {
        self.urgent.send_modify(|count| *count += 1);
        Urgent(self)
    }

    /// Waits until nothing urgent is on its way, but no longer than this.
    pub(crate) async fn quiet(&self, at_most: Duration) {
        let mut urgent = self.urgent.subscribe();
        let quiet = urgent.wait_for(|count| *count == 0);
        // The sender lives as long as this does; and after the time it is our turn.
        let _ = tokio::time::timeout(at_most, quiet).await;
    }
}

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.urgent.send_modify(|count| *count = count.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn what_may_wait_waits_for_the_urgent_but_not_for_ever() {
        let traffic = Traffic::default();
        let began = Instant::now();
        traffic.quiet(Duration::from_secs(5)).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        let (first, second) = (traffic.urgent(), traffic.urgent());
        traffic.quiet(Duration::from_secs(5)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(5));
        drop(first);
        let waiting = traffic.clone();
        let waiting = tokio::spawn(async move { waiting.quiet(Duration::from_secs(5)).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        drop(second);
        waiting.await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(6));
    }
}
