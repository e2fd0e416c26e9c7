// Rows of activations in the forms that matmuls read, written four elements a thread: lane l of a warp has elements
// 4 l .. 4 l + 3 of 128, so eight lanes have the 32 that share a scale.
enum class Form { f32, f16, q8 };

DEVICE constexpr u32 padded_to_tile(u32 width) { return (width + 63) & ~63u; }

DEVICE f32 warp_sum(f32 v) {
#pragma unroll
    for (u32 d = 16; d > 0; d /= 2) v += shuffle_xor(v, d);
    return v;
}

// Stores v as elements column .. column + 3 of `row`, all lanes of the warp at consecutive columns. v is zeros from
// `width` on. int8 and half rows are padded to a multiple of 64, with the elements of each 32 in fragment order: with
// k = 16 p + 4 t + i at 8 t + 4 p + i, halves with i in the order 0 2 1 3.
template <Form FORM>
DEVICE void store_form(GLOBAL u8* row, u32 width, u32 column, F4 v) {
    const u32 padded = padded_to_tile(width);
    const u32 place = (column & ~31u) + 8 * (column / 4 % 4) + 4 * (column / 16 % 2);
    if constexpr (FORM == Form::f32) {
        if (column < width) *reinterpret_cast<GLOBAL F4*>(row + 4 * static_cast<u64>(column)) = v;
    } else if constexpr (FORM == Form::f16) {
        if (column < padded) *reinterpret_cast<GLOBAL U2*>(row + 2 * static_cast<u64>(place)) = U2{pack_f16(v.x, v.z), pack_f16(v.y, v.w)};
    } else {
        f32 largest = max_(max_(abs_(v.x), abs_(v.y)), max_(abs_(v.z), abs_(v.w)));
#pragma unroll
        for (u32 d = 1; d < 8; d *= 2) largest = max_(largest, shuffle_xor(largest, d));
        // Below this its inverse could overflow: zeros.
        const bool zeros = largest < 1e-30f;
        const f32 inverse = zeros ? 0.0f : 127.0f / largest;
        const i32 q[4] = {round_to_int(v.x * inverse), round_to_int(v.y * inverse), round_to_int(v.z * inverse),
                          round_to_int(v.w * inverse)};
        i32 sum = q[0] + q[1] + q[2] + q[3];
#pragma unroll
        for (u32 d = 1; d < 8; d *= 2) sum += shuffle_xor(sum, d);
        if (column < padded) {
            *reinterpret_cast<GLOBAL u32*>(row + place) =
                (q[0] & 255) | (q[1] & 255) << 8 | (q[2] & 255) << 16 | static_cast<u32>(q[3]) << 24;
            if (column % 32 == 0) {
                const f32 d = zeros ? 0.0f : largest / 127.0f;
                *reinterpret_cast<GLOBAL F2*>(row + padded + column / 32 * 8) = F2{d, d * static_cast<f32>(sum)};
            }
        }
    }
}
