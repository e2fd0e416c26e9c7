// The sum (or maximum) of `v` over this and earlier threads; `total` becomes that of all. `words` has one for each warp.
template <bool MAXIMUM>
DEVICE u32 scan(u32 v, SHARED u32* words, LOCAL u32& total) {
#pragma unroll
    for (u32 d = 1; d < 32; d *= 2) {
        const u32 other = shuffle(v, lane() >= d ? lane() - d : lane());
        if (lane() >= d) v = MAXIMUM ? max_(v, other) : v + other;
    }
    sync_block();
    if (lane() == 31) words[warp()] = v;
    sync_block();
    total = 0;
    for (u32 w = 0; w < WARPS; w++) {
        if (w == warp()) v = MAXIMUM ? max_(v, total) : v + total;
        total = MAXIMUM ? max_(total, words[w]) : total + words[w];
    }
    return v;
}
