// The largest of the keys that a thread block holds in registers, and the order of logits in such keys. All threads of the
// block call these; `words` is shared memory of WORDS words.
FIXED u32 WARPS = THREADS / 32;
FIXED u32 CANDIDATES = <$ candidates $>;
FIXED u32 PIECE = <$ piece $>;
FIXED u32 WORDS = 64;

// What is left of a piece of a row.
struct Piece {
    u64 keys[CANDIDATES];
    f32 largest;
    // Of exponentials of the logits less the largest.
    f32 sum;
};

// Rises with the value; NaN is below everything.
DEVICE u32 order_of(f32 v) {
    if (v != v) return 0;
    const u32 bits = f32_bits(v);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
// Larger logits first, lower ids first among equals. No two keys are equal, and none is 0, which stands for no logit.
DEVICE u64 key_of(f32 v, u32 id) { return static_cast<u64>(order_of(v)) << 32 | (0xffffffffu - id); }
DEVICE u32 id_of(u64 key) { return 0xffffffffu - static_cast<u32>(key); }
DEVICE f32 value_of(u64 key) {
    const u32 order = static_cast<u32>(key >> 32);
    return bits_f32(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

DEVICE u32 warp_count(u32 count) {
#pragma unroll
    for (u32 d = 16; d > 0; d /= 2) count += shuffle_xor(count, d);
    return count;
}

PLACED
// Of calls in a row, every other one has the other half of the words: the barrier of one is enough for the next.
DEVICE u32 block_count(u32 count, SHARED u32* words, bool other) {
    words += other ? WORDS / 2 : 0;
    count = warp_count(count);
    if (lane() == 0) words[warp()] = count;
    sync_block();
    return warp_count(lane() < WARPS ? words[lane()] : 0);
}

// The bits in which keys of the block differ from `like`; keys of 0 do not count.
template <u32 N>
DEVICE u64 differing_bits(const LOCAL u64 (&keys)[N], u64 like, SHARED u32* words) {
    u64 bits = 0;
#pragma unroll
    for (u32 i = 0; i < N; i++)
        if (keys[i] != 0) bits |= keys[i] ^ like;
    u32 part[2] = {static_cast<u32>(bits), static_cast<u32>(bits >> 32)};
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
#pragma unroll
        for (u32 d = 16; d > 0; d /= 2) part[h] |= shuffle_xor(part[h], d);
        sync_block();
        if (lane() == 0) words[warp()] = part[h];
        sync_block();
        part[h] = lane() < WARPS ? words[lane()] : 0;
#pragma unroll
        for (u32 d = 16; d > 0; d /= 2) part[h] |= shuffle_xor(part[h], d);
    }
    return static_cast<u64>(part[1]) << 32 | part[0];
}

// The least of the CANDIDATES largest keys, or something above 0 and no larger than any key where there are fewer. `first`
// is a key of the block. The answer is found bit by bit: the largest number that so many keys reach.
template <u32 N>
DEVICE u64 least_candidate(const LOCAL u64 (&keys)[N], u64 first, SHARED u32* words) {
    const u64 differ = differing_bits(keys, first, words);
    u64 least = first & ~differ;
    bool other = false;
    sync_block();
    for (u64 bit = static_cast<u64>(1) << 63; bit > 0; bit >>= 1) {
        if ((differ & bit) == 0) continue;
        const u64 tried = least | bit;
        u32 count = 0;
#pragma unroll
        for (u32 i = 0; i < N; i++) count += keys[i] >= tried ? 1 : 0;
        if (block_count(count, words, other) >= CANDIDATES) least = tried;
        other = !other;
    }
    return least > 0 ? least : 1;
}

// Writes the keys from `least` on to `out`, one thread's after the other's, and 0 in what is left of it.
template <u32 N, typename Out>
DEVICE void keep_candidates(const LOCAL u64 (&keys)[N], u64 least, Out out, SHARED u32* words) {
    u32 count = 0;
#pragma unroll
    for (u32 i = 0; i < N; i++) count += keys[i] >= least ? 1 : 0;
    u32 before = count;
#pragma unroll
    for (u32 d = 1; d < 32; d *= 2) {
        const u32 other = shuffle(before, lane() >= d ? lane() - d : lane());
        if (lane() >= d) before += other;
    }
    sync_block();
    if (lane() == 31) words[warp()] = before;
    sync_block();
    u32 total = 0;
    for (u32 w = 0; w < WARPS; w++) {
        if (w < warp()) before += words[w];
        total += words[w];
    }
    before -= count;
#pragma unroll
    for (u32 i = 0; i < N; i++)
        if (keys[i] >= least) out[before++] = keys[i];
    if (thread_x() >= total && thread_x() < CANDIDATES) out[thread_x()] = 0;
}
