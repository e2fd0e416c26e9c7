// What a thread block of a matmul computes, and how its warps stream their weights. A thread block owns TILES * 16 outputs
// of one part (of both parts, if they are gate and up) times STAMP rows. ROW_WARPS of its warps divide the outputs, K_WARPS
// such teams divide k, step by step in turn, and each warp keeps STAGES steps of weights in a ring of its own (Stream).

struct Part {
    const u8* weights;  // [ceil(n/16)][units] units, of all experts
    Arg<u32> n;         // outputs
    u8* out;
    Arg<u64> out_stride;
    const u8* extra;    // bias [n] (of each expert), or rows to add
    Arg<u64> extra_stride;
};

struct Params {
    const u8* act;  // [rows], rows act_stride bytes apart
    Arg<u64> act_stride;
    Arg<u32> rows;
    Arg<u32> units;  // along k
    f32* scratch;    // [grid_x][blocks][grid_z][STAMP][OUTPUTS], if grid_z > 1
    u32* counters;   // [grid_x][blocks], zero before and after
    Arg<u32> pending;  // bytes from a row of act to its sums of squares; 0 where no norm is pending
    Arg<u32> width;    // elements whose squares they are
    Arg<f32> eps;
    const f32* norm_weight;  // [n] of the next norm
    u8* normed;              // rows whose norm is pending
    Arg<u64> normed_stride;
    Arg<u32> parts;
    Part part[3];
<% if routed %>
    const u8* routes;  // what the router left
    Arg<u64> items;    // bytes to the list of this STAMP
    Arg<u64> order;    // bytes to the order
    Arg<u32> share;    // routed rows that read the same row of activations
    Arg<u32> joined;   // 2 where gate and up of an expert follow each other in one matrix, else 1
<% endif %>
};

enum Epilogue { EPILOGUE_store, EPILOGUE_residual, EPILOGUE_residual_norm, EPILOGUE_gated_silu, EPILOGUE_gated_gelu, EPILOGUE_gated_clamped };
enum Form { FORM_f32, FORM_f16, FORM_q8 };

constexpr u32 EPILOGUE = EPILOGUE_<$ epilogue $>;
constexpr u32 OUT_FORM = FORM_<$ out_form $>;  // of gated results, and of what the next norm is to become
constexpr u32 STAMP = <$ stamp $>;             // rows of a thread block
constexpr u32 TILES = <$ tiles $>;             // 16 outputs each, of one part
constexpr u32 WARPS = <$ warps $>;
constexpr u32 ROW_WARPS = <$ row_warps $>;
constexpr u32 K_WARPS = WARPS / ROW_WARPS;
constexpr u32 STAGES = <$ stages $>;
constexpr u32 BARRIERS_START = <$ barriers $>;
constexpr u32 UNROLL = <$ unroll $>;  // tiles of a step that are multiplied side by side
constexpr bool NORMED = EPILOGUE == EPILOGUE_residual_norm;
constexpr bool GATED = EPILOGUE == EPILOGUE_gated_silu || EPILOGUE == EPILOGUE_gated_gelu || EPILOGUE == EPILOGUE_gated_clamped;
// Tiles of 16 outputs that each warp streams: those of the gate, then those of up.
constexpr u32 WARP_TILES = TILES / ROW_WARPS;
constexpr u32 STREAMS = GATED ? 2 * WARP_TILES : WARP_TILES;
// All outputs of the thread block: those of the gate, then those of up.
constexpr u32 OUTPUTS = 16 * TILES * (GATED ? 2 : 1);
constexpr u32 STAGE_BYTES = STREAMS * STEP_BYTES;

// Whether rows are those of an expert, and no neighbours.
constexpr bool ROUTED = <$ routed $>;

// This thread block's share.
struct Job {
    const Part* part;
    u32 tile;        // of [grid_x][blocks]
    u32 first;       // output
    u32 first_row;
    u32 live;        // rows, at most STAMP
    u32 step, steps; // of this thread block, from and to
    bool empty;      // all outputs lie beyond the matrix
<% if routed %>
    u32 expert;
    const u32* order;  // its routed rows, from the first of this thread block on
<% endif %>
};
<% include "matmul_rows.cuh" %>

// A part's thread blocks; rows of activations are written up to their padding.
DEVICE u32 blocks_of(u32 n) {
    constexpr u32 PADDED = NORMED || (GATED && OUT_FORM != FORM_f32) ? 64 : 1;
    return ((n + PADDED - 1) / PADDED * PADDED + 16 * TILES - 1) / (16 * TILES);
}

// Thread blocks along y of all parts.
DEVICE u32 blocks_of_parts(const Params& p) {
    u32 blocks = blocks_of(p.part[0].n);
    if constexpr (!GATED) {
        for (u32 which = 1; which < p.parts; which++) blocks += blocks_of(p.part[which].n);
    }
    return blocks;
}

// What thread block `block` along y of `blocks` computes. Those along x have other rows and the same weights: they start one
// after the other, so that memory is asked for weights once and L2 for the rest.
DEVICE Job job_of(const Params& p, u32 block, u32 blocks) {
    u32 which = 0;
    const u32 tile = block_x() * blocks + block;
    if constexpr (!GATED) {
        for (; which + 1 < p.parts && block >= blocks_of(p.part[which].n); which++) block -= blocks_of(p.part[which].n);
    }
    Job job;
    job.part = &p.part[which];
    job.tile = tile;
    job.first = block * 16 * TILES;
    choose_rows(p, job);
    const u32 steps = (p.units + STEP_UNITS - 1) / STEP_UNITS, share = (steps + grid_z() - 1) / grid_z();
    job.step = min_(block_z() * share, steps);
    job.steps = min_(job.step + share, steps);
    job.empty = job.first >= job.part->n;
    return job;
}

// Rows whose norm is pending hold x * weight times 2^-NORM_SHIFT, small enough for halves, and after it the sums of x^2 over
// 16 elements each. The matmul that reads them multiplies its sums with what is left of the norm, a factor for each row.
constexpr u32 NORM_SHIFT = 5;
// Rows whose squares a warp sums at once.
constexpr u32 FACTORS_AT_ONCE = STAMP >= 8 * WARPS ? 8 : (STAMP + WARPS - 1) / WARPS;
static_assert(STAMP <= 32 * WARPS, "a lane has one factor");

// The row of the thread block whose factor this lane has; there may be no such row.
DEVICE u32 row_of_factor() { return warp() + lane() * WARPS; }

// This lane's factor. The order of sums depends on the width alone.
DEVICE f32 factor_of_row(const Params& p, const Job& job) {
    f32 factor = 1.f;
    if (ROUTED || p.pending == 0) return factor;
    const u32 count = (p.width + 63) / 64 * 4;
#pragma unroll 1
    for (u32 i = 0; warp() + i * WARPS < job.live; i += FACTORS_AT_ONCE) {
        f32 sums[FACTORS_AT_ONCE] = {};
#pragma unroll 1
        for (u32 e = 4 * lane(); e < count; e += 128) {
#pragma unroll
            for (u32 r = 0; r < FACTORS_AT_ONCE; r++) {
                const u32 row = job.first_row + min_(warp() + (i + r) * WARPS, job.live - 1);
                const F4 v = *reinterpret_cast<const F4*>(p.act + row * p.act_stride + p.pending + 4 * e);
                sums[r] += (v.x + v.y) + (v.z + v.w);
            }
        }
#pragma unroll
        for (u32 r = 0; r < FACTORS_AT_ONCE; r++) {
#pragma unroll
            for (u32 mask = 16; mask > 0; mask /= 2) sums[r] += shuffle_xor(sums[r], mask);
            const f32 mean = sums[r] / static_cast<f32>(static_cast<u32>(p.width));
            if (lane() == i + r) factor = static_cast<f32>(1 << NORM_SHIFT) / sqrt_(mean + p.eps);
        }
    }
    return factor;
}

// A warp's stream m: which tile of its part it is.
DEVICE u32 tile_of_stream(u32 m) { return warp() % ROW_WARPS * WARP_TILES + m % WARP_TILES; }
// The first of its outputs among those of the thread block.
DEVICE u32 output_of_stream(u32 m) { return 16 * (m / WARP_TILES * TILES + tile_of_stream(m)); }
DEVICE u32 first_step(const Job& job) { return job.step + warp() / ROW_WARPS; }

// Where stream m of this warp begins.
DEVICE const u8* start_of_stream(const Params& p, const Job& job, u32 m) {
    const Part& part = job.part[m / WARP_TILES];
    const u32 tile_rows = (part.n + 15) / 16;
    // Tiles beyond the matrix repeat its last one; their outputs are not written.
    u64 tile_row = min_(job.first / 16 + tile_of_stream(m), tile_rows - 1);
    if constexpr (ROUTED) tile_row += matrices_before(p, job, m / WARP_TILES) * tile_rows;
    return part.weights + tile_row * (static_cast<u64>(p.units) * UNIT_BYTES);
}

// Bytes of step `next`, the last of which may be shorter.
DEVICE u32 bytes_of_step(u32 units, u32 next) { return min_(units - next * STEP_UNITS, STEP_UNITS) * UNIT_BYTES; }

<% if bulk %><% include "matmul_ring_bulk.cuh" %><% else %><% include "matmul_ring.cuh" %><% endif %>
