// The paged KV cache: of each page, for each KV head, K of PAGE_TOKENS tokens, then V. A head is padded to a multiple of 32;
// int8 heads end in one f16 scale per 32 elements.
enum class Kv { F32, F16, Q8 };

enum : u32 { PAGE_TOKENS = 32, KV_GROUP = 32 };

DEVICE constexpr u32 padded_head(u32 head_dim) { return (head_dim + KV_GROUP - 1) / KV_GROUP * KV_GROUP; }

DEVICE constexpr u32 head_bytes(Kv kv, u32 head_dim) {
    const u32 d = padded_head(head_dim);
    return kv == Kv::F32 ? d * 4 : kv == Kv::F16 ? d * 2 : d + d / KV_GROUP * 2;
}

// Bytes from the layer's pages to K (or V) of the page's first token.
template <Kv KV, u32 HEAD_DIM>
DEVICE u64 page_offset(u32 page, u32 kv_heads, u32 kv_head, bool v) {
    constexpr u32 PLANE = PAGE_TOKENS * head_bytes(KV, HEAD_DIM);
    return (static_cast<u64>(page) * kv_heads + kv_head) * (2 * PLANE) + (v ? PLANE : 0);
}
