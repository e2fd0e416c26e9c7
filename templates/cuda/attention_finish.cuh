// How partial results become rows. A warp leaves the cells of an item in its shared memory, where they stay if it has all
// splits of its tile; those of a tile that is cut meet in scratch memory, where the warp that comes last merges them in the
// order of splits.
constexpr Form FORM = Form::<$ form $>;
static_assert(FORM == Form::f32 || HEAD_DIM % 32 == 0, "heads share no scale");
// Cells that are read before any is merged.
constexpr u32 AHEAD = 8;

// Where the cells of a query are, in the order of splits.
struct Cells {
    const f32* first;
    u64 step;
    u32 count;
};

// The merged sum of elements e .. e + 3. `sink` is a score that brings no value, or less than any score.
DEVICE F4 merged_cells(const Cells& cells, u32 e, f32 sink) {
    f32 largest = sink;
    f32 sum = sink == negative_infinity() ? 0.0f : 1.0f;
    F4 acc = {};
    for (u32 first = 0; first < cells.count; first += AHEAD) {
        F4 comes[AHEAD];
        F2 state[AHEAD];
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) {
            comes[i] = F4{};
            state[i] = F2{negative_infinity(), 0.0f};
            if (first + i < cells.count) {
                const f32* cell = cells.first + (first + i) * cells.step;
                comes[i] = *reinterpret_cast<const F4*>(cell + e);
                state[i] = *reinterpret_cast<const F2*>(cell + PADDED);
            }
        }
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) {
            // A row of a tile may see less than the others.
            if (state[i].x == negative_infinity()) continue;
            f32 keep, weight;
            merge_factors(largest, state[i].x, keep, weight);
            sum = merged(sum, keep, state[i].y, weight);
            acc = F4{merged(acc.x, keep, comes[i].x, weight), merged(acc.y, keep, comes[i].y, weight),
                     merged(acc.z, keep, comes[i].z, weight), merged(acc.w, keep, comes[i].w, weight)};
        }
    }
    return F4{acc.x / sum, acc.y / sum, acc.z / sum, acc.w / sum};
}

// Whether this warp has the whole tile: nobody else reads its cells.
DEVICE bool keeps_cells(const Params& p, const Work& work) {
    return SHARERS == 1 && cells_of_rows(p.plan)[work.item.row].count == 1;
}
// Copies the cells of an item to scratch memory: of those that it shares its part of the sums, and with the first part the state.
DEVICE void bring_cells(const Params& p, const Work& work, const f32* own) {
    const Queries queries = queries_of(work);
    for (u32 i = 0; i < queries.count; i++) {
        const u64 cell = static_cast<u64>(work.item.cell + i / queries.per_row) * p.kv_heads * GROUP;
        f32* to = p.scratch + (cell + queries.first_head + i % queries.per_row) * CELL_FLOATS;
        if constexpr (SHARERS == 1) {
            for (u32 e = 4 * lane(); e < CELL_FLOATS; e += 128)
                *reinterpret_cast<F4*>(to + e) = *reinterpret_cast<const F4*>(own + i * CELL_FLOATS + e);
        } else {
            const f32* from = own + i * (PART + 4);
            for (u32 e = 4 * lane(); e < PART; e += 128)
                *reinterpret_cast<F4*>(to + work.part * PART + e) = *reinterpret_cast<const F4*>(from + e);
            if (work.part == 0 && lane() == 0) *reinterpret_cast<F2*>(to + PADDED) = *reinterpret_cast<const F2*>(from + PART);
        }
    }
}

// Whether this warp has left the last cells of its tile, KV head and batch. All lanes agree.
DEVICE bool comes_last(const Params& p, const Work& work) {
    const u32 count = cells_of_rows(p.plan)[work.item.row].count * SHARERS;
    fence_device();
    sync_warp();
    u32 last = 0;
    if (lane() == 0) {
        u32* arrived = p.counters + (work.item.row * p.kv_heads + work.kv_head) * BATCHES + work.batch;
        last = atomic_add(arrived, 1) + 1 == count;
        if (last) *arrived = 0;
    }
    last = shuffle(last, 0);
    fence_device();
    return last;
}

// After the cells of an item are written: leaves its rows, if they are complete. All lanes.
DEVICE void leave_rows(const Params& p, const Work& work, const f32* own) {
    const bool kept = keeps_cells(p, work);
    sync_warp();
    if (!kept) {
        bring_cells(p, work, own);
        if (!comes_last(p, work)) return;
    }
    const u32 heads = p.kv_heads * GROUP;
    const u32 width = heads * HEAD_DIM;
    const Queries queries = queries_of(work);
    for (u32 i = 0; i < queries.count; i++) {
        const u32 row = work.item.row + i / queries.per_row;
        const u32 head = queries.first_head + i % queries.per_row;
        Cells cells = {own + i * CELL_FLOATS, 0, 1};
        if (!kept) {
            const RowCells of_row = cells_of_rows(p.plan)[row];
            const u64 step = static_cast<u64>(heads) * CELL_FLOATS;
            cells = Cells{p.scratch + of_row.first * step + head * CELL_FLOATS, of_row.step * step, of_row.count};
        }
        const f32 sink = p.sinks != nullptr ? p.sinks[head] : negative_infinity();
        u8* out = p.out + static_cast<u64>(row) * p.out_stride;
        // The row's padding comes after its last head.
        const u32 columns = head + 1 == heads ? padded_to_tile(width) - head * HEAD_DIM : HEAD_DIM;
        for (u32 first = 0; first < columns; first += 128) {
            const u32 e = first + 4 * lane();
            F4 v = {};
            if (e < HEAD_DIM) v = merged_cells(cells, e, sink);
            store_form<FORM>(out, width, e < columns ? head * HEAD_DIM + e : ~127u, v);
        }
    }
}
