// Everything that names the hardware: types, geometry, shared memory, collectives, tensor cores, asynchronous copies.
// Kernels are written in these names alone; tests/simt/intrinsics.hpp has the same names for the CPU. A name that some
// architectures lack compiles on all of them and fails where it is used on one of those.

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef short i16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;
typedef float f32;

// IEEE half as its bits.
struct f16 { u16 bits; };
struct alignas(8) U2 { u32 x, y; };
struct alignas(16) U4 { u32 x, y, z, w; };
struct alignas(8) F2 { f32 x, y; };
struct alignas(16) F4 { f32 x, y, z, w; };

// A number among a kernel's parameters, each of which has 8 bytes: the value is in the low half.
template <typename T>
struct alignas(8) Arg {
    T value;
    u32 unused;
    __device__ __forceinline__ operator T() const { return value; }
};
template <>
struct alignas(8) Arg<u64> {
    u64 value;
    __device__ __forceinline__ operator u64() const { return value; }
};

// A function that kernels call; a table of constants.
#define DEVICE __device__ __forceinline__
#define CONSTANT __device__ constexpr
// A number that the compiler knows.
#define FIXED constexpr
// Where that lies to which a pointer or reference leads, for languages that must be told: memory of the device, of the
// thread block, of the thread, a kernel's parameters.
#define GLOBAL
#define SHARED
#define LOCAL
#define ARGUMENTS
// Functions after it may ask which thread runs them, for languages in which others cannot.
#define PLACED
// KERNEL(name, threads, Params) { ... p.field ... }
#define KERNEL(NAME, THREADS, PARAMS) \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const __grid_constant__ PARAMS p)
// The same with registers for BLOCKS thread blocks on a multiprocessor: as many as that allows, but no more.
#define KERNEL_RESIDENT(NAME, THREADS, BLOCKS, PARAMS) \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(const __grid_constant__ PARAMS p)

// 750, 800, 860, 890, 900, 1000, 1200.
constexpr int SM_ARCH = __CUDA_ARCH__;
// Whether wgmma exists (sm_90a).
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool HAS_WGMMA = true;
#else
constexpr bool HAS_WGMMA = false;
#endif
// Fails at use, not at definition.
template <int>
constexpr bool WGMMA = HAS_WGMMA;

// ---- Geometry. Thread blocks and warps are numbered along x alone.

DEVICE u32 thread_x() { return threadIdx.x; }
DEVICE u32 lane() { return threadIdx.x & 31; }
DEVICE u32 warp() { return threadIdx.x >> 5; }
DEVICE u32 block_x() { return blockIdx.x; }
DEVICE u32 block_y() { return blockIdx.y; }
DEVICE u32 block_z() { return blockIdx.z; }
DEVICE u32 grid_x() { return gridDim.x; }
DEVICE u32 grid_y() { return gridDim.y; }
DEVICE u32 grid_z() { return gridDim.z; }
DEVICE u32 block_threads() { return blockDim.x; }

// ---- Shared memory: as many bytes as the launch asks for, aligned to 128, holding anything.

extern __shared__ __align__(128) u8 dynamic_shared[];
template <typename T>
DEVICE T* shared() { return reinterpret_cast<T*>(dynamic_shared); }
// Address in the shared window.
DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

// ---- Barriers. All threads of the block, of the warp, or `threads` threads (whole warps) that name barrier `id` of 1..15.

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE void sync_named(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// Counts as one of the barrier's threads and goes on.
DEVICE void arrive_named(u32 id, u32 threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// ---- Values of other lanes. All 32 lanes of the warp take part.

template <typename T>
DEVICE T shuffle(T v, u32 from) { return __shfl_sync(~0u, v, static_cast<int>(from)); }
template <typename T>
DEVICE T shuffle_xor(T v, u32 mask) { return __shfl_xor_sync(~0u, v, static_cast<int>(mask)); }
// The value of lane + d; lanes without one keep theirs.
template <typename T>
DEVICE T shuffle_down(T v, u32 d) { return __shfl_down_sync(~0u, v, d); }
DEVICE u32 ballot(bool p) { return __ballot_sync(~0u, p); }
// The number of the lowest bit that is set; one is.
DEVICE u32 lowest_bit(u32 v) { return static_cast<u32>(__ffs(static_cast<int>(v))) - 1; }
// The same value, which the compiler does not know and so keeps in a register instead of computing it again. All lanes.
DEVICE u32 keep(u32 v) {
    u32 r;
    asm volatile("shfl.sync.idx.b32 %0, %1, %2, 31, 0xffffffff;" : "=r"(r) : "r"(v), "r"(lane()));
    return r;
}

// ---- Memory.

// Loads of what nobody writes and nobody reads again: past L1.
DEVICE U4 load_stream(const U4* p) {
    U4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
DEVICE U2 load_stream(const U2* p) {
    U2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
DEVICE u32 load_stream(const u32* p) {
    u32 v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
// Asks for the line of `p` without waiting for it.
DEVICE void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
// A load that sees what other thread blocks wrote before their fence.
DEVICE u32 load_volatile(const u32* p) { return *static_cast<const volatile u32*>(p); }
// What this thread wrote is seen by the device before what it writes after.
DEVICE void fence_device() { __threadfence(); }
DEVICE u32 atomic_add(u32* p, u32 v) { return atomicAdd(p, v); }

// ---- Asynchronous copies of 16 bytes (both sides aligned to 16), in groups of one thread. Below sm_80 they copy at once.

DEVICE void copy_async_16(void* to, const void* from) {
    if constexpr (SM_ARCH >= 800)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
    else
        *static_cast<U4*>(to) = *static_cast<const U4*>(from);
}
// Closes the group of copies issued since the last commit.
DEVICE void copy_async_commit() {
    if constexpr (SM_ARCH >= 800) asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most N of this thread's groups are under way. Other threads see the bytes after a barrier.
template <u32 N>
DEVICE void copy_async_wait() {
    if constexpr (SM_ARCH >= 800) asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- Barriers in shared memory and bulk copies, from sm_90. A barrier's phase ends when `count` arrivals have been made
// and all bytes expected in it have come; the first phase has parity 0.

// One thread; then a sync_block before anyone uses the barrier.
template <int A = SM_ARCH>
DEVICE void barrier_init(u64* barrier, u32 count) {
    static_assert(A >= 900, "barrier_init needs sm_90");
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Arrives, and makes the phase wait for `bytes` more.
template <int A = SM_ARCH>
DEVICE void barrier_expect(u64* barrier, u32 bytes) {
    static_assert(A >= 900, "barrier_expect needs sm_90");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
template <int A = SM_ARCH>
DEVICE void barrier_arrive(u64* barrier) {
    static_assert(A >= 900, "barrier_arrive needs sm_90");
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Waits for the end of the phase with this parity.
template <int A = SM_ARCH>
DEVICE void barrier_wait(u64* barrier, u32 parity) {
    static_assert(A >= 900, "barrier_wait needs sm_90");
    asm volatile(
        "{\n.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}
// One thread starts it; addresses and bytes are multiples of 16. The bytes count towards what the barrier expects.
template <int A = SM_ARCH>
DEVICE void copy_bulk(void* to, const void* from, u32 bytes, u64* barrier) {
    static_assert(A >= 900, "copy_bulk needs sm_90");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}
// Before a bulk copy or wgmma touches shared memory that this thread wrote in the ordinary way; a barrier comes
// between this and the thread that starts it.
template <int A = SM_ARCH>
DEVICE void fence_async() {
    static_assert(A >= 900, "fence_async needs sm_90");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- Dependent launches; below sm_90 launches do not overlap.

// Waits until the launch before this one has ended and its results are visible.
DEVICE void dependency_wait() {
    if constexpr (SM_ARCH >= 900) asm volatile("griddepcontrol.wait;" ::: "memory");
}
// Lets the next launch start its blocks; it still waits before it reads.
DEVICE void dependency_launch() {
    if constexpr (SM_ARCH >= 900) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// ---- Integer dot products: c + sum of four products of bytes.

DEVICE i32 dp4a(i32 a, i32 b, i32 c) {
    i32 d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
// Bytes of `a` are unsigned.
DEVICE i32 dp4a_us(u32 a, i32 b, i32 c) {
    i32 d;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// ---- Tensor cores: c[16 x 8] += a[16 x k] * b[k x 8], by all lanes of a warp. With lane = 4g + t (g < 8, t < 4):
//   c[2h + j]   row g + 8h, column 2t + j
//   int8, k32   a[2p + h] byte i: row g + 8h, k = 16p + 4t + i;  b[p] byte i: k = 16p + 4t + i, column g
//   int8, k16   a[h] byte i: row g + 8h, k = 4t + i;             b byte i: k = 4t + i, column g
//   f16, k16    a[2p + h] half i: row g + 8h, k = 8p + 2t + i;   b[p] half i: k = 8p + 2t + i, column g
// mma_u8s8_*: a is unsigned.

#define MMA_K32(TYPE)                                                                                                     \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." TYPE ".s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#define MMA_K16(TYPE)                                                                                           \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32." TYPE ".s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};" \
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(b))
// What sm_75 has: 8 rows, k16.
#define MMA_HALF(TYPE, C, A, B)                                                                        \
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32." TYPE ".s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"  \
                 : "+r"(c[C]), "+r"(c[C + 1])                                                          \
                 : "r"(A), "r"(B))

DEVICE void mma_s8_k16(i32 (&c)[4], const u32 (&a)[2], u32 b) {
    if constexpr (SM_ARCH >= 800) {
        MMA_K16("s8");
    } else {
        MMA_HALF("s8", 0, a[0], b);
        MMA_HALF("s8", 2, a[1], b);
    }
}
DEVICE void mma_u8s8_k16(i32 (&c)[4], const u32 (&a)[2], u32 b) {
    if constexpr (SM_ARCH >= 800) {
        MMA_K16("u8");
    } else {
        MMA_HALF("u8", 0, a[0], b);
        MMA_HALF("u8", 2, a[1], b);
    }
}
DEVICE void mma_s8_k32(i32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    if constexpr (SM_ARCH >= 800) {
        MMA_K32("s8");
    } else {
        mma_s8_k16(c, {a[0], a[1]}, b[0]);
        mma_s8_k16(c, {a[2], a[3]}, b[1]);
    }
}
DEVICE void mma_u8s8_k32(i32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    if constexpr (SM_ARCH >= 800) {
        MMA_K32("u8");
    } else {
        mma_u8s8_k16(c, {a[0], a[1]}, b[0]);
        mma_u8s8_k16(c, {a[2], a[3]}, b[1]);
    }
}
DEVICE void mma_f16(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    if constexpr (SM_ARCH >= 800) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(b[0]));
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[2]), "r"(a[3]), "r"(b[1]));
    }
}

// Four 8 x 8 matrices of halves from shared memory: lane l has the address of row l % 8 (16 bytes) of matrix l / 8, and
// gets of matrix j, in r[j], halves 2t and 2t + 1 of row g.
DEVICE void ldmatrix_x4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)) : "memory");
}
// The same of the transposed matrices: rows 2t and 2t + 1 of column g.
DEVICE void ldmatrix_x4_transposed(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)) : "memory");
}

// ---- Warpgroup tensor cores (sm_90a): acc[64 x N] += a[64 x 16] * b[16 x N], by four consecutive warps, the first a
// multiple of four. Warp w of the four has rows 16w..16w + 15: `a` as in mma_f16, acc[4c + ...] as c of mma_f16 for
// columns 8c..8c + 7. `b` is in shared memory as chunks of 8 k, `[k / 8][n][8]` halves (no swizzle, K-major), aligned to 16.
//
// Asynchronous: between the first wgmma and the wait that ends it, neither its accumulators nor its part of `b` may be
// touched. Order: ordinary writes of b, fence_async, barrier, wgmma_fence, wgmma_f16..., wgmma_commit, wgmma_wait.

// Bytes from the start of `b` to element (n, k).
template <u32 N>
DEVICE constexpr u32 wgmma_offset(u32 n, u32 k) { return (k / 8 * N + n) * 16 + k % 8 * 2; }
// Describes 16 k that start at `b`; the next 16 start 32 N bytes further.
template <u32 N>
DEVICE u64 wgmma_descriptor(const void* b) {
    // In units of 16 bytes: address, then steps between chunks of k and between groups of 8 n.
    return (static_cast<u64>(shared_address(b)) >> 4 & 0x3fff) | static_cast<u64>(N) << 16 | static_cast<u64>(8) << 32;
}
// Before the first wgmma, and whenever ordinary code has touched the accumulators or `a`.
template <u32 M>
DEVICE void wgmma_fence(f32 (&acc)[M]) {
    static_assert(WGMMA<M>, "wgmma needs sm_90a");
#pragma unroll
    for (u32 i = 0; i < M; i++) asm volatile("" : "+f"(acc[i])::"memory");
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
template <int A = SM_ARCH>
DEVICE void wgmma_commit() {
    static_assert(WGMMA<A>, "wgmma needs sm_90a");
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most N groups are under way; with N = 0, `acc` holds its sums.
template <u32 N, u32 M>
DEVICE void wgmma_wait(f32 (&acc)[M]) {
    static_assert(WGMMA<M>, "wgmma needs sm_90a");
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#pragma unroll
    for (u32 i = 0; i < M; i++) asm volatile("" : "+f"(acc[i])::"memory");
}

#define ACC4(I) "+f"(acc[I]), "+f"(acc[I + 1]), "+f"(acc[I + 2]), "+f"(acc[I + 3])
#define ACC8(I) ACC4(I), ACC4(I + 4)
#define ACC16(I) ACC8(I), ACC8(I + 8)
template <u32 N>
DEVICE void wgmma_f16(f32 (&acc)[N / 2], const u32 (&a)[4], u64 descriptor) {
    static_assert(WGMMA<N>, "wgmma needs sm_90a");
    static_assert(N == 8 || N == 16 || N == 32 || N == 48 || N == 64 || N == 128, "wgmma_f16: N is 8, 16, 32, 48, 64 or 128");
    if constexpr (N == 8)
        asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {"
            "%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, 1, 1, 1, 0;"
            : ACC4(0)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor));
    else if constexpr (N == 16)
        asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {"
            "%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, 1, 1, 1, 0;"
            : ACC8(0)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor));
    else if constexpr (N == 32)
        asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {"
            "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, 1, 1, 1, 0;"
            : ACC16(0)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor));
    else if constexpr (N == 48)
        asm volatile("wgmma.mma_async.sync.aligned.m64n48k16.f32.f16.f16 {"
            "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23}, {%24,%25,%26,%27}, %28, 1, 1, 1, 0;"
            : ACC16(0), ACC8(16)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor));
    else if constexpr (N == 64)
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
            "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
            "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, 1, 1, 1, 0;"
            : ACC16(0), ACC16(16)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor));
    else if constexpr (N == 128)
        asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
            "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
            "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
            "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
            "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, 1, 1, 1, 0;"
            : ACC16(0), ACC16(16), ACC16(32), ACC16(48)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor));

}

// ---- Halves. Packed pairs are u32, the first in the low 16 bits. Conversions round to nearest even.

DEVICE f32 to_f32(f16 v) {
    f32 r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v.bits));
    return r;
}
DEVICE f16 to_f16(f32 v) {
    f16 r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
    return r;
}
DEVICE u32 pack_f16(f32 lo, f32 hi) {
    u32 r;
    if constexpr (SM_ARCH >= 800)
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    else
        r = to_f16(lo).bits | static_cast<u32>(to_f16(hi).bits) << 16;
    return r;
}
DEVICE f32 unpack_lo(u32 v) { return to_f32(f16{static_cast<u16>(v)}); }
DEVICE f32 unpack_hi(u32 v) { return to_f32(f16{static_cast<u16>(v >> 16)}); }
// a * b + c, rounded once.
DEVICE u32 hfma2(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
DEVICE u32 hadd2(u32 a, u32 b) {
    u32 d;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
DEVICE u32 hsub2(u32 a, u32 b) {
    u32 d;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
DEVICE u32 hmul2(u32 a, u32 b) {
    u32 d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

// ---- Bits.

// Byte i of the result is byte (selector >> 4i) & 7 of b:a; with bit 3 of the nibble, its sign in all bits.
DEVICE u32 prmt(u32 a, u32 b, u32 selector) {
    u32 d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}
// (a & mask) | bits, in one instruction.
DEVICE u32 lop3_and_or(u32 a, u32 mask, u32 bits) {
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(mask), "r"(bits));
    return d;
}
DEVICE f32 bits_f32(u32 v) { return __uint_as_float(v); }
DEVICE u32 f32_bits(f32 v) { return __float_as_uint(v); }

// ---- Arithmetic. Products and sums that must be one operation say fma_; the rest is compiled without contraction.

DEVICE f32 fma_(f32 a, f32 b, f32 c) { return __fmaf_rn(a, b, c); }
DEVICE f32 exp_(f32 x) { return expf(x); }
DEVICE f32 log_(f32 x) { return logf(x); }
DEVICE f32 sqrt_(f32 x) { return sqrtf(x); }
DEVICE f32 rsqrt_(f32 x) { return rsqrtf(x); }
DEVICE f32 tanh_(f32 x) { return tanhf(x); }
DEVICE void sin_cos(f32 x, f32& sin, f32& cos) { sincosf(x, &sin, &cos); }
DEVICE f32 max_(f32 a, f32 b) { return fmaxf(a, b); }
DEVICE f32 min_(f32 a, f32 b) { return fminf(a, b); }
DEVICE f32 abs_(f32 x) { return fabsf(x); }
DEVICE i32 max_(i32 a, i32 b) { return a > b ? a : b; }
DEVICE i32 min_(i32 a, i32 b) { return a < b ? a : b; }
DEVICE i32 abs_(i32 x) { return x < 0 ? -x : x; }
DEVICE u32 max_(u32 a, u32 b) { return a > b ? a : b; }
DEVICE u32 min_(u32 a, u32 b) { return a < b ? a : b; }
// Nearest integer, ties to even.
DEVICE i32 round_to_int(f32 x) { return __float2int_rn(x); }
