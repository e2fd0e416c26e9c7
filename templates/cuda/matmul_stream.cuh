// What a thread block of a matmul computes, and how its warps stream their weights. A thread block owns TILES * 16 outputs
// of one part (of both parts, if they are gate and up) times STAMP rows. ROW_WARPS of its warps divide the outputs, K_WARPS
// such teams divide k, step by step in turn, and each warp keeps STAGES steps of weights in a ring of its own.

struct Part {
    const u8* weights;  // [ceil(n/16)][units] units
    Arg<u32> n;         // outputs
    u8* out;
    Arg<u64> out_stride;
    const u8* extra;    // bias [n], or rows to add
    Arg<u64> extra_stride;
};

struct Params {
    const u8* act;  // [rows], rows act_stride bytes apart
    Arg<u64> act_stride;
    Arg<u32> rows;
    Arg<u32> units;  // along k
    f32* scratch;    // [grid_y][grid_x][grid_z][STAMP][OUTPUTS], if grid_z > 1
    u32* counters;   // [grid_y][grid_x], zero before and after
    Arg<u32> parts;
    Part part[3];
};

enum Epilogue { EPILOGUE_store, EPILOGUE_residual, EPILOGUE_gated_silu, EPILOGUE_gated_gelu };
enum Form { FORM_f32, FORM_f16, FORM_q8 };

constexpr u32 EPILOGUE = EPILOGUE_<$ epilogue $>;
constexpr u32 OUT_FORM = FORM_<$ out_form $>;  // of gated results
constexpr u32 STAMP = <$ stamp $>;             // rows of a thread block
constexpr u32 TILES = <$ tiles $>;             // 16 outputs each, of one part
constexpr u32 WARPS = <$ warps $>;
constexpr u32 ROW_WARPS = <$ row_warps $>;
constexpr u32 K_WARPS = WARPS / ROW_WARPS;
constexpr u32 STAGES = <$ stages $>;
constexpr bool GATED = EPILOGUE == EPILOGUE_gated_silu || EPILOGUE == EPILOGUE_gated_gelu;
// Tiles of 16 outputs that each warp streams: those of the gate, then those of up.
constexpr u32 WARP_TILES = TILES / ROW_WARPS;
constexpr u32 STREAMS = GATED ? 2 * WARP_TILES : WARP_TILES;
// All outputs of the thread block: those of the gate, then those of up.
constexpr u32 OUTPUTS = 16 * TILES * (GATED ? 2 : 1);
constexpr u32 STAGE_BYTES = STREAMS * STEP_BYTES;

// This thread block's share.
struct Job {
    const Part* part;
    u32 first;       // output
    u32 first_row;
    u32 live;        // rows, at most STAMP
    u32 step, steps; // of this thread block, from and to
    bool empty;      // all outputs lie beyond the matrix
};

// A part's thread blocks; gated rows of activations are written up to their padding.
DEVICE u32 blocks_of(u32 n) {
    constexpr u32 PADDED = GATED && OUT_FORM != FORM_f32 ? 64 : 1;
    return ((n + PADDED - 1) / PADDED * PADDED + 16 * TILES - 1) / (16 * TILES);
}

DEVICE Job job_of(const Params& p) {
    u32 block = block_x(), which = 0;
    if constexpr (!GATED) {
        for (; which + 1 < p.parts && block >= blocks_of(p.part[which].n); which++) block -= blocks_of(p.part[which].n);
    }
    Job job;
    job.part = &p.part[which];
    job.first = block * 16 * TILES;
    job.first_row = block_y() * STAMP;
    job.live = min_(static_cast<u32>(p.rows) - job.first_row, STAMP);
    const u32 steps = (p.units + STEP_UNITS - 1) / STEP_UNITS, share = (steps + grid_z() - 1) / grid_z();
    job.step = min_(block_z() * share, steps);
    job.steps = min_(job.step + share, steps);
    job.empty = job.first >= job.part->n;
    return job;
}

// A warp's stream m: which tile of its part it is.
DEVICE u32 tile_of_stream(u32 m) { return warp() % ROW_WARPS * WARP_TILES + m % WARP_TILES; }
// The first of its outputs among those of the thread block.
DEVICE u32 output_of_stream(u32 m) { return 16 * (m / WARP_TILES * TILES + tile_of_stream(m)); }
DEVICE u32 first_step(const Job& job) { return job.step + warp() / ROW_WARPS; }

// One warp's weights: its steps are first_step, then every K_WARPS-th.
struct Stream {
    const u8* from[STREAMS];  // where this lane copies from next
    u32 ring;                 // offset in shared memory
    u32 byte;                 // of this lane in 512
    u32 units, next, end, slot;

    DEVICE void open(const Params& p, const Job& job) {
        units = p.units;
        byte = keep(lane() * 16);
        next = first_step(job);
        end = job.empty ? 0 : job.steps;
        const u64 tile_row_bytes = static_cast<u64>(units) * UNIT_BYTES;
#pragma unroll
        for (u32 m = 0; m < STREAMS; m++) {
            const Part& part = job.part[m / WARP_TILES];
            const u32 tile_rows = (part.n + 15) / 16;
            // Tiles beyond the matrix repeat its last one; their outputs are not written.
            const u32 tile_row = min_(job.first / 16 + tile_of_stream(m), tile_rows - 1);
            from[m] = part.weights + tile_row * tile_row_bytes + static_cast<u64>(next) * STEP_BYTES + byte;
        }
        ring = keep(warp() * (STAGES * STAGE_BYTES));
        slot = 0;
#pragma unroll
        for (u32 i = 0; i + 1 < STAGES; i++) copy();
    }

    // Starts copying the next step into the next slot; an empty group after the last.
    DEVICE void copy() {
        if (next < end) {
            const u32 bytes = min_(units - next * STEP_UNITS, STEP_UNITS) * UNIT_BYTES, to = ring + slot * STAGE_BYTES + byte;
#pragma unroll
            for (u32 at = 0; at < STEP_BYTES; at += 512) {
                if (at + byte < bytes) {
#pragma unroll
                    for (u32 m = 0; m < STREAMS; m++) copy_async_16(shared<u8>() + (to + m * STEP_BYTES + at), from[m] + at);
                }
            }
#pragma unroll
            for (u32 m = 0; m < STREAMS; m++) from[m] += K_WARPS * STEP_BYTES;
            next += K_WARPS;
        }
        copy_async_commit();
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }

    // The oldest step has come; its slot is the one after the next to fill. Starts another copy.
    DEVICE const u8* take() {
        copy_async_wait<STAGES - 2>();
        sync_warp();
        const u32 oldest = slot + 1 == STAGES ? 0 : slot + 1;
        copy();
        return shared<u8>() + (ring + oldest * STAGE_BYTES);
    }
};
