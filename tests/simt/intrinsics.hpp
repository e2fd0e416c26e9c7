// The names of templates/cuda/intrinsics.cu for kernels that run on the CPU: what can be answered in place is here, what
// waits for other threads or moves data later is in runtime.cpp. No standard library: every kernel compiles this.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef short i16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;
typedef float f32;

struct f16 { u16 bits; };
struct alignas(8) U2 { u32 x, y; };
struct alignas(16) U4 { u32 x, y, z, w; };
struct alignas(8) F2 { f32 x, y; };
struct alignas(16) F4 { f32 x, y, z, w; };

template <typename T>
struct alignas(8) Arg {
    T value;
    u32 unused;
    operator T() const { return value; }
};
template <>
struct alignas(8) Arg<u64> {
    u64 value;
    operator u64() const { return value; }
};

#define DEVICE inline
#define CONSTANT static constexpr
#define FIXED constexpr
#define GLOBAL
#define SHARED
#define LOCAL
#define ARGUMENTS
#define PLACED
#define __device__
#define __forceinline__ inline
#define KERNEL(NAME, THREADS, PARAMS)                                                                \
    static void NAME(const PARAMS& p);                                                               \
    static const simt::Entry NAME##_entry(#NAME, THREADS, sizeof(PARAMS),                            \
                                          [](const void* p) { NAME(*static_cast<const PARAMS*>(p)); }); \
    static void NAME(const PARAMS& p)
#define KERNEL_RESIDENT(NAME, THREADS, BLOCKS, PARAMS) KERNEL(NAME, THREADS, PARAMS)

#ifndef SIMT_ARCH
#define SIMT_ARCH 900
#endif
constexpr int SM_ARCH = SIMT_ARCH;
constexpr bool HAS_WGMMA = SM_ARCH == 900;
template <int>
constexpr bool WGMMA = HAS_WGMMA;

namespace simt {

// A kernel of this executable, listed before main runs.
struct Entry {
    const char* name;
    u32 threads, params_bytes;
    void (*run)(const void* params);
    const Entry* next;
    Entry(const char* name, u32 threads, u32 params_bytes, void (*run)(const void*));
};

struct Place {
    u32 thread;
    u32 threads;
    const u32* block;  // x, y, z
    const u32* grid;
    u8* shared;
    u32 shared_bytes;
};
// Of the thread that runs.
extern const Place* here;

enum class Op : u32 {
    SyncWarp, Shuffle, ShuffleXor, ShuffleDown, Ballot, MmaS8K32, MmaU8S8K32, MmaS8K16, MmaU8S8K16, MmaF16, Ldmatrix,
    LdmatrixTransposed, WgmmaFence, WgmmaF16, WgmmaCommit, WgmmaWait, MatrixLoad, MatrixStore, MatrixMultiply,
    TensorMultiply, TensorStore
};
// Collectives of a warp: each waits until all 32 lanes are here. `line` is the kernel's, for messages.
void meet(Op op, u32 line);
// A word of lane `from`, of a vote, of four matrices.
u32 warp_shuffle(Op op, u32 v, u32 from, u32 line);
u32 warp_ballot(bool p, u32 line);
void mma_int(Op op, i32* c, const u32* a, const u32* b, u32 line);
void mma_half(f32* c, const u32* a, const u32* b, u32 line);
void ldmatrix(Op op, u32* r, const void* row, u32 line);
void wgmma(f32* acc, u32 n, const u32* a, u64 descriptor, u32 line);
void wgmma_wait(u32 groups, u32 line);
// Of an 8 x 8 matrix that a warp holds: which element (8 * row + column) is the lane's number i of two.
inline u32 matrix_place(u32 lane, u32 i) { return (lane * 2 + i) * 5 % 64; }
// The same of rows by 32 outputs, of as many elements as rows.
inline u32 tensor_place(u32 lane, u32 i, u32 rows) { return (lane * rows + i) * 5 % (32 * rows); }
// c += a * b of such matrices, this lane's elements of each.
void multiply_matrices(f32 (&c)[2], const f32 (&a)[2], const f32 (&b)[2], u32 line);
void named_barrier(u32 id, u32 threads, bool waits, u32 line);
// Lets other threads run if chance says so.
void pause();
u32 atomic_add(u32* p, u32 v);
void copy_async(void* to, const void* from, u32 line);
void copy_commit();
void copy_wait(u32 groups);
void mbarrier_init(u64* barrier, u32 count);
void mbarrier_arrive(u64* barrier, u32 bytes);
void mbarrier_wait(u64* barrier, u32 parity, u32 line);
void fence_async();
void dependency_wait();
void bulk_copy(void* to, const void* from, u32 bytes, u64* barrier, u32 line);
[[noreturn]] void misaligned(const char* what, const void* p);
// a * b + c, rounded once.
u16 half_fma(u16 a, u16 b, u16 c);

inline void aligned(const char* what, const void* p, u64 bytes) {
    if (reinterpret_cast<u64>(p) % bytes) misaligned(what, p);
}
template <typename T>
u32 to_word(T v) {
    return __builtin_bit_cast(u32, v);
}
template <typename T>
T from_word(u32 w) {
    return __builtin_bit_cast(T, w);
}
template <typename T>
T shuffle(Op op, T v, u32 by, u32 line) {
    return from_word<T>(warp_shuffle(op, to_word(v), by, line));
}
inline f32 half_to_float(u16 h) {
    const u32 sign = u32(h & 0x8000) << 16, magnitude = u32(h & 0x7fff) << 13, exponent = h & 0x7c00;
    if (exponent == 0x7c00) return from_word<f32>(sign | magnitude | 0x7f800000);
    const u32 v = exponent ? magnitude + (112u << 23) : to_word(f32(h & 0x3ff) * 0x1p-24f);
    return from_word<f32>(sign | v);
}
inline u16 float_to_half(f32 v) {
    const u32 sign = to_word(v) >> 16 & 0x8000, x = to_word(v) & 0x7fffffff;
    if (x > 0x7f800000) return 0x7fff;
    if (x >= 0x477ff000) return u16(sign | 0x7c00);
    // Subnormal: the last bit of 0.5 + x is a subnormal half's last bit, so the sum rounds as wanted.
    if (x < 0x38800000) return u16(sign | (to_word(from_word<f32>(x) + 0.5f) - 0x3f000000));
    return u16(sign | (x + 0xfff + (x >> 13 & 1) - 0x38000000) >> 13);
}
// f(low halves), f(high halves); an f32 sum or product rounds to the half that the exact one rounds to.
template <typename F>
u32 half2(u32 a, u32 b, F f) {
    const u32 low = float_to_half(f(half_to_float(u16(a)), half_to_float(u16(b))));
    return low | u32(float_to_half(f(half_to_float(u16(a >> 16)), half_to_float(u16(b >> 16))))) << 16;
}

}  // namespace simt

// Where a kernel calls, for messages.
#define SIMT_LINE u32 line = __builtin_LINE()

DEVICE u32 thread_x() { return simt::here->thread; }
DEVICE u32 lane() { return simt::here->thread & 31; }
DEVICE u32 warp() { return simt::here->thread >> 5; }
DEVICE u32 block_x() { return simt::here->block[0]; }
DEVICE u32 block_y() { return simt::here->block[1]; }
DEVICE u32 block_z() { return simt::here->block[2]; }
DEVICE u32 grid_x() { return simt::here->grid[0]; }
DEVICE u32 grid_y() { return simt::here->grid[1]; }
DEVICE u32 grid_z() { return simt::here->grid[2]; }
DEVICE u32 block_threads() { return simt::here->threads; }

template <typename T>
DEVICE T* shared() { return reinterpret_cast<T*>(simt::here->shared); }
DEVICE u32 shared_address(const void* p) { return u32(static_cast<const u8*>(p) - simt::here->shared); }

DEVICE void sync_block(SIMT_LINE) { simt::named_barrier(0, block_threads(), true, line); }
DEVICE void sync_warp(SIMT_LINE) { simt::meet(simt::Op::SyncWarp, line); }
DEVICE void sync_named(u32 id, u32 threads, SIMT_LINE) { simt::named_barrier(id, threads, true, line); }
DEVICE void arrive_named(u32 id, u32 threads, SIMT_LINE) { simt::named_barrier(id, threads, false, line); }

template <typename T>
DEVICE T shuffle(T v, u32 from, SIMT_LINE) { return simt::shuffle(simt::Op::Shuffle, v, from & 31, line); }
template <typename T>
DEVICE T shuffle_xor(T v, u32 mask, SIMT_LINE) { return simt::shuffle(simt::Op::ShuffleXor, v, (lane() ^ mask) & 31, line); }
template <typename T>
DEVICE T shuffle_down(T v, u32 d, SIMT_LINE) {
    return simt::shuffle(simt::Op::ShuffleDown, v, lane() + d < 32 ? lane() + d : lane(), line);
}
DEVICE u32 ballot(bool p, SIMT_LINE) { return simt::warp_ballot(p, line); }
DEVICE u32 lowest_bit(u32 v) { return static_cast<u32>(__builtin_ctz(v)); }
DEVICE u32 keep(u32 v) { return v; }

DEVICE U4 load_stream(const U4* p) {
    simt::aligned("load_stream", p, 16);
    return *p;
}
DEVICE U2 load_stream(const U2* p) {
    simt::aligned("load_stream", p, 8);
    return *p;
}
DEVICE u32 load_stream(const u32* p) {
    simt::aligned("load_stream", p, 4);
    return *p;
}
DEVICE void prefetch_l2(const void*) {}
DEVICE u32 load_volatile(const u32* p) {
    simt::pause();
    return *static_cast<const volatile u32*>(p);
}
DEVICE void fence_device() { simt::pause(); }
DEVICE u32 atomic_add(u32* p, u32 v) {
    simt::aligned("atomic_add", p, 4);
    return simt::atomic_add(p, v);
}

DEVICE void copy_async_16(void* to, const void* from, SIMT_LINE) {
    simt::aligned("copy_async_16", to, 16);
    simt::aligned("copy_async_16", from, 16);
    if constexpr (SM_ARCH >= 800)
        simt::copy_async(to, from, line);
    else
        *static_cast<U4*>(to) = *static_cast<const U4*>(from);
}
DEVICE void copy_async_commit() { simt::copy_commit(); }
template <u32 N>
DEVICE void copy_async_wait() { simt::copy_wait(N); }

template <int A = SM_ARCH>
DEVICE void barrier_init(u64* barrier, u32 count) {
    static_assert(A >= 900, "barrier_init needs sm_90");
    simt::mbarrier_init(barrier, count);
}
template <int A = SM_ARCH>
DEVICE void barrier_expect(u64* barrier, u32 bytes) {
    static_assert(A >= 900, "barrier_expect needs sm_90");
    simt::mbarrier_arrive(barrier, bytes);
}
template <int A = SM_ARCH>
DEVICE void barrier_arrive(u64* barrier) {
    static_assert(A >= 900, "barrier_arrive needs sm_90");
    simt::mbarrier_arrive(barrier, 0);
}
template <int A = SM_ARCH>
DEVICE void barrier_wait(u64* barrier, u32 parity, SIMT_LINE) {
    static_assert(A >= 900, "barrier_wait needs sm_90");
    simt::mbarrier_wait(barrier, parity, line);
}
template <int A = SM_ARCH>
DEVICE void copy_bulk(void* to, const void* from, u32 bytes, u64* barrier, SIMT_LINE) {
    static_assert(A >= 900, "copy_bulk needs sm_90");
    simt::aligned("copy_bulk", to, 16);
    simt::aligned("copy_bulk", from, 16);
    simt::aligned("copy_bulk's length", reinterpret_cast<const void*>(u64(bytes)), 16);
    simt::bulk_copy(to, from, bytes, barrier, line);
}
template <int A = SM_ARCH>
DEVICE void fence_async() {
    static_assert(A >= 900, "fence_async needs sm_90");
    simt::fence_async();
}

// Launches run one after the other here; what comes before the wait is only checked.
DEVICE void dependency_wait() { simt::dependency_wait(); }
DEVICE void dependency_launch() {}

DEVICE i32 dp4a(i32 a, i32 b, i32 c) {
    for (u32 i = 0; i < 32; i += 8) c = i32(u32(c) + u32(i32(i8(a >> i)) * i32(i8(b >> i))));
    return c;
}
DEVICE i32 dp4a_us(u32 a, i32 b, i32 c) {
    for (u32 i = 0; i < 32; i += 8) c = i32(u32(c) + u32(i32(u8(a >> i)) * i32(i8(b >> i))));
    return c;
}

DEVICE void mma_s8_k32(i32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2], SIMT_LINE) {
    simt::mma_int(simt::Op::MmaS8K32, c, a, b, line);
}
DEVICE void mma_u8s8_k32(i32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2], SIMT_LINE) {
    simt::mma_int(simt::Op::MmaU8S8K32, c, a, b, line);
}
DEVICE void mma_s8_k16(i32 (&c)[4], const u32 (&a)[2], u32 b, SIMT_LINE) { simt::mma_int(simt::Op::MmaS8K16, c, a, &b, line); }
DEVICE void mma_u8s8_k16(i32 (&c)[4], const u32 (&a)[2], u32 b, SIMT_LINE) { simt::mma_int(simt::Op::MmaU8S8K16, c, a, &b, line); }
DEVICE void mma_f16(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2], SIMT_LINE) { simt::mma_half(c, a, b, line); }

namespace simt {
inline void read_row(const void* row) {
    aligned("ldmatrix", row, 16);
    // The bytes count when all lanes are here; this read is the one that is checked.
    volatile u64 first = static_cast<const volatile u64*>(row)[0], second = static_cast<const volatile u64*>(row)[1];
    (void)first, (void)second;
}
}  // namespace simt
DEVICE void ldmatrix_x4(u32 (&r)[4], const void* row, SIMT_LINE) {
    simt::read_row(row);
    simt::ldmatrix(simt::Op::Ldmatrix, r, row, line);
}
DEVICE void ldmatrix_x4_transposed(u32 (&r)[4], const void* row, SIMT_LINE) {
    simt::read_row(row);
    simt::ldmatrix(simt::Op::LdmatrixTransposed, r, row, line);
}

template <u32 N>
DEVICE constexpr u32 wgmma_offset(u32 n, u32 k) { return (k / 8 * N + n) * 16 + k % 8 * 2; }
template <u32 N>
DEVICE u64 wgmma_descriptor(const void* b) {
    simt::aligned("wgmma_descriptor", b, 16);
    return (u64(shared_address(b)) >> 4 & 0x3fff) | u64(N) << 16 | u64(8) << 32;
}
template <u32 M>
DEVICE void wgmma_fence(f32 (&)[M], SIMT_LINE) {
    static_assert(WGMMA<M>, "wgmma needs sm_90a");
    simt::meet(simt::Op::WgmmaFence, line);
}
template <int A = SM_ARCH>
DEVICE void wgmma_commit(SIMT_LINE) {
    static_assert(WGMMA<A>, "wgmma needs sm_90a");
    simt::meet(simt::Op::WgmmaCommit, line);
}
template <u32 N, u32 M>
DEVICE void wgmma_wait(f32 (&)[M], SIMT_LINE) {
    static_assert(WGMMA<M>, "wgmma needs sm_90a");
    simt::wgmma_wait(N, line);
}
template <u32 N>
DEVICE void wgmma_f16(f32 (&acc)[N / 2], const u32 (&a)[4], u64 descriptor, SIMT_LINE) {
    static_assert(WGMMA<N>, "wgmma needs sm_90a");
    static_assert(N == 8 || N == 16 || N == 32 || N == 48 || N == 64 || N == 128, "wgmma_f16: N is 8, 16, 32, 48, 64 or 128");
    simt::wgmma(acc, N, a, descriptor, line);
}

DEVICE f32 to_f32(f16 v) { return simt::half_to_float(v.bits); }
DEVICE f16 to_f16(f32 v) { return f16{simt::float_to_half(v)}; }
DEVICE u32 pack_f16(f32 lo, f32 hi) { return to_f16(lo).bits | u32(to_f16(hi).bits) << 16; }
DEVICE f32 unpack_lo(u32 v) { return simt::half_to_float(u16(v)); }
DEVICE f32 unpack_hi(u32 v) { return simt::half_to_float(u16(v >> 16)); }
DEVICE u32 hfma2(u32 a, u32 b, u32 c) {
    return simt::half_fma(u16(a), u16(b), u16(c)) | u32(simt::half_fma(u16(a >> 16), u16(b >> 16), u16(c >> 16))) << 16;
}
DEVICE u32 hadd2(u32 a, u32 b) {
    return simt::half2(a, b, [](f32 x, f32 y) { return x + y; });
}
DEVICE u32 hsub2(u32 a, u32 b) {
    return simt::half2(a, b, [](f32 x, f32 y) { return x - y; });
}
DEVICE u32 hmul2(u32 a, u32 b) {
    return simt::half2(a, b, [](f32 x, f32 y) { return x * y; });
}

DEVICE u32 prmt(u32 a, u32 b, u32 selector) {
    const u64 bytes = u64(b) << 32 | a;
    u32 d = 0;
    for (u32 i = 0; i < 4; i++) {
        const u32 nibble = selector >> 4 * i & 15;
        const u8 byte = u8(bytes >> 8 * (nibble & 7));
        d |= u32(nibble & 8 ? (byte & 128 ? 255 : 0) : byte) << 8 * i;
    }
    return d;
}
DEVICE u32 lop3_and_or(u32 a, u32 mask, u32 bits) { return (a & mask) | bits; }
DEVICE f32 bits_f32(u32 v) { return simt::from_word<f32>(v); }
DEVICE u32 f32_bits(f32 v) { return simt::to_word(v); }

DEVICE f32 fma_(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
DEVICE f32 exp_(f32 x) { return __builtin_expf(x); }
DEVICE f32 log_(f32 x) { return __builtin_logf(x); }
DEVICE f32 sqrt_(f32 x) { return __builtin_sqrtf(x); }
DEVICE f32 rsqrt_(f32 x) { return 1.0f / __builtin_sqrtf(x); }
DEVICE f32 tanh_(f32 x) { return __builtin_tanhf(x); }
DEVICE void sin_cos(f32 x, f32& sin, f32& cos) {
    sin = __builtin_sinf(x);
    cos = __builtin_cosf(x);
}
DEVICE f32 max_(f32 a, f32 b) { return __builtin_fmaxf(a, b); }
DEVICE f32 min_(f32 a, f32 b) { return __builtin_fminf(a, b); }
DEVICE f32 abs_(f32 x) { return __builtin_fabsf(x); }
DEVICE i32 max_(i32 a, i32 b) { return a > b ? a : b; }
DEVICE i32 min_(i32 a, i32 b) { return a < b ? a : b; }
DEVICE i32 abs_(i32 x) { return x < 0 ? -x : x; }
DEVICE u32 max_(u32 a, u32 b) { return a > b ? a : b; }
DEVICE u32 min_(u32 a, u32 b) { return a < b ? a : b; }
// As the instruction: saturates, and NaN gives 0.
DEVICE i32 round_to_int(f32 x) {
    if (x != x) return 0;
    if (x >= 2147483648.0f) return 2147483647;
    if (x <= -2147483648.0f) return -2147483647 - 1;
    return i32(__builtin_rintf(x));
}
