//! Bundles that are damaged or made for something else.

use super::*;
use coldpress_runtime::bundle::{Bundle, BundleWriter, SectionKind};
use coldpress_runtime::manifest::Manifest;

#[test]
fn bundles_that_are_damaged() {
    let dir = tempdir().expect("temporary folder");
    let good = bundle(&dir);
    let bytes = std::fs::read(&good).expect("bundle");
    let bad = dir.path().join("bad.press");
    let check = |bytes: &[u8], what: &str| {
        std::fs::write(&bad, bytes).expect("written");
        let out = coldpress(&["run", arg(&bad), "-p", "a", "-n", "1"]);
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            matches!(out.status.code(), Some(1 | 4)),
            "{what}: {:?}\n{stderr}",
            out.status.code()
        );
        assert_eq!(
            stderr.lines().filter(|l| l.starts_with("error:")).count(),
            1,
            "{what}:\n{stderr}"
        );
    };
    for cut in [
        0,
        1,
        7,
        8,
        15,
        16,
        31,
        63,
        64,
        100,
        200,
        4095,
        4096,
        bytes.len() - 1,
    ] {
        check(&bytes[..cut.min(bytes.len() - 1)], &format!("cut at {cut}"));
    }
    let mut random = Random(17);
    for _ in 0..24 {
        let at = random.below(bytes.len());
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << random.below(8);
        // Padding between sections is the only place no checksum covers.
        let out = {
            std::fs::write(&bad, &flipped).expect("written");
            coldpress(&["run", arg(&bad), "-p", "a", "-n", "1", "--temp", "0"])
        };
        if out.status.success() {
            assert_eq!(
                bytes[at], 0,
                "a flip at {at} went unnoticed outside padding"
            );
        }
    }
}

/// Writes the bundle `good` again at `out` with a changed manifest; every checksum is right.
fn remade(good: &Path, out: &Path, change: impl FnOnce(&mut Manifest)) {
    let bundle = Bundle::open(good).expect("opens");
    let mut writer = BundleWriter::create(out).expect("creates");
    for (index, section) in bundle.file_header().sections.iter().enumerate() {
        if section.kind != SectionKind::Manifest {
            let bytes = bundle.section_bytes(index as u32).expect("section");
            writer.write_section(section.kind, bytes).expect("written");
        }
    }
    let mut manifest = bundle.manifest().clone();
    change(&mut manifest);
    writer
        .write_value(SectionKind::Manifest, &manifest)
        .expect("written");
    let requires: Vec<_> = manifest.plans.iter().map(|p| p.requires.clone()).collect();
    writer.finish("another", &requires).expect("finished");
}

#[test]
fn bundles_for_another_machine() {
    let dir = tempdir().expect("temporary folder");
    let good = bundle(&dir);
    let other = dir.path().join("other.press");
    remade(&good, &other, |manifest| {
        let requires = &mut manifest.plans[0].requires;
        requires
            .features
            .extend(["avx9000".into(), "abacus".into()]);
    });
    // Every mismatch at once, and what to do.
    let says = ["avx9000", "abacus", "--target"];
    fail(&["run", arg(&other), "-p", "a"], 4, &says);
    let text = succeed(&["inspect", arg(&other)]);
    for word in says {
        assert!(
            text.contains(word),
            "inspect should mention {word}:\n{text}"
        );
    }
    remade(&good, &other, |manifest| {
        manifest.plans[0].requires.arch = "vax".into();
    });
    fail(&["run", arg(&other), "-p", "a"], 4, &["vax", "--target"]);
    remade(&good, &other, |manifest| {
        manifest.plans[0]
            .symbols
            .push("matmul_of_the_future".into());
    });
    fail(
        &["run", arg(&other), "-p", "a"],
        4,
        &["matmul_of_the_future"],
    );

    let mut bytes = std::fs::read(&good).expect("bundle");
    bytes[0] ^= 0xff;
    std::fs::write(&other, &bytes).expect("written");
    fail(&["run", arg(&other), "-p", "a"], 1, &["other.press"]);
    bytes[0] ^= 0xff;
    bytes[8] = 77;
    std::fs::write(&other, &bytes).expect("written");
    fail(&["run", arg(&other), "-p", "a"], 4, &["77"]);
}

#[test]
fn a_cached_bundle_that_was_cut_is_made_again() {
    let dir = tempdir().expect("temporary folder");
    let path = model(&dir);
    let run = || {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_coldpress"))
            .args(["run", arg(&path), "-p", "a", "-n", "2", "--temp", "0"])
            .env("XDG_CACHE_HOME", dir.path().join("cache"))
            .output()
            .expect("starts");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{said}");
        (out.stdout, said.contains("compiling"))
    };
    let (first, compiled) = run();
    assert!(compiled);
    assert_eq!(run(), (first.clone(), false));
    let folder = dir.path().join("cache").join("coldpress");
    let kept: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("cache")
        .map(|e| e.expect("entry").path())
        .collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    let bytes = std::fs::read(&kept[0]).expect("bundle");
    std::fs::write(&kept[0], &bytes[..1000]).expect("cut");
    assert_eq!(run(), (first.clone(), true));
    assert_eq!(run(), (first, false));
}
