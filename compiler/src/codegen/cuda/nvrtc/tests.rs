//! Searching, reading logs and spreading work: what needs no NVRTC. Compiling itself is tested in `tests/nvrtc.rs`.

use super::find::{Places, find};
use super::*;
use crate::codegen::cuda::elf::tests::file;
use std::fs;

#[test]
fn absent_means_one_line_that_says_what_to_do() {
    let error = find(&Places::default()).expect_err("nowhere to look");
    assert_eq!(error.exit_code(), 7);
    let text = error.to_string();
    assert!(
        text.contains(INSTALL) && text.contains("CUDA_HOME"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn an_explicit_path_is_the_only_one_tried() {
    let folder = tempfile::tempdir().expect("folder");
    for (path, says) in [
        (folder.path().join("libnvrtc.so"), "libnvrtc.so"),
        (folder.path().to_path_buf(), "no libnvrtc.so.13"),
    ] {
        let places = Places {
            explicit: Some(path.clone()),
            ..Places::here()
        };
        let error = find(&places).expect_err("nothing there");
        assert_eq!(error.exit_code(), 7);
        let text = error.to_string();
        assert!(
            text.contains("COLDPRESS_NVRTC") && text.contains(says),
            "{text}"
        );
    }
}

#[test]
fn every_kind_of_folder_is_searched() {
    let folder = tempfile::tempdir().expect("folder");
    let toolkit = |root: PathBuf| Places {
        toolkits: vec![root],
        ..Places::default()
    };
    let environment = |root: PathBuf| Places {
        environments: vec![root],
        ..Places::default()
    };
    for (index, (below, places)) in [
        (
            "lib64/libnvrtc.so.12",
            &toolkit as &dyn Fn(PathBuf) -> Places,
        ),
        ("lib/libnvrtc.so", &toolkit),
        ("targets/sbsa-linux/lib/libnvrtc.so.13", &toolkit),
        (
            "lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            &environment,
        ),
        (
            "lib64/python3.9/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            &environment,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let root = folder.path().join(index.to_string());
        let file = root.join(below);
        fs::create_dir_all(file.parent().expect("parent")).expect("folders");
        fs::write(&file, "no library").expect("written");
        let text = find(&places(root)).expect_err("no library").to_string();
        assert!(text.contains(file.to_str().expect("UTF-8")), "{text}");
        assert!(text.contains("unusable"), "{text}");
    }
}

#[test]
fn other_libraries_are_refused() {
    let Some(other) = ["libm.so.6", "libSystem.dylib"]
        .into_iter()
        .find(|name| find::open(Path::new(name)).is_err_and(|e| e.contains("not NVRTC")))
    else {
        panic!("no library of the system loads");
    };
    let error = Nvrtc::open(Path::new(other)).expect_err("not NVRTC");
    assert_eq!(error.exit_code(), 7);
}

/// Logs of CUDA 12 and 13.
const LOGS: [&str; 2] = [
    "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_90a'
ptxas info    : Function properties for k
    24 bytes stack frame, 16 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size, 400 bytes smem, 384 bytes cmem[0]
",
    "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to x in function 'k'
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_90a'
ptxas info    : Function properties for k
ptxas         .     24 bytes stack frame, 16 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 400 bytes smem
ptxas info    : Compile time = 33.230 ms
",
];

#[test]
fn logs_give_the_resources() {
    let cubin = file(&[(".nv.constant0.k", &[0; 548]), (".text.k", &[0; 16])]);
    for (log, warnings) in LOGS.iter().zip([0, 1]) {
        let found = resources(cubin.clone(), log).expect("reads");
        assert_eq!(found.registers, 255);
        assert_eq!(found.spill_bytes, 56);
        assert_eq!(found.static_shared, 400);
        assert_eq!(found.constant_bytes, 548);
        assert_eq!(found.stack_bytes, 24);
        assert_eq!(found.warnings.len(), warnings);
    }
    assert!(resources(cubin, "ptxas info : nothing").is_err());
}

#[test]
fn functions_that_were_not_inlined_count() {
    let log = format!("{}{}", LOGS[0], LOGS[1].replace("255", "40"));
    let found = resources(file(&[]), &log).expect("reads");
    assert_eq!((found.registers, found.spill_bytes), (255, 112));
}

#[test]
fn the_first_error_is_told() {
    let log = "k.cu(3): warning #177-D: unused\n\nk.cu(1): error: identifier \"q\" is undefined\n  ^\n1 error detected";
    assert_eq!(
        first_error(log),
        "k.cu(1): error: identifier \"q\" is undefined"
    );
    assert_eq!(first_error("out of luck\n"), "out of luck");
}

fn kernels(count: usize) -> Vec<(String, String)> {
    (0..count)
        .map(|i| (format!("k{i}"), String::new()))
        .collect()
}

fn cubin(registers: u32) -> Cubin {
    Cubin {
        bytes: vec![],
        registers,
        spill_bytes: 0,
        static_shared: 0,
        constant_bytes: 0,
        stack_bytes: 0,
        warnings: vec![],
    }
}

#[test]
fn results_are_in_order_whatever_the_threads() {
    let number = |name: &str| name[1..].parse::<u32>().expect("number");
    for (count, threads) in [(0, 4), (1, 1), (20, 1), (20, 3), (3, 50), (5, 0)] {
        let mut told = 0;
        let done = spread(
            &kernels(count),
            threads,
            || told += 1,
            |name, _| Ok(cubin(number(name))),
        )
        .expect("compiles");
        assert_eq!(told, count);
        let order: Vec<u32> = done.iter().map(|c| c.registers).collect();
        assert_eq!(order, (0..count as u32).collect::<Vec<_>>());
    }
}

#[test]
fn the_first_failure_in_order_is_told_and_the_rest_left() {
    for threads in [1, 4] {
        let started = AtomicUsize::new(0);
        let error = spread(
            &kernels(1000),
            threads,
            || (),
            |name, _| {
                started.fetch_add(1, Ordering::Relaxed);
                match name {
                    "k5" | "k6" | "k7" => Err(Error::Internal(name.into())),
                    _ => Ok(cubin(0)),
                }
            },
        )
        .expect_err("fails");
        assert!(error.to_string().contains("k5"), "{error}");
        if threads == 1 {
            assert_eq!(started.into_inner(), 6);
        }
    }
}
