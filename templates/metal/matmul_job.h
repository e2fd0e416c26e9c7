// What a thread block of a matmul computes: TILES * 16 outputs of one part (of both parts, if they are gate and up) times
// STAMP rows. k is divided into slices, step by step in turn; each warp takes one, or fewer warps one after the other, while
// others beside them have other rows.
enum class Epilogue { store, residual, residual_norm, gated_silu, gated_gelu, gated_clamped };

FIXED Epilogue EPILOGUE = Epilogue::<$ epilogue $>;
FIXED Form OUT_FORM = Form::<$ out_form $>;  // of gated results, and of what the next norm is to become
FIXED u32 STAMP = <$ stamp $>;               // rows of a thread block
FIXED u32 TILES = <$ tiles $>;               // 16 outputs each, of one part
FIXED u32 WARPS = <$ warps $>;
FIXED u32 SLICES = <$ slices $>;
FIXED u32 ROW_WARPS = <$ row_warps $>;   // warps that divide the rows
FIXED u32 K_WARPS = WARPS / ROW_WARPS;   // warps that have a slice each
FIXED u32 SUM_SLICES = <$ sum_slices $>; // whose sums are kept apart: all of them, or 1 where they are added as they come
FIXED bool NORMED = EPILOGUE == Epilogue::residual_norm;
FIXED bool GATED = EPILOGUE == Epilogue::gated_silu || EPILOGUE == Epilogue::gated_gelu || EPILOGUE == Epilogue::gated_clamped;
// Tiles of 16 outputs that each warp multiplies: those of the gate, then those of up.
FIXED u32 STREAMS = GATED ? 2 * TILES : TILES;
// All outputs of the thread block: those of the gate, then those of up.
FIXED u32 OUTPUTS = 16 * STREAMS;
FIXED u32 TILE_K = 64;
FIXED u32 UNIT_TILES = UNIT_K / TILE_K;
// Units that a warp takes at a time.
FIXED u32 STEP_UNITS = <$ step_units $>;
// Scale groups of 32 k.
FIXED u32 PER_HALF = GROUP == 16 ? 2 : 1;
FIXED bool INTEGERS = STORE == Store::INTEGERS || STORE == Store::CODES;
static_assert(OUT_FORM != Form::q8, "no kernel reads int8 activations");
static_assert(SLICES % K_WARPS == 0 && (SUM_SLICES == 1 || SLICES == K_WARPS), "a warp has whole slices");

struct Part {
    const GLOBAL u8* weights;  // [ceil(n/16)][units] units, of all experts
    Arg<u32> n;                // outputs
    GLOBAL u8* out;
    Arg<u64> out_stride;
    const GLOBAL u8* extra;    // bias [n] (of each expert), or rows to add
    Arg<u64> extra_stride;
};

struct Params {
    const GLOBAL u8* act;  // [rows], rows act_stride bytes apart
    Arg<u64> act_stride;
    Arg<u32> rows;
    Arg<u32> units;  // along k
    GLOBAL u8* scratch;   // unused, as counters
    GLOBAL u8* counters;
    Arg<u32> pending;  // bytes from a row of act to its sums of squares; 0 where no norm is pending
    Arg<u32> width;    // elements whose squares they are
    Arg<f32> eps;
    const GLOBAL f32* norm_weight;  // [n] of the next norm
    GLOBAL u8* normed;              // rows whose norm is pending
    Arg<u64> normed_stride;
    Arg<u32> parts;
    Part part[3];
<% if routed %>
    const GLOBAL u8* routes;  // what the router left
    Arg<u64> items;    // bytes to the list of this STAMP
    Arg<u64> order;    // bytes to the order
    Arg<u32> share;    // routed rows that read the same row of activations
    Arg<u32> joined;   // 2 where gate and up of an expert follow each other in one matrix, else 1
<% endif %>
};

// Whether rows are those of an expert, and no neighbours.
FIXED bool ROUTED = <$ routed $>;

// This thread block's share.
struct Job {
    u32 part;
    u32 first;  // output
    u32 first_row;
    u32 live;  // rows, at most STAMP
<% if routed %>
    u32 expert;
    const GLOBAL u32* order;  // its routed rows, from the first of this thread block on
<% endif %>
};

// A part's thread blocks; rows of activations are written up to their padding.
DEVICE u32 blocks_of(u32 n) {
    const u32 padding = NORMED || (GATED && OUT_FORM != Form::f32) ? 64 : 1;
    return ((n + padding - 1) / padding * padding + 16 * TILES - 1) / (16 * TILES);
}

// Rows whose norm is pending hold x * weight times 2^-NORM_SHIFT, small enough for halves, and after it the sums of x^2 over
// 16 elements each. The matmul that reads them multiplies its sums with what is left of the norm, a factor for each row.
FIXED u32 NORM_SHIFT = 5;

// Sums: [SUM_SLICES][STAMP rows][OUTPUTS], padded so that rows begin in different banks.
FIXED u32 SUM_ROW = OUTPUTS + 4;
FIXED u32 SUM_FLOATS = SUM_SLICES * STAMP * SUM_ROW;

// Levels of one tile: byte i of word [j][2p + h] is that of output g + 8h at k = 32j + 16p + 4t + i, for lane 4g + t.
struct Levels {
    u32 of[2][4];
};
// Scales and mins of two outputs for 32 k.
struct Factors {
    f32 scale[2][PER_HALF];
    f32 min[2][PER_HALF];
};

// A code's value around the zero.
DEVICE f32 code_value(u32 code) {
    return static_cast<f32>(static_cast<i32>(LEVELS[code / 4] >> 8 * (code % 4) & 255) - ZERO);
}
DEVICE F4 code_values(u32 codes) {
    return F4{code_value(codes & 15), code_value(codes >> 8 & 15), code_value(codes >> 16 & 15), code_value(codes >> 24 & 15)};
}
