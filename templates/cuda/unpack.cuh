// Weights of a packed matrix four at a time: of output `row`, elements k .. k + 3 with k a multiple of 4. The order is that
// of kernels/src/gpu/tile.rs; w = scale * (level - zero) - min.
enum class Store { F32, F16, BF16, INTEGERS, CODES };
enum class Scales { NONE, HALVES, BYTES, SIGNED_BYTES, NIBBLES, EXPONENTS };

FIXED Store STORE = Store::<$ store $>;
FIXED u32 BITS = <$ bits $>;
FIXED u32 GROUP = <$ group $>;
FIXED i32 ZERO = <$ zero $>;
FIXED Scales SCALES = Scales::<$ scale_kind $>;
FIXED bool MIN = <$ min $>;
FIXED u32 UNIT_K = <$ unit_k $>;
FIXED u32 UNIT_BYTES = <$ unit_bytes $>;
CONSTANT u32 LEVELS[4] = {<$ levels_0 $>u, <$ levels_4 $>u, <$ levels_8 $>u, <$ levels_12 $>u};

FIXED u32 STORED_BITS = STORE == Store::F32 ? 32 : STORE == Store::F16 || STORE == Store::BF16 ? 16 : BITS;
FIXED u32 TILE_BYTES = 16 * 64 * STORED_BITS / 8;
// Scale codes of one output in a unit; 0 without.
FIXED u32 CODES_OF_ROW = SCALES == Scales::NIBBLES                                        ? UNIT_K / GROUP
                             : SCALES == Scales::BYTES || SCALES == Scales::SIGNED_BYTES ? UNIT_K / GROUP * (MIN ? 2 : 1)
                                                                                         : 0;

DEVICE f32 half_at(const GLOBAL u8* p) { return to_f32(f16{*reinterpret_cast<const GLOBAL u16*>(p)}); }

// Scale and min of output c of a unit for the group that has element k.
DEVICE void unpack_scale(const GLOBAL u8* scales, u32 c, u32 k, LOCAL f32& scale, LOCAL f32& min) {
    const u32 group = k / GROUP;
    scale = 1.0f;
    min = 0.0f;
    if constexpr (SCALES == Scales::HALVES) {
        scale = half_at(scales + 4 * c + 2 * group);
        if constexpr (MIN) min = half_at(scales + 64 + 4 * c + 2 * group);
    } else if constexpr (SCALES == Scales::EXPONENTS) {
        // 2^(e - 128), subnormal below 2.
        const u32 e = scales[2 * c + group];
        scale = bits_f32(e < 2 ? (1u << 21) << e : (e - 1) << 23);
    } else if constexpr (SCALES != Scales::NONE) {
        const GLOBAL u8* codes = scales + 64 + c * CODES_OF_ROW;
        const f32 d = half_at(scales + 4 * c);
        const f32 m = half_at(scales + 4 * c + 2);
        if constexpr (SCALES == Scales::NIBBLES) {
            scale = d * static_cast<f32>(codes[group] & 15);
            min = m * static_cast<f32>(codes[group] >> 4);
        } else {
            const u32 code = codes[group];
            scale = d * (SCALES == Scales::SIGNED_BYTES ? static_cast<f32>(static_cast<i8>(code)) : static_cast<f32>(code));
            if constexpr (MIN) min = m * static_cast<f32>(codes[UNIT_K / GROUP + group]);
        }
    }
}

// Bytes of the levels of four elements of a tile; of 8-bit levels, less 128.
DEVICE u32 unpack_levels(const GLOBAL u8* tile, u32 c, u32 k) {
    const u32 j = k / 32 % 2;
    const u32 p = k / 16 % 2;
    const u32 h = c / 8;
    const u32 lane = 4 * (c % 8) + k / 4 % 4;
    const GLOBAL u32* words = reinterpret_cast<const GLOBAL u32*>(tile);
    if constexpr (BITS == 8) return words[(32 * j + lane) * 4 + 2 * p + h];
    u32 levels = 0;
    u32 above = 0;
    if constexpr (BITS >= 4) {
        levels = words[4 * lane + h + 2 * j] >> (4 * p) & 0x0f0f0f0fu;
        above = 4;
        words += 128;
    }
    if constexpr (BITS == 2 || BITS == 3 || BITS == 6) {
        levels |= (words[2 * lane + j] >> (2 * (2 * p + h)) & 0x03030303u) << above;
        above += 2;
        words += 64;
    }
    if constexpr (BITS == 3 || BITS == 5) levels |= (words[lane] >> (4 * j + 2 * p + h) & 0x01010101u) << above;
    return levels;
}

DEVICE F4 unpack4(const GLOBAL u8* matrix, u32 units, u32 row, u32 k) {
    const GLOBAL u8* unit = matrix + (static_cast<u64>(row / 16) * units + k / UNIT_K) * UNIT_BYTES;
    const GLOBAL u8* tile = unit + k % UNIT_K / 64 * TILE_BYTES;
    const u32 c = row % 16;
    f32 w[4];
    if constexpr (STORE == Store::F32) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) w[i] = reinterpret_cast<const GLOBAL f32*>(tile)[(k % 64 + i) * 16 + c];
    } else if constexpr (STORE == Store::F16 || STORE == Store::BF16) {
        const GLOBAL u32* words = reinterpret_cast<const GLOBAL u32*>(tile) + (k % 64 / 16 * 32 + 4 * (c % 8) + k / 4 % 4) * 4 + c / 8;
        const u32 even = words[0];
        const u32 odd = words[2];
        const u32 bits[4] = {even, odd, even >> 16, odd >> 16};
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            w[i] = STORE == Store::F16 ? to_f32(f16{static_cast<u16>(bits[i])}) : bits_f32(bits[i] << 16);
    } else {
        const u32 levels = unpack_levels(tile, c, k);
        f32 scale, min;
        unpack_scale(unit + UNIT_K / 64 * TILE_BYTES, c, k % UNIT_K, scale, min);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 byte = levels >> (8 * i) & 255;
            i32 level = static_cast<i32>(byte) - ZERO;
            if constexpr (BITS == 8) level = static_cast<i8>(byte);
            if constexpr (STORE == Store::CODES) level = static_cast<i32>(LEVELS[byte / 4] >> (8 * (byte % 4)) & 255) - ZERO;
            w[i] = scale * static_cast<f32>(level);
            if constexpr (MIN) w[i] = w[i] - min;
        }
    }
    return F4{w[0], w[1], w[2], w[3]};
}
