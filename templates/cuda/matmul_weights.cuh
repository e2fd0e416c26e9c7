// Packed weights: constants of the layout, and how a tile's words become operands. kernels/src/gpu/tile.rs has the bytes.
// With lane = 4g + t, a lane owns outputs g + 8h at k = 32j + 16p + 4t + i of a tile of 64 k (h, j, p < 2, i < 4).

enum Store { STORE_int, STORE_code, STORE_f16, STORE_bf16, STORE_f32 };
enum Scale { SCALE_none, SCALE_f16, SCALE_e8, SCALE_u8f16, SCALE_i8f16, SCALE_u4f16 };

constexpr u32 STORE = STORE_<$ store $>;
constexpr u32 BITS = <$ bits $>;    // of one stored weight
constexpr u32 GROUP = <$ group $>;  // weights along k that share a scale
constexpr u32 ZERO = <$ zero $>;    // what levels are around, 0 where there is a min
constexpr u32 SCALE = SCALE_<$ scale $>;
constexpr bool HAS_MIN = <$ min $>;
constexpr u32 TILE_K = 64;
constexpr u32 UNIT_K = <$ unit_k $>;
constexpr u32 UNIT_TILES = UNIT_K / TILE_K;
constexpr u32 TILE_BYTES = 16 * TILE_K * BITS / 8;
constexpr u32 UNIT_BYTES = <$ unit_bytes $>;
// Units of one step of a warp: what it copies and computes at a time.
constexpr u32 STEP_UNITS = <$ step_units $>;
constexpr u32 STEP_BYTES = STEP_UNITS * UNIT_BYTES;
// What the codes of a codebook stand for, a signed byte each.
constexpr u32 CODES[4] = {<$ codes0 $>u, <$ codes1 $>u, <$ codes2 $>u, <$ codes3 $>u};

constexpr bool INTEGERS = STORE == STORE_int || STORE == STORE_code;
constexpr bool TWO_LEVELS = SCALE == SCALE_u8f16 || SCALE == SCALE_i8f16 || SCALE == SCALE_u4f16;
static_assert(!INTEGERS || GROUP == 32 || (GROUP == 16 && TWO_LEVELS), "scale groups of 16 or 32");
static_assert(!HAS_MIN || ZERO == 0, "levels with a min start at 0");

// The `width` bits at `from` of each byte, moved to `to`.
DEVICE u32 field(u32 word, u32 from, u32 to, u32 width) {
    const u32 mask = ((1u << width) - 1) * 0x01010101u << to;
    return (to >= from ? word << (to - from) : word >> (from - to)) & mask;
}

// Values of the codes in the low nibbles of `codes`, and in the high ones, as signed bytes.
DEVICE void look_up(u32 codes, u32& low, u32& high) {
    // Two bytes of codes make four of values: from either half of the table, then the half that bit 3 says.
    u32 index = codes & 0x77777777u, half = (codes >> 1 & 0x44444444u) | 0x32103210u;
    const u32 first = prmt(prmt(CODES[0], CODES[1], index), prmt(CODES[2], CODES[3], index), half);
    index >>= 16, half >>= 16;
    const u32 second = prmt(prmt(CODES[0], CODES[1], index), prmt(CODES[2], CODES[3], index), half);
    low = prmt(first, second, 0x6420);
    high = prmt(first, second, 0x7531);
}

// Bytes i of a[j][2p + h]: with SHIFT = 0 the levels; else the levels times 2^SHIFT with the top bit flipped, which are
// signed bytes around the zero. 8-bit levels and codes are signed bytes around the zero either way.
template <u32 SHIFT>
DEVICE void load_levels(const u8* tile, u32 lane, u32 (&a)[2][4]) {
    constexpr u32 FLIP = SHIFT ? 0x80808080u : 0;
    if constexpr (BITS == 8) {
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            const U4 q = reinterpret_cast<const U4*>(tile)[32 * j + lane];
            a[j][0] = q.x, a[j][1] = q.y, a[j][2] = q.z, a[j][3] = q.w;
        }
        return;
    }
    constexpr u32 LOW = BITS < 4 ? 2 : 4, TOP = BITS - LOW;
    u32 words[4] = {}, top[2] = {};
    if constexpr (LOW == 4) {
        const U4 q = reinterpret_cast<const U4*>(tile)[lane];
        words[0] = q.x, words[1] = q.y, words[2] = q.z, words[3] = q.w;
    } else {
        const U2 q = reinterpret_cast<const U2*>(tile)[lane];
        words[0] = q.x, words[1] = q.y;
    }
    if constexpr (TOP == 1) top[0] = reinterpret_cast<const u32*>(tile + LOW * 128)[lane];
    if constexpr (TOP == 2) {
        const U2 q = reinterpret_cast<const U2*>(tile + LOW * 128)[lane];
        top[0] = q.x, top[1] = q.y;
    }
#pragma unroll
    for (u32 j = 0; j < 2; j++) {
        if constexpr (STORE == STORE_code) {
            look_up(words[2 * j], a[j][0], a[j][2]);
            look_up(words[2 * j + 1], a[j][1], a[j][3]);
            continue;
        }
#pragma unroll
        for (u32 w = 0; w < 4; w++) {
            u32 v = LOW == 4 ? field(words[(w & 1) + 2 * j], w & 2 ? 4 : 0, SHIFT, 4) : field(words[j], 2 * w, SHIFT, 2);
            if constexpr (TOP == 1) v |= field(top[0], 4 * j + w, SHIFT + LOW, 1);
            if constexpr (TOP == 2) v |= field(top[j], 2 * w, SHIFT + LOW, 2);
            a[j][w] = v ^ FLIP;
        }
    }
}

// Scales of this lane's two outputs in one tile, as stored.
struct Scales {
    u32 code_float;  // CODE_FLOAT in a register
    f32 factor, min_factor;
    f32 d[2], d_base[2], m[2], m_base[2];
    u32 sc[2], mn[2];  // codes from the lowest byte on, or two halves
};

// A code in byte 1 of this is a float: 2^15 plus the code.
constexpr u32 CODE_FLOAT = 0x47000000u;
// What to subtract from it. Times an f16 it is exact in f32, so one fma makes d * code, rounded once.
constexpr f32 CODE_BASE = SCALE == SCALE_i8f16 ? 32768.f + 128.f : 32768.f;
constexpr u32 UNIT_GROUPS = UNIT_K / GROUP, TILE_GROUPS = TILE_K / GROUP;

// Codes of one output in tile t of a unit.
DEVICE u32 load_codes(const u8* codes, u32 t) {
    if constexpr (TILE_GROUPS == 4) return reinterpret_cast<const u32*>(codes)[t];
    return reinterpret_cast<const u16*>(codes)[t];
}

// Of tile t of a unit, times powers of two.
DEVICE void load_scales(const u8* scales, u32 lane, u32 t, u32 code_float, f32 factor, f32 min_factor, Scales& s) {
    s.code_float = code_float;
    s.factor = factor;
    s.min_factor = min_factor;
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        const u32 output = lane / 4 + 8 * h;
        if constexpr (SCALE == SCALE_f16) {
            s.sc[h] = reinterpret_cast<const u32*>(scales)[output];
            if constexpr (HAS_MIN) s.mn[h] = reinterpret_cast<const u32*>(scales + 64)[output];
        } else if constexpr (SCALE == SCALE_e8) {
            s.sc[h] = reinterpret_cast<const u16*>(scales)[output];
        } else if constexpr (TWO_LEVELS) {
            const u32 dm = reinterpret_cast<const u32*>(scales)[output];
            s.d[h] = unpack_lo(dm) * factor;
            s.d_base[h] = s.d[h] * -CODE_BASE;
            if constexpr (HAS_MIN) {
                s.m[h] = unpack_hi(dm) * min_factor;
                s.m_base[h] = s.m[h] * -CODE_BASE;
            }
            constexpr u32 PLANES = SCALE == SCALE_u8f16 && HAS_MIN ? 2 : 1;
            const u8* codes = scales + 64 + output * (PLANES * UNIT_GROUPS);
            s.sc[h] = load_codes(codes, t);
            if constexpr (SCALE == SCALE_i8f16) s.sc[h] ^= 0x80808080u;
            if constexpr (SCALE == SCALE_u4f16) {
                s.mn[h] = s.sc[h] >> 4 & 0x0f0f0f0fu;
                s.sc[h] &= 0x0f0f0f0fu;
            } else if constexpr (HAS_MIN) {
                s.mn[h] = load_codes(codes + UNIT_GROUPS, t);
            }
        }
    }
}

DEVICE f32 code_times(const Scales& s, u32 codes, u32 group, f32 d, f32 base) {
    return fma_(bits_f32(prmt(codes, s.code_float, 0x7404 + 16 * group)), d, base);
}

// Scale of output h in scale group `group` of the tile.
DEVICE f32 scale_of(const Scales& s, u32 h, u32 group) {
    if constexpr (SCALE == SCALE_f16) return (group ? unpack_hi(s.sc[h]) : unpack_lo(s.sc[h])) * s.factor;
    if constexpr (SCALE == SCALE_e8) {
        // 2^(e - 128), subnormal below 2.
        const u32 e = s.sc[h] >> 8 * group & 0xff;
        return bits_f32(e < 2 ? 0x00200000u << e : (e - 1) << 23) * s.factor;
    }
    return code_times(s, s.sc[h], group, s.d[h], s.d_base[h]);
}

DEVICE f32 min_of(const Scales& s, u32 h, u32 group) {
    if constexpr (SCALE == SCALE_f16) return (group ? unpack_hi(s.mn[h]) : unpack_lo(s.mn[h])) * s.min_factor;
    return code_times(s, s.mn[h], group, s.m[h], s.m_base[h]);
}
