//! Against the real kernel, in network namespaces of our own. They need root; nothing of the host is touched.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;

use super::*;

/// A network namespace, kept by a file descriptor and, for those that need a path, by a mount.
struct Namespace {
    file: File,
    mounted: Option<PathBuf>,
}

impl Namespace {
    fn new() -> Namespace {
        let made = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
            File::open("/proc/thread-self/ns/net").expect("namespace")
        });
        Namespace { file: made.join().expect("thread"), mounted: None }
    }

    fn mounted(dir: &std::path::Path) -> Namespace {
        let path = dir.join("plane");
        File::create(&path).expect("mount point");
        let (mut made, target) = (Namespace::new(), path.clone());
        let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&made.file));
        nix::mount::mount(Some(source.as_str()), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind");
        made.mounted = Some(path);
        made
    }

    fn enter<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> R {
        let file = self.file.try_clone().expect("clone");
        let thread = std::thread::spawn(move || {
            nix::sched::setns(file, CloneFlags::CLONE_NEWNET).expect("setns");
            work()
        });
        thread.join().expect("thread")
    }

    /// Output of a program inside.
    fn output(&self, program: &'static str, arguments: &'static str) -> String {
        self.enter(move || {
            let output = Command::new(program).args(arguments.split(' ')).output().expect("run");
            assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).expect("text")
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Some(path) = &self.mounted {
            nix::mount::umount2(path, MntFlags::MNT_DETACH).expect("unmount");
        }
    }
}

struct Bench {
    network: Option<Network>,
    plane: Namespace,
    dir: tempfile::TempDir,
}

impl Bench {
    async fn open(cidr: &str) -> Bench {
        let dir = tempfile::tempdir().expect("tempdir");
        let plane = Namespace::mounted(dir.path());
        let mut bench = Bench { network: None, plane, dir };
        bench.reopen(cidr).await;
        bench
    }

    async fn reopen(&mut self, cidr: &str) {
        self.network = None;
        self.network = Some(Network::open(self.config(cidr)).await.expect("open"));
    }

    fn config(&self, cidr: &str) -> NetworkConfig {
        NetworkConfig {
            state_dir: self.dir.path().join("state"),
            data_plane: DataPlane::Netns(self.plane.mounted.clone().expect("mounted")),
            cidr: cidr.parse().expect("cidr"),
            bridge: "nodeless0".into(),
        }
    }

    fn network(&self) -> &Network {
        self.network.as_ref().expect("open")
    }

    fn ports(&self) -> usize {
        self.plane.output("ip", "-o link show master nodeless0").lines().count()
    }
}

fn runnable(test: &str) -> bool {
    static SHOWN: AtomicU32 = AtomicU32::new(0);
    let reason = if !nix::unistd::geteuid().is_root() {
        "it needs root"
    } else if Command::new("ip").arg("-V").output().is_err() || Command::new("nft").arg("-v").output().is_err() {
        "it needs the programs ip and nft"
    } else {
        return true;
    };
    SHOWN.fetch_add(1, Ordering::Relaxed);
    eprintln!("SKIPPED {test}: {reason}");
    false
}

/// A TCP listener inside, that answers each connection with the caller's address.
fn serve(pod: &Namespace, address: SocketAddr) {
    let listener = pod.enter(move || TcpListener::bind(address).expect("bind"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut &stream, stream.peer_addr().expect("peer").to_string().as_bytes());
        }
    });
}

fn call(pod: &Namespace, address: SocketAddr) -> std::io::Result<String> {
    pod.enter(move || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        let mut said = String::new();
        std::io::Read::read_to_string(&mut stream, &mut said)?;
        Ok(said)
    })
}

fn host_state() -> (String, String) {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().expect("run");
        String::from_utf8(output.stdout).expect("text")
    };
    let forwarding = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("sysctl");
    (run("ip", &["-o", "addr"]) + &forwarding, run("nft", &["list", "ruleset"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_pods_reach_each_other_and_the_gateway_and_the_host_is_untouched() {
    if !runnable("privileged_pods_reach_each_other_and_the_gateway_and_the_host_is_untouched") {
        return;
    }
    let before = host_state();
    let bench = Bench::open("10.88.0.0/16").await;
    let (a, b) = (Namespace::new(), Namespace::new());
    let one = bench.network().attach("a", a.file.as_fd()).await.expect("attach");
    let two = bench.network().attach("b", b.file.as_fd()).await.expect("attach");
    assert_eq!((one.ip.to_string(), one.gateway.to_string(), one.prefix), ("10.88.0.2".into(), "10.88.0.1".into(), 16));
    assert_eq!(bench.network().attach("a", a.file.as_fd()).await.expect("again"), one);

    let port_80 = SocketAddr::new(two.ip, 80);
    serve(&b, port_80);
    assert!(call(&a, port_80).expect("pod to pod").starts_with("10.88.0.2:"));
    assert!(call(&b, port_80).expect("a pod to itself").starts_with("10.88.0.3:"));
    let gateway = SocketAddr::new(one.gateway, 8080);
    serve(&bench.plane, gateway);
    assert!(call(&a, gateway).expect("pod to bridge").starts_with("10.88.0.2:"));
    assert!(call(&bench.plane, port_80).expect("bridge to pod").starts_with("10.88.0.1:"));
    let traffic = bench.network().traffic().await.expect("traffic");
    assert!(traffic["a"].rx_bytes > 0 && traffic["a"].tx_bytes > 0, "{traffic:?}");

    bench.network().detach("a").await.expect("detach");
    bench.network().detach("a").await.expect("again");
    assert!(!a.output("ip", "-o link").contains("eth0"));
    bench.network().detach("b").await.expect("detach");
    assert_eq!(bench.ports(), 0);
    assert!(bench.network().remove().await.expect("remove"));
    assert!(!bench.plane.output("ip", "-o link").contains("nodeless0"));
    assert_eq!(bench.plane.output("nft", "list ruleset"), "");
    assert_eq!(host_state(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pod_cannot_speak_with_anothers_address_nor_reach_metadata() {
    if !runnable("privileged_a_pod_cannot_speak_with_anothers_address_nor_reach_metadata") {
        return;
    }
    let bench = Bench::open("10.88.0.0/24").await;
    let (a, b) = (Namespace::new(), Namespace::new());
    bench.network().attach("a", a.file.as_fd()).await.expect("attach");
    let two = bench.network().attach("b", b.file.as_fd()).await.expect("attach");
    let target = SocketAddr::new(two.ip, 80);
    serve(&b, target);
    call(&a, target).expect("with its own address");
    // The pod owns its network namespace and may change what it likes in there.
    a.output("ip", "addr add 10.88.0.77/24 dev eth0");
    a.output("ip", "route replace 10.88.0.0/24 dev eth0 src 10.88.0.77");
    call(&a, target).expect_err("with an address that is not its own");
    a.output("ip", "route replace 10.88.0.0/24 dev eth0 src 10.88.0.2");
    call(&a, target).expect("with its own address again");
    a.output("ip", "link set eth0 address 0a:58:0a:58:00:03");
    call(&a, target).expect_err("with another's MAC address");
    a.output("ip", "link set eth0 address 0a:58:0a:58:00:02");
    call(&a, target).expect("with its own MAC address again");

    bench.plane.output("ip", "addr add 169.254.169.254/32 dev lo");
    let metadata: SocketAddr = "169.254.169.254:80".parse().expect("address");
    serve(&bench.plane, metadata);
    call(&a, metadata).expect_err("metadata");
    call(&bench.plane, metadata).expect("the host itself may");
    assert_eq!(a.output("cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra").trim(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_a_killed_agent_left_is_reconciled() {
    if !runnable("privileged_what_a_killed_agent_left_is_reconciled") {
        return;
    }
    let mut bench = Bench::open("10.88.0.0/24").await;
    let (live, dead) = (Namespace::new(), Namespace::new());
    let kept = bench.network().attach("live", live.file.as_fd()).await.expect("attach");
    bench.network().attach("dead", dead.file.as_fd()).await.expect("attach");
    // Killed between journal and kernel: recorded, no link.
    bench.network().journal().hold("recorded").expect("hold");
    // Killed between kernel and journal on the way out, or a journal that was lost: a link that nobody holds.
    let stray = Namespace::new();
    let ip = Ipv4Addr::new(10, 88, 0, 99);
    bench.network().inner.plane.plug(ip, stray.file.as_fd()).await.expect("plug");
    // Killed with the other end in a namespace that is gone to us: the address is given again.
    assert_eq!(bench.ports(), 3);

    bench.reopen("10.88.0.0/24").await;
    serve(&live, SocketAddr::new(kept.ip, 80));
    call(&bench.plane, SocketAddr::new(kept.ip, 80)).expect("a live pod does not notice");
    let freed = bench.network().reconcile(&["live".to_owned()]).await.expect("reconcile");
    assert_eq!(freed.into_iter().collect::<BTreeSet<_>>(), ["dead".to_owned(), "recorded".to_owned()].into());
    assert_eq!(bench.ports(), 1);
    assert_eq!(bench.network().addresses().into_values().collect::<Vec<_>>(), [kept]);
    assert_eq!(bench.network().attach("live", live.file.as_fd()).await.expect("attach"), kept);
    assert_eq!(bench.network().reconcile(&["live".to_owned()]).await.expect("again"), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_attach_that_was_cut_short_is_completed_or_made_anew() {
    if !runnable("privileged_an_attach_that_was_cut_short_is_completed_or_made_anew") {
        return;
    }
    let bench = Bench::open("10.88.0.0/24").await;
    let (old, new) = (Namespace::new(), Namespace::new());
    let address = bench.network().attach("a", old.file.as_fd()).await.expect("attach");
    old.output("ip", "addr flush dev eth0");
    old.output("ip", "link set eth0 down");
    bench.network().attach("a", old.file.as_fd()).await.expect("completed");
    serve(&old, SocketAddr::new(address.ip, 80));
    call(&bench.plane, SocketAddr::new(address.ip, 80)).expect("reached");
    // The agent was killed before it told anybody; the sandbox was made anew under the same id.
    assert_eq!(bench.network().attach("a", new.file.as_fd()).await.expect("made anew"), address);
    assert!(new.output("ip", "-o addr").contains("10.88.0.2") && !old.output("ip", "-o link").contains("eth0"));

    let occupied = Namespace::new();
    occupied.output("ip", "link add eth0 type veth peer name other");
    bench.network().attach("b", occupied.file.as_fd()).await.expect_err("another eth0");
    assert_eq!(bench.network().addresses().len(), 1, "a failed attach holds nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_hundred_pods_are_connected_fast_and_disconnected_together() {
    if !runnable("privileged_a_hundred_pods_are_connected_fast_and_disconnected_together") {
        return;
    }
    const PODS: usize = 100;
    const ONE_BY_ONE: usize = 10;
    let bench = Bench::open("10.88.0.0/16").await;
    let pods: Vec<Namespace> = (0..PODS).map(|_| Namespace::new()).collect();
    let mut times = Vec::new();
    for (n, pod) in pods.iter().enumerate() {
        let began = Instant::now();
        bench.network().attach(&format!("pod-{n}"), pod.file.as_fd()).await.expect("attach");
        times.push(began.elapsed());
    }
    times.sort_unstable();
    // What one by one takes here and now, whatever else the machine does.
    let began = Instant::now();
    for n in 0..ONE_BY_ONE {
        bench.network().detach(&format!("pod-{n}")).await.expect("detach");
    }
    let each = began.elapsed() / ONE_BY_ONE as u32;
    let began = Instant::now();
    let detaching = (ONE_BY_ONE..PODS).map(|n| {
        let network = bench.network().clone();
        async move { network.detach(&format!("pod-{n}")).await }
    });
    futures::future::try_join_all(detaching).await.expect("detach");
    let all = began.elapsed();
    let (p50, p95, others) = (times[PODS / 2], times[PODS * 95 / 100], PODS - ONE_BY_ONE);
    eprintln!("attach p50 {p50:?} p95 {p95:?}; one detached in {each:?}, {others} in {all:?}");
    assert_eq!(bench.ports(), 0);
    let together = pods.iter().enumerate().map(|(n, pod)| {
        let network = bench.network().clone();
        async move {
            let (id, other) = (format!("pod-{n}"), format!("pod-{}", n + PODS));
            let address = network.attach(&id, pod.file.as_fd()).await?;
            network.detach(&id).await?;
            // Its namespace is free for another at once.
            let next = network.attach(&other, pod.file.as_fd()).await?;
            network.detach(&other).await.map(|()| (address, next))
        }
    });
    let given = futures::future::try_join_all(together).await.expect("together");
    assert!(given.iter().all(|(address, next)| address != next), "an address is not reused at once");
    assert_eq!((bench.ports(), bench.network().addresses().len()), (0, 0));
    assert!(all < each * others as u32 / 2, "one by one, {each:?} each: {all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_namespace_that_a_pods_user_namespace_owns_is_connected() {
    if !runnable("privileged_a_namespace_that_a_pods_user_namespace_owns_is_connected") {
        return;
    }
    let bench = Bench::open("10.88.0.0/24").await;
    let mut holder = Command::new("unshare").args(["-U", "-r", "-n", "sleep", "60"]).spawn().expect("unshare");
    let own = std::fs::read_link("/proc/self/ns/net").expect("own namespace");
    let path = format!("/proc/{}/ns/net", holder.id());
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::read_link(&path).is_ok_and(|theirs| theirs == own) && Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    let pod = Namespace { file: File::open(&path).expect("namespace"), mounted: None };
    let attached = bench.network().attach("a", pod.file.as_fd()).await;
    let address = attached.map(|address| SocketAddr::new(address.ip, 80));
    if let Ok(address) = address {
        serve(&pod, address);
        call(&bench.plane, address).expect("reached");
    }
    holder.kill().expect("kill");
    holder.wait().expect("wait");
    address.expect("attached");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_subnet_in_use_and_a_link_that_is_no_bridge_are_refused_by_name() {
    if !runnable("privileged_a_subnet_in_use_and_a_link_that_is_no_bridge_are_refused_by_name") {
        return;
    }
    let bench = Bench::open("10.88.0.0/24").await;
    bench.plane.output("ip", "link add taken type veth peer name peer");
    bench.plane.output("ip", "addr add 10.99.3.1/24 dev taken");
    let other = |cidr: &str, bridge: &str| NetworkConfig {
        state_dir: bench.dir.path().join("other"),
        bridge: bridge.into(),
        ..bench.config(cidr)
    };
    let refused = Network::open(other("10.99.0.0/16", "nodeless1")).await.expect_err("overlap");
    assert!(
        matches!(&refused, NetworkError::Plane(PlaneError::Overlap { link, .. }) if link == "taken"),
        "{refused:?}"
    );
    let refused = Network::open(other("10.77.0.0/16", "taken")).await.expect_err("no bridge");
    assert!(matches!(refused, NetworkError::Plane(PlaneError::NoBridge(_))), "{refused:?}");
    let refused = Network::open(other("10.77.0.0/16", "a bridge")).await.expect_err("name");
    assert!(matches!(refused, NetworkError::Plane(PlaneError::BridgeName(_))), "{refused:?}");
    let missing = NetworkConfig { data_plane: DataPlane::Netns("/nonexistent".into()), ..other("10.77.0.0/16", "x") };
    assert!(Network::open(missing).await.is_err());
}
