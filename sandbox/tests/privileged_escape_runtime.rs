//! Attacks on the runtime itself: its program, its descriptors, the processes that are about to be a container's.

#![allow(clippy::unwrap_used, reason = "a test program: helpers fail as tests do")]

mod support;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use sandbox::contract::{SandboxError, Sandboxes, Stdio};
use sandbox::spec::{ExecSpec, Namespaces};
use support::attack::{KINDS, Told, in_time, iterations, layer, volume};
use support::census::{Decoys, sha256};
use support::{Host, exec_spec, shim, until};

fn exec_in(container: &str, cwd: &str, args: &[&str]) -> ExecSpec {
    ExecSpec { cwd: Some(cwd.to_owned()), ..exec_spec(container, args) }
}

/// The program that the parent of a container's first process runs: the shim's.
fn program_of_the_shim(container: u32) -> PathBuf {
    let status = fs::read_to_string(format!("/proc/{container}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
    PathBuf::from(format!("/proc/{parent}/exe"))
}

/// Not even the host's root changes anything about it.
fn is_fixed(program: &File) {
    use rustix::fs::{Mode, StatVfsMountFlags, Uid, XattrFlags};
    use rustix::io::Errno;
    let flags = rustix::fs::fstatvfs(program).unwrap().f_flag;
    assert!(
        flags.contains(StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV),
        "{flags:?}"
    );
    assert_eq!(rustix::fs::fchmod(program, Mode::empty()), Err(Errno::ROFS));
    assert_eq!(rustix::fs::fchown(program, Some(Uid::from_raw(1)), None), Err(Errno::ROFS));
    assert_eq!(rustix::fs::fsetxattr(program, "trusted.x", b"x", XattrFlags::empty()), Err(Errno::ROFS));
    let path = format!("/proc/self/fd/{}", program.as_raw_fd());
    for options in [File::options().write(true), File::options().append(true)] {
        assert_eq!(options.open(&path).unwrap_err().raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    }
}

/// CVE-2019-5736: an entrypoint that makes the runtime execute itself, as a container and by exec.
#[tokio::test]
async fn privileged_escape_the_runtimes_program_cannot_be_changed_from_inside() {
    attack!("privileged_escape_the_runtimes_program_cannot_be_changed_from_inside");
    let decoys = Decoys::plant();
    let entry = layer("entry", |root| {
        fs::write(root.join("entry"), "#!/proc/self/exe\n").unwrap();
        fs::write(root.join("shim"), "#!/proc/self/exe shim\n").unwrap();
        for name in ["entry", "shim"] {
            fs::set_permissions(root.join(name), PermissionsExt::from_mode(0o755)).unwrap();
        }
    });
    for (kind, change) in KINDS {
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("program-{kind}"), change).await;
        for program in ["/entry", "/shim", "/proc/self/exe"] {
            let mut spec = host.shell(&format!("first{}", program.replace('/', "-")), "");
            spec.args = vec![program.into()];
            spec.rootfs.layers.push(entry.clone());
            // The runtime's program with the container's powers and none of its own: it says how it is used, and ends.
            assert_ne!(host.run(&id, &spec).await.code, 0, "{program}");
        }
        let mut spec = host.attacker("main", &["overwrite", "/tmp/stop"]);
        spec.rootfs.layers.push(entry.clone());
        let started = host.sandboxes().start(&id, &spec).await.unwrap();
        for round in 0..100 {
            for program in ["/entry", "/shim", "/proc/self/exe"] {
                host.exec(&id, "main", &[program]).await;
            }
            if host.log(&id, "main", 0).lines().filter(|line| line.starts_with("SEEN program")).count() >= 3 {
                break;
            }
            assert!(round < 99, "the runtime's program was never seen: {}", host.log(&id, "main", 0));
        }
        let running = program_of_the_shim(started.pid);
        assert_eq!(sha256(&running), sha256(&shim::program().unwrap()), "{kind}");
        is_fixed(&File::open(&running).unwrap());
        host.stop(&id, &spec).await.in_vain(6);
        // What others are started from is whole.
        let again = host.sandbox_with("again", change).await;
        assert_eq!(host.script(&again, "main", "true").await.0.code, 0);
        host.close().await;
    }
    decoys.untouched();
}

/// CVE-2024-21626: a working directory that is a descriptor of the runtime's.
#[tokio::test]
async fn privileged_escape_no_descriptor_is_a_working_directory() {
    attack!("privileged_escape_no_descriptor_is_a_working_directory");
    let decoys = Decoys::plant();
    let links = layer("cwd-links", |root| {
        for number in 3..64 {
            symlink(format!("/proc/self/fd/{number}"), root.join(format!("at{number}"))).unwrap();
        }
    });
    for (kind, change) in KINDS {
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("cwd-{kind}"), change).await;
        let mut main = host.attacker("main", &["idle"]);
        main.rootfs.layers.push(links.clone());
        host.begin(&id, &main).await;
        for number in 3..64 {
            for (nth, cwd) in [format!("/proc/self/fd/{number}"), format!("/at{number}")].iter().enumerate() {
                let mut spec = host.shell(&format!("c{number}-{nth}"), "pwd; ls");
                spec.rootfs.layers.push(links.clone());
                spec.cwd = cwd.clone();
                let result = host.sandboxes().start(&id, &spec).await;
                assert!(matches!(result, Err(SandboxError::Exec { code: 128, .. })), "{kind} start {cwd}: {result:?}");
                let exec = exec_in("main", cwd, &["pwd"]);
                let result = host.sandboxes().exec(&id, &exec, Stdio::default()).await.map(drop);
                assert!(matches!(result, Err(SandboxError::Exec { code: 128, .. })), "{kind} exec {cwd}: {result:?}");
            }
        }
        // Magic links that are the container's own lead to its own places.
        for (number, cwd) in
            ["/proc/self/cwd", "/proc/1/root", "/proc/1/cwd", "/proc/thread-self/root"].iter().enumerate()
        {
            let exec = exec_in("main", cwd, &["/bin/attacker", "links", &decoys.secret(), decoys.mark()]);
            let out = host.path().join(format!("out{number}"));
            let stdio = Stdio { stdout: Some(File::create(&out).unwrap().into()), ..Stdio::default() };
            host.sandboxes().exec(&id, &exec, stdio).await.unwrap().wait().await.unwrap();
            Told::new(fs::read_to_string(out).unwrap()).in_vain(100);
        }
        host.close().await;
    }
    decoys.untouched();
}

/// CVE-2024-21626 in general: three descriptors, none of them a directory, for every way in.
#[tokio::test]
async fn privileged_escape_no_descriptor_of_the_runtimes_is_inherited() {
    attack!("privileged_escape_no_descriptor_of_the_runtimes_is_inherited");
    for (kind, change) in KINDS {
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("fds-{kind}"), change).await;
        for (name, tty, stdin) in [("plain", false, false), ("input", false, true), ("terminal", true, false)] {
            let mut spec = host.attacker(name, &["fds"]);
            (spec.tty, spec.stdin) = (tty, stdin);
            let told = host.attack(&id, &spec).await.1;
            let text = told.text.replace('\r', "");
            Told::new(text.clone()).in_vain(6);
            assert_eq!(Told::new(text).seen("").len(), 3, "{kind} {name}: {}", told.text);
        }
        host.begin(&id, &host.attacker("main", &["idle"])).await;
        let (_, out, _) = host.exec(&id, "main", &["attacker", "fds"]).await;
        Told::new(out).in_vain(6);
        host.close().await;
    }
}

/// CVE-2016-9962: a process on its way in is not to be traced, and what it still holds of the host not to be seen.
#[tokio::test]
async fn privileged_escape_a_process_on_its_way_in_cannot_be_looked_into() {
    attack!("privileged_escape_a_process_on_its_way_in_cannot_be_looked_into");
    let rounds = iterations().min(2000);
    for (kind, change) in KINDS {
        // With the host's own ids that capability is one over the host's processes.
        let capabilities = if kind == "own-ids" { &[None, Some("CAP_SYS_PTRACE")][..] } else { &[None] };
        for capability in capabilities {
            let host = Host::new().await;
            let id = host.sandbox_with(&format!("trace-{kind}"), change).await;
            let mut spec = host.attacker("main", &["hunt", "/tmp/stop"]);
            spec.security.capabilities.extend(capability.map(str::to_owned));
            host.begin(&id, &spec).await;
            in_time(async {
                for round in 0..rounds {
                    let mut exec = exec_spec("main", &["/bin/attacker", "fds"]);
                    exec.tty = (round % 3 == 2).then_some((80, 24));
                    host.sandboxes().exec(&id, &exec, Stdio::default()).await.unwrap().wait().await.unwrap();
                }
            })
            .await;
            let told = host.stop(&id, &spec).await;
            told.in_vain(1000);
            let met: u64 = told.seen("stubs")[0].parse().unwrap();
            assert!(met > 0, "no process was met on its way in: {}", told.text);
            host.close().await;
        }
    }
}

/// Who makes a sandbox's namespaces has the keeper's memory and is in that sandbox's user namespace, over which a process of the
/// host's root has power: it is not to be looked into for that.
#[tokio::test]
async fn privileged_escape_a_container_of_the_hosts_processes_cannot_look_into_the_keeper() {
    attack!("privileged_escape_a_container_of_the_hosts_processes_cannot_look_into_the_keeper");
    let rounds = (iterations() / 10).clamp(30, 300);
    let host = Host::new().await;
    let id = host.sandbox_with("sees-all", |spec| {
        spec.namespaces = Namespaces { user: false, host_pid: true, ..Namespaces::default() }
    });
    let id = id.await;
    let spec = host.attacker("main", &["keeper", "/tmp/stop"]);
    host.begin(&id, &spec).await;
    in_time(async {
        for round in 0..rounds {
            let prey = host.sandbox(&format!("prey-{round}")).await;
            host.sandboxes().destroy(&prey).await.unwrap();
        }
    })
    .await;
    let told = host.stop(&id, &spec).await;
    told.in_vain(100);
    let met: u64 = told.seen("keepers")[0].parse().unwrap();
    assert!(met > 1, "nobody was met who makes namespaces: {}", told.text);
    host.close().await;
}

/// The same where containers see one another's processes, for the first process of the pod and for starting containers.
#[tokio::test]
async fn privileged_escape_a_shared_process_namespace_shows_nothing_of_the_runtime() {
    attack!("privileged_escape_a_shared_process_namespace_shows_nothing_of_the_runtime");
    let rounds = (iterations() / 10).clamp(10, 200);
    for (kind, change) in KINDS {
        // With the host's own ids that capability is one over the host's processes.
        let capabilities = if kind == "own-ids" { &[None, Some("CAP_SYS_PTRACE")][..] } else { &[None] };
        for capability in capabilities {
            let host = Host::new().await;
            let shared = |spec: &mut sandbox::spec::SandboxSpec| {
                change(spec);
                spec.share_process_namespace = true;
            };
            let id = host.sandbox_with(&format!("shared-{kind}"), shared).await;
            let mut spec = host.attacker("main", &["hunt", "/tmp/stop", "shared"]);
            spec.security.capabilities.extend(capability.map(str::to_owned));
            host.begin(&id, &spec).await;
            in_time(async {
                for round in 0..rounds {
                    host.attack(&id, &host.attacker(&format!("c{round}"), &["fds"])).await;
                }
            })
            .await;
            let told = host.stop(&id, &spec).await;
            told.in_vain(1000);
            assert!(told.seen("stubs")[0] != "0", "{}", told.text);
            host.close().await;
        }
    }
}

/// With the host's own ids and CAP_SYS_PTRACE a container may look into the first process of the pod: there is nothing.
#[tokio::test]
async fn privileged_escape_the_first_process_of_a_shared_namespace_has_an_empty_root() {
    attack!("privileged_escape_the_first_process_of_a_shared_namespace_has_an_empty_root");
    let host = Host::new().await;
    let shared = |spec: &mut sandbox::spec::SandboxSpec| {
        spec.namespaces.user = false;
        spec.share_process_namespace = true;
    };
    let id = host.sandbox_with("first", shared).await;
    let script =
        "ls -a /proc/1/root/ /proc/1/cwd/; ls /proc/1/fd | wc -l; touch /proc/1/root/x 2>/dev/null && echo wrote";
    let mut spec = host.shell("main", script);
    spec.security.capabilities.push("CAP_SYS_PTRACE".into());
    host.run(&id, &spec).await;
    assert_eq!(host.log(&id, "main", 0), "/proc/1/cwd/:\n.\n..\n\n/proc/1/root/:\n.\n..\n0");
    host.close().await;
}

/// CVE-2019-14271: no library, no configuration of name services, nothing of the image is read by the runtime.
#[tokio::test]
async fn privileged_escape_the_runtime_loads_nothing_of_an_image() {
    use rustix::fs::inotify;

    attack!("privileged_escape_the_runtime_loads_nothing_of_an_image");
    let decoys = Decoys::plant();
    for (kind, change) in KINDS {
        let host = Host::new().await;
        let id = host.sandbox_with(&format!("load-{kind}"), change).await;
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        let mut mounts = Vec::new();
        for (number, directory) in ["/etc", "/lib", "/lib64", "/lib/x86_64-linux-gnu", "/usr/lib"].iter().enumerate() {
            let source = host.path().join(format!("libraries{number}"));
            fs::create_dir(&source).unwrap();
            for name in [
                "nsswitch.conf",
                "passwd",
                "group",
                "shadow",
                "resolv.conf",
                "hosts",
                "ld.so.preload",
                "ld.so.cache",
                "localtime",
                "libnss_files.so.2",
                "libnss_dns.so.2",
                "libc.so.6",
                "ld-linux-x86-64.so.2",
                "libgcc_s.so.1",
                "canary",
            ] {
                fs::write(source.join(name), "not what it should be\n").unwrap();
            }
            fs::create_dir_all(source.join("x86_64-linux-gnu")).unwrap();
            let events = inotify::WatchFlags::OPEN | inotify::WatchFlags::ACCESS;
            inotify::add_watch(&watch, &source, events).unwrap();
            mounts.push(volume(&source, "", directory));
        }
        let mut spec = host.attacker("main", &["idle"]);
        spec.mounts = mounts;
        spec.tty = true;
        host.begin(&id, &spec).await;
        host.exec(&id, "main", &["/bin/attacker", "fds"]).await;
        let mut terminal = exec_spec("main", &["/bin/attacker", "fds"]);
        terminal.tty = Some((80, 25));
        host.sandboxes().exec(&id, &terminal, Stdio::default()).await.unwrap().wait().await.unwrap();
        host.sandboxes().stats(&id).await.unwrap();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut read = inotify::Reader::new(&watch, &mut buffer);
        let mut files = Vec::new();
        let mut drain = |files: &mut Vec<String>| {
            while let Ok(event) = read.next() {
                files.extend(event.file_name().map(|name| name.to_string_lossy().into_owned()));
            }
        };
        drain(&mut files);
        assert_eq!(files, Vec::<String>::new(), "{kind}: opened on the way in");
        // It would have been noticed.
        host.exec(&id, "main", &["cat", "/usr/lib/canary"]).await;
        until("the canary is noticed", || {
            drain(&mut files);
            files.iter().any(|name| name == "canary")
        })
        .await;
        host.close().await;
    }
    decoys.untouched();
}
