use proptest::prelude::*;

use super::*;

fn record(seq: u64) -> UsageRecord {
    UsageRecord {
        schema: SCHEMA,
        host: "host-1".into(),
        boot_id: "boot-1".into(),
        seq,
        kind: Kind::Tick,
        pod_uid: "uid".into(),
        pod_namespace: "default".into(),
        pod_name: "web".into(),
        sandbox_id: "sb".into(),
        start_boottime_ns: 5,
        start_wall_ns: 1_000,
        boottime_ns: 10 + seq,
        wall_ns: 1_005 + seq,
        held: Held { milli_cpu: 500, memory_bytes: 64 << 20, ephemeral_bytes: 0, gpus: 0 },
        used: Used::default(),
        sandbox_kind: "namespace".into(),
        price_class: "on-demand".into(),
        images: vec!["sha256:aa".into()],
        prev_hash: String::new(),
        hash: String::new(),
    }
}

fn chain(n: u64) -> Vec<UsageRecord> {
    let mut previous = GENESIS.to_owned();
    (1..=n)
        .map(|seq| {
            let sealed = record(seq).seal(&previous);
            previous.clone_from(&sealed.hash);
            sealed
        })
        .collect()
}

fn follows(records: &[UsageRecord]) -> Result<(), ChainError> {
    let (mut seq, mut hash) = (0, GENESIS.to_owned());
    for record in records {
        record.check_follows(seq, &hash)?;
        seq = record.seq;
        hash.clone_from(&record.hash);
    }
    Ok(())
}

#[test]
fn the_canonical_form_is_stable() {
    insta::assert_snapshot!(String::from_utf8(chain(1).remove(0).encode()).unwrap());
}

#[test]
fn a_chain_holds_and_each_kind_of_change_is_named() {
    let good = chain(4);
    follows(&good).unwrap();
    let mut altered = good.clone();
    altered[2].held.milli_cpu = 1;
    assert!(matches!(follows(&altered), Err(ChainError::Altered { seq: 3, .. })));
    let mut removed = good.clone();
    removed.remove(1);
    assert!(matches!(follows(&removed), Err(ChainError::Gap { seq: 3, expected_after: 1, .. })));
    let mut replaced = good.clone();
    replaced[1] = UsageRecord { wall_ns: 7_777, ..record(2) }.seal(&good[0].hash);
    assert!(matches!(follows(&replaced), Err(ChainError::Broken { seq: 3, .. })));
    let mut swapped = good;
    swapped.swap(1, 2);
    assert!(matches!(follows(&swapped), Err(ChainError::Gap { .. })));
}

#[test]
fn other_spellings_and_contradictions_are_refused() {
    let good = chain(1).remove(0);
    let text = String::from_utf8(good.encode()).unwrap();
    assert!(matches!(UsageRecord::decode(text.replace(',', ", ").as_bytes()), Err(DecodeError::NotCanonical { .. })));
    assert!(matches!(
        UsageRecord::decode(text.replace("\"schema\":1", "\"schema\":9").as_bytes()),
        Err(DecodeError::Schema { found: 9 })
    ));
    assert!(matches!(UsageRecord::decode(b"{}"), Err(DecodeError::Syntax(_))));
    let early = UsageRecord { boottime_ns: 1, ..good.clone() };
    assert!(matches!(UsageRecord::decode(&early.encode()), Err(DecodeError::Contradiction { .. })));
    let moved = UsageRecord { kind: Kind::Start, ..good };
    assert!(matches!(UsageRecord::decode(&moved.encode()), Err(DecodeError::Contradiction { .. })));
}

proptest! {
    #[test]
    fn encode_then_decode_is_the_same_record(seq in 1u64.., start in any::<u32>(), more in any::<u32>(), name in ".*", cpu in any::<u64>()) {
        let mut record = record(seq.min(u64::MAX - 20));
        record.start_boottime_ns = start.into();
        record.boottime_ns = u64::from(start) + u64::from(more);
        record.pod_name = name;
        record.used.cpu_ns = cpu;
        let record = record.seal(GENESIS);
        prop_assert_eq!(&UsageRecord::decode(&record.encode()).unwrap(), &record);
        prop_assert_eq!(record.content_hash(), record.hash);
    }

    /// Any one flipped bit of a chain is found, either as bad bytes or as a broken chain.
    #[test]
    fn any_flipped_bit_is_found(which in 0usize..3, position in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut encoded: Vec<Vec<u8>> = chain(3).iter().map(UsageRecord::encode).collect();
        let at = position.index(encoded[which].len());
        encoded[which][at] ^= 1 << bit;
        let decoded: Result<Vec<_>, _> = encoded.iter().map(|bytes| UsageRecord::decode(bytes)).collect();
        if let Ok(records) = decoded {
            prop_assert!(follows(&records).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = UsageRecord::decode(&bytes);
    }
}
