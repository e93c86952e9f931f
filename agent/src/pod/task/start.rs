//! The road to a running container: everything that can be done side by side is.
//!
//! ```text
//! meter.start ──> prepare ──┬── attach ──> volumes, /etc ──┐
//! (values checked)          └── configure ─────────────────┴──> sandbox ready ──┐
//! image.ensure (one a container, from the start) ───────────────────────────────┴──> spec ──> start
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use sandbox::contract::{SandboxError, Started};
use sandbox::spec::{Resources, SandboxId, User};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::pull::Teller;
use super::volume_images::VolumeImages;
use super::{Outcome, World, context};
use crate::clock::Now;
use crate::cpus::{self, CpuSet};
use crate::devices::{self, Units};
use crate::errors::chain;
use crate::intent::Intent;
use crate::pod::ephemeral;
use crate::pod::seccomp;
use crate::pod::spec::{self, SpecError, resources};
use crate::pod::state::StartFailure;
use crate::pod::volumes::{self, PodDirs, content, disk};
use crate::ports::{Address, ImageWish, Interval, ReadyImage};

/// Exit code of a container whose program could not be started, whatever the reason: as containerd tells it to a kubelet.
const START_ERROR: i32 = 128;
/// Pause before volumes that could not be set up are tried again.
const VOLUME_PAUSE: Duration = Duration::from_secs(2);

/// Writes secret material where an agent restart finds it: on tmpfs.
pub(super) async fn write_material(dirs: &PodDirs, intent: &Intent) -> Result<(), String> {
    let (_, digests) = intent.resolved.without_secrets();
    if digests.is_empty() {
        return Ok(());
    }
    let (dirs, resolved) = (dirs.clone(), intent.resolved.clone());
    let written = tokio::task::spawn_blocking(move || {
        disk::make_dirs(&dirs).map_err(|e| chain(&e))?;
        let bytes = serde_json::to_vec(&*resolved).map_err(|e| e.to_string())?;
        volumes::atomic::write_file(&dirs.material(), &bytes, 0o600).map_err(|e| chain(&e))
    });
    written.await.map_err(|e| e.to_string())?
}

/// Makes a sandbox ready for containers.
pub(super) struct Preparation {
    pub(super) world: Arc<World>,
    pub(super) sandbox: SandboxId,
    /// A container of it has CPUs for itself.
    pub(super) own_cpus: bool,
    pub(super) dirs: PodDirs,
    pub(super) material: watch::Receiver<Option<Arc<Intent>>>,
    pub(super) ending: CancellationToken,
    /// Ids of the users of those images that are at hand.
    pub(super) wanted_ids: watch::Receiver<BTreeSet<u32>>,
    /// Those that the sandbox was made for.
    pub(super) image_ids: BTreeSet<u32>,
    pub(super) outcomes: mpsc::UnboundedSender<Outcome>,
}

impl Preparation {
    pub(super) async fn run(&mut self) -> Result<Address, String> {
        let intent = self.intent().await?;
        let interval = interval(&intent, &self.sandbox)?;
        let starting = self.world.meter.start(&interval).instrument(tracing::info_span!("meter.start"));
        let metered = starting.await.map_err(|e| chain(&e))?;
        let _ = self.outcomes.send(Outcome::Held { metered });
        let mut spec = spec::sandbox(context(&intent, &self.world, None), self.dirs.logs()).map_err(|e| chain(&e))?;
        if self.own_cpus {
            unthrottle(&mut spec.resources);
        }
        self.image_ids.clone_from(&self.wanted_ids.borrow());
        if let Some(pod) = &intent.pod.spec {
            spec.namespaces = spec::security::namespaces_for(pod, &self.image_ids);
        }
        let taking = self.world.sandboxes.prepare_as(&self.sandbox, &spec.namespaces);
        let dirs = self.dirs.clone();
        let making = tokio::task::spawn_blocking(move || disk::make_dirs(&dirs).map_err(|e| chain(&e)));
        // Neither is left halfway for the other's sake.
        let (prepared, made) = tokio::join!(taking.instrument(tracing::info_span!("sandbox.take")), making);
        let prepared = prepared.map_err(|e| chain(&e))?;
        made.map_err(|e| e.to_string())??;
        let network = async {
            let address = if spec.namespaces.host_network {
                self.world.host.address()?
            } else {
                let attaching = self.world.network.attach(&self.sandbox, prepared.netns.as_fd());
                attaching.instrument(tracing::info_span!("network.attach")).await.map_err(|e| chain(&e))?
            };
            let (world, intent, dirs) = (self.world.clone(), intent.clone(), self.dirs.clone());
            let files = tokio::task::spawn_blocking(move || {
                let context = context(&intent, &world, Some(address.ip));
                disk::prepare(context, &dirs, &world.resolver, Now::read().wall_ns).map_err(|e| chain(&e))
            });
            files.await.map_err(|e| e.to_string())??;
            Ok::<Address, String>(address)
        };
        let configure = async {
            let configuring = self.world.sandboxes.configure(&self.sandbox, &spec);
            configuring.instrument(tracing::info_span!("sandbox.configure")).await.map_err(|e| chain(&e))
        };
        let (address, ()) = tokio::try_join!(network, configure)?;
        let _ = self.outcomes.send(Outcome::Configured { at: Now::read().boottime_ns });
        Ok(address)
    }

    /// The intent, once its secret material is here and everything that volumes refer to exists. Nothing is held meanwhile.
    async fn intent(&mut self) -> Result<Arc<Intent>, String> {
        let mut told = String::new();
        loop {
            let intent = present(&mut self.material, &self.ending).await?;
            let problem = {
                let context = context(&intent, &self.world, None);
                volumes::volumes(context)
                    .find_map(|volume| content::of_volume(context, volume).err().map(|e| (volume.name.clone(), e)))
            };
            let Some((volume, error)) = problem else { return Ok(intent) };
            let message = format!("MountVolume.SetUp failed for volume \"{volume}\" : {error}");
            if message != told {
                Teller::of_pod(&self.world.journal, &intent).tell(true, "FailedMount", message.clone());
                told = message;
            }
            tokio::select! {
                () = self.ending.cancelled() => return Err("the pod is ending".to_owned()),
                _ = self.material.changed() => {}
                () = tokio::time::sleep(VOLUME_PAUSE * 30) => {}
            }
        }
    }
}

async fn present(
    material: &mut watch::Receiver<Option<Arc<Intent>>>,
    ending: &CancellationToken,
) -> Result<Arc<Intent>, String> {
    tokio::select! {
        biased;
        found = material.wait_for(Option::is_some) => {
            let found = found.map_err(|_| "the pod's owner is gone".to_owned())?;
            found.clone().ok_or_else(|| "the pod's owner is gone".to_owned())
        }
        () = ending.cancelled() => Err("the pod is ending".to_owned()),
    }
}

pub(super) fn interval(intent: &Intent, sandbox: &SandboxId) -> Result<Interval, String> {
    let spec = intent.pod.spec.as_ref().ok_or("pod without specification")?;
    let held = resources::pod_held(spec).map_err(|e| chain(&e))?;
    let images = spec.init_containers.iter().flatten().chain(&spec.containers);
    Ok(Interval {
        pod_uid: intent.uid.clone(),
        pod_namespace: intent.namespace().to_owned(),
        pod_name: intent.name().to_owned(),
        sandbox: sandbox.clone(),
        milli_cpu: held.milli_cpu,
        memory_bytes: held.memory,
        ephemeral_bytes: held.ephemeral,
        images: images.filter_map(|c| c.image.clone()).collect(),
    })
}

/// Starts one attempt of a container.
pub(super) struct Launch {
    pub(super) world: Arc<World>,
    pub(super) sandbox: SandboxId,
    pub(super) dirs: PodDirs,
    pub(super) material: watch::Receiver<Option<Arc<Intent>>>,
    pub(super) ending: CancellationToken,
    pub(super) container: String,
    pub(super) attempt: u32,
    /// The devices that it was given.
    pub(super) units: Units,
    /// The CPUs that it has for itself.
    pub(super) own_cpus: Option<CpuSet>,
    pub(super) ip: Option<IpAddr>,
    /// Ids of images' users that the sandbox was made for.
    pub(super) image_ids: BTreeSet<u32>,
    pub(super) image: Option<ReadyImage>,
    pub(super) wish: ImageWish,
    pub(super) volume_images: Arc<VolumeImages>,
    pub(super) teller: Teller,
    pub(super) outcomes: mpsc::UnboundedSender<Outcome>,
}

/// Whoever has CPUs alone uses them up to their end: a quota would only make it wait.
fn unthrottle(resources: &mut Resources) {
    (resources.cpu_quota_us, resources.cpu_period_us) = (None, None);
}

impl Launch {
    pub(super) async fn run(mut self) -> Result<Started, StartFailure> {
        let config = |message: String| StartFailure::Config { reason: "CreateContainerError".to_owned(), message };
        let intent = present(&mut self.material, &self.ending).await.map_err(config)?;
        let image = match self.image.take() {
            Some(image) => image,
            // Held by its layers since an agent restart; what it says about running it is asked for now.
            None => self.world.images.ensure(&self.wish, Box::new(|_, _| {})).await.map_err(|e| config(e.message))?,
        };
        // Those of a pod from before an agent's restart; any others are here.
        if let Some(container) = context(&intent, &self.world, None).container(&self.container) {
            let brought = self.volume_images.bring(&self.world, &intent, &container, &self.teller).await;
            brought.map_err(|missing| config(missing.failure.message))?;
        }
        let (world, sandbox, outcomes) = (self.world.clone(), self.sandbox.clone(), self.outcomes.clone());
        let built = tokio::task::spawn_blocking(move || {
            // The image is held until its layers are mounted.
            self.build(&intent, &image).map(|spec| (spec, image))
        });
        let (spec, _image) = match built.instrument(tracing::info_span!("container.specify")).await {
            Ok(built) => built?,
            Err(error) => return Err(config(error.to_string())),
        };
        let _ = outcomes.send(Outcome::Identified { container: spec.name.clone(), user: spec.user.clone() });
        match world.sandboxes.start(&sandbox, &spec).instrument(tracing::info_span!("container.launch")).await {
            Ok(started) => Ok(started),
            Err(SandboxError::Exec { message, .. }) => Err(StartFailure::Run { code: START_ERROR, message }),
            Err(error) => Err(config(format!("failed to create container: {}", chain(&error)))),
        }
    }

    fn build(&self, intent: &Intent, image: &ReadyImage) -> Result<sandbox::spec::ContainerSpec, StartFailure> {
        let config = |message: String| StartFailure::Config { reason: "CreateContainerError".to_owned(), message };
        let failed = |e: spec::SpecError| StartFailure::Config { reason: e.reason().to_owned(), message: chain(&e) };
        let context = context(intent, &self.world, self.ip);
        let container =
            context.container(&self.container).ok_or_else(|| config("container left the pod".to_owned()))?;
        let container = container.as_ref();
        if let Some(message) = ephemeral::refusal(intent, &self.container, &self.world.host.trust) {
            return Err(config(message));
        }
        let images = self.volume_images.layers();
        let mounts = volumes::mounts(context, container, self.attempt, &self.dirs, &images).map_err(failed)?;
        disk::message_file(&self.dirs.message(&self.container, self.attempt)).map_err(|e| config(chain(&e)))?;
        if let Some(previous) = self.attempt.checked_sub(1) {
            // The last attempt's changes go; its log stays for `--previous`.
            if let Err(error) = volumes::removal::remove_tree(&self.dirs.writable(&self.container, previous)) {
                tracing::warn!(%error, container = self.container, "an old attempt's changes were not removed");
            }
            if let Some(old) = previous.checked_sub(1) {
                crate::logs::remove(&self.dirs.logs().join(&self.container), old);
            }
        }
        let writable = self.dirs.writable(&self.container, self.attempt);
        let mut built = spec::container(context, container, image, self.attempt, writable, mounts).map_err(failed)?;
        if let Some(id) = context.spec().and_then(|pod| {
            let namespaces = spec::security::namespaces_for(pod, &self.image_ids);
            spec::security::unmapped(&namespaces, &built.user)
        }) {
            let User { uid, gid, .. } = built.user;
            return Err(failed(SpecError::HighId { container: built.name, id, uid, gid }));
        }
        if let Some(name) = context.spec().and_then(|pod| spec::security::local_seccomp(pod, container)) {
            let compiled = seccomp::load(&self.world.host.trust.seccomp_profiles, name, &built.security.capabilities);
            built.security.seccomp = compiled.map_err(|e| config(chain(&e)))?;
        }
        if let Some(host) = &self.world.host.cpus {
            let shared = || host.shared(&self.world.board.exclusive_cpus().borrow());
            built.resources.cpuset = Some(cpus::list(&self.own_cpus.clone().unwrap_or_else(shared)));
            if self.own_cpus.is_some() {
                unthrottle(&mut built.resources);
            }
        }
        built.security.devices =
            devices::nodes(&self.world.host.trust.devices, &self.units).map_err(|e| config(chain(&e)))?;
        Ok(built)
    }
}
