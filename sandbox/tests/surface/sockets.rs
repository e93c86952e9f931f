//! The shim's and the keeper's sockets, what lies around them, and clients that mean harm.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sandbox::contract::{SandboxError, Sandboxes, Stdio};
use sandbox::protocol::{Answer, Call, Connection, VERSIONS, keeper};
use sandbox::spec::SandboxId;

use crate::attack;
use crate::support::attack::iterations;
use crate::support::{self, Host, exec_spec, shim};

fn sockets(host: &Host, id: &SandboxId) -> [PathBuf; 2] {
    [host.config.run_dir.join("keeper.sock"), host.config.run_dir.join("sandboxes").join(&id.0).join("shim.sock")]
}

fn shim_pid(host: &Host) -> i32 {
    let keeper = host.keeper_pid().unwrap().as_raw_nonzero().get();
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
    // Who makes namespaces looks like the keeper.
    let is_shim = |pid: &&str| !std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().contains("keeper\0");
    children.split_whitespace().find(is_shim).unwrap().parse().unwrap()
}

fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

#[tokio::test]
async fn privileged_surface_what_the_host_keeps_is_closed_to_other_users() {
    attack!("privileged_surface_what_the_host_keeps_is_closed_to_other_users");
    // CVE-2024-25621
    let host = Host::new().await;
    let id = host.sandbox("modes").await;
    support::start(&host, &id, &host.shell("main", "echo line; exec sleep 1000")).await;
    support::until("its line is logged", || host.log(&id, "main", 0) == "line").await;
    let mut open = Vec::new();
    for path in below(&host.config.run_dir) {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let allowed = if metadata.is_dir() { 0o711 } else { 0o600 };
        if metadata.mode() & 0o777 & !allowed != 0 || metadata.uid() != 0 {
            open.push((path, format!("{:o}", metadata.mode())));
        }
    }
    assert_eq!(open, []);
    for socket in sockets(&host, &id) {
        let metadata = std::fs::symlink_metadata(&socket).unwrap();
        assert!(metadata.file_type().is_socket() && metadata.mode() & 0o777 == 0o600, "{}", socket.display());
    }
    for path in below(&host.path().join("logs").join("modes").join("main")) {
        assert_eq!(std::fs::symlink_metadata(&path).unwrap().mode() & 0o007, 0, "{}", path.display());
    }
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_a_run_directory_that_was_open_is_closed_before_anything_is_kept_there() {
    attack!("privileged_surface_a_run_directory_that_was_open_is_closed_before_anything_is_kept_there");
    let mut host = Host::new().await;
    std::fs::set_permissions(&host.config.run_dir, PermissionsExt::from_mode(0o777)).unwrap();
    host.reopen().await;
    assert_eq!(std::fs::metadata(&host.config.run_dir).unwrap().mode() & 0o777 & !0o711, 0);
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_another_users_process_is_refused_even_where_it_can_connect() {
    attack!("privileged_surface_another_users_process_is_refused_even_where_it_can_connect");
    let host = Host::new().await;
    let id = host.sandbox("peer").await;
    let ask = |socket: &Path, uid: u32| {
        let program = host.path().join("attacker");
        std::fs::copy(shim::attacker().unwrap(), &program).unwrap();
        let asked = Command::new(program)
            .args(["surface", "ask"])
            .arg(socket)
            .uid(uid)
            .gid(uid)
            .current_dir("/")
            .output()
            .unwrap();
        String::from_utf8(asked.stdout).unwrap().trim().to_owned()
    };
    // The directories and the modes of the sockets are the first wall; they are taken down here.
    for socket in sockets(&host, &id) {
        assert_eq!(ask(&socket, 0), "answered", "root itself is heard");
        for path in socket.ancestors().take_while(|path| path.starts_with(host.path())) {
            let mode = std::fs::metadata(path).unwrap().mode();
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode | 0o777)).unwrap();
        }
        for uid in [65_534, 1000, 1 << 29] {
            assert_eq!(ask(&socket, uid), "closed", "{}", socket.display());
        }
        std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(ask(&socket, 65_534), format!("errno{}", libc::EACCES), "{}", socket.display());
    }
    host.close().await;
}

/// Noise that a client may make.
fn noises() -> Vec<(&'static str, Vec<u8>)> {
    let header = |fds: u16, length: u32| [b"Ns".as_slice(), &fds.to_be_bytes(), &length.to_be_bytes()].concat();
    vec![
        ("nothing", vec![]),
        ("a byte", vec![b'N']),
        ("garbage", (0..4096u32).map(|number| (number * 7 + 3) as u8).collect()),
        ("text", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("a long frame", header(0, u32::MAX)),
        ("descriptors that do not come", [header(9, 2), b"{}".to_vec()].concat()),
        ("too many descriptors", [header(u16::MAX, 2), b"{}".to_vec()].concat()),
        ("a frame that never ends", [header(0, 1 << 20), vec![b' '; 1 << 19]].concat()),
        ("no json", [header(0, 4), b"\xff\xfe{[".to_vec()].concat()),
        ("deep json", [header(0, 100_000), vec![b'['; 100_000]].concat()),
        ("another call", [header(0, 23), br#"{"id":1,"body":"what?"}"#.to_vec()].concat()),
    ]
}

fn hello(socket: &Path) -> Option<Connection> {
    let mut connection = Connection::new(UnixStream::connect(socket).ok()?.into());
    let hello = keeper::Request::Hello { versions: VERSIONS };
    connection.send(&Call { id: 1, body: hello }, vec![]).ok()?;
    connection.receive::<Answer<serde_json::Value>>().ok()?.0.result.ok()?;
    Some(connection)
}

#[tokio::test]
async fn privileged_surface_noise_and_floods_on_the_sockets_keep_nobody_else_out() {
    attack!("privileged_surface_noise_and_floods_on_the_sockets_keep_nobody_else_out");
    let mut host = Host::new().await;
    let id = host.sandbox("noise").await;
    support::start(&host, &id, &host.shell("main", "exec sleep 1000")).await;
    // The first may leave something for those that come after it.
    assert_eq!(host.exec(&id, "main", &["echo", "first"]).await.1, "first\n");
    let [keeper, shim] = [host.keeper_pid().unwrap().as_raw_nonzero().get(), shim_pid(&host)];
    let open_fds = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = [open_fds(keeper), open_fds(shim)];
    let mut held = Vec::new();
    for socket in sockets(&host, &id) {
        for (what, noise) in noises() {
            let mut client = UnixStream::connect(&socket).unwrap();
            client.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
            // It may be cut off in the midst of it.
            let _ = client.write_all(&noise);
            assert!(hello(&socket).is_some(), "after {what}, {} answers no longer", socket.display());
            held.push(client);
        }
        // Many more than there is room for, none of which says a word.
        for _ in 0..300 {
            held.extend(UnixStream::connect(&socket));
        }
        let mut slow = UnixStream::connect(&socket).unwrap();
        for byte in b"Ns\0\0" {
            let _ = slow.write_all(&[*byte]);
            assert!(hello(&socket).is_some(), "beside a slow one");
        }
        held.push(slow);
    }
    // The agent's own connections live, and new ones are taken.
    assert_eq!(host.exec(&id, "main", &["echo", "served"]).await.1, "served\n");
    host.reopen().await;
    assert_eq!(host.exec(&id, "main", &["echo", "again"]).await.1, "again\n");
    let other = host.sandbox("other").await;
    assert_eq!(host.script(&other, "main", "echo new").await.1, "new");
    host.sandboxes().destroy(&other).await.unwrap();
    drop(held);
    support::until("descriptors are as many as before", || {
        open_fds(keeper) <= before[0] && open_fds(shim) <= before[1]
    })
    .await;
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_who_asks_and_never_reads_an_answer_costs_little() {
    attack!("privileged_surface_who_asks_and_never_reads_an_answer_costs_little");
    let host = Host::new().await;
    let id = host.sandbox("deaf").await;
    let pids = [host.keeper_pid().unwrap().as_raw_nonzero().get(), shim_pid(&host)];
    let call = serde_json::to_vec(&Call { id: 1, body: keeper::Request::Hello { versions: VERSIONS } }).unwrap();
    let many = sandbox::protocol::frame::encode(&call, 0).unwrap().repeat(1000);
    for (socket, pid) in sockets(&host, &id).into_iter().zip(pids) {
        let before = resident_kib(pid);
        let mut deaf = UnixStream::connect(&socket).unwrap();
        deaf.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut asked = 0;
        while (asked <= 64 << 10 || Instant::now() < deadline) && deaf.write_all(&many).is_ok() {
            asked += many.len();
            assert!(hello(&socket).is_some());
        }
        // Answers are kept for it up to 16 MiB; what it asks is not read faster than it is answered.
        let grown = resident_kib(pid).saturating_sub(before);
        assert!(asked > 64 << 10 && grown < 64 << 10, "{asked} bytes asked, {grown} KiB kept in {}", socket.display());
        // Its requests were answered while it lived: nobody waits for the rest.
        drop(deaf);
        assert!(hello(&socket).is_some());
    }
    host.close().await;
}

fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn privileged_surface_execs_resizes_and_hang_ups_leave_nothing_in_the_shim() {
    attack!("privileged_surface_execs_resizes_and_hang_ups_leave_nothing_in_the_shim");
    // CVE-2022-23471, CVE-2022-31030, CVE-2025-64329: each left a little of itself behind.
    let host = Host::new().await;
    let id = host.sandbox("many").await;
    support::start(&host, &id, &host.shell("main", "exec sleep 10000")).await;
    let shim = shim_pid(&host);
    let count = |what: &str| std::fs::read_dir(format!("/proc/{shim}/{what}")).unwrap().count();
    let children =
        || std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap().split_whitespace().count();
    let round = async |number: u32| {
        let mut spec = exec_spec("main", &["sh", "-c", "echo some output; exec cat"]);
        match number % 3 {
            // A terminal, resized, hung up in the midst.
            0 => {
                spec.tty = Some((80, 24));
                let mut process = host.sandboxes().exec(&id, &spec, Stdio::default()).await.unwrap();
                process.resize(100, 30).await.unwrap();
                process.resize(1, 1).await.unwrap();
                drop(process);
            }
            // Streams whose other ends are closed at once; its input ends, so does it.
            1 => {
                let (_, out) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
                let (input, _) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
                let stdio = Stdio { stdin: Some(input), stdout: Some(out), stderr: None };
                drop(host.sandboxes().exec(&id, &spec, stdio).await.unwrap());
            }
            // Killed, and waited for; and one that cannot be executed.
            _ => {
                spec.args = vec!["nothing-of-that-name".into()];
                assert!(matches!(
                    host.sandboxes().exec(&id, &spec, Stdio::default()).await,
                    Err(SandboxError::Exec { code: 127, .. })
                ));
                let spec = exec_spec("main", &["sleep", "1000"]);
                let mut process = host.sandboxes().exec(&id, &spec, Stdio::default()).await.unwrap();
                process.signal(9).await.unwrap();
                assert_eq!(process.wait().await.unwrap().signal, Some(9));
            }
        }
    };
    for number in 0..60 {
        round(number).await;
    }
    // The container, and who forks what joins it, unless that took too long to be ready.
    let standing = 1..=2;
    support::until("what was hung up ends", || standing.contains(&children())).await;
    let (fds, memory) = (count("fd"), resident_kib(shim));
    for number in 0..iterations() as u32 {
        round(number).await;
    }
    support::until("what was hung up ends", || standing.contains(&children())).await;
    support::until("descriptors are as many as before", || count("fd") <= fds).await;
    assert_eq!(count("task"), 1);
    // Not a byte each: the slack is what an allocator may move.
    let grown = resident_kib(shim).saturating_sub(memory);
    assert!(grown <= 64, "{grown} KiB more after {} rounds", iterations());
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_output_that_nobody_reads_stops_nobody_else() {
    attack!("privileged_surface_output_that_nobody_reads_stops_nobody_else");
    let host = Host::new().await;
    let id = host.sandbox("unread").await;
    support::start(&host, &id, &host.shell("main", "exec sleep 1000")).await;
    let mut held = Vec::new();
    for tty in [None, Some((80, 24))] {
        for _ in 0..4 {
            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
            let mut spec = exec_spec("main", &["dd", "if=/dev/zero", "bs=64k"]);
            spec.tty = tty;
            let copy = write.as_fd().try_clone_to_owned().unwrap();
            let stdio = Stdio { stdin: None, stdout: Some(write), stderr: Some(copy) };
            held.push((host.sandboxes().exec(&id, &spec, stdio).await.unwrap(), read));
        }
    }
    for number in 0..20 {
        let text = number.to_string();
        assert_eq!(host.exec(&id, "main", &["echo", &text]).await.1, format!("{text}\n"));
    }
    host.sandboxes().stats(&id).await.unwrap();
    assert_eq!(host.script(&id, "second", "echo started").await.1, "started");
    assert!(resident_kib(shim_pid(&host)) < 20 << 10);
    for (process, _) in &mut held {
        process.signal(9).await.unwrap();
    }
    host.close().await;
}

/// Puts something where a log will be, given the logs' directory and a file that is none of the pod's.
type Plant = fn(&Path, &Path);

#[tokio::test]
async fn privileged_surface_a_planted_log_is_never_written_or_read_through() {
    attack!("privileged_surface_a_planted_log_is_never_written_or_read_through");
    // Whoever can write where logs lie (a hostPath on /var/log, by policy) plants links to what the agent may write and read.
    let host = Host::new().await;
    let secret = host.path().join("secret");
    std::fs::write(&secret, "2026-11-21T00:00:00.000000000Z stdout F secret\n").unwrap();
    let plants: [(&str, Plant); 5] = [
        ("link", |log, secret| std::os::unix::fs::symlink(secret, log.join("main/0.log")).unwrap()),
        ("hard", |log, secret| std::fs::hard_link(secret, log.join("main/0.log")).unwrap()),
        ("pipe", |log, _| rustix::fs::mkfifoat(rustix::fs::CWD, log.join("main/0.log"), 0o666.into()).unwrap()),
        ("directory", |log, secret| {
            std::fs::remove_dir(log.join("main")).unwrap();
            std::fs::create_dir(secret.with_extension("d")).unwrap();
            std::os::unix::fs::symlink(secret.with_extension("d"), log.join("main")).unwrap();
        }),
        ("socket", |log, _| drop(std::os::unix::net::UnixListener::bind(log.join("main/0.log")).unwrap())),
    ];
    for (name, plant) in plants {
        let id = host.sandbox(name).await;
        let logs = host.path().join("logs").join(name);
        std::fs::create_dir(logs.join("main")).unwrap();
        plant(&logs, &secret);
        let started = host.sandboxes().start(&id, &host.shell("main", "echo mine")).await;
        assert!(matches!(started, Err(SandboxError::Failed { .. })), "{name}: {started:?}");
        let mut read = Vec::new();
        if let Ok(mut reader) = sandbox::shim::log::LogReader::open(&logs.join("main"), 0) {
            let _ = reader.read(&mut |entry| {
                read.push(String::from_utf8_lossy(entry.content).into_owned());
                true
            });
        }
        assert_eq!(read, Vec::<String>::new(), "{name}");
    }
    assert_eq!(std::fs::read_to_string(&secret).unwrap().lines().count(), 1, "nothing was added");
    assert_eq!(std::fs::read_dir(secret.with_extension("d")).unwrap().count(), 0);
    host.close().await;
}

#[tokio::test]
async fn privileged_surface_a_sysctl_smuggles_nothing_in() {
    attack!("privileged_surface_a_sysctl_smuggles_nothing_in");
    // CVE-2022-0811
    let host = Host::new().await;
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let evil = [
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/evil #"),
        ("kernel.shm_rmid_forced+kernel.core_pattern", "|/evil"),
        ("kernel.core_pattern", "|/evil"),
        ("net.ipv4.ip_local_port_range", "1\n2"),
        ("net/../kernel/core_pattern", "|/evil"),
        ("net....kernel.core_pattern", "|/evil"),
        ("vm.overcommit_memory", "1"),
        ("fs.suid_dumpable", "2"),
    ];
    for (number, (name, value)) in evil.iter().enumerate() {
        let id = SandboxId(format!("sysctl{number}"));
        host.sandboxes().prepare(&id).await.unwrap();
        let spec = host.spec(&id.0, |spec| drop(spec.sysctls.insert((*name).to_owned(), (*value).to_owned())));
        let refused = host.sandboxes().configure(&id, &spec).await;
        assert!(refused.is_err(), "{name}={value}");
    }
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    host.close().await;
}
