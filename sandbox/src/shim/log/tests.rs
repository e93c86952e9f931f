//! Whole writers and readers on a temporary directory.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use proptest::prelude::*;

use super::*;

fn dir_fd(path: &Path) -> OwnedFd {
    std::fs::File::open(path).unwrap().into()
}

fn writer(root: &Path, limits: Limits) -> LogWriter {
    LogWriter::create(dir_fd(root).as_fd(), "web", 0, limits).unwrap()
}

/// The bytes of one stream as a reader puts them together again.
fn joined(reader: &mut LogReader, stream: Stream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let ended = reader
        .read(&mut |entry| {
            if entry.stream == stream {
                bytes.extend_from_slice(entry.content);
                if !entry.partial {
                    bytes.push(b'\n');
                }
            }
            true
        })
        .unwrap();
    assert!(ended);
    bytes
}

const SMALL: Limits = Limits { file_bytes: 600, files: 1000, part_bytes: 40 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_cut_anywhere_come_back_the_same_over_rotations(
        pieces in proptest::collection::vec(
            (any::<bool>(), proptest::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(b'\n')], 0..150)), 0..40),
        follow: bool,
    ) {
        let root = tempfile::tempdir().unwrap();
        let mut writer = writer(root.path(), SMALL);
        let mut buffers = Buffers::default();
        let mut reader = LogReader::open(&root.path().join("web"), 0).unwrap();
        let (mut written, mut read) = ([Vec::new(), Vec::new()], Vec::new());
        for (at, (stderr, piece)) in pieces.iter().enumerate() {
            let stream = if *stderr { Stream::Stderr } else { Stream::Stdout };
            writer.write(&mut buffers, stream, piece, at as u64).unwrap();
            written[usize::from(*stderr)].extend_from_slice(piece);
            if follow {
                read.extend(joined(&mut reader, Stream::Stdout));
            }
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            writer.finish(&mut buffers, stream, 99).unwrap();
        }
        read.extend(joined(&mut reader, Stream::Stdout));
        prop_assert_eq!(&read, &written[0]);
        prop_assert_eq!(reader.missed_files(), 0);
        let mut again = LogReader::open(&root.path().join("web"), 0).unwrap();
        prop_assert_eq!(&joined(&mut again, Stream::Stderr), &written[1]);
        for file in std::fs::read_dir(root.path().join("web")).unwrap() {
            prop_assert!(file.unwrap().metadata().unwrap().len() <= SMALL.file_bytes);
        }
    }
}

#[test]
fn a_long_line_is_cut_into_parts_and_an_exact_one_is_not() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = writer(root.path(), Limits::default());
    let mut buffers = Buffers::default();
    let exact = [vec![b'a'; 16 << 10], b"\n".to_vec()].concat();
    let long = [vec![b'b'; (16 << 10) + 1], b"\n".to_vec()].concat();
    writer.write(&mut buffers, Stream::Stdout, &[exact, long, b"end".to_vec()].concat(), 0).unwrap();
    writer.finish(&mut buffers, Stream::Stdout, 0).unwrap();
    let mut seen = Vec::new();
    let mut reader = LogReader::open(&root.path().join("web"), 0).unwrap();
    reader
        .read(&mut |entry| {
            seen.push((entry.partial, entry.content.len()));
            true
        })
        .unwrap();
    assert_eq!(seen, [(false, 16384), (true, 16384), (false, 1), (true, 3)]);
}

#[test]
fn files_are_bounded_in_number_and_size_and_the_newest_are_kept() {
    let root = tempfile::tempdir().unwrap();
    let limits = Limits { file_bytes: 1000, files: 3, part_bytes: 100 };
    let mut writer = writer(root.path(), limits);
    let mut buffers = Buffers::default();
    let mut reader = LogReader::open(&root.path().join("web"), 0).unwrap();
    let mut first = Vec::new();
    for i in 0..500u32 {
        writer.write(&mut buffers, Stream::Stdout, format!("line {i:04}\n").as_bytes(), 0).unwrap();
        let files = std::fs::read_dir(root.path().join("web")).unwrap();
        let held: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
        assert!(held <= 3000 && writer.written_bytes() >= held, "{held}");
        if i == 0 {
            first = joined(&mut reader, Stream::Stdout);
        }
    }
    assert_eq!(first, b"line 0000\n");
    let files: Vec<_> = std::fs::read_dir(root.path().join("web")).unwrap().map(|f| f.unwrap()).collect();
    assert_eq!(files.len(), 3);
    assert!(files.iter().all(|file| file.metadata().unwrap().len() <= 1000));
    // A reader that was left behind goes on with the oldest that is left and knows that it missed some.
    let rest = String::from_utf8(joined(&mut reader, Stream::Stdout)).unwrap();
    assert!(rest.ends_with("line 0499\n"), "{rest}");
    assert!(reader.missed_files() > 0);
}

#[test]
fn full_files_that_could_not_be_deleted_before_are_deleted_later() {
    let root = tempfile::tempdir().unwrap();
    let limits = Limits { file_bytes: 1000, files: 3, part_bytes: 100 };
    let mut buffers = Buffers::default();
    let line = |writer: &mut LogWriter, buffers: &mut Buffers| {
        writer.write(buffers, Stream::Stdout, b"a line\n", 0).unwrap();
    };
    let mut first = writer(root.path(), limits);
    (0..100).for_each(|_| line(&mut first, &mut buffers));
    drop(first);
    // As if an earlier life had left some.
    let full = |number: u64| root.path().join(format!("web/0.log.{number}"));
    let newest = (1..100).rev().find(|number| full(*number).exists()).unwrap();
    for number in newest + 1..newest + 4 {
        std::fs::copy(full(newest), full(number)).unwrap();
    }
    let mut second = writer(root.path(), limits);
    (0..100).for_each(|_| line(&mut second, &mut buffers));
    assert_eq!(std::fs::read_dir(root.path().join("web")).unwrap().count(), 3);
}

#[test]
fn a_second_start_of_the_same_attempt_appends() {
    let root = tempfile::tempdir().unwrap();
    let mut buffers = Buffers::default();
    for text in ["one\n", "two\n"] {
        writer(root.path(), SMALL).write(&mut buffers, Stream::Stdout, text.as_bytes(), 0).unwrap();
    }
    let mut reader = LogReader::open(&root.path().join("web"), 0).unwrap();
    assert_eq!(joined(&mut reader, Stream::Stdout), b"one\ntwo\n");
}

#[test]
fn links_and_foreign_names_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let secret = root.path().join("secret");
    std::fs::write(&secret, "keep").unwrap();
    std::fs::create_dir(root.path().join("web")).unwrap();
    std::os::unix::fs::symlink(&secret, root.path().join("web/0.log")).unwrap();
    let fd = dir_fd(root.path());
    assert!(LogWriter::create(fd.as_fd(), "web", 0, SMALL).is_err());
    std::fs::hard_link(&secret, root.path().join("web/1.log")).unwrap();
    assert!(matches!(LogWriter::create(fd.as_fd(), "web", 1, SMALL), Err(LogError::Foreign { .. })));
    std::os::unix::fs::symlink("web", root.path().join("linked")).unwrap();
    assert!(LogWriter::create(fd.as_fd(), "linked", 0, SMALL).is_err());
    for name in ["", ".", "..", "a/b"] {
        assert!(matches!(LogWriter::create(fd.as_fd(), name, 0, SMALL), Err(LogError::BadName { .. })), "{name}");
    }
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "keep");
}

#[test]
fn a_pipe_is_read_until_it_would_block_and_then_ends() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = writer(root.path(), Limits::default());
    let mut buffers = Buffers::default();
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
    assert_eq!(buffers.read(&read).unwrap(), Read::WouldBlock);
    rustix::io::write(&write, b"a\nb").unwrap();
    assert_eq!(buffers.read(&read).unwrap(), Read::Bytes);
    assert_eq!(buffers.bytes(), b"a\nb");
    writer.write_read(&mut buffers, Stream::Stderr, 0).unwrap();
    drop(write);
    assert_eq!(buffers.read(&read).unwrap(), Read::Ended);
    writer.finish(&mut buffers, Stream::Stderr, 0).unwrap();
    let mut reader = LogReader::open(&root.path().join("web"), 0).unwrap();
    assert_eq!(joined(&mut reader, Stream::Stderr), b"a\nb");
}

#[test]
fn a_full_disk_drops_and_counts_and_tells_once_there_is_room() {
    let root = tempfile::tempdir().unwrap();
    let mut writer = writer(root.path(), Limits::default());
    let mut buffers = Buffers::default();
    // A size limit stands in for a full disk; it is the process's, so another process carries it.
    if std::env::var_os("NODELESS_TEST_LOG_INSIDE").is_none() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "shim::log::tests::a_full_disk_drops_and_counts_and_tells_once_there_is_room",
                "--nocapture",
            ])
            .env("NODELESS_TEST_LOG_INSIDE", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use nix::sys::signal::{SigSet, Signal};
    // The limit's signal would end the process; blocked, the write only fails.
    let mut set = SigSet::empty();
    set.add(Signal::SIGXFSZ);
    set.thread_block().unwrap();
    writer.write(&mut buffers, Stream::Stdout, b"first\n", 0).unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, 100, hard).unwrap();
    assert!(writer.write(&mut buffers, Stream::Stdout, &[b'x'; 200], 0).is_ok(), "an unfinished line is only held");
    assert!(matches!(writer.write(&mut buffers, Stream::Stdout, b"\n", 0), Err(LogError::Write { .. })));
    assert!(writer.lost_bytes() > 200);
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
    writer.write(&mut buffers, Stream::Stdout, b"last\n", 0).unwrap();
    assert_eq!(writer.lost_bytes(), 0);
    let mut reader = LogReader::open(&root.path().join("web"), 0).unwrap();
    assert_eq!(joined(&mut reader, Stream::Stdout), b"first\nlast\n");
    let mut again = LogReader::open(&root.path().join("web"), 0).unwrap();
    let told = String::from_utf8(joined(&mut again, Stream::Stderr)).unwrap();
    assert!(told.contains("bytes of output were lost"), "{told}");
}
