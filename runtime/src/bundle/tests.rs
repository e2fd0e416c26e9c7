//! Round trips, and every kind of damage: no damaged file opens, none panics.

mod gpu;

use super::header::{self, FORMAT_VERSION, PREFIX_BYTES, SECTION_ALIGN};
use super::*;
use crate::manifest::{BatchPrediction, KvWindow, Requirements, Stage, StatePlan, TargetPlan};
use std::fs;
use std::io::Write;
use tempfile::TempDir;

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn sample_bytes(directory: &TempDir) -> Vec<u8> {
    let path = directory.path().join("sample.press");
    sample::write(&path, &sample::manifest()).expect("writes");
    fs::read(path).expect("reads")
}

fn open_bytes(directory: &TempDir, bytes: &[u8]) -> Result<Bundle, Error> {
    let path = directory.path().join("changed.press");
    fs::write(&path, bytes).expect("writes");
    Bundle::open(path)
}

#[test]
fn round_trip() {
    let directory = directory();
    let path = directory.path().join("m.press");
    let manifest = sample::manifest();
    let golden = vec![GoldenPrompt {
        tokens: vec![1, 2],
        positions: vec![1],
        ids: vec![vec![3]],
        logits: vec![vec![0.5]],
        nmse: 1e-6,
    }];
    let mut writer = BundleWriter::create(&path).expect("creates");
    let weights = writer.begin_section(SectionKind::Weights).expect("begins");
    let long: Vec<u8> = (0..5 << 20).map(|i| (i % 253) as u8).collect();
    for piece in long.chunks(70_001) {
        writer.write_all(piece).expect("writes");
    }
    writer.end_section();
    writer
        .write_section(SectionKind::Code, &[0xc3; 64])
        .expect("writes");
    let source = writer
        .write_section(SectionKind::Source, b"")
        .expect("writes");
    writer
        .write_value(SectionKind::Golden, &golden)
        .expect("writes");
    writer
        .write_value(SectionKind::Manifest, &manifest)
        .expect("writes");
    let targets = [manifest.plans[0].requires.clone()];
    let bytes = writer.finish("coldpress test", &targets).expect("finishes");
    assert_eq!(bytes, fs::metadata(&path).expect("exists").len());

    let bundle = Bundle::open(&path).expect("opens");
    assert_eq!(*bundle.manifest(), manifest);
    assert_eq!(bundle.section_bytes(weights), Some(&long[..]));
    assert_eq!(bundle.section_bytes(source), Some(&[][..]));
    assert_eq!(bundle.section_bytes(99), None);
    assert_eq!(bundle.golden_prompts().expect("decodes"), golden);
    assert_eq!(bundle.sections(SectionKind::Code).collect::<Vec<_>>(), [1]);
    assert!(bundle.section_value::<u32>(SectionKind::Tokenizer).is_err());
    assert_eq!(
        bundle
            .optional_value::<u32>(SectionKind::Tokenizer)
            .expect("absent"),
        None
    );
    assert!(
        bundle
            .section_bytes(weights)
            .is_some_and(|b| b.as_ptr().addr().is_multiple_of(4096))
    );
    let header = Bundle::header(&path).expect("reads");
    assert_eq!(header, *bundle.file_header());
    assert_eq!(
        (header.producer.as_str(), &header.targets[..]),
        ("coldpress test", &targets[..])
    );
}

#[test]
fn same_input_same_bytes_and_appended_bundles_open() {
    let (one, two) = (directory(), directory());
    let bytes = sample_bytes(&one);
    assert_eq!(bytes, sample_bytes(&two));
    let path = one.path().join("launcher");
    let mut file = vec![1; 2 * SECTION_ALIGN as usize];
    file.extend(&bytes);
    file.extend(b"trailer");
    fs::write(&path, &file).expect("writes");
    let bundle = Bundle::open_at(&path, 2 * SECTION_ALIGN).expect("opens");
    assert_eq!(bundle.section_bytes(0), Some(&[7; 100][..]));
    assert!(Bundle::open_at(&path, SECTION_ALIGN).is_err());
    assert!(Bundle::open_at(&path, 100).is_err());
    assert!(matches!(
        Bundle::open_at(&path, 1 << 30),
        Err(Error::Truncated { .. })
    ));
    assert!(Bundle::open(&path).is_err());
}

#[test]
fn truncated_anywhere() {
    let directory = directory();
    let bytes = sample_bytes(&directory);
    let header = header::parse(&bytes).expect("parses");
    let mut lengths: Vec<usize> = (1..=header.header_bytes as usize + 1).collect();
    for section in &header.sections {
        let (start, end) = (
            section.offset as usize,
            (section.offset + section.bytes) as usize,
        );
        lengths.extend([start - 1, start, start + 1, end - 1, end, end + 1]);
    }
    for length in lengths.into_iter().filter(|&length| length < bytes.len()) {
        let error = open_bytes(&directory, &bytes[..length]).expect_err("truncated");
        assert!(
            matches!(error, Error::Truncated { .. }),
            "{length}: {error}"
        );
        let shown = format!("bundle is truncated: {length} bytes of ");
        assert!(error.to_string().contains(&shown), "{error}");
        if length > 32 {
            assert!(
                error.to_string().ends_with(&format!("of {}", bytes.len())),
                "{error}"
            );
        }
        let path = directory.path().join("changed.press");
        assert!(
            matches!(Bundle::header(path), Err(Error::Truncated { .. })),
            "{length}"
        );
    }
    assert!(open_bytes(&directory, b"").is_err());
    let mut longer = bytes;
    longer.push(0);
    assert!(open_bytes(&directory, &longer).is_err());
}

#[test]
fn flipped_bits_anywhere() {
    let directory = directory();
    let bytes = sample_bytes(&directory);
    let header = header::parse(&bytes).expect("parses");
    let gap = header.header_bytes as usize;
    let mut places: Vec<usize> = (0..gap + 1).chain([gap + 5000]).collect();
    for section in &header.sections {
        let (start, end) = (
            section.offset as usize,
            (section.offset + section.bytes) as usize,
        );
        places.extend((start - 1..end + 1).filter(|&at| at < bytes.len()));
    }
    let mut changed = bytes.clone();
    for at in places {
        let bit = 1 << (at % 8);
        changed[at] ^= bit;
        assert!(open_bytes(&directory, &changed).is_err(), "byte {at}");
        changed[at] ^= bit;
    }
    open_bytes(&directory, &changed).expect("whole again");
}

/// A header with a valid checksum after `change`.
fn resealed(bytes: &[u8], change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    change(&mut bytes);
    let length = u32::from_le_bytes(bytes[12..16].try_into().expect("four")) as usize;
    let sealed = length.clamp(PREFIX_BYTES, bytes.len());
    let checksum = header::header_checksum(&bytes[..sealed]);
    bytes[16..24].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn absurd_numbers_in_sealed_headers() {
    let directory = directory();
    let bytes = sample_bytes(&directory);
    let header = header::parse(&bytes).expect("parses");
    let table = header.header_bytes as usize - 32 * header.sections.len();
    for at in [12, 32, 36, 40, 44, table, table + 4] {
        for value in [u32::MAX, 0x7fff_ffff, 1 << 20, 5000, 99] {
            let put = |b: &mut Vec<u8>| b[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let error = open_bytes(&directory, &resealed(&bytes, put)).expect_err("absurd");
            assert_eq!(error.exit_code(), 1, "{at} {value} {error}");
        }
    }
    for section in 0..header.sections.len() {
        for field in [8, 16] {
            let at = table + 32 * section + field;
            for value in [
                u64::MAX,
                u64::MAX - 4095,
                1 << 63,
                1,
                4096,
                SECTION_ALIGN,
                bytes.len() as u64,
            ] {
                let put = |b: &mut Vec<u8>| b[at..at + 8].copy_from_slice(&value.to_le_bytes());
                assert!(
                    open_bytes(&directory, &resealed(&bytes, put)).is_err(),
                    "{at} {value}"
                );
            }
        }
    }
    let newer = resealed(&bytes, |b| b[8] = FORMAT_VERSION as u8 + 1);
    let error = open_bytes(&directory, &newer).expect_err("newer");
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("recompile"), "{error}");
    let other = open_bytes(&directory, &[b'G'; 9000]).expect_err("not a bundle");
    assert!(
        other.to_string().contains("not a coldpress bundle"),
        "{other}"
    );
}

fn window(tokens: u32, ring: u32) -> Vec<KvWindow> {
    vec![KvWindow { tokens, ring }]
}

fn states(offset: u64, slot_bytes: u64) -> Vec<StatePlan> {
    vec![StatePlan { offset, slot_bytes }]
}

#[test]
fn hostile_manifests() {
    type Change = fn(&mut Manifest);
    let changes: [(&str, Change); 42] = [
        ("vocab", |m| m.model.vocab_size = 0),
        ("vocab", |m| m.model.vocab_size = u32::MAX),
        ("batch", |m| m.limits.max_batch = 0),
        ("batch", |m| m.limits.max_batch = u32::MAX),
        ("context", |m| m.limits.max_context = 65),
        ("context", |m| m.limits.max_context = 0),
        ("rows", |m| m.limits.max_rows = 5),
        ("plans", |m| m.plans.clear()),
        ("workers", |m| m.plans[0].workers = 0),
        ("workers", |m| m.plans[0].workers = 3),
        ("workers", |m| m.plans[0].workers = 5000),
        ("weights", |m| m.plans[0].weights_section = 1),
        ("code", |m| m.plans[0].code_section = 77),
        ("arena", |m| m.plans[0].arena_bytes = u64::MAX),
        ("arena", |m| m.plans[0].arena_bytes = 0),
        ("logits", |m| m.plans[0].logits_offset = 4032),
        ("logits", |m| m.plans[0].logits_offset = u64::MAX),
        ("logits", |m| m.plans[0].logits_offset = 2),
        ("logits", |m| m.plans[0].logits_stride = 28),
        ("logits", |m| m.plans[0].logits_stride = u64::MAX),
        ("pages", |m| m.plans[0].kv.page_tokens = 64),
        ("pages", |m| m.plans[0].kv.pages = 7),
        ("pages", |m| m.plans[0].kv.pages_per_slot = 1),
        ("pages", |m| m.plans[0].kv.pages_per_slot = u32::MAX),
        ("kv", |m| m.plans[0].kv.bytes = 1),
        ("kv", |m| m.plans[0].kv.layers[1].offset = 64),
        ("kv", |m| m.plans[0].kv.layers[1].page_bytes = u64::MAX),
        ("table", |m| m.plans[0].kv.layers[1].table = 1),
        ("ring", |m| m.plans[0].kv.windows = window(8, 1)),
        ("ring", |m| m.plans[0].kv.windows = window(8, 3)),
        ("window", |m| m.plans[0].kv.windows = window(0, 2)),
        ("window", |m| m.plans[0].kv.windows = window(65, 2)),
        ("state", |m| m.plans[0].kv.states = states(0, 64)),
        ("state", |m| m.plans[0].kv.states = states(1 << 40, 64)),
        ("state", |m| m.plans[0].kv.states = states(2 * 6 * 128, 64)),
        ("state", |m| {
            m.plans[0].kv.states = states(u64::MAX - 63, 64)
        }),
        ("state", |m| {
            m.plans[0].kv.bytes += 1 << 20;
            m.plans[0].kv.states = states(2 * 6 * 128, 0);
        }),
        ("state", |m| {
            m.plans[0].kv.bytes += 1 << 20;
            m.plans[0].kv.states = states(2 * 6 * 128, u64::MAX / 2);
        }),
        ("state", |m| {
            m.plans[0].kv.bytes += 1 << 20;
            m.plans[0].kv.states = states(2 * 6 * 128 + 4, 64);
        }),
        ("entry", |m| m.plans[0].programs[0].entries[1] = 1 << 40),
        ("order", |m| m.plans[0].programs.swap(0, 1)),
        ("memory", |m| m.plans[0].requires.memory_bytes = 10),
    ];
    let directory = directory();
    let path = directory.path().join("hostile.press");
    for (index, (what, change)) in changes.iter().enumerate() {
        let mut manifest = sample::manifest();
        change(&mut manifest);
        sample::write(&path, &manifest).expect("writes");
        let error = Bundle::open(&path).expect_err(what);
        assert!(
            error.to_string().contains("manifest: "),
            "{index} {what}: {error}"
        );
    }
    let mut manifest = sample::manifest();
    manifest.plans[0]
        .programs
        .retain(|p| p.stage == Stage::Trunk);
    sample::write(&path, &manifest).expect("writes");
    assert!(Bundle::open(&path).is_err());
    manifest = sample::manifest();
    manifest.plans[0].programs[1].predicted_seconds = f64::NAN;
    sample::write(&path, &manifest).expect("writes");
    assert!(Bundle::open(&path).is_err());
    let point = sample::manifest().plans[0].curve[0];
    for (batch, predicted_seconds) in [(1, 1.0), (0, 1.0), (1 << 20, 1.0), (2, 0.0), (2, f64::NAN)]
    {
        manifest = sample::manifest();
        manifest.plans[0].curve.push(BatchPrediction {
            batch,
            predicted_seconds,
            ..point
        });
        sample::write(&path, &manifest).expect("writes");
        assert!(
            Bundle::open(&path).is_err(),
            "batch {batch}: {predicted_seconds}"
        );
    }
}

#[test]
fn manifests_with_flipped_bytes_and_good_checksums() {
    for (seed, manifest) in [(1, sample::manifest()), (2, sample::gpu_manifest())] {
        flip_bytes(&manifest, seed);
    }
}

fn flip_bytes(manifest: &Manifest, seed: u64) {
    let directory = directory();
    let path = directory.path().join("flipped.press");
    let mut bytes = Vec::new();
    encode_value(manifest, &mut bytes).expect("encodes");
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ seed;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut opened = 0;
    for _ in 0..1500 {
        let mut changed = bytes.clone();
        for _ in 0..1 + random(3) {
            let at = random(changed.len());
            // 251 to 254 open bincode's wider integers.
            changed[at] = [random(256) as u8, 251, 252, 253, 0, 255][random(6)];
        }
        let Ok(manifest) = decode_value::<Manifest>(&changed) else {
            continue;
        };
        sample::write(&path, &manifest).expect("writes");
        if let Ok(bundle) = Bundle::open(&path) {
            opened += 1;
            // What was let in can be asked anything.
            let machine = Machine::detect();
            let _ = (bundle.mismatches(&machine), bundle.pick_plan(&machine));
        }
    }
    assert!((1..1200).contains(&opened), "{opened} opened");
}

#[test]
fn hostile_values_do_not_allocate() {
    // The varint for 2^60 elements, and no elements.
    let mut bytes = vec![253];
    bytes.extend((1u64 << 60).to_le_bytes());
    assert!(decode_value::<Vec<u64>>(&bytes).is_err());
    assert!(decode_value::<String>(&bytes).is_err());
    assert_eq!(decode_value::<u8>(&[7]), Ok(7));
    assert!(decode_value::<u8>(&[7, 7]).is_err());
}

#[test]
fn nothing_is_left_of_an_unfinished_bundle() {
    let directory = directory();
    let path = directory.path().join("m.press");
    fs::write(&path, b"before").expect("writes");
    let mut writer = BundleWriter::create(&path).expect("creates");
    assert!(writer.write_all(b"no section").is_err());
    writer
        .write_section(SectionKind::Weights, &[1; 1 << 20])
        .expect("writes");
    drop(writer);
    assert_eq!(fs::read(&path).expect("reads"), b"before");
    assert_eq!(fs::read_dir(directory.path()).expect("lists").count(), 1);

    let writer = BundleWriter::create(&path).expect("creates");
    let too_long = "x".repeat(2000);
    let error = writer.finish(&too_long, &[]).expect_err("too long");
    assert!(error.to_string().contains("m.press"), "{error}");
    assert_eq!(fs::read_dir(directory.path()).expect("lists").count(), 1);

    let nowhere = directory.path().join("absent").join("m.press");
    let error = BundleWriter::create(&nowhere).err().expect("no directory");
    assert!(error.to_string().contains("absent"), "{error}");
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn plans_are_picked_by_machine() {
    let directory = directory();
    let path = directory.path().join("m.press");
    let mut manifest = sample::manifest();
    let mut wide = manifest.plans[0].clone();
    wide.requires.target = "cpu:wide".into();
    wide.requires.features = vec!["wide".into(), "wider".into()];
    manifest.plans.insert(0, wide);
    sample::write(&path, &manifest).expect("writes");
    let bundle = Bundle::open(&path).expect("opens");
    let mut machine = Machine {
        arch: std::env::consts::ARCH.into(),
        features: Vec::new(),
        memory_bytes: 1 << 30,
        cores: 1,
        gpus: Err("none".into()),
        metal: Err("none".into()),
    };
    let picked = |machine: &Machine| {
        bundle
            .pick_plan(machine)
            .map(|p: &TargetPlan| p.requires.clone())
    };
    let name = |r: Result<Requirements, Error>| r.map(|r| r.target).map_err(|e| e.exit_code());
    assert_eq!(name(picked(&machine)), Ok("cpu:scalar".into()));
    assert!(bundle.mismatches(&machine).is_empty());
    machine.features = vec!["wide".into(), "wider".into()];
    assert_eq!(name(picked(&machine)), Ok("cpu:wide".into()));
    machine.memory_bytes = 1000;
    assert_eq!(name(picked(&machine)), Err(5));
    machine.arch = "other".into();
    assert_eq!(name(picked(&machine)), Err(4));
    // Two plans, each with a wrong architecture and too little memory.
    assert_eq!(bundle.mismatches(&machine).len(), 4);
}
