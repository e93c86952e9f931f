//! Hostile neighbours: a pod that takes all it can get, and one beside it that must not notice.
//!
//! Each attack runs in windows between quiet ones of the same length, and the medians of both kinds are compared: what else
//! the machine has to do weighs on both.

#![allow(clippy::unwrap_used, reason = "what cannot be measured is a failed test")]

mod support;

use std::time::{Duration, Instant};

use sandbox::contract::{Exit, SandboxError, Sandboxes};
use sandbox::spec::{ContainerSpec, Resources, SandboxId, SandboxSpec};
use support::{Host, exit_of};

/// Windows of each kind: `NODELESS_NEIGHBOUR_WINDOWS`, or few.
fn windows() -> u32 {
    std::env::var("NODELESS_NEIGHBOUR_WINDOWS").map_or(3, |number| number.parse().expect("a number"))
}

/// As many times more windows are taken, at most, where the medians of fewer are not what they must be: others' work comes and
/// goes, the attack is there in each.
const MORE: u32 = 5;

const WINDOW: Duration = Duration::from_millis(800);

/// What the slowest of a hundred requests may take longer, whatever it took before: some turns of the scheduler on two CPUs,
/// which the rest of the machine uses too.
const GRACE: Duration = Duration::from_millis(10);
/// What a usual request may take longer: less than one turn.
const USUAL_GRACE: Duration = Duration::from_millis(1);

/// An ordinary pod's limits: 100m to 500m of CPU, 128 MiB, some hundred processes.
fn ordinary(spec: &mut SandboxSpec) {
    spec.resources = Resources {
        cpu_shares: Some(102),
        cpu_quota_us: Some(50_000),
        memory_limit: Some(128 << 20),
        pids_limit: Some(200),
        ..Resources::default()
    };
}

/// Whether this host's root has CAP_SYS_RESOURCE (24).
fn may_lower_oom_scores() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(held.trim(), 16).unwrap() >> 24 & 1 == 1
}

/// A pod that answers on port 7 of its own network, and how long it takes: asked from inside, so that what the caller waits
/// for a CPU is not counted as the pod's.
struct Served {
    id: SandboxId,
}

impl Served {
    async fn new(host: &Host) -> Self {
        let id = host.sandbox_with("served", |spec| spec.resources.cpu_shares = Some(1024)).await;
        support::start(host, &id, &host.surface("echo", &["echo"])).await;
        support::until("the echo is ready", || host.log(&id, "echo", 0) == "ready").await;
        Self { id }
    }

    /// What requests take during one window.
    async fn window(&self, host: &Host) -> Taken {
        let milliseconds = WINDOW.as_millis().to_string();
        let asked = host.exec(&self.id, "echo", &["/bin/attacker", "surface", "ask-echo", &milliseconds]).await;
        let mut taken = asked.1.split_whitespace().map(|number| Duration::from_nanos(number.parse().unwrap()));
        Taken { usual: taken.next().unwrap(), slow: taken.next().unwrap() }
    }
}

/// Half of the requests take no more than `usual`, 99 of a hundred no more than `slow`.
#[derive(Debug, Clone, Copy)]
struct Taken {
    usual: Duration,
    slow: Duration,
}

impl Taken {
    /// The medians of several windows.
    fn medians(windows: &[Self]) -> Self {
        let median = |of: fn(&Self) -> Duration| {
            let mut all: Vec<Duration> = windows.iter().map(of).collect();
            all.sort_unstable();
            all[all.len() / 2]
        };
        Self { usual: median(|taken| taken.usual), slow: median(|taken| taken.slow) }
    }

    /// Whether requests take at most twice as long, by the medians of all windows.
    fn is_unharmed(quiet: &[Self], loud: &[Self]) -> bool {
        let (alone, beside) = (Self::medians(quiet), Self::medians(loud));
        beside.slow <= (2 * alone.slow).max(alone.slow + GRACE)
            && beside.usual <= (2 * alone.usual).max(alone.usual + USUAL_GRACE)
    }
}

/// How a hostile program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The kernel ends it.
    Itself,
    /// When it is told to.
    Told,
    /// When it is told to, unless the kernel has ended it by then.
    Either,
}

/// One hostile pod beside a served one, window by window; `attack` is run anew, as another attempt, in each.
async fn beside(
    what: &str,
    end: End,
    change: fn(&mut SandboxSpec),
    attack: impl Fn(&Host) -> ContainerSpec,
) -> (Host, SandboxId, Vec<Exit>) {
    // One hostile pod at a time: its neighbours' tests are measured here.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _alone = ALONE.lock().await;
    let host = Host::new().await;
    let served = Served::new(&host).await;
    let mut hostile = host.sandbox_with("hostile", change).await;
    let mut events = host.sandboxes().events(&hostile).await.unwrap();
    let (mut quiet, mut loud, mut exits) = (Vec::new(), Vec::new(), Vec::new());
    for attempt in 0..windows() * MORE {
        if attempt >= windows() && Taken::is_unharmed(&quiet, &loud) {
            break;
        }
        quiet.push(served.window(&host).await);
        let mut spec = attack(&host);
        spec.attempt = attempt;
        if let Err(error) = host.sandboxes().start(&hostile, &spec).await {
            // Nothing can be started in a pod that is full of what was left behind: it is made anew, as an agent does. Its shim,
            // whose memory is elsewhere, says so itself.
            let itself = matches!(error, SandboxError::Failed { .. });
            assert!(end == End::Either && attempt > 0 && itself, "{what}: {error:?}");
            host.sandboxes().destroy(&hostile).await.unwrap();
            hostile = host.sandbox_with(&format!("hostile{attempt}"), change).await;
            events = host.sandboxes().events(&hostile).await.unwrap();
            host.sandboxes().start(&hostile, &spec).await.unwrap();
        }
        loud.push(served.window(&host).await);
        // Who runs the host is heard as well: both pods are asked, another one is made.
        let asked = Instant::now();
        assert_eq!(host.exec(&served.id, "echo", &["echo", "here"]).await.1, "here\n");
        host.sandboxes().stats(&hostile).await.unwrap();
        let other = host.sandbox(&format!("other{attempt}")).await;
        assert_eq!(host.script(&other, "main", "echo new").await.1, "new");
        host.sandboxes().destroy(&other).await.unwrap();
        assert!(asked.elapsed() < support::PATIENCE, "{what}: the backend took {:?}", asked.elapsed());
        let told = host.sandboxes().signal(&hostile, &spec.name, 9, true);
        match end {
            End::Itself => {}
            End::Told => told.await.unwrap(),
            End::Either => match told.await {
                Ok(()) | Err(SandboxError::NotFound { .. }) => {}
                Err(error) => panic!("{what}: {error:?}"),
            },
        }
        exits.push(exit_of(&mut events, &spec.name, attempt).await);
    }
    let (alone, beside) = (Taken::medians(&quiet), Taken::medians(&loud));
    eprintln!("{what}: {alone:?} alone, {beside:?} beside it ({quiet:?}, {loud:?})");
    assert!(Taken::is_unharmed(&quiet, &loud), "{what}: {alone:?} alone, {beside:?} beside it");
    (host, hostile, exits)
}

#[tokio::test]
async fn privileged_neighbours_a_fork_bomb_stays_in_its_pod() {
    attack!("privileged_neighbours_a_fork_bomb_stays_in_its_pod");
    let (host, hostile, exits) =
        beside("fork bomb", End::Told, ordinary, |host| host.surface("bomb", &["fork-bomb"])).await;
    assert!(exits.iter().all(|exit| exit.signal == Some(9)), "{exits:?}");
    // While it explodes it has what it was given, the shim included.
    let mut events = host.sandboxes().events(&hostile).await.unwrap();
    let mut spec = host.surface("bomb", &["fork-bomb"]);
    spec.attempt = 1000;
    host.sandboxes().start(&hostile, &spec).await.unwrap();
    let deadline = Instant::now() + support::PATIENCE;
    while host.sandboxes().stats(&hostile).await.unwrap().pod.pids < 190 {
        assert!(Instant::now() < deadline, "the bomb fills its pod");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(host.sandboxes().stats(&hostile).await.unwrap().pod.pids <= 200);
    host.sandboxes().signal(&hostile, "bomb", 9, true).await.unwrap();
    assert_eq!(exit_of(&mut events, "bomb", 1000).await.signal, Some(9), "and is ended by one word");
    host.close().await;
}

#[tokio::test]
async fn privileged_neighbours_an_eater_of_memory_is_killed_and_said_to_be() {
    attack!("privileged_neighbours_an_eater_of_memory_is_killed_and_said_to_be");
    let attack = |host: &Host| host.surface("eater", &["eat-memory"]);
    let (host, _, exits) = beside("memory eater", End::Itself, ordinary, attack).await;
    assert!(exits.iter().all(|exit| (exit.code, exit.oom_killed) == (137, true)), "{exits:?}");
    host.close().await;
}

#[tokio::test]
async fn privileged_neighbours_a_flood_of_files_is_its_own_pods_memory() {
    attack!("privileged_neighbours_a_flood_of_files_is_its_own_pods_memory");
    let attack = |host: &Host| {
        let mut spec = host.surface("files", &["flood-inodes", "/dev/shm"]);
        // As an ordinary pod has it.
        spec.resources.oom_score_adj = Some(999);
        spec
    };
    let (host, hostile, exits) = beside("flood of inodes", End::Either, ordinary, attack).await;
    assert!(exits.iter().all(|exit| exit.code == 137), "{exits:?}");
    // The kernel ends the flood and not the shim, whichever of the two is larger.
    let score = |process: &str| std::fs::read_to_string(format!("/proc/{process}/oom_score_adj")).unwrap();
    let expected = if may_lower_oom_scores() { "-999\n".to_owned() } else { score("self") };
    assert_eq!(score(&host.shim_pid(&hostile).as_raw_nonzero().to_string()), expected);
    let used = host.sandboxes().stats(&hostile).await.unwrap().pod.memory_bytes;
    assert!(used <= 128 << 20, "{used} bytes");
    host.close().await;
}

#[tokio::test]
async fn privileged_neighbours_a_flood_of_output_fills_five_files_and_no_more() {
    attack!("privileged_neighbours_a_flood_of_output_fills_five_files_and_no_more");
    let attack = |host: &Host| host.surface("talker", &["flood-log"]);
    let (host, hostile, exits) = beside("flood of output", End::Told, ordinary, attack).await;
    for attempt in 0..exits.len() {
        let mut bytes = 0;
        for entry in std::fs::read_dir(host.path().join("logs").join(&hostile.0).join("talker")).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().starts_with(&format!("{attempt}.log")) {
                bytes += entry.metadata().unwrap().len();
            }
        }
        assert!(bytes > 0 && bytes <= 5 * (10 << 20), "{bytes} bytes of attempt {attempt}");
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_neighbours_a_burner_of_cpus_gets_its_quota() {
    attack!("privileged_neighbours_a_burner_of_cpus_gets_its_quota");
    let attack = |host: &Host| host.surface("burner", &["burn", "8"]);
    let (host, hostile, _) = beside("burner", End::Told, ordinary, attack).await;
    let mut spec = attack(&host);
    spec.attempt = 1000;
    host.sandboxes().start(&hostile, &spec).await.unwrap();
    let before = (Instant::now(), host.sandboxes().stats(&hostile).await.unwrap().pod.cpu_ns);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let used = host.sandboxes().stats(&hostile).await.unwrap().pod.cpu_ns - before.1;
    // Half a CPU; a period more at either end.
    let may = before.0.elapsed().as_nanos() as u64 / 2 + 100_000_000;
    assert!(used <= may, "{used} ns of {may}");
    host.close().await;
}
