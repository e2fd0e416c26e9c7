// What kernels of partial results agree on: where cells are, and how softmax states are merged.
<% include "attention_items.cuh" %>
<% include "cache.cuh" %>
constexpr u32 HEAD_DIM = <$ head_dim $>;
constexpr u32 PADDED = padded_head(HEAD_DIM);
// Of one head: the weighted sum, the largest score, the sum of exponentials.
constexpr u32 CELL_FLOATS = PADDED + 4;

DEVICE f32 negative_infinity() { return bits_f32(0xff800000u); }

// Merging two softmax states: the factors of what is there and of what comes. `largest` becomes that of both; what comes has
// seen something.
DEVICE void merge_factors(f32& largest, f32 other, f32& keep, f32& weight) {
    const f32 both = max_(largest, other);
    keep = exp_(largest - both);
    weight = exp_(other - both);
    largest = both;
}
DEVICE f32 merged(f32 there, f32 keep, f32 comes, f32 weight) { return fma_(there, keep, comes * weight); }
