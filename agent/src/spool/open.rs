//! Takes stock of the spool's directory when the agent starts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_api::usage::{GENESIS, UsageRecord};

use super::ack::AckFile;
use super::disk::{Disk, sync_directory};
use super::error::OpenError;
use super::index::{Boot, Damage, Health, Segment, Shared};
use super::reserve::Reserve;
use super::scan::{self, Position, Scan, Tail};
use super::segment::Active;
use super::writer::{OpenIntervals, Writer};
use super::{Recovered, SpoolConfig, line};

/// A boot that was read.
struct Loaded {
    boot: Boot,
    ack: AckFile,
    records: Vec<UsageRecord>,
    /// The last segment's path, end and torn bytes, when writing may go on in it.
    resumable: Option<(PathBuf, u64, u64)>,
}

pub(super) fn open(config: SpoolConfig, disk: Arc<dyn Disk>) -> Result<(Writer, Arc<Shared>, Recovered), OpenError> {
    if config.boot_id.is_empty() || config.boot_id.contains(['/', '\0']) {
        return Err(OpenError::BootId { boot_id: config.boot_id });
    }
    let (boots_dir, spare_dir) = (config.dir.join("boots"), config.dir.join("spare"));
    for dir in [&config.dir, &boots_dir, &spare_dir] {
        make_directory(dir)?;
    }
    let lock = take_lock(&config.dir)?;
    let mut health = Health { reserve_wanted: config.reserve_segments, ..Health::default() };
    let mut reserve = Reserve::open(&spare_dir, Arc::clone(&disk), config.segment_bytes, config.reserve_segments)?;

    let mut found = boot_directories(&boots_dir)?;
    let newest = found.keys().next_back().copied().unwrap_or(0);
    let current = found.iter().find(|(_, (id, _))| *id == config.boot_id).map(|(ordinal, _)| *ordinal);
    let current_dir = match current {
        Some(ordinal) => found.remove(&ordinal).map(|(_, dir)| dir).unwrap_or_default(),
        None => {
            let dir = boots_dir.join(format!("{:06}-{}", newest + 1, config.boot_id));
            make_directory(&dir)?;
            dir
        }
    };

    let (mut boots, mut acks) = (Vec::new(), Vec::new());
    for (boot_id, dir) in found.into_values() {
        let loaded = load(&config, &disk, &boot_id, &dir, &mut health)?;
        boots.push(loaded.boot);
        acks.push(loaded.ack);
    }
    sync_before_reading(&disk, &current_dir)?;
    let loaded = load(&config, &disk, &config.boot_id, &current_dir, &mut health)?;
    boots.push(loaded.boot);
    acks.push(loaded.ack);

    let active = loaded.resumable.and_then(|(path, end, torn)| resume(&config, &disk, &path, end, torn));
    let mut recovered = Recovered::default();
    let mut open = OpenIntervals::default();
    let mut last: BTreeMap<(String, u64), UsageRecord> = BTreeMap::new();
    for record in loaded.records {
        open.note(&record);
        let key = (record.sandbox_id.clone(), record.start_boottime_ns);
        if record.kind.closes() {
            last.remove(&key);
            recovered.closed.push(record);
        } else {
            last.insert(key, record);
        }
    }
    recovered.open = last.into_values().collect();
    while reserve.is_short() {
        if let Err(error) = reserve.add() {
            tracing::error!(%error, have = reserve.len(), "cannot fill the reserve of the usage spool");
            break;
        }
    }
    health.reserve_segments = reserve.len();
    let shared = Arc::new(Shared::new(config.boot_id.clone(), boots, health));
    let mut writer = Writer::new(config, disk, reserve, active, acks, open, Arc::clone(&shared), lock);
    writer.release_all();
    Ok((writer, shared, recovered))
}

fn load(
    config: &SpoolConfig,
    disk: &Arc<dyn Disk>,
    boot_id: &str,
    dir: &Path,
    health: &mut Health,
) -> Result<Loaded, OpenError> {
    let ack = AckFile::open(dir).map_err(|source| OpenError::Read { path: dir.join("acked"), source })?;
    let acked = ack.position().cloned();
    let acked_seq = acked.as_ref().map_or(0, |position| position.seq);
    let files = segment_files(dir)?;
    let mut loaded = Loaded {
        boot: Boot {
            boot_id: boot_id.to_owned(),
            dir: dir.to_owned(),
            segments: Vec::new(),
            last: Position { seq: 0, hash: GENESIS.to_owned() },
            acked: acked_seq,
        },
        ack,
        records: Vec::new(),
        resumable: None,
    };
    // The chain is followed from the first segment on; before it, everything was acknowledged.
    let mut position: Option<Position> = None;
    let mut bytes: Option<Vec<u8>> = None;
    for (at, (index, path)) in files.iter().enumerate() {
        let read = |path: &Path| disk.read(path).map_err(|source| OpenError::Read { path: path.to_owned(), source });
        let content = match bytes.take() {
            Some(content) => content,
            None => read(path)?,
        };
        let until = match files.get(at + 1) {
            Some((_, next)) => {
                let next = bytes.insert(read(next)?);
                Some(first_seq(next).unwrap_or(u64::MAX))
            }
            None => None,
        };
        if let (Some(previous), Some(last), Some(first)) =
            (loaded.boot.segments.last_mut(), &position, first_seq(&content))
            && first > last.seq + 1
        {
            // A whole segment is missing; what follows is kept.
            previous.damaged = true;
            note_damage(health, boot_id, &previous.path, last.seq, Some(first));
            position = None;
        }
        let Scan { header, records, end, tail } = scan::scan(&content, position.as_ref(), until);
        if let Some(header) = &header
            && header.host != config.host
        {
            return Err(OpenError::OtherHost {
                path: path.clone(),
                found: header.host.clone(),
                expected: config.host.clone(),
            });
        }
        let before = match (&position, &header) {
            (Some(position), _) => position.clone(),
            (None, Some(header)) => {
                Position { seq: header.first_seq.saturating_sub(1), hash: header.prev_hash.clone() }
            }
            (None, None) => acked.clone().unwrap_or(loaded.boot.last.clone()),
        };
        let mut last = records.last().map_or(before.clone(), at_record);
        let mut segment = Segment {
            index: *index,
            path: path.clone(),
            first_seq: before.seq + 1,
            last_seq: last.seq,
            end,
            damaged: false,
        };
        if at == 0 && before.seq > acked_seq {
            note_damage(health, boot_id, path, acked_seq, Some(before.seq + 1));
        }
        loaded.records.extend(records);
        match tail {
            Tail::Clean if until.is_none() => loaded.resumable = Some((path.clone(), end, end)),
            Tail::Clean => {}
            Tail::Torn { bytes } => {
                health.torn_tails += 1;
                tracing::warn!(path = %path.display(), bytes = bytes - end, "torn usage record cut off");
                loaded.resumable = Some((path.clone(), end, bytes));
            }
            Tail::Damaged { rest } => {
                segment.damaged = true;
                note_damage(health, boot_id, path, last.seq, rest.first().map(|record| record.seq));
                last = rest
                    .iter()
                    .max_by_key(|record| record.seq)
                    .filter(|record| record.seq > last.seq)
                    .map_or(last, at_record);
                loaded.records.extend(rest);
            }
        }
        // Behind damage, the next segment's header says where it goes on.
        position = if segment.damaged { None } else { Some(last.clone()) };
        loaded.boot.last = last;
        loaded.boot.segments.push(segment);
    }
    if acked_seq > loaded.boot.last.seq {
        // Acknowledged records are gone from here: never give their numbers to others.
        if let Some(acked) = acked {
            if let Some((_, path)) = files.last() {
                note_damage(health, boot_id, path, loaded.boot.last.seq, Some(acked_seq + 1));
            }
            loaded.boot.last = acked;
            loaded.resumable = None;
        }
    }
    Ok(loaded)
}

fn at_record(record: &UsageRecord) -> Position {
    Position { seq: record.seq, hash: record.hash.clone() }
}

fn note_damage(health: &mut Health, boot_id: &str, path: &Path, after_seq: u64, resumes_at: Option<u64>) {
    tracing::error!(path = %path.display(), boot = boot_id, after_seq, ?resumes_at, "usage records are damaged; they are kept, but billing stops before them");
    health.damage.push(Damage { boot_id: boot_id.to_owned(), path: path.to_owned(), after_seq, resumes_at });
}

/// Where a segment begins, by its header or else by its first good record.
fn first_seq(bytes: &[u8]) -> Option<u64> {
    let mut lines = scan::Lines { bytes, at: 0 };
    let (_, first) = lines.next()?;
    line::decode_header(first)
        .map(|header| header.first_seq)
        .or_else(|| lines.find_map(|(_, line)| line::decode_record(line)).map(|line| line.record.seq))
}

/// What a killed agent had written but not synced goes to the disk, or is dropped, before anything is read back.
fn sync_before_reading(disk: &Arc<dyn Disk>, dir: &Path) -> Result<(), OpenError> {
    let Some((_, path)) = segment_files(dir)?.pop() else {
        return Ok(());
    };
    let file = disk.open(&path).map_err(|source| OpenError::Read { path: path.clone(), source })?;
    if let Err(error) = file.sync() {
        tracing::error!(%error, path = %path.display(), "cannot sync the last usage segment; only what the disk has counts");
    }
    Ok(())
}

fn resume(config: &SpoolConfig, disk: &Arc<dyn Disk>, path: &Path, end: u64, torn: u64) -> Option<Active> {
    let resumed = disk.open(path).and_then(|file| Active::resume(path, file, end, torn, config.segment_bytes));
    resumed.inspect_err(|error| tracing::error!(%error, path = %path.display(), "cannot go on in the last usage segment; a new one will be started")).ok()
}

fn take_lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| OpenError::Write { path: path.clone(), source })?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse { path: dir.to_owned() }),
        Err(source) => Err(OpenError::Write { path, source: source.into() }),
    }
}

fn make_directory(path: &Path) -> Result<(), OpenError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.and_then(|()| path.parent().filter(|parent| parent.exists()).map_or(Ok(()), sync_directory))
        .map_err(|source| OpenError::MakeDirectory { path: path.to_owned(), source })
}

/// `boots/*` by ordinal: boot id and path.
fn boot_directories(dir: &Path) -> Result<BTreeMap<u64, (String, PathBuf)>, OpenError> {
    let named = |name: &str| {
        let (ordinal, boot_id) = name.split_once('-')?;
        Some((ordinal.parse::<u64>().ok()?, boot_id.to_owned()))
    };
    let entries = list(dir)?;
    let found = entries.into_iter().filter_map(|path| {
        let (ordinal, boot_id) = named(path.file_name()?.to_str()?)?;
        Some((ordinal, (boot_id, path)))
    });
    Ok(found.collect())
}

fn segment_files(dir: &Path) -> Result<Vec<(u64, PathBuf)>, OpenError> {
    let numbered = |path: PathBuf| {
        path.extension().filter(|extension| *extension == "seg")?;
        Some((path.file_stem()?.to_str()?.parse::<u64>().ok()?, path))
    };
    let mut files: Vec<_> = list(dir)?.into_iter().filter_map(numbered).collect();
    files.sort();
    Ok(files)
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let entries = std::fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>());
    entries.map_err(|source| OpenError::Read { path: dir.to_owned(), source })
}
