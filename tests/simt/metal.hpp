// The names of templates/metal/{intrinsics,tensor}.metal for kernels that run on the CPU: those of CUDA, less what Apple GPUs lack,
// and what only they have. Address spaces are not told apart here; tests/metal checks those.
#pragma once
#include "intrinsics.hpp"

#undef FIXED
#undef PLACED
#undef KERNEL
#undef KERNEL_RESIDENT
#define FIXED static constexpr
#define PLACED struct Body {
#define KERNEL(NAME, THREADS, PARAMS) \
    typedef PARAMS Taken;             \
    void run(const Taken& p)
#define KERNEL_RESIDENT(NAME, THREADS, BLOCKS, PARAMS) KERNEL(NAME, THREADS, PARAMS)
#define ENTRY(NAME, THREADS)                                                                                      \
    static const simt::Entry NAME##_entry(#NAME, THREADS, sizeof(k_##NAME::Body::Taken), [](const void* p) {      \
        k_##NAME::Body body;                                                                                      \
        body.run(*static_cast<const k_##NAME::Body::Taken*>(p));                                                  \
    });

// Two elements of each lane: which ones, no kernel may know.
struct HalfMatrix { f16 of[2]; };
struct FloatMatrix { f32 of[2]; };

DEVICE void matrix_zero(FloatMatrix& m) { m = {}; }
DEVICE void matrix_load(HalfMatrix& m, const f16* from, u32 stride, bool transposed, SIMT_LINE) {
    simt::meet(simt::Op::MatrixLoad, line);
    for (u32 i = 0; i < 2; i++) {
        const u32 place = simt::matrix_place(lane(), i), row = place / 8, column = place % 8;
        m.of[i] = transposed ? from[stride * column + row] : from[stride * row + column];
    }
}
DEVICE void matrix_store(const FloatMatrix& m, f32* to, u32 stride, SIMT_LINE) {
    simt::meet(simt::Op::MatrixStore, line);
    for (u32 i = 0; i < 2; i++) to[stride * (simt::matrix_place(lane(), i) / 8) + simt::matrix_place(lane(), i) % 8] = m.of[i];
}
DEVICE void matrix_multiply(FloatMatrix& c, const HalfMatrix& a, const HalfMatrix& b, SIMT_LINE) {
    const f32 wide_a[2] = {to_f32(a.of[0]), to_f32(a.of[1])}, wide_b[2] = {to_f32(b.of[0]), to_f32(b.of[1])};
    simt::multiply_matrices(c.of, wide_a, wide_b, line);
}

// Of rows by 32 outputs as many elements of each lane as there are rows: which ones, no kernel may know.
template <u32 ROWS>
struct TensorSums { f32 of[ROWS]; };

template <u32 ROWS>
DEVICE void tensor_zero(TensorSums<ROWS>& c) { c = {}; }
template <u32 ROWS>
DEVICE void tensor_multiply(TensorSums<ROWS>& c, const u8* rows, u32 live, u32 stride, const f16* weights, u32 weights_stride, SIMT_LINE) {
    simt::meet(simt::Op::TensorMultiply, line);
    for (u32 i = 0; i < ROWS; i++) {
        const u32 place = simt::tensor_place(lane(), i, ROWS), row = place / 32, output = place % 32;
        if (row >= live) continue;
        const f16* a = reinterpret_cast<const f16*>(rows + static_cast<u64>(row) * stride);
        for (u32 k = 0; k < 64; k++) c.of[i] += to_f32(a[k]) * to_f32(weights[output * weights_stride + k]);
    }
}
template <u32 ROWS>
DEVICE void tensor_store(TensorSums<ROWS>& c, f32* to, u32 stride, SIMT_LINE) {
    simt::meet(simt::Op::TensorStore, line);
    for (u32 i = 0; i < ROWS; i++) {
        const u32 place = simt::tensor_place(lane(), i, ROWS);
        to[stride * (place / 32) + place % 32] = c.of[i];
    }
}

DEVICE F4 bytes_f32(u32 v) { return F4{f32(u8(v)), f32(u8(v >> 8)), f32(u8(v >> 16)), f32(u8(v >> 24))}; }
DEVICE F4 signed_bytes_f32(u32 v) { return F4{f32(i8(v)), f32(i8(v >> 8)), f32(i8(v >> 16)), f32(i8(v >> 24))}; }
