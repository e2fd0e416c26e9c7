// What the lanes of a warp compute together, from the operands of all of them: the definitions in intrinsics.cu, element
// by element. Products of halves are summed in f32 in order of k; tensor cores may differ in the last bits.
#include "runtime.hpp"

#include <cstring>

namespace simt {

static f32 low_half(u32 word) { return half_to_float(u16(word)); }
static f32 high_half(u32 word) { return half_to_float(u16(word >> 16)); }

// c[2h + j] of lane 4g + t: row g + 8h, column 2t + j.
template <typename T, typename Store>
static void scatter(const T (&c)[16][8], Store store) {
    for (u32 lane = 0; lane < 32; lane++)
        for (u32 i = 0; i < 4; i++) store(lane, i, c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
}

// a is in in[0..4] (k32) or in[0..2] (k16), b in in[4], in[5].
template <u32 K, typename A>
static void multiply_int(Warp& warp) {
    i16 a[16][K], b[8][K];
    for (u32 lane = 0; lane < 32; lane++) {
        const u32* in = warp.in[lane];
        const u32 g = lane / 4, t = lane % 4;
        for (u32 p = 0; p < K / 16; p++)
            for (u32 i = 0; i < 4; i++) {
                const u32 k = 16 * p + 4 * t + i;
                a[g][k] = A(in[2 * p] >> 8 * i);
                a[g + 8][k] = A(in[2 * p + 1] >> 8 * i);
                b[g][k] = i8(in[4 + p] >> 8 * i);
            }
    }
    i32 c[16][8];
    for (u32 m = 0; m < 16; m++)
        for (u32 n = 0; n < 8; n++) {
            i32 sum = 0;
            for (u32 k = 0; k < K; k++) sum += a[m][k] * b[n][k];
            c[m][n] = sum;
        }
    scatter(c, [&](u32 lane, u32 i, i32 v) { warp.out[lane][i] = u32(v); });
}

// c[16][8] += a[16][16] * b[16][8]; products of halves are exact.
static void multiply(f32 (&c)[16][8], const f32 (&a)[16][16], const f32 (&b)[16][8]) {
    for (u32 m = 0; m < 16; m++)
        for (u32 k = 0; k < 16; k++)
            for (u32 n = 0; n < 8; n++) c[m][n] += a[m][k] * b[k][n];
}

// Halves of `a` of mma_f16 in place.
static void gather_a(f32 (&a)[16][16], u32 lane, const u32* words) {
    for (u32 i = 0; i < 4; i++) {
        const u32 row = lane / 4 + i % 2 * 8, k = i / 2 * 8 + lane % 4 * 2;
        a[row][k] = low_half(words[i]);
        a[row][k + 1] = high_half(words[i]);
    }
}

// a in in[0..4], b in in[4], in[5], c in in[6..10].
static void multiply_half(Warp& warp) {
    f32 a[16][16], b[16][8], c[16][8];
    for (u32 lane = 0; lane < 32; lane++) {
        const u32* in = warp.in[lane];
        const u32 g = lane / 4, t = lane % 4;
        gather_a(a, lane, in);
        for (u32 p = 0; p < 2; p++) {
            b[8 * p + 2 * t][g] = low_half(in[4 + p]);
            b[8 * p + 2 * t + 1][g] = high_half(in[4 + p]);
        }
        for (u32 i = 0; i < 4; i++) c[g + i / 2 * 8][t * 2 + i % 2] = from_word<f32>(in[6 + i]);
    }
    multiply(c, a, b);
    scatter(c, [&](u32 lane, u32 i, f32 v) { warp.out[lane][i] = to_word(v); });
}

// in[0], in[1]: address of row lane % 8 of matrix lane / 8.
static void distribute(Warp& warp, bool transposed) {
    for (u32 j = 0; j < 4; j++) {
        u16 matrix[8][8];
        for (u32 row = 0; row < 8; row++) {
            const u32* in = warp.in[8 * j + row];
            memcpy(matrix[row], reinterpret_cast<const void*>(u64(in[1]) << 32 | in[0]), 16);
        }
        for (u32 lane = 0; lane < 32; lane++) {
            const u32 g = lane / 4, t = lane % 4;
            const u16 first = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
            const u16 second = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
            warp.out[lane][j] = first | u32(second) << 16;
        }
    }
}

// a, b and c of each lane in in[0..2], in[2..4] and in[4..6].
static void multiply_eights(Warp& warp) {
    f32 m[3][64];
    for (u32 lane = 0; lane < 32; lane++)
        for (u32 i = 0; i < 6; i++) m[i / 2][matrix_place(lane, i % 2)] = from_word<f32>(warp.in[lane][i]);
    for (u32 row = 0; row < 8; row++)
        for (u32 k = 0; k < 8; k++)
            for (u32 column = 0; column < 8; column++) m[2][8 * row + column] += m[0][8 * row + k] * m[1][8 * k + column];
    for (u32 lane = 0; lane < 32; lane++)
        for (u32 i = 0; i < 2; i++) warp.out[lane][i] = to_word(m[2][matrix_place(lane, i)]);
}

static void exchange(Warp& warp) {
    for (u32 lane = 0; lane < 32; lane++) warp.out[lane][0] = warp.in[warp.in[lane][1]][0];
}

static void vote(Warp& warp) {
    u32 bits = 0;
    for (u32 lane = 0; lane < 32; lane++) bits |= warp.in[lane][0] << lane;
    for (u32 lane = 0; lane < 32; lane++) warp.out[lane][0] = bits;
}

static void sync(Warp& warp) {
    Seen* all = nullptr;
    for (u32 lane = 0; lane < 32; lane++) tell(all, warp.threads[lane]);
    for (u32 lane = 0; lane < 32; lane++) know(warp.threads[lane], all);
    forget(all);
}

// ---- wgmma: issued by a warp for its 16 of the 64 rows, done between then and the wait.

// Offset in shared memory of row n of the 8 k from k (0 or 8).
static u64 row_of_b(u64 descriptor, u32 n, u32 k) {
    const u64 start = (descriptor & 0x3fff) << 4, chunk = (descriptor >> 16 & 0x3fff) << 4, rows = (descriptor >> 32 & 0x3fff) << 4;
    return start + k / 8 * chunk + n / 8 * rows + n % 8 * 16;
}

static void read_b(Warp& warp, const Wgmma& w) {
    for (u32 n = 0; n < w.n; n++)
        for (u32 k = 0; k < 16; k += 8) {
            const u64 row = row_of_b(w.descriptor, n, k);
            if (row + 16 > self->shared_bytes) fail("wgmma_f16 reads b beyond %u bytes of shared memory", self->shared_bytes);
            tensor_read(warp.threads[0], row, 16, w.pc);
        }
}

static void run_wgmma(Warp& warp, const Wgmma& w) {
    read_b(warp, w);
    const u8* shared = warp.threads[0].shared;
    f32 a[16][16];
    for (u32 lane = 0; lane < 32; lane++) gather_a(a, lane, w.a[lane]);
    for (u32 n8 = 0; n8 < w.n; n8 += 8) {
        f32 columns[16][8], c[16][8];
        for (u32 n = 0; n < 8; n++)
            for (u32 k = 0; k < 16; k += 8) {
                u16 halves[8];
                memcpy(halves, shared + row_of_b(w.descriptor, n8 + n, k), 16);
                for (u32 i = 0; i < 8; i++) columns[k + i][n] = half_to_float(halves[i]);
            }
        auto sum = [&](u32 lane, u32 i) -> f32& { return w.acc[lane][n8 / 2 + i]; };
        for (u32 lane = 0; lane < 32; lane++)
            for (u32 i = 0; i < 4; i++) c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = sum(lane, i);
        multiply(c, a, columns);
        scatter(c, [&](u32 lane, u32 i, f32 v) { sum(lane, i) = v; });
    }
}

void finish_wgmmas(Warp& warp, u32 groups_left) {
    size_t done = 0;
    while (done < warp.wgmmas.size() && warp.wgmmas[done].group + groups_left < warp.wgmma_group)
        if (Wgmma& w = warp.wgmmas[done++]; !w.landed) run_wgmma(warp, w);
    warp.wgmmas.erase(warp.wgmmas.begin(), warp.wgmmas.begin() + long(done));
}

// in[0..4] is a, in[4], in[5] the descriptor, in[6] n.
static void issue_wgmma(Warp& warp) {
    if (!warp.wgmma_fenced) fail("wgmma_f16 at line %u without wgmma_fence before it", warp.line);
    const u32 threads = warp.threads[0].threads;
    if (warp.index / 4 * 4 + 4 > threads / 32) fail("wgmma_f16 at line %u: no four warps from a multiple of four", warp.line);
    const u32* first = warp.in[0];
    Wgmma w;
    w.n = first[6];
    w.group = warp.wgmma_group;
    w.descriptor = u64(first[5]) << 32 | first[4];
    w.pc = at_line(warp.line);
    if (w.descriptor >> 49) fail("wgmma_f16 at line %u: a descriptor with swizzle or base offset", warp.line);
    for (u32 lane = 0; lane < 32; lane++) {
        const u32* in = warp.in[lane];
        if (in[4] != first[4] || in[5] != first[5] || in[6] != first[6])
            fail("wgmma_f16 at line %u: lanes differ in descriptor", warp.line);
        memcpy(w.a[lane], in, 16);
        w.acc[lane] = warp.acc[lane];
    }
    warp.wgmma_count++;
    read_b(warp, w);
    // One after the other: an earlier one that is late keeps this one back.
    w.landed = (warp.wgmmas.empty() || warp.wgmmas.back().landed) && at_once();
    if (w.landed) run_wgmma(warp, w);
    warp.wgmmas.push_back(w);
}

void compute(Warp& warp) {
    switch (warp.op) {
        case Op::SyncWarp: sync(warp); break;
        case Op::Shuffle:
        case Op::ShuffleXor:
        case Op::ShuffleDown: exchange(warp); break;
        case Op::Ballot: vote(warp); break;
        case Op::MmaS8K32: multiply_int<32, i8>(warp); break;
        case Op::MmaU8S8K32: multiply_int<32, u8>(warp); break;
        case Op::MmaS8K16: multiply_int<16, i8>(warp); break;
        case Op::MmaU8S8K16: multiply_int<16, u8>(warp); break;
        case Op::MmaF16: multiply_half(warp); break;
        case Op::MatrixMultiply: multiply_eights(warp); break;
        case Op::MatrixLoad:
        case Op::MatrixStore:
        case Op::TensorMultiply:
        case Op::TensorStore: break;
        case Op::Ldmatrix: distribute(warp, false); break;
        case Op::LdmatrixTransposed: distribute(warp, true); break;
        case Op::WgmmaFence: warp.wgmma_fenced = true; break;
        case Op::WgmmaF16: issue_wgmma(warp); break;
        case Op::WgmmaCommit: warp.wgmma_group++; break;
        case Op::WgmmaWait:
            finish_wgmmas(warp, warp.in[0][0]);
            warp.wgmma_fenced = false;
            break;
    }
}

// ---- What lanes bring, and take away.

u32 warp_shuffle(Op op, u32 v, u32 from, u32 line) {
    Warp& warp = *self->warp;
    const u32 lane = self->thread & 31;
    warp.in[lane][0] = v;
    warp.in[lane][1] = from;
    meet(op, line);
    return warp.out[lane][0];
}

u32 warp_ballot(bool p, u32 line) { return warp_shuffle(Op::Ballot, p, 0, line); }

void mma_int(Op op, i32* c, const u32* a, const u32* b, u32 line) {
    Warp& warp = *self->warp;
    const u32 lane = self->thread & 31, halves = op == Op::MmaS8K32 || op == Op::MmaU8S8K32 ? 2 : 1;
    u32* in = warp.in[lane];
    for (u32 i = 0; i < 2 * halves; i++) in[i] = a[i];
    for (u32 i = 0; i < halves; i++) in[4 + i] = b[i];
    meet(op, line);
    for (u32 i = 0; i < 4; i++) c[i] = i32(u32(c[i]) + warp.out[lane][i]);
}

void mma_half(f32* c, const u32* a, const u32* b, u32 line) {
    Warp& warp = *self->warp;
    const u32 lane = self->thread & 31;
    u32* in = warp.in[lane];
    for (u32 i = 0; i < 4; i++) in[i] = a[i];
    for (u32 i = 0; i < 2; i++) in[4 + i] = b[i];
    for (u32 i = 0; i < 4; i++) in[6 + i] = to_word(c[i]);
    meet(Op::MmaF16, line);
    for (u32 i = 0; i < 4; i++) c[i] = from_word<f32>(warp.out[lane][i]);
}

void multiply_matrices(f32 (&c)[2], const f32 (&a)[2], const f32 (&b)[2], u32 line) {
    Warp& warp = *self->warp;
    const u32 lane = self->thread & 31;
    for (u32 i = 0; i < 2; i++) {
        warp.in[lane][i] = to_word(a[i]);
        warp.in[lane][2 + i] = to_word(b[i]);
        warp.in[lane][4 + i] = to_word(c[i]);
    }
    meet(Op::MatrixMultiply, line);
    for (u32 i = 0; i < 2; i++) c[i] = from_word<f32>(warp.out[lane][i]);
}

void ldmatrix(Op op, u32* r, const void* row, u32 line) {
    Warp& warp = *self->warp;
    const u32 lane = self->thread & 31;
    const u64 address = reinterpret_cast<u64>(row);
    warp.in[lane][0] = u32(address);
    warp.in[lane][1] = u32(address >> 32);
    meet(op, line);
    for (u32 i = 0; i < 4; i++) r[i] = warp.out[lane][i];
}

void wgmma(f32* acc, u32 n, const u32* a, u64 descriptor, u32 line) {
    Warp& warp = *self->warp;
    const u32 lane = self->thread & 31;
    u32* in = warp.in[lane];
    for (u32 i = 0; i < 4; i++) in[i] = a[i];
    in[4] = u32(descriptor);
    in[5] = u32(descriptor >> 32);
    in[6] = n;
    warp.acc[lane] = acc;
    meet(Op::WgmmaF16, line);
}

void wgmma_wait(u32 groups, u32 line) {
    self->warp->in[self->thread & 31][0] = groups;
    meet(Op::WgmmaWait, line);
}

// ---- Halves.

u16 half_fma(u16 a, u16 b, u16 c) {
    // The product is exact, and so is what the sum rounds away.
    const f32 product = half_to_float(a) * half_to_float(b), z = half_to_float(c), sum = product + z;
    const f32 back = sum - product, lost = (product - (sum - back)) + (z - back);
    // Infinite, or exact.
    if (!(lost < 0 || lost > 0)) return float_to_half(sum);
    // Cut off towards zero, with the last bit set for what was cut, so that the second rounding meets no false tie.
    const bool above = (lost < 0) == (sum > 0);
    return float_to_half(from_word<f32>((to_word(sum) - above) | 1));
}

}  // namespace simt
