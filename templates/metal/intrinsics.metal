// The names of ../cuda/intrinsics.cu that Apple GPUs have, for Metal 3. Kernels are written in these names alone;
// tests/simt/metal.hpp has the same names for the CPU. A thread block is a threadgroup, a warp a simdgroup.
//
// What asks where a thread is are methods here: a kernel's functions from PLACED on are members of its Body, whose values
// come with the launch.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>

// Results must not depend on what a compiler thinks that nobody needs.
#if __METAL_VERSION__ >= 320
#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)
#endif

typedef uchar u8;
typedef char i8;
typedef ushort u16;
typedef short i16;
typedef uint u32;
typedef int i32;
typedef ulong u64;
typedef long i64;
typedef float f32;

// IEEE half as its bits.
struct f16 { u16 bits; };
typedef metal::uint2 U2;
typedef metal::uint4 U4;
typedef metal::float2 F2;
typedef metal::float4 F4;

#define DEVICE inline __attribute__((always_inline))
#define CONSTANT static constant constexpr const
#define GLOBAL device
#define SHARED threadgroup
#define LOCAL thread
#define ARGUMENTS constant
#define FIXED static constant constexpr const

// A number among a kernel's parameters, each of which has 8 bytes: the value is in the low half.
template <typename T>
struct alignas(8) Arg {
    T value;
    u32 unused;
    DEVICE operator T() const constant { return value; }
};
template <>
struct alignas(8) Arg<u64> {
    u64 value;
    DEVICE operator u64() const constant { return value; }
};

// ---- Geometry. Thread blocks and warps are numbered along x alone.

struct Place {
    u32 own_lane, own_warp;
    metal::uint3 own_block, blocks;
    threadgroup u8* own_shared;

    DEVICE u32 thread_x() const { return own_warp * 32 + own_lane; }
    DEVICE u32 lane() const { return own_lane; }
    DEVICE u32 warp() const { return own_warp; }
    DEVICE u32 block_x() const { return own_block.x; }
    DEVICE u32 block_y() const { return own_block.y; }
    DEVICE u32 block_z() const { return own_block.z; }
    DEVICE u32 grid_x() const { return blocks.x; }
    DEVICE u32 grid_y() const { return blocks.y; }
    DEVICE u32 grid_z() const { return blocks.z; }
    // As many bytes as the launch asks for, aligned to 16, holding anything.
    template <typename T>
    DEVICE threadgroup T* shared() const { return reinterpret_cast<threadgroup T*>(own_shared); }
};

#define PLACED struct Body : Place {
#define KERNEL(NAME, THREADS, PARAMS) \
    typedef PARAMS Taken;             \
    DEVICE void run(constant Taken& p)
#define KERNEL_RESIDENT(NAME, THREADS, BLOCKS, PARAMS) KERNEL(NAME, THREADS, PARAMS)
// After a kernel's text, which is in a namespace of its own: what a launch runs.
#define ENTRY(NAME, THREADS)                                                                                  \
    [[kernel, max_total_threads_per_threadgroup(THREADS)]] void NAME(                                         \
        constant k_##NAME::Body::Taken& p [[buffer(0)]], threadgroup u8* shared [[threadgroup(0)]],           \
        uint lane [[thread_index_in_simdgroup]], uint warp [[simdgroup_index_in_threadgroup]],                \
        metal::uint3 block [[threadgroup_position_in_grid]], metal::uint3 blocks [[threadgroups_per_grid]]) { \
        k_##NAME::Body body;                                                                                  \
        body.own_lane = lane;                                                                                 \
        body.own_warp = warp;                                                                                 \
        body.own_block = block;                                                                               \
        body.blocks = blocks;                                                                                 \
        body.own_shared = shared;                                                                             \
        body.run(p);                                                                                          \
    }

// ---- Barriers: all threads of the block, of the warp.

DEVICE void sync_block() { metal::threadgroup_barrier(metal::mem_flags::mem_device | metal::mem_flags::mem_threadgroup); }
DEVICE void sync_warp() { metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup); }

// ---- Values of other lanes. All 32 lanes of the warp take part.

template <typename T>
DEVICE T shuffle(T v, u32 from) { return metal::simd_shuffle(v, static_cast<u16>(from)); }
template <typename T>
DEVICE T shuffle_xor(T v, u32 mask) { return metal::simd_shuffle_xor(v, static_cast<u16>(mask)); }
DEVICE u32 ballot(bool p) { return static_cast<u32>(static_cast<metal::simd_vote::vote_t>(metal::simd_ballot(p))); }
// The number of the lowest bit that is set; one is.
DEVICE u32 lowest_bit(u32 v) { return metal::ctz(v); }
DEVICE u32 keep(u32 v) { return v; }

// Only what this thread block wrote before a barrier, or a launch before this one, is seen at all.
DEVICE u32 load_volatile(const GLOBAL u32* p) { return *p; }

// Launches run one after the other.
DEVICE void dependency_wait() {}
DEVICE void dependency_launch() {}

// ---- Matrices of 8 x 8 elements that a warp holds together. All 32 lanes take part in everything.

typedef metal::simdgroup_half8x8 HalfMatrix;
typedef metal::simdgroup_float8x8 FloatMatrix;

DEVICE void matrix_zero(LOCAL FloatMatrix& m) { m = metal::make_filled_simdgroup_matrix<float, 8, 8>(0.0f); }
// Element (i, j) is from[stride * i + j]; `transposed`: from[stride * j + i].
DEVICE void matrix_load(LOCAL HalfMatrix& m, const SHARED f16* from, u32 stride, bool transposed) {
    metal::simdgroup_load(m, reinterpret_cast<const threadgroup half*>(from), stride, metal::ulong2{0, 0}, transposed);
}
DEVICE void matrix_store(LOCAL FloatMatrix& m, SHARED f32* to, u32 stride) { metal::simdgroup_store(m, to, stride); }
// c += a * b, products of halves summed in f32.
DEVICE void matrix_multiply(LOCAL FloatMatrix& c, LOCAL HalfMatrix& a, LOCAL HalfMatrix& b) {
    metal::simdgroup_multiply_accumulate(c, a, b, c);
}

// ---- Halves. Packed pairs are u32, the first in the low 16 bits. Conversions round to nearest even.

DEVICE f32 to_f32(f16 v) { return static_cast<float>(as_type<half>(v.bits)); }
DEVICE f16 to_f16(f32 v) { return f16{as_type<ushort>(static_cast<half>(v))}; }
DEVICE u32 pack_f16(f32 lo, f32 hi) { return as_type<uint>(metal::half2{static_cast<half>(lo), static_cast<half>(hi)}); }
DEVICE f32 unpack_lo(u32 v) { return static_cast<float>(as_type<metal::half2>(v).x); }
DEVICE f32 unpack_hi(u32 v) { return static_cast<float>(as_type<metal::half2>(v).y); }

// ---- Bits.

DEVICE f32 bits_f32(u32 v) { return as_type<float>(v); }
DEVICE u32 f32_bits(f32 v) { return as_type<uint>(v); }
// The four bytes of a word as numbers.
DEVICE F4 bytes_f32(u32 v) {
    const metal::uchar4 b = as_type<metal::uchar4>(v);
    return F4{static_cast<f32>(b.x), static_cast<f32>(b.y), static_cast<f32>(b.z), static_cast<f32>(b.w)};
}
DEVICE F4 signed_bytes_f32(u32 v) {
    const metal::char4 b = as_type<metal::char4>(v);
    return F4{static_cast<f32>(b.x), static_cast<f32>(b.y), static_cast<f32>(b.z), static_cast<f32>(b.w)};
}

// ---- Arithmetic. Products and sums that must be one operation say fma_; the rest is compiled without contraction.

DEVICE f32 fma_(f32 a, f32 b, f32 c) { return metal::fma(a, b, c); }
DEVICE f32 exp_(f32 x) { return metal::precise::exp(x); }
DEVICE f32 log_(f32 x) { return metal::precise::log(x); }
DEVICE f32 sqrt_(f32 x) { return metal::precise::sqrt(x); }
DEVICE f32 tanh_(f32 x) { return metal::precise::tanh(x); }
DEVICE f32 max_(f32 a, f32 b) { return metal::fmax(a, b); }
DEVICE f32 min_(f32 a, f32 b) { return metal::fmin(a, b); }
DEVICE f32 abs_(f32 x) { return metal::fabs(x); }
DEVICE i32 max_(i32 a, i32 b) { return a > b ? a : b; }
DEVICE i32 min_(i32 a, i32 b) { return a < b ? a : b; }
DEVICE i32 abs_(i32 x) { return x < 0 ? -x : x; }
DEVICE u32 max_(u32 a, u32 b) { return a > b ? a : b; }
DEVICE u32 min_(u32 a, u32 b) { return a < b ? a : b; }
// Nearest integer, ties to even.
DEVICE i32 round_to_int(f32 x) { return static_cast<i32>(metal::rint(x)); }
