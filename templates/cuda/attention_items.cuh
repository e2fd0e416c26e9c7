// How the attention of a step is divided: written by attention_plan, read by the kernels after it.

// Where the partial results of a row are: cells first, first + step, ...
struct alignas(8) RowCells {
    u32 first;
    u16 count;
    u16 step;
};

// What a warp does for one KV head: rows of one slot, and either one split or all that some of them see. The rows' cells
// follow one another.
struct alignas(16) Item {
    u32 row;
    u16 rows;
    u16 splits;
    u32 first_split;
    u32 cell;
};

// The plan in memory: this, then a RowCells for each row there is room for, padded to 16 bytes, then items.
struct alignas(16) Plan {
    u32 items;
    // Not 0 where rows may share a slot.
    u32 shared_slots;
};

DEVICE const RowCells* cells_of_rows(const Plan* plan) { return reinterpret_cast<const RowCells*>(plan + 1); }
DEVICE const Item* items_of(const Plan* plan, u32 max_rows) {
    return reinterpret_cast<const Item*>(plan + 1 + (max_rows + 1) / 2);
}
