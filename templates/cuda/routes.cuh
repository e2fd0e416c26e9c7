// What the router leaves (gpu/experts.rs): choices of every routed row, lists of items, routed rows by expert.

// The choice of a routed row: the expert, and the bits of the weight.
struct Choice {
    u32 expert, weight;
};
DEVICE const GLOBAL Choice* choices_of(const GLOBAL u8* routes, u32 row, u32 used) {
    return reinterpret_cast<const GLOBAL Choice*>(routes) + static_cast<u64>(row) * used;
}
