// From the partial sums of warps to results: added over warps in order, then over thread blocks that share k in order, times
// what the norm before left pending, then bias, residual, or the gated product in the form that the next matmul reads; with
// the residual also the rows of the next norm, pending. The order never depends on STAMP.

// Sums of the warps that share their k: [STAMP rows][OUTPUTS], padded so that the lanes of a fragment meet different banks.
constexpr u32 SUM_ROW = OUTPUTS + 4;
// What the sums are multiplied by: a power of two.
constexpr f32 SUM_SCALE = 1.f / (1u << SUM_SHIFT);

static_assert(!(GATED || NORMED) || OUT_FORM != FORM_q8 || TILES % 2 == 0, "32 outputs share an int8 scale");

// Factors of rows, behind the sums; of routed rows, which have none, where they go.
DEVICE f32* row_factors() { return shared<f32>() + K_WARPS * STAMP * SUM_ROW; }
DEVICE u32* row_places() { return reinterpret_cast<u32*>(row_factors()); }
DEVICE f32* sums_of_warp() { return shared<f32>() + warp() / ROW_WARPS * (STAMP * SUM_ROW); }

// Element `at` of [STAMP][OUTPUTS], summed over the warps that divide k.
DEVICE f32 sum_of_block(u32 row, u32 output) {
    const f32* at = shared<f32>() + row * SUM_ROW + output;
    f32 sum = at[0];
#pragma unroll
    for (u32 w = 1; w < K_WARPS; w++) sum += at[w * (STAMP * SUM_ROW)];
    return sum * SUM_SCALE;
}

// Whether this thread block is the last to bring its share of k to the scratch memory of its tile. All threads agree.
DEVICE bool bring_share(const Params& p, const Job& job) {
    f32* share = p.scratch + (static_cast<u64>(job.tile) * grid_z() + block_z()) * (STAMP * OUTPUTS);
    for (u32 i = thread_x(); i < job.live * OUTPUTS; i += WARPS * 32) share[i] = sum_of_block(i / OUTPUTS, i % OUTPUTS);
    fence_device();
    sync_block();
    u32* arrived = shared<u32>();
    if (thread_x() == 0) {
        arrived[0] = atomic_add(p.counters + job.tile, 1);
        if (arrived[0] + 1 == grid_z()) p.counters[job.tile] = 0;
        fence_device();
    }
    sync_block();
    return arrived[0] + 1 == grid_z();
}

DEVICE f32 sum_of_shares(const Params& p, const Job& job, u32 row, u32 output) {
    const f32* share = p.scratch + static_cast<u64>(job.tile) * grid_z() * (STAMP * OUTPUTS) + row * OUTPUTS + output;
    f32 sum = 0;
    for (u32 z = 0; z < grid_z(); z++) sum += bits_f32(load_volatile(reinterpret_cast<const u32*>(share + z * (STAMP * OUTPUTS))));
    return sum;
}

DEVICE f32 gated(f32 gate, f32 up) {
    if constexpr (EPILOGUE == EPILOGUE_gated_silu) return gate / (1.f + exp_(-gate)) * up;
    if constexpr (EPILOGUE == EPILOGUE_gated_clamped) {
        gate = min_(gate, 7.f);
        return gate / (1.f + exp_(-1.702f * gate)) * (1.f + min_(max_(up, -7.f), 7.f));
    }
    const f32 inner = 0.7978845608028654f * gate * (1.f + 0.044715f * gate * gate);
    return 0.5f * gate * (1.f + tanh_(inner)) * up;
}

// Where element k stands in a row of activations, among its elements.
DEVICE u32 act_position(u32 k) {
    const u32 i = k % 4, place = OUT_FORM == FORM_f16 ? (i & 1) << 1 | i >> 1 : i;
    return k / 32 * 32 + k / 4 % 4 * 8 + k / 16 % 2 * 4 + place;
}

// Bytes of n activations.
DEVICE u32 act_bytes(u32 n) {
    const u32 padded = (n + 63) / 64 * 64;
    return OUT_FORM == FORM_f16 ? 2 * padded : (padded + padded / 4 + 63) / 64 * 64;
}

// Writes activation `at` of the n of a row; in int8, 32 of them by the lanes of a warp.
DEVICE void put_act(u8* out, u32 n, u32 at, f32 v) {
    const u32 padded = (n + 63) / 64 * 64;
    if constexpr (OUT_FORM == FORM_f32) {
        if (at < n) reinterpret_cast<f32*>(out)[at] = v;
    } else if constexpr (OUT_FORM == FORM_f16) {
        // Beyond the largest half is the largest half: infinities would spread over the whole row.
        v = min_(max_(v, -65504.f), 65504.f);
        if (at < padded) reinterpret_cast<f16*>(out)[act_position(at)] = to_f16(at < n ? v : 0.f);
    } else {
        if (at >= n) v = 0;
        f32 largest = abs_(v);
#pragma unroll
        for (u32 mask = 16; mask > 0; mask /= 2) largest = max_(largest, shuffle_xor(largest, mask));
        const f32 d = largest / 127.f;
        const i32 q = d > 0 ? round_to_int(v / d) : 0;
        i32 sum = q;
#pragma unroll
        for (u32 mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
        if (at < padded) {
            out[act_position(at)] = static_cast<u8>(q);
            if (lane() == 0) *reinterpret_cast<F2*>(out + padded + at / 32 * 8) = F2{d, d * static_cast<f32>(sum)};
        }
    }
}

// Writes what the next norm needs of x: x * weight, and the sum of squares of 16 outputs by as many lanes. All lanes of the
// warp; those that are not `there` have no place.
DEVICE void put_normed(const Params& p, const Job& job, u32 row, u32 at, bool there, f32 x) {
    f32 square = x * x;
#pragma unroll
    for (u32 mask = 8; mask > 0; mask /= 2) square += shuffle_xor(square, mask);
    const u32 n = job.part->n;
    u8* out = p.normed + (job.first_row + row) * p.normed_stride;
    if (there && at % 16 == 0 && at < (n + 63) / 64 * 64) *reinterpret_cast<f32*>(out + act_bytes(n) + at / 4) = square;
    const f32 weight = at < n ? p.norm_weight[at] : 0.f;
    if (there) put_act(out, n, at, x * (1.f / (1 << NORM_SHIFT)) * weight);
}

// What is added to output `at`, if something is.
DEVICE f32 bias_of(const Part& part, const Job& job, u32 at) {
    return reinterpret_cast<const f32*>(part.extra + matrix_of(job) * part.extra_stride)[at];
}

// The warps' sums are in shared memory, written but not yet synchronised.
DEVICE void finish(const Params& p, const Job& job, f32 own_factor) {
    const u32 own_row = row_of_factor();
    if constexpr (ROUTED) {
        if (own_row < job.live) row_places()[own_row] = out_row(job, own_row);
    } else {
        if (own_row < STAMP) row_factors()[own_row] = own_factor;
    }
    sync_block();
    const bool shared_k = grid_z() > 1;
    if (shared_k && !bring_share(p, job)) return;
    constexpr u32 WIDTH = 16 * TILES;
    const Part& part = *job.part;
    // All lanes of a warp stay together, with or without an output.
    for (u32 i = thread_x(); i - lane() < job.live * WIDTH; i += WARPS * 32) {
        const bool there = i < job.live * WIDTH;
        const u32 row = there ? i / WIDTH : 0, output = i % WIDTH, at = job.first + output;
        const u64 place = ROUTED ? row_places()[row] : job.first_row + row;
        const f32 factor = ROUTED ? 1.f : row_factors()[row];
        f32 v = (shared_k ? sum_of_shares(p, job, row, output) : sum_of_block(row, output)) * factor;
        if constexpr (GATED) {
            f32 up = (shared_k ? sum_of_shares(p, job, row, output + WIDTH) : sum_of_block(row, output + WIDTH)) * factor;
            if (ROUTED && part.extra && at < part.n) {
                v += bias_of(part, job, at);
                up += bias_of(job.part[1], job, at);
            }
            if (there) put_act(part.out + place * part.out_stride, part.n, at, gated(v, up));
        } else {
            const bool inside = there && at < part.n;
            if (inside) {
                if constexpr (EPILOGUE == EPILOGUE_residual || NORMED) {
                    v += reinterpret_cast<const f32*>(part.extra + place * part.extra_stride)[at];
                } else if (part.extra) {
                    v += bias_of(part, job, at);
                }
                reinterpret_cast<f32*>(part.out + place * part.out_stride)[at] = v;
            }
            if constexpr (NORMED) put_normed(p, job, row, at, there, inside ? v : 0.f);
        }
    }
}
