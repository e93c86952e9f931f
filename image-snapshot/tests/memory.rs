//! What a conversion may hold in memory, whatever the layer. A test program of its own: the peak of a process is what is looked at.
#![allow(clippy::unwrap_used)] // A test program throughout.

use std::io::Read;

use image_snapshot::{Limits, convert::convert};

/// With the directories that the archive does not name, one for 40 of them, hardly less than the limit of a million.
const ENTRIES: u32 = 965_000;

/// An archive that is made while it is read: directories of 40 files each, with names as packages have them, and some links.
struct Archive {
    next: u32,
    block: Vec<u8>,
    at: usize,
}

impl Archive {
    fn entry(i: u32) -> Vec<u8> {
        let dir = format!("usr/lib/node_modules/package-{:05}/dist", i / 40);
        let mut header = tar::Header::new_ustar();
        let (path, kind, content) = match i % 40 {
            0 => (format!("{dir}/"), b'5', 0),
            1 => (format!("{dir}/link-{i}.js"), b'2', 0),
            2 => (format!("{dir}/hard-{i}.js"), b'1', 0),
            _ => (format!("{dir}/module-{i}.min.js"), b'0', 100),
        };
        header.set_path(path).unwrap();
        header.set_entry_type(tar::EntryType::new(kind));
        match kind {
            b'2' => header.set_link_name("../../index.js").unwrap(),
            b'1' => header.set_link_name(format!("{dir}/link-{}.js", i - 1)).unwrap(),
            _ => {}
        }
        header.set_mode(0o644);
        header.set_mtime(u64::from(1_700_000_000 + i));
        header.set_size(content);
        header.set_cksum();
        let mut out = header.as_bytes().to_vec();
        out.resize(512 + (content as usize).next_multiple_of(512), i as u8);
        out[512 + content as usize..].fill(0);
        out
    }
}

impl Read for Archive {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.block.len() && self.next < ENTRIES {
            self.block = Self::entry(self.next);
            (self.at, self.next) = (0, self.next + 1);
        }
        let n = buf.len().min(self.block.len() - self.at);
        buf[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// The most that this process ever held, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_layer_of_nearly_a_million_entries_is_converted_in_64_mib() {
    let out = tempfile::tempfile().unwrap();
    let archive = Archive { next: 0, block: Vec::new(), at: 0 };
    let converted = convert(archive, &[], out, &Limits::default()).unwrap();
    assert_eq!(converted.entries, u64::from(ENTRIES));
    let peak = peak();
    assert!(peak < 64 << 10, "{peak} KiB");
    println!("peak {peak} KiB");
}
