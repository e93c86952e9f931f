use std::collections::HashMap;
use std::time::Duration;

use super::*;

/// A store that keeps state and can be told to fail.
#[derive(Default)]
struct FakeShelf {
    inner: Mutex<Fake>,
}

struct Fake {
    /// Bytes that an image may have, if its size is known.
    room: u64,
    here: HashMap<String, Found>,
    fetched: Vec<(String, usize)>,
    failures: HashMap<String, ImageFailure>,
    pinned: BTreeSet<String>,
    used: BTreeSet<String>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            room: u64::MAX,
            here: HashMap::new(),
            fetched: Vec::new(),
            failures: HashMap::new(),
            pinned: BTreeSet::new(),
            used: BTreeSet::new(),
        }
    }
}

impl FakeShelf {
    fn lock(&self) -> std::sync::MutexGuard<'_, Fake> {
        self.inner.lock().unwrap()
    }
}

#[async_trait]
impl Shelf for FakeShelf {
    async fn fetch(&self, wish: &ImageWish, size: u64, told: Told) -> Result<Found, ImageFailure> {
        told(1, 2);
        tokio::time::sleep(Duration::from_millis(10)).await;
        let mut inner = self.lock();
        inner.fetched.push((wish.reference.clone(), wish.credentials.len()));
        if size > inner.room {
            let message = format!("the disk would be full with {size} bytes");
            return Err(ImageFailure { reason: "DiskPressure", message, retry_after: None });
        }
        if let Some(failure) = inner.failures.get(&wish.reference) {
            return Err(failure.clone());
        }
        let found = Found { digest: format!("sha256:{}", wish.reference), size: 7, layers: 1 };
        inner.here.insert(wish.reference.clone(), found.clone());
        Ok(found)
    }

    async fn find(&self, reference: &str) -> Option<Found> {
        self.lock().here.get(reference).cloned()
    }

    fn pin(&self, names: &BTreeSet<String>) {
        self.lock().pinned.clone_from(names);
    }

    async fn let_go(&self, reference: &str) -> bool {
        let mut inner = self.lock();
        if inner.used.contains(reference) {
            return false;
        }
        inner.here.remove(reference);
        true
    }
}

fn wanted(reference: &str) -> Wanted {
    Wanted { reference: reference.to_owned(), credentials: Vec::new(), pinned: true, remove_after: false }
}

fn credential(registry: &str) -> RegistryCredential {
    RegistryCredential {
        registry: registry.to_owned(),
        username: "u".to_owned(),
        password: "p".to_owned(),
        identity_token: String::new(),
    }
}

fn failure(retry_after: Option<Duration>) -> ImageFailure {
    ImageFailure { reason: "ErrImagePull", message: "the registry is away".to_owned(), retry_after }
}

fn open(dir: &tempfile::TempDir, shelf: &Arc<FakeShelf>) -> Arc<Prepared> {
    Arc::new(Prepared::open(dir.path(), shelf.clone()).unwrap())
}

async fn until(prepared: &Prepared, what: impl Fn(&Reports) -> bool) {
    let mut reports = prepared.reports();
    let waiting = reports.wait_for(|all| what(all));
    tokio::time::timeout(Duration::from_secs(3600), waiting).await.expect("in time").unwrap();
}

fn ready(all: &Reports, name: &str) -> bool {
    all.get(name).is_some_and(|report| matches!(report.phase, Phase::Ready(_)))
}

fn failed(all: &Reports, name: &str) -> bool {
    all.get(name).is_some_and(|report| matches!(report.phase, Phase::Failed(_)))
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_is_pulled_pinned_and_pulled_again_when_it_has_gone() {
    let (dir, shelf) = (tempfile::tempdir().unwrap(), Arc::<FakeShelf>::default());
    let prepared = open(&dir, &shelf);
    prepared.set(vec![wanted("a"), Wanted { pinned: false, ..wanted("b") }]).await.unwrap();
    until(&prepared, |all| ready(all, "a") && ready(all, "b")).await;
    assert_eq!(shelf.lock().pinned, BTreeSet::from(["a".to_owned()]));
    shelf.lock().here.remove("b");
    let reports = prepared.reports();
    tokio::time::sleep(task::LOOK * 2).await;
    until(&prepared, |all| ready(all, "b")).await;
    drop(reports);
    let fetched: Vec<String> = shelf.lock().fetched.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(fetched.iter().filter(|name| *name == "a").count(), 1, "{fetched:?}");
    assert_eq!(fetched.iter().filter(|name| *name == "b").count(), 2, "{fetched:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_and_tried_again_as_late_as_the_registry_asks() {
    let (dir, shelf) = (tempfile::tempdir().unwrap(), Arc::<FakeShelf>::default());
    shelf.lock().failures.insert("a".to_owned(), failure(Some(Duration::from_secs(600))));
    let prepared = open(&dir, &shelf);
    prepared.set(vec![wanted("a")]).await.unwrap();
    until(&prepared, |all| failed(all, "a")).await;
    let began = tokio::time::Instant::now();
    shelf.lock().failures.clear();
    until(&prepared, |all| ready(all, "a")).await;
    assert!(began.elapsed() >= Duration::from_secs(600));
}

#[tokio::test(start_paused = true)]
async fn other_credentials_are_tried_at_once_and_the_same_set_again_changes_nothing() {
    let (dir, shelf) = (tempfile::tempdir().unwrap(), Arc::<FakeShelf>::default());
    shelf.lock().failures.insert("a".to_owned(), failure(Some(Duration::from_secs(3000))));
    let prepared = open(&dir, &shelf);
    prepared.set(vec![wanted("a")]).await.unwrap();
    until(&prepared, |all| failed(all, "a")).await;
    prepared.set(vec![wanted("a")]).await.unwrap();
    shelf.lock().failures.clear();
    let began = tokio::time::Instant::now();
    prepared.set(vec![Wanted { credentials: vec![credential("r")], ..wanted("a") }]).await.unwrap();
    until(&prepared, |all| ready(all, "a")).await;
    assert!(began.elapsed() < Duration::from_secs(60));
    assert_eq!(shelf.lock().fetched, [("a".to_owned(), 0), ("a".to_owned(), 1)]);
    // Ready already: newer credentials are no reason to ask.
    prepared.set(vec![wanted("a")]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(shelf.lock().fetched.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_no_more_is_unpinned_and_goes_when_it_was_to_and_nobody_uses_it() {
    let (dir, shelf) = (tempfile::tempdir().unwrap(), Arc::<FakeShelf>::default());
    let prepared = open(&dir, &shelf);
    let going = |name| Wanted { remove_after: true, ..wanted(name) };
    prepared.set(vec![going("used"), going("idle"), wanted("stays")]).await.unwrap();
    until(&prepared, |all| ["used", "idle", "stays"].iter().all(|name| ready(all, name))).await;
    shelf.lock().used.insert("used".to_owned());
    prepared.set(Vec::new()).await.unwrap();
    assert!(prepared.reports().borrow().is_empty());
    tokio::time::sleep(task::LOOK).await;
    let here = |shelf: &FakeShelf| {
        let mut names: Vec<String> = shelf.lock().here.keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(here(&shelf), ["stays", "used"]);
    assert!(shelf.lock().pinned.is_empty());
    shelf.lock().used.clear();
    tokio::time::sleep(task::LOOK * 2).await;
    assert_eq!(here(&shelf), ["stays"]);
}

#[tokio::test(start_paused = true)]
async fn pins_and_what_is_to_go_outlast_a_restart() {
    let (dir, shelf) = (tempfile::tempdir().unwrap(), Arc::<FakeShelf>::default());
    let prepared = open(&dir, &shelf);
    prepared.set(vec![wanted("a"), Wanted { remove_after: true, ..wanted("b") }]).await.unwrap();
    until(&prepared, |all| ready(all, "a") && ready(all, "b")).await;
    shelf.lock().used.insert("b".to_owned());
    prepared.set(vec![wanted("a")]).await.unwrap();
    drop(prepared);
    let next = Arc::new(FakeShelf::default());
    next.lock().here.insert("b".to_owned(), Found::default());
    let prepared = open(&dir, &next);
    assert_eq!(next.lock().pinned, BTreeSet::from(["a".to_owned()]));
    assert!(prepared.reports().borrow().is_empty(), "nothing is pulled before vkubelet has said so");
    prepared.set(vec![wanted("a")]).await.unwrap();
    until(&prepared, |all| ready(all, "a")).await;
    tokio::time::sleep(task::LOOK).await;
    assert!(!next.lock().here.contains_key("b"));
}

#[tokio::test(start_paused = true)]
async fn an_image_that_had_to_make_way_is_not_pulled_again_until_it_fits() {
    let (dir, shelf) = (tempfile::tempdir().unwrap(), Arc::<FakeShelf>::default());
    let prepared = open(&dir, &shelf);
    prepared.set(vec![Wanted { pinned: false, ..wanted("a") }]).await.unwrap();
    until(&prepared, |all| ready(all, "a")).await;
    // The disk fills, and the image goes.
    shelf.lock().room = 6;
    shelf.lock().here.clear();
    until(&prepared, |all| failed(all, "a")).await;
    let said = prepared.reports().borrow()["a"].phase.clone();
    assert!(matches!(&said, Phase::Failed(failure) if failure.reason == "DiskPressure"), "{said:?}");
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert!(shelf.lock().here.is_empty());
    shelf.lock().room = 7;
    until(&prepared, |all| ready(all, "a")).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_to_go_goes_whenever_it_is_said() {
    let (dir, shelf) = (tempfile::tempdir().unwrap(), Arc::<FakeShelf>::default());
    let prepared = open(&dir, &shelf);
    let going = |name: &str| Wanted { remove_after: true, ..wanted(name) };
    // Each set is told while the sweep of the one before may be just about to end.
    for round in 0..200 {
        let name = format!("image-{round}");
        prepared.set(vec![going(&name)]).await.unwrap();
        until(&prepared, |all| ready(all, &name)).await;
    }
    prepared.set(Vec::new()).await.unwrap();
    let began = tokio::time::Instant::now();
    while !shelf.lock().here.is_empty() {
        assert!(began.elapsed() < task::LOOK * 3, "{:?} was to go", shelf.lock().here);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
