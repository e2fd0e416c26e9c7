//! Against a library that stands in for the driver's: what is called, in which order, and what becomes of its errors. The
//! loader looks for the driver once per process, so each case is a process of its own: this test, started again.

use super::*;
use crate::bundle::sample;
use crate::device::accelerator::Accelerator;
use crate::device::gpu::Sections;
use crate::device::{Device, GpuDevice, StepInput};
use crate::kv_cache::KvCache;
use std::path::Path;
use std::process::Command;

const SELF: &str = "device::cuda::tests::stand_in::everything_up_to_the_drivers_door";
/// Set in the processes that have the stand-in.
const INSIDE: &str = "COLDPRESS_STAND_IN";

/// What the stand-in is told, and what the process says then.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);

/// The sample plan on the stand-in: two steps, the second timed; a line of text for each thing that came of it.
fn run(out: &mut String) -> Result<(), Error> {
    let mut cuda = Cuda::open(0)?;
    cuda.patience = Duration::from_millis(30);
    *out += &format!("{}\n", cuda.info());
    if let Ok(mut buffer) = cuda.allocate("numbers", 20_000) {
        let numbers: Vec<u8> = (0..20_000).map(|i| (i % 251) as u8).collect();
        cuda.write(&mut buffer, 0, &numbers)?;
        let pending =
            [(3, 2), (250, 3), (251, 9000)].map(|(at, n)| cuda.read_later(&buffer, at, n));
        for pending in pending {
            let bytes = cuda.arrived(pending?)?;
            *out += &format!("arrived {} {:?}\n", bytes.len(), &bytes[..2]);
        }
        // A ring: in the end the first are as good as the last.
        for i in 0..20u8 {
            let pending = cuda.read_later(&buffer, i.into(), 1)?;
            assert_eq!(cuda.arrived(pending)?, [i]);
        }
        assert!(cuda.read_later(&buffer, 19_999, 2).is_err(), "outside");
    }
    let mut manifest = sample::gpu_manifest();
    let code = image::tests::sample();
    let gpu = manifest.plans[0].gpu.as_mut().expect("a GPU plan");
    for kernel in &mut gpu.kernels {
        kernel.code = (0, code.len() as u64);
    }
    let grid = &mut manifest.plans[0].programs[3].launches[0].grid;
    grid.as_mut().expect("a grid").shared_bytes = 100_000;
    let sections = Sections {
        weights: &sample::WEIGHTS,
        code: &code,
        source: sample::SOURCE,
    };
    let mut device = GpuDevice::from_sections(&manifest, 0, sections, cuda)?;
    let mut kv = KvCache::new(&manifest.plans[0].kv, 3);
    let slot = kv.acquire_slot().expect("a slot");
    kv.ensure(slot, 40)?;
    let trunk = StepInput {
        tokens: &[3, 5],
        positions: &[0, 1],
        slots: &[slot, slot],
        logit_rows: &[],
        follows: &[],
        kv: &kv,
    };
    let head = StepInput {
        logit_rows: &[1, 0],
        ..trunk
    };
    for timed in [false, true] {
        device.set_timing(timed)?;
        let ran = device.run(1, &trunk).and_then(|()| device.run(4, &head));
        if let Err(error) = ran.and_then(|()| device.finish()) {
            *out += &format!("{error}\n");
            return device.run(1, &trunk);
        }
        // From another thread, whose current context is nobody's.
        let row = std::thread::scope(|scope| {
            let read = scope.spawn(|| device.logits(0).map(|row| row[..3].to_vec()));
            read.join().expect("no panic")
        })?;
        *out += &format!("logits {row:?}\n");
    }
    let calls = |t: &crate::device::Timeline| t.workers[0].calls.clone();
    let calls: Vec<_> = device.take_timelines().iter().map(calls).collect();
    *out += &format!("times {calls:?}\n");
    let bandwidth = device.read_bandwidth()?;
    *out += &format!("bandwidth {}\n", bandwidth.is_some_and(|b| b > 1e9));
    Ok(())
}

/// What a process with the stand-in in `folder` says under `environment`, and what the stand-in was asked.
fn process(folder: &Path, environment: &[(&str, &str)]) -> (String, String) {
    let log = folder.join("log");
    let _ = std::fs::remove_file(&log);
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", SELF, "--nocapture"])
        .env(INSIDE, "1")
        .env("LD_LIBRARY_PATH", folder)
        .env("FAKE_CUDA_LOG", &log)
        .env_remove("COLDPRESS_CUDA_SYNC")
        .envs(environment.iter().copied())
        .output()
        .expect("starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{environment:?}: {text}");
    (text, std::fs::read_to_string(log).unwrap_or_default())
}

#[test]
fn everything_up_to_the_drivers_door() {
    if std::env::var_os(INSIDE).is_some() {
        let mut out = String::new();
        if let Err(error) = run(&mut out) {
            out += &format!("{error}\nexit code {}\n", error.exit_code());
        }
        return println!("{out}");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/device/cuda/tests/driver.c"
    );
    // Rust links with it, so it is there.
    let compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-o"])
        .arg(folder.path().join("libcuda.so.1"))
        .arg(source)
        .output();
    let compiler = compiler.expect("a C compiler");
    assert!(compiler.status.success(), "{:?}", compiler);

    let (text, log) = process(folder.path(), &[]);
    for wanted in [
        "Stand-in 0: compute capability 9.0, 4 multiprocessors, 0.5 GiB",
        "logits [5.0, 12.0, 19.0]\nlogits [5.0, 12.0, 19.0]\n",
        "times [[(0, 0.001)], [(1, 0.001), (2, 0.001)]]",
        "bandwidth true",
        "arrived 2 [3, 4]\narrived 3 [250, 0]\narrived 9000 [0, 1]\n",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    for (wanted, count) in [
        // Captured: each bucket's head once with its early start, and once apart for the times.
        ("recorded head on 1,1,1 of 128 with 0, attribute 6: 1\n", 1),
        ("recorded head on 2,1,1 of 128 with 0, attribute 6: 1\n", 1),
        ("recorded head on 2,1,1 of 128 with 0\n", 1),
        ("recorded gather on 1,1,1 of 64 with 100000\n", 1),
        ("attribute 8 of gather is 100000\n", 1),
        ("recorded embed", 4),
        ("ran embed\nran gather\nran head\n", 1),
        // The sample's kernels share a module; the other is the bandwidth's.
        ("unloaded\n", 2),
        ("destroyed\n", 7),
        ("released 0\n", 1),
    ] {
        assert_eq!(log.matches(wanted).count(), count, "{wanted}: {log}");
    }

    let cases: &[Case] = &[
        (
            &[("FAKE_CUDA_FAILS", "gather")],
            &[
                "CUDA_ERROR_ILLEGAL_ADDRESS",
                "COLDPRESS_CUDA_SYNC=1",
                "exit code 1",
            ],
        ),
        (
            &[("FAKE_CUDA_FAILS", "head"), ("COLDPRESS_CUDA_SYNC", "1")],
            &[
                "launch 1, output (head): CUDA_ERROR_ILLEGAL",
                "cannot be used",
            ],
        ),
        (
            &[("FAKE_CUDA_HANGS", "embed")],
            &["no answer for 0.03 seconds"],
        ),
        (
            &[("FAKE_CUDA_PARAMETERS", "head")],
            &["output: kernel head takes 8 bytes of parameters, 40 are given"],
        ),
        (
            &[("FAKE_CUDA_THREADS", "100")],
            &["kernel head: 128 threads are too many"],
        ),
        (
            &[("FAKE_CUDA_MIB", "0")],
            &["GiB for the weights", "Stand-in 0", "exit code 5"],
        ),
        (
            &[("FAKE_CUDA_VERSION", "12080")],
            &["CUDA 12.8; install driver 580"],
        ),
        (&[("FAKE_CUDA_INIT", "100")], &["sees no GPU"]),
        (&[("FAKE_CUDA_COUNT", "0")], &["sees no GPU"]),
        (
            &[("FAKE_CUDA_INIT", "304")],
            &["does not start: CUDA_ERROR: something else"],
        ),
    ];
    for (environment, wanted) in cases {
        let (text, log) = process(folder.path(), environment);
        for wanted in *wanted {
            assert!(text.contains(wanted), "{environment:?}, {wanted}: {text}");
        }
        // What does not answer is not waited for again.
        let broken = text.contains("cannot be used");
        assert!(
            !(broken && log.contains("released")),
            "{environment:?}: {log}"
        );
    }
    let (_, log) = process(folder.path(), &[("FAKE_CUDA_CAPABILITY", "80")]);
    assert!(
        log.contains("recorded head") && !log.contains("attribute 6"),
        "{log}"
    );
}
