// What comes before scores: queries are normalised and rotated by every warp that needs them; K and V of the step's rows are
// stored in the cache, where warps read them like all others. A row that is alone in its slot is stored by the warps that
// see its position, each the heads it reads. Where a row may see others of the step, warps first store all rows together.
constexpr bool NEOX = <$ neox $>;
<% include "heads.cuh" %>

// Query heads that are loaded before any is used.
constexpr u32 HEADS_AT_ONCE = VECTORS == 1 ? 4 : 2;

DEVICE bool stores_all(const Params& p) { return p.k != nullptr && (BATCHES > 1 || p.plan->shared_slots != 0); }
// Whether this item's warp stores K and V of its row.
DEVICE bool stores_own(const Params& p, const Work& work) {
    const u32 split = p.positions[work.item.row] / p.split;
    return p.k != nullptr && !stores_all(p) && split - work.item.first_split < work.item.splits;
}

struct KeyValue {
    Head k, v;
};
DEVICE KeyValue load_new(const Params& p, u32 row, u32 kv_head) {
    const f32* k = reinterpret_cast<const f32*>(p.k + static_cast<u64>(row) * p.k_stride);
    const f32* v = reinterpret_cast<const f32*>(p.v + static_cast<u64>(row) * p.v_stride);
    return KeyValue{load_head(k + kv_head * HEAD_DIM), load_head(v + kv_head * HEAD_DIM)};
}
// Stores them. `place` is shared memory for a head that nobody else uses; a barrier comes before it is used again.
DEVICE void store_new(const Params& p, u32 row, u32 kv_head, KeyValue& at, const Turns& turns, f32* place) {
    if (p.k_norm != nullptr) normalise(at.k, p.k_norm, p.k_eps);
    put_head(at.k, place);
    sync_warp();
    at.k = rotate(place, turns, p.rot_dim);
    const u32* pages = p.page_table + static_cast<u64>(p.slots[row]) * p.pages_per_slot;
    store_head(p.kv, pages, p.positions[row], p.kv_heads, kv_head, false, at.k);
    store_head(p.kv, pages, p.positions[row], p.kv_heads, kv_head, true, at.v);
}
DEVICE Turns turns_of(const Params& p, u32 row) {
    return load_turns(p.table + static_cast<u64>(row) * p.table_stride, p.rot_dim);
}

// Stores K and V of all rows, if this is a step where that comes first. Warps take what is next until nothing is left, so
// those that wait do so only for others that run, however many thread blocks run at once. One lane waits; the others meet it
// in `prepare` before they read the cache.
DEVICE void store_rows(const Params& p, f32* place) {
    if (!stores_all(p)) return;
    u32* next = p.counters + p.max_rows * p.kv_heads * BATCHES;
    u32* stored = next + 1;
    u32* passed = next + 2;
    const u32 heads = p.live[0] * p.kv_heads;
    for (;;) {
        u32 index = lane() == 0 ? atomic_add(next, 1) : 0;
        index = shuffle(index, 0);
        if (index >= heads) break;
        const u32 row = index / p.kv_heads;
        KeyValue at = load_new(p, row, index % p.kv_heads);
        store_new(p, row, index % p.kv_heads, at, turns_of(p, row), place);
        fence_device();
        sync_warp();
        if (lane() == 0) atomic_add(stored, 1);
    }
    if (lane() == 0) {
        while (load_volatile(stored) < heads) {
        }
        fence_device();
        if (atomic_add(passed, 1) + 1 == grid_x() * WARPS) *next = *stored = *passed = 0;
    }
}

// Leaves the queries of an item, times `factor`, at rows of CELL_FLOATS of `queries`, and K and V of its row in the cache if
// that is this warp's to do. `place` as in store_new.
DEVICE void prepare(const Params& p, const Work& work, f32 factor, f32* queries, f32* place) {
    const Queries all = queries_of(work);
    const bool stores = stores_own(p, work);
    KeyValue at = {};
    if (stores) at = load_new(p, work.item.row, work.kv_head);
    for (u32 r = 0; r < work.item.rows; r++) {
        const u32 row = work.item.row + r;
        const f32* heads = reinterpret_cast<const f32*>(p.q + static_cast<u64>(row) * p.q_stride) + all.first_head * HEAD_DIM;
        f32* to = queries + r * all.per_row * CELL_FLOATS;
        const Turns turns = turns_of(p, row);
        for (u32 first = 0; first < all.per_row; first += HEADS_AT_ONCE) {
            Head q[HEADS_AT_ONCE];
#pragma unroll
            for (u32 i = 0; i < HEADS_AT_ONCE; i++) q[i] = load_head(heads + min_(first + i, all.per_row - 1) * HEAD_DIM);
#pragma unroll
            for (u32 i = 0; i < HEADS_AT_ONCE; i++)
                if (first + i < all.per_row) {
                    if (p.q_norm != nullptr) normalise(q[i], p.q_norm, p.q_eps);
                    put_head(q[i], to + (first + i) * CELL_FLOATS);
                }
            sync_warp();
#pragma unroll
            for (u32 i = 0; i < HEADS_AT_ONCE; i++)
                if (first + i < all.per_row) q[i] = rotate(to + (first + i) * CELL_FLOATS, turns, p.rot_dim);
            sync_warp();
#pragma unroll
            for (u32 i = 0; i < HEADS_AT_ONCE; i++)
                if (first + i < all.per_row) {
#pragma unroll
                    for (u32 n = 0; n < VECTORS; n++) {
                        const F4 v = q[i].v[n];
                        q[i].v[n] = F4{v.x * factor, v.y * factor, v.z * factor, v.w * factor};
                    }
                    put_head(q[i], to + (first + i) * CELL_FLOATS);
                }
        }
        if (stores) store_new(p, row, work.kv_head, at, turns, place);
    }
    sync_warp();
}
