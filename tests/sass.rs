//! What the inspection of machine code counts, against kernels whose instructions are known: written in PTX that is not
//! merged or moved, on every architecture. Needs NVRTC, as `nvrtc` says.

use crate::nvrtc::{ARCHITECTURES, nvrtc};
use coldpress_compiler::codegen::cuda::sass::{Counts, Inspection, Loads};

/// Loads of every width. In the loop, 1 of 8, 1 of 16, 2 of 32, 2 of 64 and 3 of 128 bits, and one that may be of any memory.
const LOADS: &str = r#"
#define LOAD1(kind, at) asm volatile("ld." kind " %0, [%1];" : "=r"(a) : "l"(from + at)); sum += a
#define LOAD2(kind, at) asm volatile("ld." kind ".v2.u32 {%0, %1}, [%2];" : "=r"(a), "=r"(b) : "l"(from + at)); sum += a ^ b
#define LOAD4(kind, at) asm volatile("ld." kind ".v4.u32 {%0, %1, %2, %3}, [%4];" \
    : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "l"(from + at)); sum += a ^ b ^ c ^ d
extern "C" __global__ void loads(const char* from, unsigned* to, int n) {
    unsigned a, b, c, d, sum = 0;
    LOAD4("global.nc", 16);
#pragma unroll 1
    for (int i = 0; i < n; i++, from += 4096) {
        LOAD1("global.u8", 1);
        LOAD1("global.s16", 2);
        LOAD1("global.nc.u32", 4);
        LOAD1("volatile.global.u32", 8);
        LOAD2("global", 16);
        LOAD2("global.nc.L1::no_allocate", 24);
        LOAD4("global", 32);
        LOAD4("global.nc", 48);
        LOAD4("global.nc.L1::no_allocate", 64);
        LOAD1("u32", 80);
    }
    to[threadIdx.x] = sum;
}
"#;

/// Copies of 4, 8 and twice 16 bytes into shared memory, in a loop that a loop surrounds.
const COPIES: &str = r#"
#define COPY(kind, at, bytes) asm volatile("cp.async." kind ".shared.global [%0], [%1], " #bytes ";" :: "r"(tile + at), "l"(from + at))
extern "C" __global__ void copies(const char* from, unsigned* to, int n, int m) {
    __shared__ alignas(16) unsigned values[2048];
    unsigned tile = (unsigned)__cvta_generic_to_shared(values), sum = 0;
#pragma unroll 1
    for (int j = 0; j < m; j++) {
#pragma unroll 1
        for (int i = 0; i < n; i++, from += 4096) {
            COPY("ca", 0, 4);
            COPY("ca", 16, 8);
            COPY("ca", 32, 16);
            COPY("cg", 48, 16);
            asm volatile("cp.async.wait_all;" ::: "memory");
        }
        __syncthreads();
        sum += values[threadIdx.x] * sum + j;
        __syncthreads();
    }
    to[threadIdx.x] = sum;
}
"#;

/// A bulk copy per pass, with a wait for it inside the loop.
const BULK: &str = r#"
extern "C" __global__ void bulk(const char* from, unsigned* to, int n) {
    __shared__ alignas(128) unsigned values[1024];
    __shared__ unsigned long long barrier;
    unsigned tile = (unsigned)__cvta_generic_to_shared(values), at = (unsigned)__cvta_generic_to_shared(&barrier), sum = 0;
    if (threadIdx.x == 0) asm volatile("mbarrier.init.shared.b64 [%0], 1;" :: "r"(at));
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < n; i++) {
        if (threadIdx.x == 0) {
            asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], 4096;" :: "r"(at));
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 4096, [%2];"
                :: "r"(tile), "l"(from + i * 4096), "r"(at) : "memory");
        }
        asm volatile("{ .reg .pred p; wait: mbarrier.try_wait.parity.shared.b64 p, [%0], %1; @!p bra wait; }"
            :: "r"(at), "r"(i & 1) : "memory");
        sum += values[threadIdx.x];
        __syncthreads();
    }
    to[threadIdx.x] = sum;
}
"#;

/// `PRODUCTS` in a loop, over registers that hold anything.
const PRODUCTS: &str = r#"
extern "C" __global__ void products(const unsigned* from, int* to, int n) {
    unsigned a[4], b[2];
    int c[4] = {};
    float f[4] = {};
    for (int i = 0; i < 4; i++) a[i] = from[threadIdx.x + 32 * i];
    for (int i = 0; i < 2; i++) b[i] = from[threadIdx.x + 128 + 32 * i];
#pragma unroll 1
    for (int i = 0; i < n; i++) {
        PRODUCTS
    }
    for (int i = 0; i < 4; i++) to[threadIdx.x + 32 * i] = c[i] + (int)f[i];
}
"#;

const DOT: &str = r#"
asm volatile("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(c[0]) : "r"(a[0]), "r"(b[0]));
asm volatile("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(c[1]) : "r"(a[1]), "r"(b[1]));
"#;
const MMA_TURING: &str = r#"
asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};" : "+r"(c[0]), "+r"(c[1]) : "r"(a[0]), "r"(b[0]));
asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
    : "+f"(f[0]), "+f"(f[1]), "+f"(f[2]), "+f"(f[3]) : "r"(a[0]), "r"(a[1]), "r"(b[0]));
"#;
const MMA_AMPERE: &str = r#"
#define INPUTS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])
asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
    : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : INPUTS);
asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
    : "+f"(f[0]), "+f"(f[1]), "+f"(f[2]), "+f"(f[3]) : INPUTS);
asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
    : "+f"(f[0]), "+f"(f[1]), "+f"(f[2]), "+f"(f[3]) : INPUTS);
"#;
const WGMMA: &str = r#"
asm volatile("wgmma.fence.sync.aligned;");
asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, 1, 1, 1, 0;"
    : "+f"(f[0]), "+f"(f[1]), "+f"(f[2]), "+f"(f[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"((unsigned long long)i));
asm volatile("wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {%0, %1, %2, %3}, %4, %4, 1;"
    : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "l"((unsigned long long)i));
asm volatile("wgmma.commit_group.sync.aligned;");
asm volatile("wgmma.wait_group.sync.aligned 0;");
"#;

/// An array that is indexed by data lives in local memory.
const LOCAL: &str = r#"
extern "C" __global__ void local(int* x, int n) {
    int counts[64] = {};
#pragma unroll 1
    for (int i = 0; i < n; i++) counts[x[i] & 63] += i;
    x[n] = counts[x[n + 1] & 63];
}
"#;

/// The counts of kernel `name`, and those of its main loop; `None` without NVRTC.
fn inspect(name: &str, source: &str, arch: &str) -> Option<(Counts, Counts)> {
    let cubin = nvrtc()?.compile(name, source, arch).expect(arch);
    let found = Inspection::of(&cubin.bytes, name, arch).expect(arch);
    let main = found.main_loop().expect(arch).counts;
    assert_eq!(
        found.loop_instructions(),
        main.instructions,
        "{name} {arch}"
    );
    assert!(
        main.instructions < found.total.instructions,
        "{name} {arch}"
    );
    let longest = found.loops.iter().map(|l| l.counts.instructions).max();
    assert!(Some(main.instructions) <= longest, "{name} {arch}");
    Some((found.total, main))
}

/// The number of an architecture.
fn sm(arch: &str) -> u32 {
    let digits = arch.trim_matches(|c: char| !c.is_ascii_digit());
    digits.parse().expect(arch)
}

#[test]
fn loads_are_counted_by_width() {
    for arch in ARCHITECTURES {
        let Some((total, main)) = inspect("loads", LOADS, arch) else {
            return;
        };
        let loads = Loads {
            narrow: 2,
            w32: 2,
            w64: 2,
            w128: 3,
            generic: 1,
            ..Loads::default()
        };
        assert_eq!(main.loads, loads, "{arch}");
        assert_eq!(total.loads, Loads { w128: 4, ..loads }, "{arch}");
        assert_eq!((main.tensor, main.dot, main.local), (0, 0, 0), "{arch}");
    }
}

#[test]
fn copies_to_shared_memory_are_loads_and_the_inner_loop_is_the_main_one() {
    for arch in ARCHITECTURES.iter().filter(|a| sm(a) >= 80) {
        let Some((total, main)) = inspect("copies", COPIES, arch) else {
            return;
        };
        let loads = Loads {
            w32: 1,
            w64: 1,
            w128: 2,
            ..Loads::default()
        };
        assert_eq!((main.loads, total.loads), (loads, loads), "{arch}");
        // The loop around it has two block barriers and a product besides.
        assert!(main.instructions < total.instructions - 8, "{arch}");
    }
}

#[test]
fn bulk_copies_are_loads_and_a_wait_is_no_main_loop() {
    for arch in ARCHITECTURES.iter().filter(|a| sm(a) >= 90) {
        let Some((total, main)) = inspect("bulk", BULK, arch) else {
            return;
        };
        assert_eq!((main.loads.bulk, main.loads.all()), (1, 1), "{arch}");
        assert_eq!(total.loads, main.loads, "{arch}");
    }
}

#[test]
fn products_are_counted() {
    for arch in ARCHITECTURES {
        for (products, oldest, newest, tensor, dot) in [
            (DOT, 75, 120, 0, 2),
            (MMA_TURING, 75, 90, 2, 0),
            (MMA_AMPERE, 80, 120, 3, 0),
            (WGMMA, 90, 90, 2, 0),
        ] {
            if !(oldest..=newest).contains(&sm(arch)) {
                continue;
            }
            let source = PRODUCTS.replace("PRODUCTS", products);
            let Some((total, main)) = inspect("products", &source, arch) else {
                return;
            };
            assert_eq!((main.tensor, main.dot), (tensor, dot), "{arch}:{products}");
            assert_eq!(
                (total.tensor, total.dot),
                (tensor, dot),
                "{arch}:{products}"
            );
            assert_eq!(total.local, 0, "{arch}:{products}");
        }
    }
}

#[test]
fn local_memory_is_counted() {
    for arch in ARCHITECTURES {
        let Some((total, main)) = inspect("local", LOCAL, arch) else {
            return;
        };
        assert_eq!(main.local, 2, "{arch}: one load, one store");
        // Besides, clearing takes at least a 128-bit store per four elements.
        assert!(total.local > 64 / 4 + 2, "{arch}: {total:?}");
    }
}
