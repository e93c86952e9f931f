//! The acknowledged position of one boot, durable in place: two slots written in turn, so that a full disk does not stop it
//! and a torn write leaves the other.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::disk::sync_directory;
use super::scan::Position;

const SLOT: usize = 512;

/// `boots/<boot>/acked`.
#[derive(Debug)]
pub(super) struct AckFile {
    path: PathBuf,
    /// Absent after a failed write: the next one makes the file anew.
    file: Option<File>,
    turn: u64,
    position: Option<Position>,
}

impl AckFile {
    /// Opens the file, or makes it.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join("acked");
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => {
                let mut bytes = vec![0; 2 * SLOT];
                let mut filled = 0;
                while filled < bytes.len() {
                    match file.read_at(&mut bytes[filled..], filled as u64)? {
                        0 => break,
                        n => filled += n,
                    }
                }
                let newest = bytes.chunks(SLOT).filter_map(parse).max_by_key(|(turn, _)| *turn);
                let (turn, position) = newest.map_or((0, None), |(turn, position)| (turn, Some(position)));
                Ok(Self { path, file: Some(file), turn, position })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut made = Self { path, file: None, turn: 0, position: None };
                made.remake()?;
                Ok(made)
            }
            Err(error) => Err(error),
        }
    }

    /// What is acknowledged.
    pub(super) fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// Makes `position` durable.
    pub(super) fn write(&mut self, position: Position) -> io::Result<()> {
        if self.file.is_none() {
            self.remake()?;
        }
        let turn = self.turn + 1;
        if let Some(file) = &self.file {
            let written =
                file.write_all_at(&slot(turn, &position), (turn % 2) * SLOT as u64).and_then(|()| file.sync_data());
            if let Err(error) = written {
                self.file = None;
                return Err(error);
            }
        }
        self.turn = turn;
        self.position = Some(position);
        Ok(())
    }

    fn remake(&mut self) -> io::Result<()> {
        let temporary = self.path.with_extension("tmp");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let mut bytes = vec![0; 2 * SLOT];
        if let Some(position) = &self.position {
            let at = usize::try_from(self.turn % 2).unwrap_or_default() * SLOT;
            bytes[at..at + SLOT].copy_from_slice(&slot(self.turn, position));
        }
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &self.path)?;
        sync_directory(self.path.parent().unwrap_or(Path::new(".")))?;
        self.file = Some(file);
        Ok(())
    }
}

fn slot(turn: u64, position: &Position) -> Vec<u8> {
    let text = format!("{turn} {} {}", position.seq, position.hash);
    let mut bytes = format!("{:08x} {text}\n", crc32fast::hash(text.as_bytes())).into_bytes();
    bytes.resize(SLOT, 0);
    bytes
}

fn parse(slot: &[u8]) -> Option<(u64, Position)> {
    let text = std::str::from_utf8(slot.split(|&byte| byte == b'\n').next()?).ok()?;
    let (sum, text) = text.split_once(' ')?;
    if u32::from_str_radix(sum, 16).ok()? != crc32fast::hash(text.as_bytes()) {
        return None;
    }
    let mut words = text.split(' ');
    let turn = words.next()?.parse().ok()?;
    let seq = words.next()?.parse().ok()?;
    let hash = words.next()?.to_owned();
    Some((turn, Position { seq, hash }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seq: u64) -> Position {
        Position { seq, hash: format!("{seq:064x}") }
    }

    #[test]
    fn the_last_written_position_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(AckFile::open(dir.path()).unwrap().position(), None);
        for seq in 1..5 {
            AckFile::open(dir.path()).unwrap().write(at(seq)).unwrap();
            assert_eq!(AckFile::open(dir.path()).unwrap().position(), Some(&at(seq)));
        }
    }

    #[test]
    fn a_torn_write_leaves_the_position_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = AckFile::open(dir.path()).unwrap();
        file.write(at(1)).unwrap();
        file.write(at(2)).unwrap();
        let path = dir.path().join("acked");
        let good = std::fs::read(&path).unwrap();
        for byte in 0..80 {
            let mut torn = good.clone();
            torn[byte] ^= 0xff;
            std::fs::write(&path, &torn).unwrap();
            let found = AckFile::open(dir.path()).unwrap();
            // Turn 2 sits in slot 0.
            let expected = if torn[..SLOT].split(|b| *b == b'\n').next() == good[..SLOT].split(|b| *b == b'\n').next() {
                2
            } else {
                1
            };
            assert_eq!(found.position(), Some(&at(expected)), "byte {byte}");
        }
    }
}
