// The rows of one slot among the live rows of a step, in their order. Thread blocks along y have a slot each: where there
// are no more slots than rows their own, otherwise the slot of the row of their number, if that is the slot's first. The
// kernel's own text follows.
FIXED u32 NO_SLOT = ~0u;

PLACED

// Bit l: row base + l is live and the slot's. All lanes of the warp.
DEVICE u32 rows_of_slot(const GLOBAL u32* slots, u32 live, u32 base, u32 slot) {
    const u32 row = base + lane();
    return ballot(row < live && slots[row] == slot);
}

// The slot of this thread block; NO_SLOT for one that has nothing to do. All threads.
DEVICE u32 own_slot(const GLOBAL u32* slots, u32 live, bool by_row) {
    const u32 y = block_y();
    if (!by_row) return y;
    if (y >= live) return NO_SLOT;
    const u32 slot = slots[y];
    for (u32 base = 0; base < y; base += 32)
        if (rows_of_slot(slots, y, base, slot)) return NO_SLOT;
    return slot;
}
