// What both kinds of matmul kernels do around their products: the work of a thread block, factors of pending norms, levels
// and scales of a tile, weights as halves, and from the sums of slices to results: added in order, times what the norm before left
// pending, then bias, residual, or the gated product; with the residual also the rows of the next norm, pending. The order
// never depends on STAMP.

<% include "matmul_rows.cuh" %>

DEVICE Job job_of(const ARGUMENTS Params& p) {
    Job job;
    u32 block = block_y();
    job.part = 0;
    if (!GATED) {
        while (job.part + 1 < p.parts && block >= blocks_of(p.part[job.part].n)) {
            block -= blocks_of(p.part[job.part].n);
            job.part++;
        }
    }
    job.first = block * 16 * TILES;
    choose_rows(p, job);
    return job;
}

// Where stream m of the thread block begins. Tiles beyond the matrix repeat its last one; their outputs are not written.
DEVICE const GLOBAL u8* stream_of(const ARGUMENTS Params& p, const LOCAL Job& job, u32 m) {
    const ARGUMENTS Part& part = p.part[job.part + m / TILES];
    const u32 rows = (part.n + 15) / 16;
    const u64 row = matrices_before(p, job, m / TILES) * rows + min_(job.first / 16 + m % TILES, rows - 1);
    return part.weights + row * p.units * UNIT_BYTES;
}

// Bytes from the first activation row to row b of the thread block; rows beyond the last repeat it, their results are not
// written.
DEVICE u32 row_of(const ARGUMENTS Params& p, const LOCAL Job& job, u32 b) {
    return act_row(p, job, b) * static_cast<u32>(p.act_stride);
}

DEVICE SHARED f32* sums_of_slice(u32 slice) { return shared<f32>() + slice % SUM_SLICES * (STAMP * SUM_ROW); }
// Behind all that warps use, so that nobody waits before writing there.
DEVICE SHARED f32* row_factors() { return shared<f32>() + FACTORS_AT; }

// The order of sums depends on the width alone.
DEVICE void put_factors(const ARGUMENTS Params& p, const LOCAL Job& job) {
    const u32 count = (p.width + 63) / 64 * 4;
    for (u32 b = warp(); b < STAMP; b += WARPS) {
        f32 factor = 1.0f;
        if (p.pending != 0) {
            const GLOBAL u8* squares = p.act + row_of(p, job, b) + p.pending;
            f32 sum = 0.0f;
            for (u32 e = 4 * lane(); e < count; e += 128) {
                const F4 v = *reinterpret_cast<const GLOBAL F4*>(squares + 4 * e);
                sum += (v.x + v.y) + (v.z + v.w);
            }
            const f32 mean = warp_sum(sum) / static_cast<f32>(static_cast<u32>(p.width));
            factor = static_cast<f32>(1 << NORM_SHIFT) / sqrt_(mean + p.eps);
        }
        if (lane() == 0) row_factors()[b] = factor;
    }
}

// The `width` bits at `from` of each byte, moved to `to`.
DEVICE u32 field(u32 word, u32 from, u32 to, u32 width) {
    const u32 mask = ((1u << width) - 1) * 0x01010101u << to;
    return (to >= from ? word << (to - from) : word >> (from - to)) & mask;
}

// 8-bit levels are less 128.
DEVICE void load_levels(const GLOBAL u8* tile, LOCAL Levels& a) {
    if constexpr (BITS == 8) {
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            const U4 q = reinterpret_cast<const GLOBAL U4*>(tile)[32 * j + lane()];
            a.of[j][0] = q.x;
            a.of[j][1] = q.y;
            a.of[j][2] = q.z;
            a.of[j][3] = q.w;
        }
    } else {
        const u32 low = BITS < 4 ? 2 : 4;
        const u32 above = BITS - low;
        u32 words[4] = {0, 0, 0, 0};
        u32 top[2] = {0, 0};
        if constexpr (BITS >= 4) {
            const U4 q = reinterpret_cast<const GLOBAL U4*>(tile)[lane()];
            words[0] = q.x;
            words[1] = q.y;
            words[2] = q.z;
            words[3] = q.w;
        } else {
            const U2 q = reinterpret_cast<const GLOBAL U2*>(tile)[lane()];
            words[0] = q.x;
            words[1] = q.y;
        }
        if constexpr (BITS == 3 || BITS == 5) top[0] = reinterpret_cast<const GLOBAL u32*>(tile + low * 128)[lane()];
        if constexpr (BITS == 6) {
            const U2 q = reinterpret_cast<const GLOBAL U2*>(tile + low * 128)[lane()];
            top[0] = q.x;
            top[1] = q.y;
        }
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
#pragma unroll
            for (u32 w = 0; w < 4; w++) {
                u32 v = low == 4 ? field(words[(w & 1) + 2 * j], w & 2 ? 4 : 0, 0, 4) : field(words[j], 2 * w, 0, 2);
                if (above == 1) v |= field(top[0], 4 * j + w, low, 1);
                if (above == 2) v |= field(top[j], 2 * w, low, 2);
                a.of[j][w] = v;
            }
        }
    }
}

// Levels as numbers: of codes and of 8 bits less the zero, so that LEFT is what has yet to be subtracted.
FIXED f32 LEFT = STORE == Store::CODES || BITS == 8 ? 0.0f : static_cast<f32>(ZERO);
DEVICE F4 numbers(u32 levels) {
    if constexpr (STORE == Store::CODES) return code_values(levels);
    if constexpr (BITS == 8) return signed_bytes_f32(levels);
    return bytes_f32(levels);
}

// Scales of this lane's outputs for half j of tile t of a unit, whose scales are at `scales`.
DEVICE void load_factors(const GLOBAL u8* scales, u32 t, u32 j, LOCAL Factors& f) {
#pragma unroll
    for (u32 i = 0; i < 2 * PER_HALF; i++) {
        const u32 h = i / PER_HALF, group = i % PER_HALF;
        f32 scale, min;
        unpack_scale(scales, lane() / 4 + 8 * h, 64 * t + 32 * j + 16 * group, scale, min);
        f.scale[h][group] = scale;
        f.min[h][group] = min;
    }
}

// Stored halves of half j of a tile as numbers: elements i of [h][p].
DEVICE F4 stored_halves(const GLOBAL u8* tile, u32 j, u32 h, u32 p) {
    const GLOBAL u32* words = reinterpret_cast<const GLOBAL u32*>(tile) + ((2 * j + p) * 32 + lane()) * 4 + h;
    const u32 even = words[0], odd = words[2];
    if constexpr (STORE == Store::BF16)
        return F4{bits_f32(even << 16), bits_f32(odd << 16), bits_f32(even & 0xffff0000u), bits_f32(odd & 0xffff0000u)};
    return F4{unpack_lo(even), unpack_lo(odd), unpack_hi(even), unpack_hi(odd)};
}
DEVICE F4 stored_floats(const GLOBAL u8* tile, u32 j, u32 h, u32 p) {
    const GLOBAL f32* at = reinterpret_cast<const GLOBAL f32*>(tile) + (32 * j + 16 * p + lane() % 4 * 4) * 16 + lane() / 4 + 8 * h;
    return F4{at[0], at[16], at[32], at[48]};
}

// This lane's 8 of half j of a tile, of outputs h = 0 and 1, 2^SUM_SHIFT times their value, in the order of k that activations
// have; `scales`: those of its unit, of which it is tile t.
DEVICE void load_halves(const GLOBAL u8* tile, const GLOBAL u8* scales, u32 t, u32 j, const LOCAL Levels& levels, LOCAL U4 (&halves)[2]) {
    if constexpr (STORE == Store::F16) {
        const U4 a = reinterpret_cast<const GLOBAL U4*>(tile)[2 * j * 32 + lane()];
        const U4 b = reinterpret_cast<const GLOBAL U4*>(tile)[(2 * j + 1) * 32 + lane()];
        halves[0] = U4{a.x, a.z, b.x, b.z};
        halves[1] = U4{a.y, a.w, b.y, b.w};
        return;
    }
    Factors factors;
    if constexpr (INTEGERS) load_factors(scales, t, j, factors);
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        u32 words[4];
#pragma unroll
        for (u32 p = 0; p < 2; p++) {
            F4 w;
            if constexpr (INTEGERS) {
                const u32 group = PER_HALF == 2 ? p : 0;
                const f32 scale = factors.scale[h][group] * FACTOR;
                // The zero, or what is subtracted with a scale: neither format has both.
                const f32 less = MIN ? -factors.min[h][group] * FACTOR : -scale * LEFT;
                w = numbers(levels.of[j][2 * p + h]);
                w = F4{fma_(w.x, scale, less), fma_(w.y, scale, less), fma_(w.z, scale, less), fma_(w.w, scale, less)};
            } else {
                w = stored_halves(tile, j, h, p);
            }
            words[2 * p] = pack_f16(w.x, w.z);
            words[2 * p + 1] = pack_f16(w.y, w.w);
        }
        halves[h] = U4{words[0], words[1], words[2], words[3]};
    }
}

// Element of [STAMP][OUTPUTS], summed over the slices of k.
DEVICE f32 sum_of_block(u32 row, u32 output) {
    const SHARED f32* at = shared<f32>() + row * SUM_ROW + output;
    f32 sum = at[0];
    for (u32 w = 1; w < SUM_SLICES; w++) sum += at[w * (STAMP * SUM_ROW)];
    return sum * SUM_SCALE;
}

DEVICE f32 gated(f32 gate, f32 up) {
    if constexpr (EPILOGUE == Epilogue::gated_silu) return gate / (1.0f + exp_(-gate)) * up;
    if constexpr (EPILOGUE == Epilogue::gated_clamped) {
        gate = min_(gate, 7.0f);
        return gate / (1.0f + exp_(-1.702f * gate)) * (1.0f + min_(max_(up, -7.0f), 7.0f));
    }
    const f32 inner = 0.7978845608028654f * gate * (1.0f + 0.044715f * gate * gate);
    return 0.5f * gate * (1.0f + tanh_(inner)) * up;
}

// Where element k stands in a row of halves.
DEVICE u32 act_position(u32 k) {
    const u32 i = k % 4;
    return k / 32 * 32 + k / 4 % 4 * 8 + k / 16 % 2 * 4 + ((i & 1) << 1 | i >> 1);
}

// Writes activation `at` of the n of a row.
DEVICE void put_act(GLOBAL u8* out, u32 n, u32 at, f32 v) {
    if constexpr (OUT_FORM == Form::f32) {
        if (at < n) reinterpret_cast<GLOBAL f32*>(out)[at] = v;
    } else {
        // Beyond the largest half is the largest half: infinities would spread over the whole row.
        v = min_(max_(v, -65504.0f), 65504.0f);
        if (at < padded_to_tile(n)) reinterpret_cast<GLOBAL u16*>(out)[act_position(at)] = to_f16(at < n ? v : 0.0f).bits;
    }
}

// Writes what the next norm needs of x: x * weight, and the sum of squares of 16 outputs by as many lanes. All lanes of the
// warp; those that are not `there` have no place.
DEVICE void put_normed(const ARGUMENTS Params& p, const LOCAL Job& job, u32 row, u32 at, bool there, f32 x) {
    f32 square = x * x;
#pragma unroll
    for (u32 mask = 8; mask > 0; mask /= 2) square += shuffle_xor(square, mask);
    const u32 n = p.part[job.part].n;
    GLOBAL u8* out = p.normed + (job.first_row + row) * p.normed_stride;
    if (there && at % 16 == 0 && at < padded_to_tile(n))
        *reinterpret_cast<GLOBAL f32*>(out + 2 * padded_to_tile(n) + at / 4) = square;
    const f32 weight = at < n ? p.norm_weight[at] : 0.0f;
    if (there) put_act(out, n, at, x * (1.0f / (1 << NORM_SHIFT)) * weight);
}

// What is added to output `at`, if something is.
DEVICE f32 bias_of(const ARGUMENTS Part& part, const LOCAL Job& job, u32 at) {
    return reinterpret_cast<const GLOBAL f32*>(part.extra + matrix_of(job) * part.extra_stride)[at];
}

// Sums are in shared memory, written but not yet synchronised.
DEVICE void finish(const ARGUMENTS Params& p, const LOCAL Job& job) {
    sync_block();
    const u32 width = 16 * TILES;
    const ARGUMENTS Part& part = p.part[job.part];
    // All lanes of a warp stay together, with or without an output.
    for (u32 i = thread_x(); i - lane() < job.live * width; i += WARPS * 32) {
        const bool there = i < job.live * width;
        const u32 row = there ? i / width : 0, output = i % width, at = job.first + output;
        const u64 place = out_row(job, row);
        const f32 factor = row_factors()[row];
        f32 v = sum_of_block(row, output) * factor;
        if constexpr (GATED) {
            f32 up = sum_of_block(row, output + width) * factor;
            if (ROUTED && part.extra != nullptr && at < part.n) {
                v += bias_of(part, job, at);
                up += bias_of(p.part[1], job, at);
            }
            if (there) put_act(part.out + place * part.out_stride, part.n, at, gated(v, up));
        } else {
            const bool inside = there && at < part.n;
            if (inside) {
                if constexpr (EPILOGUE == Epilogue::residual || NORMED) {
                    v += reinterpret_cast<const GLOBAL f32*>(part.extra + place * part.extra_stride)[at];
                } else if (part.extra != nullptr) {
                    v += bias_of(part, job, at);
                }
                reinterpret_cast<GLOBAL f32*>(part.out + place * part.out_stride)[at] = v;
            }
            if constexpr (NORMED) put_normed(p, job, row, at, there, inside ? v : 0.0f);
        }
    }
}
