//! A registry on loopback that can be told to misbehave, repository by repository, and to behave again.
//!
//! It speaks the distribution protocol as far as a pull needs it. Each repository has an image of its own (tag `1`), so that
//! nothing that another pod pulled hides its faults.

mod answer;
mod debian;
mod image;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;

pub use self::debian::DebianRegistry;
use self::image::{Base, Image};

/// How a repository misbehaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Every request gets this status and an error document with this code.
    Status(u16, &'static str),
    /// 429 with `Retry-After`, in seconds.
    SlowDown(u64),
    /// Requests are taken and never answered.
    Silence,
    /// The manifest has other bytes than its digest says.
    OtherManifest,
    /// The image's own layer has other bytes than its digest says.
    OtherLayer,
    /// The image's own layer ends in the middle of its bytes, each time.
    HalfLayer,
    /// Name and password with each request.
    Basic(&'static str, &'static str),
    /// A token, which the token service gives for name and password.
    Bearer(&'static str, &'static str),
}

/// The registry; it ends when dropped.
#[derive(Debug)]
pub struct Registry {
    runtime: Runtime,
    base: Base,
    shelves: Arc<Shelves>,
    address: SocketAddr,
}

/// What is served.
#[derive(Debug, Default)]
pub(in crate::registry) struct Shelves {
    shelves: Mutex<BTreeMap<String, Shelf>>,
}

/// One repository.
#[derive(Debug, Default)]
struct Shelf {
    image: Option<Image>,
    faults: Vec<Fault>,
    requests: Vec<String>,
}

impl Shelves {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Shelf>> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// Starts it; its images are made of the image in `layout`.
    pub fn start(layout: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let base = Base::read(layout)?;
        let shelves = Arc::<Shelves>::default();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).context("bind the registry")?;
        let address = listener.local_addr()?;
        runtime.spawn(answer::serve(listener, Arc::clone(&shelves)));
        Ok(Self { runtime, base, shelves, address })
    }

    /// Makes a repository with an image and these faults; the image's reference.
    pub fn image(&self, repository: &str, faults: &[Fault]) -> Result<String> {
        self.image_of(repository, "", faults)
    }

    /// The same, and the image names a user.
    pub fn image_of(&self, repository: &str, user: &str, faults: &[Fault]) -> Result<String> {
        let image = self.base.image(repository, user)?;
        let shelf = Shelf { image: Some(image), faults: faults.to_vec(), requests: Vec::new() };
        self.shelves.lock().insert(repository.to_owned(), shelf);
        Ok(self.reference(repository))
    }

    /// The reference of a repository's image, whether there is one or not.
    pub fn reference(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.address)
    }

    /// A repository behaves from now on.
    pub fn heal(&self, repository: &str) {
        if let Some(shelf) = self.shelves.lock().get_mut(repository) {
            shelf.faults.clear();
        }
    }

    /// The requests that a repository has seen, `METHOD PATH`.
    pub fn requests(&self, repository: &str) -> Vec<String> {
        self.shelves.lock().get(repository).map(|shelf| shelf.requests.clone()).unwrap_or_default()
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A port at which nobody listens yet.
    pub fn closed_door(&self) -> Result<ClosedDoor> {
        let _in = self.runtime.enter();
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = socket.local_addr()?;
        Ok(ClosedDoor { socket, address })
    }

    /// The registry answers there too from now on.
    pub fn open(&self, door: ClosedDoor) -> Result<()> {
        let _in = self.runtime.enter();
        self.runtime.spawn(answer::serve(door.socket.listen(64)?, Arc::clone(&self.shelves)));
        Ok(())
    }
}

/// A port that is taken, and at which connections are refused.
#[derive(Debug)]
pub struct ClosedDoor {
    socket: TcpSocket,
    /// Where it is.
    pub address: SocketAddr,
}
