//! Requests beyond what was compiled, places that cannot be used, flags out of range.

use super::*;

#[test]
fn requests_beyond_what_was_compiled() {
    let dir = tempdir().expect("temporary folder");
    let bundle = bundle(&dir);
    let long = "x".repeat(100);
    fail(&["run", arg(&bundle), "-p", &long, "-n", "4"], 2, &["64"]);
    let out = dir.path().join("o.npy");
    let three = ["--tokens", "1,2", "--tokens", "3,4", "--tokens", "5,6"];
    fail(
        &[&["logits", arg(&bundle), "-o", arg(&out)], &three[..]].concat(),
        2,
        &["2"],
    );
    fail(
        &[
            "logits",
            arg(&bundle),
            "--tokens",
            "1,2,999999",
            "-o",
            arg(&out),
        ],
        2,
        &["999999"],
    );
    fail(
        &[
            "logits",
            arg(&bundle),
            "--tokens",
            "1,2",
            "--tokens",
            "3",
            "-o",
            arg(&out),
        ],
        2,
        &[],
    );
    assert!(!out.exists());
}

#[test]
fn memory_that_is_not_there() {
    let dir = tempdir().expect("temporary folder");
    let path = model(&dir);
    fail(
        &["compile", arg(&path), "--fit", "1KiB", "--dry-run"],
        5,
        &["--fit"],
    );
}

#[test]
fn a_full_disk_leaves_nothing() {
    let dir = tempdir().expect("temporary folder");
    let path = model(&dir);
    // A limit on the size of files this command may write stands in for a disk that fills.
    let out = dir.path().join("full.press");
    let script = format!(
        "trap '' XFSZ; ulimit -f 64; exec {} compile {} -o {}",
        env!("CARGO_BIN_EXE_coldpress"),
        arg(&path),
        arg(&out)
    );
    let run = std::process::Command::new("bash")
        .args(["-c", &script])
        .output()
        .expect("bash");
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("error:") && stderr.contains("full.press"),
        "{stderr}"
    );
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .expect("folder")
        .map(|e| e.expect("entry").file_name())
        .collect();
    assert_eq!(left, [std::ffi::OsString::from("model.gguf")]);
}

#[test]
fn places_that_cannot_be_read_or_written() {
    let dir = tempdir().expect("temporary folder");
    let bundle = bundle(&dir);
    let (model, folder) = (dir.path().join("model.gguf"), dir.path().join("folder"));
    std::fs::create_dir(&folder).expect("created");
    let absent = dir.path().join("absent").join("out.press");
    let broken = dir.path().join("broken.txt");
    std::fs::write(&broken, b"a\xff\xfeb").expect("written");
    let run = |path| ["run", arg(&bundle), "-f", path];
    fail(&["compile", arg(&folder)], 1, &["folder"]);
    // What is there and is no bundle stays: folders, devices, and the model above all.
    let before = std::fs::read(&model).expect("model");
    let link = dir.path().join("link.gguf");
    std::os::unix::fs::symlink(&model, &link).expect("linked");
    for out in [folder.as_path(), &model, &link, Path::new("/dev/null")] {
        let compile = ["compile", arg(&model), "-o", arg(out)];
        fail(&compile, 2, &["--output", arg(out)]);
        fail(&[&compile[..], &["--exe"]].concat(), 2, &["--output"]);
    }
    assert!(std::fs::read(&model).expect("model") == before);
    let out = ["--tokens", "1", "-o", arg(&bundle)];
    fail(
        &[&["logits", arg(&bundle)], &out[..]].concat(),
        2,
        &["--output"],
    );
    fail(
        &["compile", arg(&model), "-o", arg(&absent)],
        1,
        &["absent"],
    );
    fail(&["run", arg(&folder), "-p", "a"], 1, &["folder"]);
    fail(&["logits", arg(&model), "--tokens", "1", "-o", "x"], 1, &[]);
    fail(&run(arg(&folder)), 1, &["folder"]);
    fail(&run(arg(&broken)), 1, &["broken.txt", "UTF-8"]);
    fail(
        &["tokenize", arg(&bundle), "-f", arg(&broken)],
        1,
        &["broken.txt"],
    );
    // Every command that prints says so when nobody can take what it prints.
    for command in [
        vec!["run", arg(&bundle), "-p", "a", "-n", "2"],
        vec!["tokenize", arg(&bundle), "abc"],
        vec!["inspect", arg(&bundle)],
        vec!["explain", arg(&bundle), "output"],
        vec!["verify", arg(&bundle)],
        vec!["targets"],
        vec!["compile", arg(&model), "--dry-run"],
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
        let Ok(full) = full else { return };
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_coldpress"))
            .args(&command)
            .stdout(full)
            .output()
            .expect("starts");
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{command:?}: {said}");
        assert!(
            said.contains("error: writing stdout"),
            "{command:?}: {said}"
        );
    }
}

#[test]
fn flags_that_are_out_of_range() {
    let dir = tempdir().expect("temporary folder");
    let bundle = bundle(&dir);
    let model = dir.path().join("model.gguf");
    for flags in [
        ["--temp", "nan"],
        ["--temp", "inf"],
        ["--top-p", "-1"],
        ["--top-p", "nan"],
        ["--min-p", "1.5"],
        ["--min-p", "-1"],
        ["--repeat-penalty", "0"],
        ["--repeat-penalty", "-2"],
        ["--frequency-penalty", "inf"],
        ["--logit-bias", "5+nan"],
        ["--logit-bias", "x"],
        ["--stop", ""],
        ["-n", "999999999999999999999999"],
        ["-np", "0"],
        ["-ub", "0"],
        ["--system", "without --chat"],
    ] {
        let run = ["run", arg(&bundle), "-p", "a"];
        fail(&[&run[..], &flags].concat(), 2, &[]);
    }
    for flags in [
        ["--top-k", "0"],
        ["--top-k", "-1"],
        ["--top-k", "99999999"],
        ["--temp", "-1"],
        ["--temp", "1e-30"],
        ["--temp", "1e30"],
        ["--top-p", "0"],
        ["--min-p", "1"],
        ["--repeat-last-n", "999999999999"],
        ["--repeat-penalty", "1e30"],
        ["--presence-penalty", "-1e30"],
        ["-np", "99"],
        ["-ub", "1"],
        ["-p", ""],
    ] {
        let run = ["run", arg(&bundle), "-p", "a", "-n", "3"];
        if flags == ["-p", ""] {
            // No begin token stands in here.
            fail(&[&run[..], &flags].concat(), 2, &["empty"]);
        } else {
            succeed(&[&run[..], &flags].concat());
        }
    }
    for flags in [
        ["--max-batch", "0"],
        ["--max-batch", "100000"],
        ["-c", "0"],
        ["-c", "100000000"],
        ["-t", "0"],
        ["-t", "5000"],
        ["--fit", "nan"],
        ["--kv-type", "q3"],
    ] {
        let compile = ["compile", arg(&model), "--dry-run"];
        fail(&[&compile[..], &flags].concat(), 2, &[]);
    }
    fail(&["explain", arg(&bundle), ""], 1, &["no such tensor"]);
}
