// Weights as halves: two of a lane's elements in a word, i = 0 and 2 or i = 1 and 3, as activations of form f16 have them.
// Integers are put below the bits of 1024, where a half's step is 1; all up to the product with the scale is exact.

// Numbers that are stored: 4-bit integers as their words, others a byte each.
constexpr bool NIBBLES = STORE == STORE_int && BITS == 4;
// Stored numbers start at 0; those that are signed bytes elsewhere are around 128.
constexpr bool SIGNED_BYTES = BITS == 8 || STORE == STORE_code;
constexpr u32 STORED_ZERO = SIGNED_BYTES ? 128 : ZERO;

// What stored words of half j are, in words[j]: of 4-bit integers p = 0 in the low nibbles, else as load_levels has them.
DEVICE void load_stored(const u8* tile, u32 lane, u32 (&words)[2][4]) {
    if constexpr (NIBBLES) {
        const U4 q = reinterpret_cast<const U4*>(tile)[lane];
        words[0][0] = q.x, words[0][1] = q.y, words[1][0] = q.z, words[1][1] = q.w;
    } else {
        load_levels<0>(tile, lane, words);
#pragma unroll
        for (u32 i = 0; i < 8; i++)
            if constexpr (SIGNED_BYTES) words[i / 4][i % 4] ^= 0x80808080u;
    }
}

// A small integer as both halves of a word, for integers up to 2048.
DEVICE constexpr u32 both(u32 integer) {
    u32 exponent = 0;
    while (integer >> (exponent + 1)) exponent++;
    const u32 half = (exponent + 15) << 10 | ((integer << 10 >> exponent) & 0x3ff);
    return half | half << 16;
}

// Operands a[p][h + 2 * pair] of half j of a tile, times the factors of scales and of negative mins.
DEVICE void dequantise(const u32 (&words)[4], const Scales& s, u32 j, u32 (&a)[2][4]) {
    constexpr u32 PER_HALF = 32 / GROUP, TENTH_BIT = 0x64006400u, SIXTEENTH = 0x2c002c00u, MINUS = 0x80008000u;
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        u32 scale[PER_HALF], min[PER_HALF];
#pragma unroll
        for (u32 g = 0; g < PER_HALF; g++) {
            const f32 v = scale_of(s, h, j * PER_HALF + g);
            scale[g] = pack_f16(v, v);
            if constexpr (HAS_MIN) {
                const f32 m = min_of(s, h, j * PER_HALF + g);
                min[g] = pack_f16(m, m);
            }
        }
#pragma unroll
        for (u32 p = 0; p < 2; p++) {
#pragma unroll
            for (u32 pair = 0; pair < 2; pair++) {
                u32 v;
                if constexpr (NIBBLES) {
                    const u32 word = pair ? words[h] >> 8 : words[h];
                    if (p == 0) {
                        v = hsub2(lop3_and_or(word, 0x000f000fu, TENTH_BIT), both(1024 + ZERO));
                    } else {
                        v = hfma2(lop3_and_or(word, 0x00f000f0u, TENTH_BIT), SIXTEENTH, both(64 + ZERO) ^ MINUS);
                    }
                } else {
                    v = hsub2(prmt(words[2 * p + h], 0x64646464u, pair ? 0x4341 : 0x4240), both(1024 + STORED_ZERO));
                }
                const u32 g = GROUP == 16 ? p : 0;
                a[p][h + 2 * pair] = HAS_MIN ? hfma2(v, scale[g], min[g]) : hmul2(v, scale[g]);
            }
        }
    }
}

// Stored halves; bfloat16 through f32.
DEVICE void load_halves(const u8* tile, u32 lane, u32 j, u32 (&a)[2][4]) {
#pragma unroll
    for (u32 p = 0; p < 2; p++) {
        const U4 w = reinterpret_cast<const U4*>(tile)[32 * (2 * j + p) + lane];
        a[p][0] = w.x, a[p][1] = w.y, a[p][2] = w.z, a[p][3] = w.w;
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            if constexpr (STORE == STORE_bf16) a[p][i] = pack_f16(bits_f32(a[p][i] << 16), bits_f32(a[p][i] & 0xffff0000u));
    }
}
