// Names of Metal 4, which follow those of intrinsics.metal in libraries that use them: matrices by the pipes that Apple GPUs
// have for nothing else from M5 on. tests/simt/metal.hpp has the same names for the CPU.
//
// What they compute is said in the head of MPPTensorOpsMatMul2d.h of Apple's SDK (macOS 26): C = A * B + C, of tensors whose
// first extent is that of neighbours in memory, elements beyond A's extents not being read. Which lane has what of C is the
// implementation's: kernels see it only stored.
#include <metal_tensor>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>

// Rows by 32 outputs over 64 k, all of them by one warp. The order of sums may be the shape's.
template <int ROWS>
using TensorProduct = mpp::tensor_ops::matmul2d<
    mpp::tensor_ops::matmul2d_descriptor(ROWS, 32, 64, false, true, false, mpp::tensor_ops::matmul2d_descriptor::mode::multiply_accumulate),
    metal::execution_simdgroup>;
typedef metal::tensor<device half, metal::dextents<i32, 2>, metal::tensor_inline> TensorRows;
typedef metal::tensor<threadgroup half, metal::dextents<i32, 2>, metal::tensor_inline> TensorWeights;
typedef metal::tensor<threadgroup float, metal::dextents<i32, 2>, metal::tensor_inline> TensorStored;
template <int ROWS>
using TensorSums = decltype(TensorProduct<ROWS>().template get_destination_cooperative_tensor<TensorRows, TensorWeights, float>());

// ---- Sums that a warp holds together. All 32 lanes take part in everything.

template <typename Sums>
DEVICE void tensor_zero(LOCAL Sums& c) {
#pragma unroll
    for (u16 i = 0; i < c.get_capacity(); i++)
        if (c.is_valid_element(i)) c[i] = 0.0f;
}
// c += rows * weights: 64 halves of each of `live` rows that are `stride` bytes apart, and of 32 outputs that are
// `weights_stride` halves apart.
template <u32 ROWS, typename Sums>
DEVICE void tensor_multiply(LOCAL Sums& c, const GLOBAL u8* rows, u32 live, u32 stride, const SHARED f16* weights, u32 weights_stride) {
    TensorRows a(reinterpret_cast<device half*>(const_cast<device u8*>(rows)), metal::dextents<i32, 2>(64, static_cast<i32>(live)),
                 metal::array<i32, 2>({1, static_cast<i32>(stride / 2)}));
    TensorWeights b(reinterpret_cast<threadgroup half*>(const_cast<threadgroup f16*>(weights)), metal::dextents<i32, 2>(64, 32),
                    metal::array<i32, 2>({1, static_cast<i32>(weights_stride)}));
    TensorProduct<ROWS> product;
    product.run(a, b, c);
}
// Element (row, output) to to[stride * row + output], of all rows.
template <u32 ROWS, typename Sums>
DEVICE void tensor_store(LOCAL Sums& c, SHARED f32* to, u32 stride) {
    TensorStored all(to, metal::dextents<i32, 2>(32, ROWS), metal::array<i32, 2>({1, static_cast<i32>(stride)}));
    c.store(all);
}
