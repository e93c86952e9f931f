//! Reads the machine for a [`Census`]. A source that this kernel or machine lacks counts nothing; one that is there and
//! cannot be read is an error, because a census that looks away finds nothing.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Census, Kind};

/// Programs of ours: a process with one of these names counts wherever it hangs.
const OUR_PROGRAMS: [&str; 6] = ["nodeless", "vkubelet", "testcluster", "docker-registry", "kube-apiserver", "etcd"];

/// Where our files could be left: every entry whose path has `nodeless` in it, three levels deep.
const OUR_PLACES: [&str; 6] = ["/run", "/tmp", "/var/lib", "/var/log", "/var/tmp", "/dev/shm"];

/// Counts what the machine holds now.
pub fn take() -> Result<Census> {
    let mut census = Census::default();
    processes(&mut census)?;
    mounts(&mut census)?;
    links(&mut census)?;
    tables(&mut census)?;
    sockets(&mut census)?;
    loops(&mut census)?;
    for place in OUR_PLACES {
        files(&mut census, Path::new(place), 3)?;
    }
    for setting in ["net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"] {
        if let Some(value) = read(&Path::new("/proc/sys").join(setting))? {
            census.add(Kind::Setting, format!("{setting} = {}", value.trim()));
        }
    }
    Ok(census)
}

struct Process {
    parent: u32,
    state: char,
    name: String,
    command: String,
    namespaces: Vec<PathBuf>,
    cgroups: String,
}

fn processes(census: &mut Census) -> Result<()> {
    let mut all = HashMap::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let entry = entry.context("cannot list /proc")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if let Some(process) = process(&entry.path())? {
            all.insert(pid, process);
        }
    }
    let here = std::process::id();
    let own = all.get(&here).context("cannot find the census among the processes")?;
    let (namespaces, cgroups) = (own.namespaces.clone(), own.cgroups.clone());
    let mut ancestors = HashSet::new();
    let mut pid = here;
    while pid != 0 && ancestors.insert(pid) {
        pid = all.get(&pid).map_or(0, |process| process.parent);
    }
    let mut networks: HashSet<&PathBuf> = HashSet::new();
    for (pid, process) in &all {
        if ancestors.contains(pid) || process.parent == here || process.state == 'Z' {
            continue;
        }
        let ours = OUR_PROGRAMS.iter().any(|ours| process.name.starts_with(ours));
        let confined = !process.namespaces.is_empty() && process.namespaces != namespaces;
        let grouped = !process.cgroups.is_empty() && process.cgroups != cgroups && process.cgroups.contains("nodeless");
        if ours || confined || grouped || process.parent == 1 {
            census.add(Kind::Process, format!("{} ({}) {}", process.name, pid, process.command));
        }
        networks.extend(process.namespaces.first().filter(|network| Some(*network) != namespaces.first()));
    }
    for network in networks {
        census.add(Kind::NetworkNamespace, format!("{} held by a process", network.display()));
    }
    for name in names(Path::new("/run/netns"))? {
        census.add(Kind::NetworkNamespace, format!("/run/netns/{name}"));
    }
    Ok(())
}

/// The process whose directory is `dir`; None when it ended while being read, or is a thread of the kernel.
fn process(dir: &Path) -> Result<Option<Process>> {
    let (Some(stat), Some(command)) = (read(&dir.join("stat"))?, read(&dir.join("cmdline"))?) else {
        return Ok(None);
    };
    let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else {
        bail!("cannot parse {}/stat: {stat:?}", dir.display())
    };
    let mut fields = stat[close + 1..].split_ascii_whitespace();
    let state = fields.next().and_then(|field| field.chars().next()).unwrap_or('?');
    let parent = fields.next().and_then(|field| field.parse().ok()).unwrap_or(0);
    if parent == 2 || dir.ends_with("2") && command.is_empty() {
        return Ok(None);
    }
    let namespaces = ["net", "mnt", "pid", "user"]
        .iter()
        .filter_map(|namespace| fs::read_link(dir.join("ns").join(namespace)).ok())
        .collect();
    let cgroups = read(&dir.join("cgroup"))?.unwrap_or_default();
    let command: String = command.replace('\0', " ").trim().chars().take(160).collect();
    Ok(Some(Process { parent, state, name: stat[open + 1..close].to_owned(), command, namespaces, cgroups }))
}

fn mounts(census: &mut Census) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mount table")?;
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let Some(dash) = fields.iter().position(|field| *field == "-") else {
            bail!("cannot parse the mount table: {line:?}")
        };
        let (Some(point), Some(kind)) = (fields.get(4), fields.get(dash + 1)) else {
            bail!("cannot parse the mount table: {line:?}")
        };
        // `ip netns add` makes this mount once, for every namespace that is named afterwards.
        if *point == "/run/netns" {
            continue;
        }
        census.add(Kind::Mount, format!("{point} ({kind} of {})", fields.get(dash + 2).unwrap_or(&"?")));
        if matches!(*kind, "cgroup" | "cgroup2") {
            cgroups(census, Path::new(point))?;
        }
    }
    Ok(())
}

fn cgroups(census: &mut Census, dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {}", dir.display())),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            census.add(Kind::Cgroup, entry.path().display().to_string());
            cgroups(census, &entry.path())?;
        }
    }
    Ok(())
}

fn links(census: &mut Census) -> Result<()> {
    for name in names(Path::new("/sys/class/net"))? {
        census.add(Kind::Link, name);
    }
    // Lines of the form `32 host LOCAL` follow a line `|-- ADDRESS`.
    let tree = read(Path::new("/proc/net/fib_trie"))?.unwrap_or_default();
    let mut address = "";
    for line in tree.lines().map(str::trim) {
        if let Some(found) = line.strip_prefix("|-- ") {
            address = found;
        } else if line == "/32 host LOCAL" {
            census.add(Kind::Address, address);
        }
    }
    for line in read(Path::new("/proc/net/if_inet6"))?.unwrap_or_default().lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        if let [address, .., link] = fields[..] {
            census.add(Kind::Address, format!("{address} on {link}"));
        }
    }
    for line in read(Path::new("/proc/net/route"))?.unwrap_or_default().lines().skip(1) {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        if let [link, to, via, ..] = fields[..] {
            census.add(Kind::Route, format!("{to} via {via} on {link}"));
        }
    }
    Ok(())
}

fn tables(census: &mut Census) -> Result<()> {
    let output = match Command::new("nft").args(["list", "tables"]).output() {
        Ok(output) => output,
        // Without the program, nothing of ours can have made a table.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context("cannot run nft"),
    };
    if output.status.success() {
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            census.add(Kind::Table, line);
        }
    }
    Ok(())
}

fn sockets(census: &mut Census) -> Result<()> {
    let table = read(Path::new("/proc/net/unix"))?.unwrap_or_default();
    let names: HashSet<&str> = table.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().nth(7)).collect();
    for name in names {
        census.add(Kind::Socket, name);
    }
    Ok(())
}

fn loops(census: &mut Census) -> Result<()> {
    for name in names(Path::new("/sys/block"))?.into_iter().filter(|name| name.starts_with("loop")) {
        if let Some(file) = read(&Path::new("/sys/block").join(&name).join("loop/backing_file"))? {
            census.add(Kind::Loop, format!("{name} on {}", file.trim()));
        }
    }
    Ok(())
}

fn files(census: &mut Census, dir: &Path, depth: u8) -> Result<()> {
    for name in names(dir)? {
        let path = dir.join(name);
        let ours = path.to_string_lossy().contains("nodeless");
        if ours {
            census.add(Kind::File, path.display().to_string());
        }
        // Only below our own directories: the rest is not ours to read.
        if ours && depth > 1 && path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            files(census, &path, depth - 1)?;
        }
    }
    Ok(())
}

/// The names in a directory; none when there is no such directory.
fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {}", dir.display())),
    };
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// A file's text; None when there is none, or its process ended while it was read.
fn read(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(3) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}
