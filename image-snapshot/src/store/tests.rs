use std::os::unix::fs::FileExt as _;

use super::*;
use crate::{
    Digest,
    testing::{Stack, Tar},
};

fn open(dir: &tempfile::TempDir) -> Store {
    Store::open(dir.path()).unwrap()
}

/// Puts a layer in as a pull does.
fn put(store: &Store, content: &[u8]) -> LayerRecord {
    let tar = Tar::new().file("f", content).end();
    let (ingest, file) = store.ingest().unwrap();
    let converted =
        crate::convert::convert(&tar[..], &[], file.try_clone().unwrap(), &crate::Limits::default()).unwrap();
    let id = Digest::sha256(&tar);
    let record = LayerRecord::new(id.clone(), None, id, converted);
    store.commit_layer(ingest, &file, &record).unwrap();
    record
}

fn reference(name: &str, layers: Vec<Digest>) -> RefRecord {
    RefRecord {
        reference: name.into(),
        domain: String::new(),
        target: Digest::sha256(name.as_bytes()),
        manifest: Digest::sha256(name.as_bytes()),
        config: Digest::sha256(b"config"),
        layers,
        repo_digest: String::new(),
        access: Access::default(),
        pulled_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

#[test]
fn a_layer_is_found_again_after_reopening_and_is_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let record = put(&open(&dir), b"hello");
    let store = open(&dir);
    assert_eq!(store.layer(&record.id).unwrap().as_ref(), Some(&record));
    assert_eq!(store.layers().unwrap(), std::slice::from_ref(&record));
    assert_eq!(store.verify(&record.id).unwrap(), Verdict::Sound);
}

#[test]
fn a_changed_byte_is_noticed_by_verify_and_a_changed_size_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let record = put(&store, b"hello");
    let path = store.layer_path(&record.id);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"X", record.bytes - 100).unwrap();
    assert!(store.layer(&record.id).unwrap().is_some());
    assert_eq!(store.verify(&record.id).unwrap(), Verdict::Damaged);
    file.set_len(4096).unwrap();
    assert_eq!(store.layer(&record.id).unwrap(), None);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(store.verify(&record.id).unwrap(), Verdict::Missing);
}

#[test]
fn half_made_things_are_gone_after_opening() {
    let dir = tempfile::tempdir().unwrap();
    let kept = put(&open(&dir), b"kept");
    let orphan = put(&open(&dir), b"orphan");
    let layers = dir.path().join("layers/sha256");
    std::fs::remove_file(layers.join(format!("{}.erofs", orphan.id.hex()))).unwrap();
    std::fs::write(layers.join(format!("{}.erofs", Digest::sha256(b"x").hex())), b"no record").unwrap();
    std::fs::write(dir.path().join("ingest/1-1"), b"torn").unwrap();
    let store = open(&dir);
    assert_eq!(store.layers().unwrap(), [kept]);
    assert_eq!(std::fs::read_dir(&layers).unwrap().count(), 2);
    assert_eq!(std::fs::read_dir(dir.path().join("ingest")).unwrap().count(), 0);
}

#[test]
fn a_layer_whose_record_is_damaged_is_missing_until_it_comes_anew_and_gone_after_opening() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (sound, hurt) = (put(&store, b"sound"), put(&store, b"hurt"));
    for damage in [&b""[..], b"{", b"{\"id\": 7}", &[0; 600]] {
        std::fs::write(store.layer_record_path(&hurt.id), damage).unwrap();
        assert_eq!(store.layer(&hurt.id).unwrap(), None);
        assert_eq!(store.layers().unwrap(), std::slice::from_ref(&sound));
        assert_eq!(store.verify(&hurt.id).unwrap(), Verdict::Missing);
        assert_eq!(put(&store, b"hurt"), hurt);
        assert_eq!(store.verify(&hurt.id).unwrap(), Verdict::Sound);
    }
    std::fs::write(store.layer_record_path(&hurt.id), b"{").unwrap();
    drop(store);
    let store = open(&dir);
    assert_eq!(store.layers().unwrap(), [sound]);
    assert_eq!(std::fs::read_dir(dir.path().join("layers/sha256")).unwrap().count(), 2);
}

#[test]
fn an_abandoned_ingest_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    drop(store.ingest().unwrap());
    assert_eq!(std::fs::read_dir(dir.path().join("ingest")).unwrap().count(), 0);
}

#[test]
fn one_owner_at_a_time_and_only_formats_that_we_know() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(&dir);
    assert!(matches!(Store::open(dir.path()), Err(StoreError::InUse { .. })));
    drop(first);
    std::fs::write(dir.path().join("format"), b"nodeless-images 999").unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Format { .. })));
}

#[test]
fn blobs_are_checked_when_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let digest = Digest::sha256(b"{}");
    store.put_blob(&digest, b"{}").unwrap();
    assert_eq!(store.blob(&digest).unwrap().as_deref(), Some(&b"{}"[..]));
    std::fs::write(dir.path().join("blobs/sha256").join(digest.hex()), b"[]").unwrap();
    assert_eq!(store.blob(&digest).unwrap(), None);
    store.put_blob(&digest, b"{}").unwrap();
    assert!(store.blob(&digest).unwrap().is_some());
}

#[test]
fn names_come_back_sorted_and_damaged_ones_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    for name in ["b", "a", "c"] {
        store.set_ref(&reference(name, vec![])).unwrap();
    }
    std::fs::write(store.root.join("refs").join(format!("{}.json", Digest::sha256(b"c").hex())), b"{").unwrap();
    let names: Vec<_> = store.refs().unwrap().into_iter().map(|r| r.reference).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(store.get_ref("c", "").unwrap(), None);
    assert!(store.remove_ref("a", "").unwrap());
    assert!(!store.remove_ref("a", "").unwrap());
}

#[test]
fn collection_keeps_what_refs_and_leases_need() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let [named, leased, loose] = [b"named", b"lease", b"loose"].map(|c| put(&store, c));
    let record = reference("name", vec![named.id.clone()]);
    store.put_blob(&record.config, b"config").unwrap();
    store.put_blob(&Digest::sha256(b"old manifest"), b"old manifest").unwrap();
    store.set_ref(&record).unwrap();
    let removed =
        store.collect(|id, remove| if *id == leased.id { Ok(false) } else { remove().map(|()| true) }).unwrap();
    assert_eq!(removed, Removed { layers: vec![loose.id.clone()], bytes: loose.bytes, leased: 1 });
    assert!(store.layer(&named.id).unwrap().is_some() && store.layer(&leased.id).unwrap().is_some());
    assert!(store.blob(&record.config).unwrap().is_some());
    assert_eq!(store.blob(&Digest::sha256(b"old manifest")).unwrap(), None);
    assert_eq!(std::fs::read_dir(dir.path().join("layers/sha256")).unwrap().count(), 4);
}

#[test]
fn fingerprints_depend_on_the_store_and_on_each_part() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(&a), open(&b));
    assert_eq!(a.fingerprint(&["x", "y"]), a.fingerprint(&["x", "y"]));
    assert_ne!(a.fingerprint(&["x", "y"]), a.fingerprint(&["xy", ""]));
    assert_ne!(a.fingerprint(&["x"]), b.fingerprint(&["x"]));
}

#[test]
fn the_digest_of_a_layer_is_the_same_wherever_it_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let record = put(&open(&dir), b"same");
    let stack = Stack::of(&[Tar::new().file("f", b"same").end()]);
    let digest = crate::erofs::FileDigest::of_file(&stack.layers[0]).unwrap();
    assert_eq!(record.digest, digest);
}

#[test]
fn what_takes_long_when_a_layer_goes_is_done_after_leases_may_be_taken_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let record = put(&store, b"hello");
    let aside = || std::fs::read_dir(dir.path().join("ingest")).unwrap().count();
    let removed = store.remove_layer(&record.id, |remove| {
        remove().unwrap();
        // Out of the store, and whoever looks now finds nothing; the blocks and the record are still to go.
        assert_eq!(store.layer(&record.id).unwrap(), None);
        assert!(store.layer_record_path(&record.id).exists());
        assert_eq!(aside(), 1);
        Ok(true)
    });
    assert!(removed.unwrap());
    assert!(!store.layer_record_path(&record.id).exists());
    assert_eq!(aside(), 0);
    assert!(!store.remove_layer(&record.id, |_| Ok(false)).unwrap());
    assert!(store.remove_layer(&record.id, |remove| remove().map(|()| true)).unwrap(), "it is gone already");
}

#[test]
fn a_layer_that_is_brought_anew_while_the_old_one_goes_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let record = put(&store, b"hello");
    let removed = store.remove_layer(&record.id, |remove| {
        remove().unwrap();
        assert_eq!(put(&store, b"hello"), record);
        Ok(true)
    });
    assert!(removed.unwrap());
    assert_eq!(store.layer(&record.id).unwrap(), Some(record.clone()));
    assert_eq!(store.verify(&record.id).unwrap(), Verdict::Sound);
}
