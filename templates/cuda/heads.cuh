// Heads of rows, a warp each: RMS norm, rotation, storing in the cache. A lane has elements 128 i + 4 lane ..+ 3, so eight
// lanes have a scale group.
FIXED u32 VECTORS = (PADDED + 127) / 128;

struct Head {
    F4 v[VECTORS];
};

// A head that is zeros from HEAD_DIM on.
DEVICE Head load_head(const GLOBAL f32* from) {
    Head head;
#pragma unroll
    for (u32 i = 0; i < VECTORS; i++) {
        const u32 column = 128 * i + 4 * lane();
        head.v[i] = F4{};
        if (column < HEAD_DIM) head.v[i] = *reinterpret_cast<const GLOBAL F4*>(from + column);
    }
    return head;
}

DEVICE void normalise(LOCAL Head& head, const GLOBAL f32* weight, f32 eps) {
    LOCAL F4(&x)[VECTORS] = head.v;
    f32 squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < VECTORS; i++)
        squares = fma_(x[i].x, x[i].x, fma_(x[i].y, x[i].y, fma_(x[i].z, x[i].z, fma_(x[i].w, x[i].w, squares))));
    const f32 inverse = 1.0f / sqrt_(warp_sum(squares) / static_cast<f32>(HEAD_DIM) + eps);
#pragma unroll
    for (u32 i = 0; i < VECTORS; i++) {
        const u32 column = 128 * i + 4 * lane();
        if (column < HEAD_DIM) {
            const F4 w = *reinterpret_cast<const GLOBAL F4*>(weight + column);
            x[i] = F4{x[i].x * inverse * w.x, x[i].y * inverse * w.y, x[i].z * inverse * w.z, x[i].w * inverse * w.w};
        }
    }
}

// Element e belongs to a pair: the place of its first element, and the distance to the second.
DEVICE u32 first_of_pair(u32 e, u32 rot_dim) { return NEOX ? (e >= rot_dim / 2 ? e - rot_dim / 2 : e) : e - e % 2; }
DEVICE u32 pair_distance(u32 rot_dim) { return NEOX ? rot_dim / 2 : 1; }

// Cosine and sine for each of the lane's elements. Those that do not rotate have none.
struct Turns {
    F2 of[VECTORS][4];
};
DEVICE Turns load_turns(const GLOBAL u8* table, u32 rot_dim) {
    Turns turns;
#pragma unroll
    for (u32 i = 0; i < VECTORS; i++)
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const u32 e = 128 * i + 4 * lane() + j;
            turns.of[i][j] = F2{1.0f, 0.0f};
            if (e < rot_dim) {
                const u32 first = first_of_pair(e, rot_dim);
                turns.of[i][j] = reinterpret_cast<const GLOBAL F2*>(table)[NEOX ? first : first / 2];
            }
        }
    return turns;
}

// Leaves a head where all lanes see it after a barrier.
DEVICE void put_head(const LOCAL Head& head, SHARED f32* to) {
#pragma unroll
    for (u32 i = 0; i < VECTORS; i++) {
        const u32 column = 128 * i + 4 * lane();
        if (column < PADDED) *reinterpret_cast<SHARED F4*>(to + column) = head.v[i];
    }
}

// Element e of a head: pair (a, b) -> (a cos - b sin, a sin + b cos).
DEVICE f32 rotated(const SHARED f32* head, u32 e, F2 turn, u32 rot_dim) {
    if (e >= rot_dim) return head[e];
    const u32 first = first_of_pair(e, rot_dim);
    const f32 a = head[first];
    const f32 b = head[first + pair_distance(rot_dim)];
    return e == first ? a * turn.x - b * turn.y : a * turn.y + b * turn.x;
}

// The head that has been put at `from`, rotated.
DEVICE Head rotate(const SHARED f32* from, const LOCAL Turns& turns, u32 rot_dim) {
    Head head;
#pragma unroll
    for (u32 i = 0; i < VECTORS; i++) {
        const u32 e = 128 * i + 4 * lane();
        head.v[i] = F4{};
        if (e < HEAD_DIM)
            head.v[i] = F4{rotated(from, e, turns.of[i][0], rot_dim), rotated(from, e + 1, turns.of[i][1], rot_dim),
                           rotated(from, e + 2, turns.of[i][2], rot_dim), rotated(from, e + 3, turns.of[i][3], rot_dim)};
    }
    return head;
}

// Stores elements column .. column + 3 of a head in the cache; all lanes of the warp. Elements from HEAD_DIM on are zeros.
DEVICE void store_cached(GLOBAL u8* head, u32 column, F4 v) {
    const bool inside = column < PADDED;
    if constexpr (KV == Kv::F32) {
        if (inside) *reinterpret_cast<GLOBAL F4*>(head + 4 * column) = v;
    } else if constexpr (KV == Kv::F16) {
        if (inside) *reinterpret_cast<GLOBAL U2*>(head + 2 * column) = U2{pack_f16(v.x, v.y), pack_f16(v.z, v.w)};
    } else {
        f32 largest = max_(max_(abs_(v.x), abs_(v.y)), max_(abs_(v.z), abs_(v.w)));
#pragma unroll
        for (u32 d = 1; d < 8; d *= 2) largest = max_(largest, shuffle_xor(largest, d));
        // The largest f16 holds whatever f16 holds.
        const f16 scale = to_f16(min_(largest / 127.0f, 65504.0f));
        const f32 d = to_f32(scale);
        const f32 inverse = d == 0.0f ? 0.0f : 1.0f / d;
        const f32 values[4] = {v.x, v.y, v.z, v.w};
        u32 word = 0;
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const i32 q = max_(min_(round_to_int(values[j] * inverse), 127), -127);
            word |= (static_cast<u32>(q) & 255) << (8 * j);
        }
        if (inside) {
            if constexpr (head_bytes(KV, HEAD_DIM) % 4 == 0) {
                *reinterpret_cast<GLOBAL u32*>(head + column) = word;
            } else {
                *reinterpret_cast<GLOBAL u16*>(head + column) = static_cast<u16>(word);
                *reinterpret_cast<GLOBAL u16*>(head + column + 2) = static_cast<u16>(word >> 16);
            }
            if (column % KV_GROUP == 0) *reinterpret_cast<GLOBAL u16*>(head + PADDED + column / KV_GROUP * 2) = scale.bits;
        }
    }
}

// Stores a head of K or V of the token at `position` of a slot, whose pages are at `pages`.
DEVICE void store_head(GLOBAL u8* kv, const GLOBAL u32* pages, u32 position, u32 kv_heads, u32 kv_head, bool of_v, const LOCAL Head& x) {
    GLOBAL u8* head = kv + page_offset<KV, HEAD_DIM>(pages[position / PAGE_TOKENS], kv_heads, kv_head, of_v) +
               position % PAGE_TOKENS * head_bytes(KV, HEAD_DIM);
#pragma unroll
    for (u32 i = 0; i < VECTORS; i++) store_cached(head, 128 * i + 4 * lane(), x.v[i]);
}
