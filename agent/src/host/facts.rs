//! What the host is, read from /proc and /etc.

use std::path::Path;

use procfs::Current as _;

use super::huge_pages::{self, HugePagesError, Pool};

/// Facts that do not change while the agent runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Logical processors.
    pub cpus: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// Huge pages, which are part of it.
    pub huge_pages: Vec<Pool>,
    /// Go's name of the processor architecture.
    pub architecture: String,
    /// `uname -r`.
    pub kernel_version: String,
    /// `PRETTY_NAME` of os-release.
    pub os_image: String,
    /// Host name.
    pub hostname: String,
    /// /etc/machine-id, or empty.
    pub machine_id: String,
    /// DMI product uuid, or the machine id.
    pub system_uuid: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// `v2`, `v1-hybrid` or `v1`.
    pub cgroup_layout: String,
    /// Addresses, preferred first.
    pub addresses: Vec<String>,
}

/// Why the facts cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// /proc is not what it should be.
    #[error("could not read {what}")]
    Proc {
        /// What was read.
        what: &'static str,
        /// Why.
        #[source]
        source: procfs::ProcError,
    },
    /// Nobody could say how many huge pages there are.
    #[error("could not count huge pages")]
    HugePages(#[source] HugePagesError),
}

impl Facts {
    /// Reads them.
    pub fn read() -> Result<Self, FactsError> {
        let proc = |what| move |source| FactsError::Proc { what, source };
        let memory = procfs::Meminfo::current().map_err(proc("/proc/meminfo"))?.mem_total;
        let boot_id = procfs::sys::kernel::random::boot_id().map_err(proc("boot_id"))?;
        let text = |path: &str| std::fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default();
        let uname = rustix::system::uname();
        let machine_id = text("/etc/machine-id");
        let uuid = text("/sys/class/dmi/id/product_uuid");
        Ok(Self {
            cpus: std::thread::available_parallelism().map(|n| n.get() as u64).unwrap_or(1),
            memory,
            huge_pages: huge_pages::read(Path::new(huge_pages::ROOT)).map_err(FactsError::HugePages)?,
            architecture: go_architecture(std::env::consts::ARCH).to_owned(),
            kernel_version: uname.release().to_string_lossy().into_owned(),
            os_image: os_image(&text("/etc/os-release")),
            hostname: uname.nodename().to_string_lossy().into_owned(),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id,
            cgroup_layout: cgroup_layout(Path::new("/sys/fs/cgroup")).to_owned(),
            addresses: addresses(),
        })
    }
}

/// Memory in bytes: MemAvailable and MemTotal, for the pressure condition.
pub fn available_memory() -> Option<(u64, u64)> {
    let info = procfs::Meminfo::current().ok()?;
    Some((info.mem_available?, info.mem_total))
}

/// Bytes free and in all on the filesystem of a path, as `df` counts them: what is reserved for others is neither.
pub fn disk(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let taken = stat.f_blocks.saturating_sub(stat.f_bfree);
    Some((stat.f_bavail * stat.f_frsize, (taken + stat.f_bavail) * stat.f_frsize))
}

fn go_architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

fn os_image(os_release: &str) -> String {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|value| value.trim_matches('"').to_owned())
        .unwrap_or_else(|| "Linux".to_owned())
}

fn cgroup_layout(root: &Path) -> &'static str {
    if root.join("cgroup.controllers").exists() {
        "v2"
    } else if root.join("unified").exists() {
        "v1-hybrid"
    } else {
        "v1"
    }
}

/// The address that routes to the outside would use, without sending anything; loopback when there is none.
fn addresses() -> Vec<String> {
    let towards = |local: &str, remote: &str| {
        let socket = std::net::UdpSocket::bind(local).ok()?;
        socket.connect(remote).ok()?;
        let ip = socket.local_addr().ok()?.ip();
        (!ip.is_unspecified()).then(|| ip.to_string())
    };
    let found: Vec<String> =
        [towards("0.0.0.0:0", "192.0.2.1:9"), towards("[::]:0", "[2001:db8::1]:9")].into_iter().flatten().collect();
    if found.is_empty() { vec!["127.0.0.1".to_owned()] } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_tells_its_facts() {
        let facts = Facts::read().unwrap();
        assert!(facts.cpus > 0 && facts.memory > 1 << 20);
        assert_eq!(facts.boot_id.len(), 36);
        assert!(!facts.addresses.is_empty() && !facts.kernel_version.is_empty());
    }

    #[test]
    fn os_release_gives_its_pretty_name() {
        assert_eq!(
            os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(os_image(""), "Linux");
    }

    #[test]
    fn layouts_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(cgroup_layout(dir.path()), "v1");
        std::fs::create_dir(dir.path().join("unified")).unwrap();
        assert_eq!(cgroup_layout(dir.path()), "v1-hybrid");
        std::fs::write(dir.path().join("cgroup.controllers"), "").unwrap();
        assert_eq!(cgroup_layout(dir.path()), "v2");
    }
}
