use std::fs;
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;

struct World {
    desired: Desired,
    source: ManifestSource,
    stop: CancellationToken,
    /// Where the source's tasks run: it is over when they are, and writes nothing afterwards.
    life: Option<Runtime>,
    root: TempDir,
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("pods")).unwrap();
        let (desired, source, stop, life) = begin(&root);
        Self { desired, source, stop, life: Some(life), root }
    }

    /// A new life on the same disk.
    async fn restart(mut self) -> Self {
        self.end();
        let (desired, source, stop, life) = begin(&self.root);
        (self.desired, self.source, self.stop, self.life) = (desired, source, stop, Some(life));
        self.desired.complete().await;
        self
    }

    fn end(&mut self) {
        self.stop.cancel();
        let life = self.life.take();
        // It waits for what is being written, which no task may.
        let ended = std::thread::spawn(move || drop(life)).join();
        assert!(ended.is_ok() || std::thread::panicking());
    }

    fn write(&self, file: &str, name: &str, image: &str) {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: a, image: {image}}}]}}\n"
        );
        fs::write(self.root.path().join("pods").join(file), text).unwrap();
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.root.path().join("pods").join(file)).unwrap();
    }

    async fn until<T>(&self, what: &str, mut look: impl FnMut(&Desired) -> Option<T>) -> T {
        for _ in 0..1000 {
            if let Some(found) = look(&self.desired) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("not within 5 s: {what}");
    }

    async fn pod(&self, name: &str) -> Arc<DesiredPod> {
        self.until(name, |d| d.find("default", name).filter(|p| p.deletion.is_none())).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end();
    }
}

fn begin(root: &TempDir) -> (Desired, ManifestSource, CancellationToken, Runtime) {
    let life = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let desired = Desired::new([SourceKind::Manifest]);
    let stop = CancellationToken::new();
    let settings = ManifestSettings {
        directory: root.path().join("pods"),
        state_dir: root.path().join("state"),
        node_name: "node".into(),
    };
    let entered = life.enter();
    let source = ManifestSource::start(settings, desired.clone(), &TaskTracker::new(), &stop).unwrap();
    drop(entered);
    (desired, source, stop, life)
}

#[tokio::test]
async fn a_file_is_a_pod_and_its_removal_a_deletion_with_grace() {
    let world = World::new();
    world.write("a.yaml", "web", "busybox:1");
    let pod = world.pod("web").await;
    world.remove("a.yaml");
    let going = world.until("deletion", |d| d.get(pod.uid()).filter(|p| p.deletion.is_some())).await;
    assert_eq!(going.deletion.unwrap().grace_seconds, 30);
    world.source.remove(&going).await.unwrap();
    assert!(world.desired.get(pod.uid()).is_none());
}

#[tokio::test]
async fn the_uid_survives_a_restart_and_not_a_new_start() {
    let mut world = World::new();
    world.write("a.yaml", "web", "busybox:1");
    let uid = world.pod("web").await.uid().to_owned();
    world.source.place(&*world.pod("web").await, "host-1").await.unwrap();
    world = world.restart().await;
    let again = world.pod("web").await;
    assert_eq!(again.uid(), uid);
    assert_eq!(again.placement.as_deref(), Some("host-1"));
    world.remove("a.yaml");
    let going = world.until("deletion", |d| d.get(&uid).filter(|p| p.deletion.is_some())).await;
    world.source.remove(&going).await.unwrap();
    world.write("a.yaml", "web", "busybox:1");
    assert_ne!(world.pod("web").await.uid(), uid);
}

#[tokio::test]
async fn a_vanished_directory_is_not_a_deletion() {
    let mut world = World::new();
    world.write("a.yaml", "web", "busybox:1");
    let uid = world.pod("web").await.uid().to_owned();
    let (pods, away) = (world.root.path().join("pods"), world.root.path().join("away"));
    fs::rename(&pods, &away).unwrap();
    for _ in 0..1000 {
        if !world.source.problems().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(world.source.problems()[0].1.contains("go on as they are"), "{:?}", world.source.problems());
    assert!(world.desired.get(&uid).unwrap().deletion.is_none());
    // Also over a restart, and when an empty directory takes its place.
    fs::create_dir(&pods).unwrap();
    world = world.restart().await;
    assert!(world.desired.get(&uid).unwrap().deletion.is_none());
    assert!(world.source.problems()[0].1.contains("empty directory"));
}

#[tokio::test]
async fn a_malformed_file_hinders_no_other_and_keeps_its_pod() {
    let world = World::new();
    world.write("a.yaml", "web", "busybox:1");
    let uid = world.pod("web").await.uid().to_owned();
    fs::write(world.root.path().join("pods/a.yaml"), "kind: [").unwrap();
    world.write("b.yaml", "other", "busybox:1");
    world.pod("other").await;
    assert!(world.desired.get(&uid).unwrap().deletion.is_none());
    let problems = world.source.problems();
    assert!(problems[0].0.ends_with("a.yaml") && problems[0].1.contains("not valid YAML"), "{problems:?}");
}

#[tokio::test]
async fn an_ended_pod_is_known_as_ended_after_a_restart() {
    let mut world = World::new();
    world.write("a.yaml", "job", "busybox:1");
    let pod = world.pod("job").await;
    let report = StatusReport {
        generation: 1,
        host: "h".into(),
        status: Arc::new(serde_json::json!({"phase": "Succeeded"})),
        terminated: true,
        timeline: None,
        start: tracing::Span::none(),
    };
    world.source.report(&pod, report);
    world.until("end", |d| d.get(pod.uid()).filter(|p| p.is_terminal())).await;
    world = world.restart().await;
    assert!(world.desired.get(pod.uid()).unwrap().is_terminal());
}

#[tokio::test]
async fn people_create_and_delete_through_files() {
    let world = World::new();
    let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"},
        "spec": {"containers": [{"name": "a", "image": "b"}]}});
    let created = world.source.create(pod.clone()).await.unwrap();
    assert!(matches!(world.source.create(pod).await, Err(PortError::AlreadyExists { .. })));
    assert!(world.root.path().join("pods/default_x.json").exists());
    assert!(world.source.delete(&created, Some(0)).await.unwrap());
    let going = world.desired.get(&created.uid).unwrap();
    assert_eq!(going.deletion.unwrap().grace_seconds, 0);
    assert!(!world.root.path().join("pods/default_x.json").exists());
    let broken =
        serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "y"}, "spec": {"containers": []}});
    assert!(matches!(world.source.create(broken).await, Err(PortError::Invalid { .. })));
}

#[tokio::test]
async fn references_come_from_files_and_their_changes_are_told() {
    let world = World::new();
    let mut changes = world.source.changes();
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {k: v}\n";
    fs::write(world.root.path().join("pods/m.yaml"), text).unwrap();
    let changed = tokio::time::timeout(Duration::from_secs(60), changes.recv()).await.unwrap().unwrap();
    assert_eq!((changed.kind, changed.name.as_str()), (ReferenceKind::ConfigMap, "m"));
    let map = world.source.config_map("default", "m").await.unwrap().unwrap();
    assert_eq!(map.data["k"], b"v");
    assert!(world.source.secret("default", "m").await.unwrap().is_none());
}
