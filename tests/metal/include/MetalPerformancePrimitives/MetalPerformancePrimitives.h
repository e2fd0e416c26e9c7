// Matrix products of tensors, as metal_stdlib beside this's folder: the signatures of MPPTensorOpsMatMul2d.h of macOS 26.
#pragma once

namespace mpp {
namespace tensor_ops {

struct matmul2d_descriptor {
    enum class mode { multiply, multiply_accumulate };
    int m, n, k;
    bool transpose_left, transpose_right, relaxed_precision;
    mode matmul_mode;
    constexpr matmul2d_descriptor(int m, int n, int k, bool left, bool right, bool relaxed, mode what)
        : m(m), n(n), k(k), transpose_left(left), transpose_right(right), relaxed_precision(relaxed), matmul_mode(what) {}
    constexpr operator int() const { return m + n + k; }
};

// Clang as C++ for OpenCL has no objects as arguments of templates: their number stands for them.
template <int Descriptor, typename Scope>
struct matmul2d {
    template <typename Left, typename Right, typename Element>
    metal::cooperative_tensor<Element> get_destination_cooperative_tensor() const;
    // No constants: those would not be tensors.
    template <typename Left, typename Right, typename Destination>
    void run(thread Left& left, thread Right& right, thread Destination& destination) const;
};

}  // namespace tensor_ops
}  // namespace mpp
