//! CUDA source to cubins, for every architecture there is a template for. Needs NVRTC: taken from this machine, or installed
//! once below the build folder. Without both the tests say they were skipped, and fail in CI.

use crate::wheel;
use coldpress_compiler::codegen::cuda::cache::Cache;
use coldpress_compiler::codegen::cuda::nvrtc::{INSTALL, Nvrtc};
use coldpress_compiler::codegen::cuda::resources::{Resources, Use};
use coldpress_compiler::codegen::cuda::sass::Inspection;
use coldpress_compiler::target::cuda::PRESETS;
use std::fs;
use std::sync::OnceLock;

/// Every architecture that kernels are compiled for.
pub const ARCHITECTURES: &[&str] = &[
    "sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120",
];

/// This machine's NVRTC, or the PyPI wheel's; `None` (after saying so) when there is neither, except in CI where that is a
/// failure.
pub fn nvrtc() -> Option<&'static Nvrtc> {
    static FOUND: OnceLock<Result<Nvrtc, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        Nvrtc::find().or_else(|absent| {
            let package = INSTALL.split_whitespace().last().expect("a package");
            let file = wheel::file(package, "nvidia/cu13/lib/libnvrtc.so.13");
            let file = file.map_err(|e| format!("{absent}; installing it: {e}"))?;
            Nvrtc::open(&file).map_err(|e| e.to_string())
        })
    });
    wheel::or_skip(found.as_ref().map_err(Clone::clone))
}

/// Copies 16 bytes per thread through shared memory.
const COPY: &str = r#"
struct alignas(16) Quad { unsigned x, y, z, w; };
extern "C" __global__ void __launch_bounds__(128) copy(const Quad* from, Quad* to) {
    __shared__ Quad tile[128];
    tile[threadIdx.x] = from[threadIdx.x];
    __syncthreads();
    to[threadIdx.x] = tile[threadIdx.x ^ 1];
}
"#;

/// Keeps 160 values alive in a thread that may have 32 registers.
const SPILL: &str = r#"
extern "C" __global__ void __launch_bounds__(1024, 2) spill(float* x, int n) {
    float v[160];
#pragma unroll
    for (int i = 0; i < 160; i++) v[i] = x[i * n];
    for (int j = 0; j < n; j++)
#pragma unroll
        for (int i = 0; i < 160; i++) v[i] = v[i] * x[j] + v[(i + 1) % 160];
#pragma unroll
    for (int i = 0; i < 160; i++) x[i * n] = v[i];
}
"#;

#[test]
fn every_architecture_compiles_to_the_same_bytes_twice() {
    let Some(nvrtc) = nvrtc() else { return };
    assert!(nvrtc.version() >= (12, 0));
    for arch in ARCHITECTURES {
        let first = nvrtc.compile("copy", COPY, arch).expect(arch);
        assert_eq!(&first.bytes[..4], b"\x7fELF");
        assert_eq!(first.static_shared, 128 * 16, "{arch}");
        assert!((4..=32).contains(&first.registers), "{arch}: {first:?}");
        assert_eq!((first.spill_bytes, first.stack_bytes), (0, 0), "{arch}");
        assert!(first.constant_bytes >= 16, "{arch}: the two pointers");
        assert!(first.warnings.is_empty(), "{arch}: {:?}", first.warnings);
        let second = nvrtc.compile("copy", COPY, arch).expect(arch);
        assert!(first == second, "{arch}: other bytes the second time");
    }
}

#[test]
fn spills_are_reported() {
    let Some(nvrtc) = nvrtc() else { return };
    for arch in ["sm_80", "sm_90a"] {
        let cubin = nvrtc.compile("spill", SPILL, arch).expect(arch);
        assert_eq!(cubin.registers, 32, "{arch}");
        assert!(cubin.spill_bytes >= 2 * 4 * 100, "{arch}: {cubin:?}");
        assert!(cubin.stack_bytes >= 4 * 100, "{arch}: {cubin:?}");
    }
}

#[test]
fn sums_of_products_are_fused_only_on_request() {
    let Some(nvrtc) = nvrtc() else { return };
    let kernel =
        |sum: &str| format!("extern \"C\" __global__ void k(float* x) {{ x[0] = {sum}; }}");
    let [plain, fused, split] = [
        "x[1] * x[2] + x[3]",
        "__fmaf_rn(x[1], x[2], x[3])",
        "__fadd_rn(__fmul_rn(x[1], x[2]), x[3])",
    ]
    .map(|sum| nvrtc.compile("k", &kernel(sum), "sm_80").expect(sum).bytes);
    assert!(plain == split, "two roundings where the source has two");
    assert!(plain != fused);
}

#[test]
fn many_compile_at_once_in_order() {
    let Some(nvrtc) = nvrtc() else { return };
    let kernels: Vec<(String, String)> = (0..6)
        .map(|i| {
            (
                format!("copy{i}"),
                COPY.replace("128", &(32 << i).to_string()),
            )
        })
        .collect();
    let mut told = 0;
    let cubins = nvrtc
        .compile_all(&kernels, "sm_90a", 3, || told += 1)
        .expect("compiles");
    assert_eq!(told, kernels.len());
    for (i, cubin) in cubins.iter().enumerate() {
        assert_eq!(cubin.static_shared, 16 * (32 << i));
        let (name, source) = &kernels[i];
        let alone = nvrtc.compile(name, source, "sm_90a").expect("compiles");
        assert!(*cubin == alone, "{name}: other bytes in company");
    }
}

#[test]
fn failures_name_the_kernel_and_the_first_error() {
    let Some(nvrtc) = nvrtc() else { return };
    for (source, says) in [
        (
            COPY.replace("tile[threadIdx.x] =", "tale[threadIdx.x] ="),
            "tale",
        ),
        (
            COPY.replace("__syncthreads()", "asm(\"nonsense;\")"),
            "nonsense",
        ),
        ("\0".to_string(), "NUL"),
    ] {
        let error = nvrtc.compile("copy_n8", &source, "sm_86").expect_err(says);
        assert_eq!(error.exit_code(), 1);
        let text = error.to_string();
        assert!(text.contains("copy_n8") && text.contains("sm_86"), "{text}");
        assert!(text.contains(says), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    let error = nvrtc.compile("copy", COPY, "sm_20").expect_err("too old");
    assert_eq!(error.exit_code(), 7);
    assert!(error.to_string().contains("sm_20"), "{error}");
}

#[test]
fn a_library_opens_by_its_path() {
    let Some(nvrtc) = nvrtc() else { return };
    if nvrtc.path().is_absolute() {
        let found = Nvrtc::open(nvrtc.path()).expect("opens again");
        assert_eq!(found.version(), nvrtc.version());
    }
}

#[test]
fn the_cache_gives_what_the_compiler_gave() {
    let Some(nvrtc) = nvrtc() else { return };
    let folder = tempfile::tempdir().expect("folder");
    let cache = Cache::new(folder.path().join("cubins"));
    let kernels = [("copy", COPY), ("spill", SPILL)].map(|(n, s)| (n.to_string(), s.to_string()));
    let compile = || cache.compile_all(nvrtc, &kernels, "sm_89", 2, || ());
    let first = compile().expect("compiles");
    assert_eq!(
        fs::read_dir(folder.path().join("cubins"))
            .expect("folder")
            .count(),
        2
    );
    assert!(first == compile().expect("reads"));
    assert!(
        first
            == nvrtc
                .compile_all(&kernels, "sm_89", 1, || ())
                .expect("compiles")
    );
}

#[test]
fn what_a_kernel_takes_is_known_for_every_target() {
    let Some(nvrtc) = nvrtc() else { return };
    for target in PRESETS {
        let (name, arch) = (target.name, target.arch);
        for (kernel, source, threads, sound) in
            [("copy", COPY, 128, true), ("spill", SPILL, 1024, false)]
        {
            let cubin = nvrtc.compile(kernel, source, arch).expect(name);
            let found = Inspection::of(&cubin.bytes, kernel, arch).expect(name);
            let launch = Use {
                threads,
                dynamic_shared: 0,
                weights: threads,
                kernels: 1,
                weight_bytes: 4.0,
            };
            let resources = Resources::of(&cubin, &found, target, launch);
            assert!(resources.occupancy.blocks > 0, "{name}: {resources}");
            assert_eq!(resources.faults().is_empty(), sound, "{name}: {resources}");
            // Copying has no loop, and reads and writes once.
            assert_eq!(resources.issue.is_none(), sound, "{name}: {resources}");
            let loads = found.total.loads;
            assert!(
                !sound || (loads.w128, loads.all()) == (1, 1),
                "{name}: {loads:?}"
            );
        }
    }
}
