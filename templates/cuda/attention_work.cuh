// What the kernels of partial attention take, and how warps find their work.
<% include "forms.cuh" %>
<% include "attention.cuh" %>
constexpr u32 THREADS = <$ threads $>;
constexpr u32 WARPS = THREADS / 32;
constexpr Kv KV = Kv::<$ kv $>;
constexpr u32 GROUP = <$ group $>;
constexpr u32 QUERIES = 16;
constexpr u32 BATCHES = (GROUP + QUERIES - 1) / QUERIES;
constexpr u32 HEAD_BYTES = head_bytes(KV, HEAD_DIM);
// Warps that share a tile's sums: those of the longest heads are more than one's registers hold. Each has some of the elements.
constexpr u32 SHARERS = PADDED > 256 ? 2 : 1;
constexpr u32 PART = PADDED / SHARERS;
static_assert(PART % 32 == 0, "parts are alike");

struct Params {
    const u8* q;
    const u8* k;  // to be stored, or null
    const u8* v;
    const u8* table;
    const f32* q_norm;
    const f32* k_norm;
    const f32* sinks;  // a score of each query head, or null
    u8* kv;
    const Plan* plan;
    f32* scratch;
    u32* counters;  // of each row, KV head and batch, then three, zero before and after
    u8* out;
    const u32* positions;
    const u32* slots;
    const u32* page_table;
    const u32* live;
    Arg<u32> max_rows;
    Arg<u32> kv_heads;
    Arg<u32> q_stride;
    Arg<u32> k_stride;
    Arg<u32> v_stride;
    Arg<u32> table_stride;
    Arg<u32> out_stride;
    Arg<u32> rot_dim;
    Arg<f32> q_eps;
    Arg<f32> k_eps;
    Arg<u32> pages_per_slot;
    Arg<u32> split;
    Arg<u32> window;
    Arg<f32> scale;
    Arg<f32> softcap;
};

// What a warp does next, read again wherever it is needed, so that it takes no registers in between.
struct Work {
    const Item& item;
    u32 kv_head;
    // Of query heads, where one KV head has more than QUERIES.
    u32 batch;
    // Of the elements of V.
    u32 part;
};
DEVICE Work work_at(const Params& p, u32 index) {
    const u32 items = p.plan->items;
    const Item& item = items_of(p.plan, p.max_rows)[index % items];
    const u32 head = index / items / BATCHES, batch = index / items % BATCHES;
    if constexpr (SHARERS == 1) return Work{item, head, batch, 0};
    return Work{item, head % p.kv_heads, batch, head / p.kv_heads};
}

// Queries of an item: query i is head first_head + i % per_row of row i / per_row.
struct Queries {
    u32 first_head;
    u32 per_row;
    u32 count;
};
DEVICE Queries queries_of(const Work& work) {
    const u32 per_row = min_(GROUP - work.batch * QUERIES, QUERIES);
    return Queries{work.kv_head * GROUP + work.batch * QUERIES, per_row, per_row * work.item.rows};
}

// The number of this warp's first work. Few works spread over all multiprocessors; of many, neighbours are in one block, for
// they often read the same pages.
DEVICE u32 first_work(const Params& p) {
    const bool few = p.plan->items * p.kv_heads * (BATCHES * SHARERS) <= grid_x() * WARPS;
    return few ? warp() * grid_x() + block_x() : block_x() * WARPS + warp();
}
DEVICE bool is_work(const Params& p, u32 index) { return index < p.plan->items * p.kv_heads * (BATCHES * SHARERS); }
DEVICE u32 next_work(u32 index) { return index + grid_x() * WARPS; }

// The first position that a row at `position` sees.
DEVICE u32 first_seen(const Params& p, u32 position) { return p.window == 0 || position < p.window ? 0 : position + 1 - p.window; }

// Pages with positions of a split that are also from begin to before end.
struct Pages {
    u32 from;
    u32 to;
};
DEVICE Pages pages_of(const Params& p, u32 split, u32 begin, u32 end) {
    return Pages{max_(begin, split * p.split) / PAGE_TOKENS, (min_(end, (split + 1) * p.split) + PAGE_TOKENS - 1) / PAGE_TOKENS};
}

DEVICE f32 capped(f32 score, f32 softcap) { return softcap == 0.0f ? score : softcap * tanh_(score / softcap); }
<% include "attention_prepare.cuh" %>
<% include "attention_finish.cuh" %>
