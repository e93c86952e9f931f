//! Clones of layers' mounts, asked of the keeper before they are needed.
//!
//! A detached mount can be cloned in the mount namespace only that it came from, so each container needs one of the
//! keeper's, and to ask takes a tenth of a millisecond. Layers that were used once are used again: a few clones of each wait
//! here.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};

use super::Inner;
use crate::contract::SandboxError;
use crate::spec::Layer;

/// Clones of a layer that wait.
const DEPTH: usize = 4;

/// Layers whose clones wait: each clone is a descriptor.
const MOST: usize = 256;

/// Clones that wait.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    piles: std::sync::Mutex<Piles>,
    /// Held while clones are asked for that nobody needs yet, and while layers are let go of.
    refilling: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Piles {
    by_layer: HashMap<String, Pile>,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Pile {
    layer: Layer,
    clones: Vec<OwnedFd>,
    used: u64,
}

impl Piles {
    /// One of each layer, or nothing; either way the layers are remembered.
    fn take(&mut self, layers: &[Layer]) -> Option<Vec<OwnedFd>> {
        self.clock += 1;
        let mut all = true;
        for layer in layers {
            if !self.by_layer.contains_key(&layer.id) {
                self.make_room();
                let pile = Pile { layer: layer.clone(), clones: Vec::new(), used: 0 };
                self.by_layer.insert(layer.id.clone(), pile);
            }
            if let Some(pile) = self.by_layer.get_mut(&layer.id) {
                pile.used = self.clock;
                all &= !pile.clones.is_empty();
            }
        }
        if !all {
            return None;
        }
        // A layer that is in an image twice may have run out.
        layers.iter().map(|layer| self.by_layer.get_mut(&layer.id)?.clones.pop()).collect()
    }

    /// Forgets the layer that was not used for longest, if there are as many as there may be.
    fn make_room(&mut self) {
        if self.by_layer.len() < MOST {
            return;
        }
        let oldest = self.by_layer.values().min_by_key(|pile| pile.used).map(|pile| pile.layer.id.clone());
        if let Some(id) = oldest {
            self.by_layer.remove(&id);
        }
    }

    /// What piles lack, a layer as often as clones of it.
    fn lacking(&self) -> Vec<Layer> {
        let lacks = |pile: &Pile| std::iter::repeat_n(pile.layer.clone(), DEPTH.saturating_sub(pile.clones.len()));
        self.by_layer.values().flat_map(lacks).collect()
    }

    fn add(&mut self, layers: &[Layer], clones: Vec<OwnedFd>) {
        for (layer, clone) in layers.iter().zip(clones) {
            if let Some(pile) = self.by_layer.get_mut(&layer.id) {
                pile.clones.push(clone);
            }
        }
    }
}

impl Layers {
    fn piles(&self) -> std::sync::MutexGuard<'_, Piles> {
        self.piles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Detached clones of the layers' mounts.
    pub(super) async fn mount(self: &Arc<Self>, layers: &[Layer]) -> Result<Vec<OwnedFd>, SandboxError> {
        let taken = self.layers.piles().take(layers);
        match taken {
            Some(clones) => Ok(clones),
            None => self.keeper.mount(layers).await,
        }
    }

    /// Brings the piles to their depth, beside the starts.
    pub(super) fn pile_layers(self: &Arc<Self>) {
        if self.layers.piles().lacking().is_empty() {
            return;
        }
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let Ok(_one) = inner.layers.refilling.try_lock() else { return };
            loop {
                // As many as one message carries.
                let mut lacking = inner.layers.piles().lacking();
                lacking.truncate(128);
                if lacking.is_empty() {
                    return;
                }
                match inner.keeper.mount(&lacking).await {
                    Ok(clones) => inner.layers.piles().add(&lacking, clones),
                    Err(error) => {
                        tracing::debug!(%error, "no clones of layers wait");
                        return;
                    }
                }
            }
        });
    }

    /// Lets go of layers: no clone of theirs is here afterwards, and the keeper unmounts them.
    pub(super) async fn release(self: &Arc<Self>, ids: &[String]) -> Result<(), SandboxError> {
        self.forget_ahead(ids).await;
        let _no_refill = self.layers.refilling.lock().await;
        {
            let mut piles = self.layers.piles();
            for id in ids {
                piles.by_layer.remove(id);
            }
        }
        self.keeper.release(ids).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(id: &str) -> Layer {
        Layer { id: id.to_owned(), path: format!("/layers/{id}").into() }
    }

    fn clones(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect()
    }

    #[test]
    fn clones_are_handed_out_for_all_layers_of_an_image_or_for_none() {
        let mut piles = Piles::default();
        let (a, b) = (layer("a"), layer("b"));
        assert!(piles.take(&[a.clone(), b.clone()]).is_none());
        assert_eq!(piles.lacking().len(), 2 * DEPTH);
        piles.add(std::slice::from_ref(&a), clones(1));
        assert!(piles.take(&[a.clone(), b.clone()]).is_none());
        piles.add(&[b.clone(), b.clone()], clones(2));
        assert_eq!(piles.take(&[a.clone(), b.clone()]).unwrap().len(), 2);
        assert!(piles.take(&[b.clone(), b.clone()]).is_none(), "only one was left");
        assert_eq!(piles.take(&[]).unwrap().len(), 0);
    }

    #[test]
    fn only_the_layers_used_last_have_piles() {
        let mut piles = Piles::default();
        for number in 0..MOST {
            piles.take(&[layer(&number.to_string())]);
        }
        piles.take(&[layer("0")]);
        piles.take(&[layer("new")]);
        assert_eq!(piles.by_layer.len(), MOST);
        assert!(piles.by_layer.contains_key("0") && !piles.by_layer.contains_key("1"));
        // What comes for a layer that was forgotten meanwhile is closed.
        piles.add(&[layer("1")], clones(1));
        assert!(!piles.by_layer.contains_key("1"));
    }
}
