//! The durable record of who holds which address.
//!
//! `addresses.journal`: one line a record, `CRC32 JSON`. The first line is a whole [`Pool`] with the boot id; each further one
//! holds or frees one address. Rewritten whole (temp, fsync, rename) at each opening and after [`COMPACT_AFTER`] lines.
//!
//! Lines are not fsynced: they must outlive the agent, not the machine. After a crash of the machine the boot id is another
//! one, no sandbox lives, and every address is free. A torn last line is cut off; damage before it is refused.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_api::identity::private_file::{self, PrivateFileError};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::addresses::{AddressError, Pool};

const COMPACT_AFTER: u32 = 10_000;
const NAME: &str = "addresses.journal";
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The journal could not be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Making, reading or replacing a file failed.
    #[error("keep the address journal")]
    File(#[source] PrivateFileError),
    /// Appending failed.
    #[error("write {}", path.display())]
    Append {
        /// The journal.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The boot id could not be read.
    #[error("read the boot id")]
    BootId(#[source] io::Error),
    /// Another agent works with this state.
    #[error("{} is in use by another agent", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The content is not what we wrote.
    #[error("{} is damaged at line {line}: {problem}", path.display())]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// Sandboxes hold addresses of another subnet.
    #[error("{held} sandboxes hold addresses of {old}: end them before changing the subnet to {new}")]
    SubnetChanged {
        /// The subnet in the journal.
        old: Ipv4Net,
        /// The one asked for.
        new: Ipv4Net,
        /// How many sandboxes.
        held: usize,
    },
    /// No address could be given.
    #[error("choose an address")]
    Address(#[source] AddressError),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Begin { boot_id: String, pool: Pool },
    Hold { sandbox: String, ip: Ipv4Addr },
    Free { sandbox: String },
}

/// The pool and its file.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    boot_id: String,
    pool: Pool,
    file: File,
    /// Bytes of whole records.
    length: u64,
    lines: u32,
    _lock: File,
}

impl Journal {
    pub(super) fn open(dir: &Path, cidr: Ipv4Net) -> Result<Journal, JournalError> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(JournalError::BootId)?;
        Journal::open_in_boot(dir, cidr, boot_id.trim())
    }

    fn open_in_boot(dir: &Path, cidr: Ipv4Net, boot_id: &str) -> Result<Journal, JournalError> {
        private_file::ensure_dir(dir).map_err(JournalError::File)?;
        let lock = try_lock(dir)?;
        let path = dir.join(NAME);
        let fresh = Pool::new(cidr).map_err(JournalError::Address)?;
        let pool = match private_file::read(&path).map_err(JournalError::File)? {
            None => fresh,
            Some(bytes) => {
                let (written_in, mut pool) = replay(&path, &bytes)?;
                if written_in != boot_id {
                    pool.free_all();
                }
                let held = pool.held().count();
                match (pool.cidr() == fresh.cidr(), held) {
                    (true, _) => pool,
                    (false, 0) => fresh,
                    (false, held) => {
                        return Err(JournalError::SubnetChanged { old: pool.cidr(), new: fresh.cidr(), held });
                    }
                }
            }
        };
        let (file, length) = rewrite(&path, boot_id, &pool)?;
        Ok(Journal { path, boot_id: boot_id.to_owned(), pool, file, length, lines: 0, _lock: lock })
    }

    /// The sandbox's address; true when it is a new one.
    pub(super) fn hold(&mut self, sandbox: &str) -> Result<(Ipv4Addr, bool), JournalError> {
        if let Some(ip) = self.pool.of(sandbox) {
            return Ok((ip, false));
        }
        let ip = self.pool.peek().map_err(JournalError::Address)?;
        self.append(&Record::Hold { sandbox: sandbox.to_owned(), ip })?;
        self.pool.hold(sandbox, ip).map_err(JournalError::Address)?;
        self.compact_when_due();
        Ok((ip, true))
    }

    /// Frees the sandbox's address, if it holds one.
    pub(super) fn free(&mut self, sandbox: &str) -> Result<(), JournalError> {
        if self.pool.of(sandbox).is_some() {
            self.append(&Record::Free { sandbox: sandbox.to_owned() })?;
            self.pool.free(sandbox);
            self.compact_when_due();
        }
        Ok(())
    }

    pub(super) fn held(&self, sandbox: &str) -> Option<Ipv4Addr> {
        self.pool.of(sandbox)
    }

    /// The address that the next new holder gets, if there is one left.
    pub(super) fn next(&self) -> Option<Ipv4Addr> {
        self.pool.peek().ok()
    }

    pub(super) fn all(&self) -> Vec<(String, Ipv4Addr)> {
        self.pool.held().map(|(id, ip)| (id.clone(), *ip)).collect()
    }

    fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        let line = encode(record);
        let append = |file: &mut File, length| {
            // A write that failed half-way leaves bytes beyond `length`; they are overwritten or cut off here.
            file.set_len(length)?;
            file.seek(SeekFrom::Start(length))?;
            file.write_all(&line)
        };
        append(&mut self.file, self.length)
            .map_err(|source| JournalError::Append { path: self.path.clone(), source })?;
        self.length += line.len() as u64;
        self.lines += 1;
        Ok(())
    }

    fn compact_when_due(&mut self) {
        if self.lines < COMPACT_AFTER {
            return;
        }
        match rewrite(&self.path, &self.boot_id, &self.pool) {
            Ok((file, length)) => (self.file, self.length, self.lines) = (file, length, 0),
            // The long journal is as good as a short one.
            Err(error) => {
                self.lines = 0;
                tracing::warn!(error = &error as &dyn std::error::Error, "could not shorten the address journal");
            }
        }
    }
}

fn try_lock(dir: &Path) -> Result<File, JournalError> {
    let path = dir.join("LOCK");
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = open.map_err(|source| JournalError::Append { path: path.clone(), source })?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            // A child that an agent before us has forked and not yet execed holds it for a moment longer.
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_PAUSE),
            Err(fs::TryLockError::WouldBlock) => return Err(JournalError::InUse { path: dir.to_owned() }),
            Err(fs::TryLockError::Error(source)) => return Err(JournalError::Append { path, source }),
        }
    }
}

fn rewrite(path: &Path, boot_id: &str, pool: &Pool) -> Result<(File, u64), JournalError> {
    let line = encode(&Record::Begin { boot_id: boot_id.to_owned(), pool: pool.clone() });
    private_file::write(path, &line).map_err(JournalError::File)?;
    let file = OpenOptions::new().write(true).open(path);
    let file = file.map_err(|source| JournalError::Append { path: path.to_owned(), source })?;
    Ok((file, line.len() as u64))
}

fn encode(record: &Record) -> Vec<u8> {
    let json = serde_json::to_string(record).expect("a record of strings and numbers serialises");
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes())).into_bytes()
}

fn decode(line: &str) -> Result<Record, String> {
    let (crc, json) = line.split_once(' ').ok_or("no checksum")?;
    if u32::from_str_radix(crc, 16) != Ok(crc32fast::hash(json.as_bytes())) {
        return Err("wrong checksum".to_owned());
    }
    serde_json::from_str(json).map_err(|error| error.to_string())
}

fn replay(path: &Path, bytes: &[u8]) -> Result<(String, Pool), JournalError> {
    let text = String::from_utf8_lossy(bytes);
    let damaged = |line: usize, problem: String| JournalError::Damaged { path: path.to_owned(), line, problem };
    let mut state: Option<(String, Pool)> = None;
    let mut lines = text.split_inclusive('\n').enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let (number, last) = (index + 1, lines.peek().is_none());
        let record = match (line.strip_suffix('\n').ok_or_else(|| "torn".to_owned()).and_then(decode), &state) {
            (Ok(record), _) => record,
            // The agent was killed while it wrote: nobody has acted on this line.
            (Err(_), Some(_)) if last => break,
            (Err(problem), _) => return Err(damaged(number, problem)),
        };
        match (record, &mut state) {
            (Record::Begin { boot_id, pool }, None) => state = Some((boot_id, pool)),
            (Record::Hold { sandbox, ip }, Some((_, pool))) => {
                pool.hold(&sandbox, ip).map_err(|error| damaged(number, error.to_string()))?;
            }
            (Record::Free { sandbox }, Some((_, pool))) => {
                pool.free(&sandbox).ok_or_else(|| damaged(number, format!("sandbox {sandbox} holds nothing")))?;
            }
            _ => return Err(damaged(number, "out of order".to_owned())),
        }
    }
    state.ok_or_else(|| damaged(1, "empty".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn net() -> Ipv4Net {
        "10.0.0.0/24".parse().expect("cidr")
    }

    fn open(dir: &Path) -> Journal {
        Journal::open_in_boot(dir, net(), "boot-1").expect("journal")
    }

    #[test]
    fn a_reboot_frees_all_and_keeps_the_order_of_reuse() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (first, _) = open(dir.path()).hold("a").expect("hold");
        let mut journal = Journal::open_in_boot(dir.path(), net(), "boot-2").expect("journal");
        assert!(journal.all().is_empty());
        assert_ne!(journal.hold("b").expect("hold").0, first);
    }

    #[test]
    fn the_subnet_changes_only_when_nobody_holds_an_address() {
        let dir = tempfile::tempdir().expect("tempdir");
        let other: Ipv4Net = "10.1.0.0/24".parse().expect("cidr");
        open(dir.path()).hold("a").expect("hold");
        let refused = Journal::open_in_boot(dir.path(), other, "boot-1").expect_err("held");
        assert!(matches!(refused, JournalError::SubnetChanged { held: 1, .. }), "{refused}");
        open(dir.path()).free("a").expect("free");
        Journal::open_in_boot(dir.path(), other, "boot-1").expect("nobody holds any");
    }

    #[test]
    fn one_agent_at_a_time() {
        let dir = tempfile::tempdir().expect("tempdir");
        let _first = open(dir.path());
        assert!(matches!(Journal::open_in_boot(dir.path(), net(), "boot-1"), Err(JournalError::InUse { .. })));
    }

    #[test]
    fn damage_before_the_last_line_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut journal = open(dir.path());
        journal.hold("a").expect("hold");
        journal.hold("b").expect("hold");
        drop(journal);
        let path = dir.path().join(NAME);
        let text = fs::read_to_string(&path).expect("read");
        fs::write(&path, text.replacen("\"a\"", "\"x\"", 1)).expect("write");
        let refused = Journal::open_in_boot(dir.path(), net(), "boot-1").expect_err("damaged");
        assert!(matches!(refused, JournalError::Damaged { line: 2, .. }), "{refused}");
    }

    #[test]
    fn a_long_journal_is_shortened_and_says_the_same() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut journal = open(dir.path());
        journal.hold("stays").expect("hold");
        let mut longest = 0;
        for _ in 0..COMPACT_AFTER {
            journal.hold("comes").expect("hold");
            journal.free("comes").expect("free");
            longest = longest.max(journal.length);
        }
        assert!(journal.length < longest, "{} of {longest}", journal.length);
        let before = (journal.all(), journal.next());
        drop(journal);
        let journal = open(dir.path());
        assert_eq!((journal.all(), journal.next()), before);
    }

    proptest! {
        /// The agent may be killed with any number of bytes of its last record written.
        #[test]
        fn after_a_kill_at_any_byte_the_journal_is_that_before_or_after_the_last_record(
            steps in proptest::collection::vec((0..6_u8, any::<bool>()), 1..30),
            cut in any::<prop::sample::Index>(),
        ) {
            let dir = tempfile::tempdir().expect("tempdir");
            let mut journal = open(dir.path());
            let held = |journal: &Journal| journal.all().into_iter().collect::<BTreeMap<_, _>>();
            let (mut before, mut length) = (held(&journal), journal.length);
            for (id, hold) in steps {
                let last = (held(&journal), journal.length);
                if hold { journal.hold(&id.to_string()).expect("hold"); } else { journal.free(&id.to_string()).expect("free"); }
                if journal.length != last.1 { (before, length) = last; }
            }
            let (after, end) = (held(&journal), journal.length);
            drop(journal);
            let kept = length + cut.index((end - length + 1) as usize) as u64;
            OpenOptions::new().write(true).open(dir.path().join(NAME)).expect("open").set_len(kept).expect("cut");
            let recovered = held(&open(dir.path()));
            prop_assert_eq!(recovered, if kept == end { after } else { before });
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = replay(Path::new("x"), &bytes);
        }
    }
}
