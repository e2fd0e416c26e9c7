//! tests/gpu/check.sh with programs that stand in for coldpress: what it reports of a GPU of either kind, of none, and of one
//! that computes something else; and that a Mac's tools are enough for it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/gpu");
const NVIDIA: &str = "gpu: NVIDIA H200, compute capability 9.0, 141.0 GiB; --target h200";
const APPLE: &str =
    "gpu: no NVIDIA driver\ngpu: Apple M4 Max, apple9, 40 cores, 96.0 GiB; --target metal:m4-max";
const NONE: &str = "gpu: no NVIDIA driver";

/// All that a Mac has of what check.sh and the programs that stand in could ask for: no `timeout`, no `tac`.
const TOOLS: [&str; 23] = [
    "awk", "bash", "cat", "cmp", "cut", "dd", "dirname", "env", "grep", "head", "mkdir", "mktemp",
    "od", "paste", "perl", "rm", "sed", "seq", "tail", "tar", "tr", "wc", "sleep",
];

/// Tools that a Mac has otherwise: these refuse what only GNU's know. `TOOL` is the one of this machine.
const OF_BSD: [(&str, &str); 4] = [
    ("uname", "echo Darwin"),
    ("date", "exec TOOL \"${@//%N/N}\""),
    (
        "od",
        "case \" $* \" in *\" -w\"* | *\" --\"*) exit 64 ;; esac; exec TOOL \"$@\"",
    ),
    (
        "sed",
        "case \" $* \" in *'\\|'* | *\" -i \"* | *\" -z \"*) exit 64 ;; esac; exec TOOL \"$@\"",
    ),
];

struct Bench {
    folder: tempfile::TempDir,
    path: String,
}

fn executable(path: &Path, text: &str) {
    fs::write(path, text).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("made executable");
}

fn tool(name: &str) -> Option<PathBuf> {
    let folders = ["/usr/bin", "/bin", "/usr/local/bin"].map(PathBuf::from);
    folders
        .into_iter()
        .map(|f| f.join(name))
        .find(|p| p.exists())
}

impl Bench {
    /// A pack for `target` with one fixture; `mac`: with a Mac's tools alone.
    fn new(target: &str, mac: bool) -> Bench {
        let folder = tempfile::tempdir().expect("a folder");
        let pack = folder.path().join("pack");
        for part in ["bin", "exact"] {
            fs::create_dir_all(pack.join(part)).expect("a folder");
        }
        for program in ["coldpress", "coldpress-rt", "synth"] {
            let text = fs::read_to_string(Path::new(HERE).join("stand_in").join(program));
            executable(&pack.join("bin").join(program), &text.expect("a program"));
        }
        let bundles = pack.join("bundles").join(target);
        fs::create_dir_all(&bundles).expect("a folder");
        fs::write(bundles.join("small-F32.press"), "bundle").expect("written");
        let logits: Vec<u8> = [0.5f32, -1.25, 3e-5, -20.0, 1.0, 7.5]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        fs::write(pack.join("exact/small-F32.f32"), &logits).expect("written");
        fs::write(folder.path().join("logits"), logits).expect("written");
        fs::write(pack.join("fixtures.tsv"), "small-F32\t1.000e-6\t1,2,3\n").expect("written");
        // What a GPU's developer has elsewhere would join in.
        let mut path = "/usr/bin:/bin".to_string();
        if mac {
            let tools = folder.path().join("tools");
            fs::create_dir(&tools).expect("a folder");
            for name in TOOLS {
                let target = tool(name).unwrap_or_else(|| panic!("there is no {name}"));
                symlink(target, tools.join(name)).expect("a link");
            }
            for (name, text) in OF_BSD {
                let _ = fs::remove_file(tools.join(name));
                let own = tool(name).unwrap_or_else(|| panic!("there is no {name}"));
                let text = text.replace("TOOL", &own.display().to_string());
                executable(&tools.join(name), &format!("#!/bin/bash\n{text}\n"));
            }
            path = tools.display().to_string();
        }
        Bench { folder, path }
    }

    /// Exit status, check.md and check.json.
    fn check(
        &self,
        gpus: &str,
        target: &str,
        trouble: &str,
        more: &[&str],
    ) -> (i32, String, String) {
        let (pack, out) = (
            self.folder.path().join("pack"),
            self.folder.path().join("out"),
        );
        let run = Command::new("/bin/bash")
            .arg(Path::new(HERE).join("check.sh"))
            .arg("--pack")
            .arg(&pack)
            .arg("--out")
            .arg(&out)
            .args(more)
            .env("PATH", &self.path)
            .env("STAND_IN_GPU", gpus)
            .env("STAND_IN_TARGET", target)
            .env("STAND_IN_TROUBLE", trouble)
            .env("STAND_IN_LOGITS", self.folder.path().join("logits"))
            .output()
            .expect("bash starts");
        let read = |name| fs::read_to_string(out.join(name)).unwrap_or_default();
        let status = run.status.code().unwrap_or(-1);
        let said = String::from_utf8_lossy(&run.stderr);
        for word in ["command not found", "invalid", "unbound", "syntax error"] {
            assert!(!said.contains(word), "{said}");
        }
        (status, read("check.md"), read("check.json"))
    }
}

#[test]
fn both_kinds_of_gpu_give_the_same_table() {
    for (gpus, target, name) in [
        (NVIDIA, "h200", "NVIDIA H200"),
        (APPLE, "metal:m4-max", "Apple M4 Max"),
    ] {
        for mac in [false, true] {
            let bench = Bench::new(target, mac);
            let models = ["--models", "qwen3-0.6b:q4_k_m", "-npl", "1,8"];
            let (status, text, json) = bench.check(gpus, target, "", &models);
            assert_eq!(status, 0, "{text}");
            for part in [
                name,
                &format!("; target {target};"),
                " 0 failed",
                "| small-F32: every bucket, embedded prompts | passed |",
                "| small-F32: exact logits | passed | NMSE 0.000e+00 of at most 1.000e-6 |",
                "| small-F32: same bits in any batch and chunk | passed |",
                "Measured read bandwidth 250.0 GB/s; compiled in ",
                "| B | bucket | tok/s | GB/s | % of measured | prompt tok/s |",
                "| 1 | 1 | 50.5 | 125 | 50.0 | 900.2 |",
                "| 8 | 8 | 300.0 | 100 | 40.0 | 1800.5 |",
                "## Where a step of qwen3-0.6b-q4_k_m goes",
            ] {
                assert!(text.contains(part), "mac {mac}: {part}: {text}");
            }
            let json: serde_json::Value = serde_json::from_str(&json).expect("valid JSON");
            assert_eq!(json["target"], target);
            assert_eq!(json["bench"][0]["results"][1]["speed_tg"], 300.0);
            assert_eq!(json["bench"][0]["bandwidth_gb_per_s"], 250.0);
        }
    }
}

#[test]
fn no_gpu_is_said_and_is_no_failure() {
    for mac in [false, true] {
        let (status, text, _) = Bench::new("h200", mac).check(NONE, "", "", &[]);
        assert_eq!(status, 0, "{text}");
        assert!(text.contains("no GPU; target none"), "{text}");
        let line = "| everything that needs a GPU | skipped | no NVIDIA driver |";
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn what_is_wrong_is_named_and_ends_with_1() {
    let bench = Bench::new("metal:m4-max", true);
    let check = |trouble, more: &[&str]| bench.check(APPLE, "metal:m4-max", trouble, more);
    let (status, text, _) = check("verify", &["--quick"]);
    let line = "| small-F32: every bucket, embedded prompts | failed | error: a bucket differs |";
    assert!(status == 1 && text.contains(line), "{text}");
    let (status, text, _) = check("chunk", &["--quick"]);
    let line = "| small-F32: same bits in any batch and chunk | failed | 7 rows per step give other bits |";
    assert!(status == 1 && text.contains(line), "{text}");
    // A model that is too large for the GPU is nobody's mistake.
    let (status, text, _) = check("memory", &["--models", "qwen3-8b:q8_0"]);
    let line = "| qwen3-8b-q8_0 | skipped | error: 20.00 GiB, this GPU may use 8.00 GiB |";
    assert!(status == 0 && text.contains(line), "{text}");
    // Other logits than the exact ones, then none to compare with.
    let exact = bench.folder.path().join("pack/exact/small-F32.f32");
    let mut bytes = fs::read(&exact).expect("logits");
    bytes[3] ^= 0x80;
    fs::write(&exact, bytes).expect("written");
    let (status, text, _) = check("", &["--quick"]);
    let line = "| small-F32: exact logits | failed | NMSE ";
    assert!(status == 1 && text.contains(line), "{text}");
    fs::remove_file(&exact).expect("removed");
    let (status, text, _) = check("", &["--quick"]);
    let line = "| small-F32: exact logits | skipped | the pack has none of it |";
    assert!(status == 0 && text.contains(line), "{text}");
}
