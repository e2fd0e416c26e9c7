//! Portable attention over the paged KV cache, and the appending of K and V.

use half::f16;

use crate::attention::{AttentionFn, KvAppendFn, MAX_HEAD_DIM, Shape};
use crate::cpu::abi::{KvType, PAGE_TOKENS, Step};
use crate::cpu::pages::{HEAD_BATCH, KV_GROUP, Pages, q8_scale};
use crate::cpu::symbols::{Named, Symbol};

macro_rules! symbols {
    ($($name:literal $kv:literal),*) => {
        &[$(
            (concat!("attention_", $name, "_scalar"), Symbol(attention::<$kv> as AttentionFn as *const ())),
            (concat!("kv_append_", $name, "_scalar"), Symbol(kv_append::<$kv> as KvAppendFn as *const ())),
        )*]
    };
}

/// `attention_<kv>_scalar` of type [`AttentionFn`] and `kv_append_<kv>_scalar` of type [`KvAppendFn`].
pub const SYMBOLS: &[Named] = symbols!("f32" 0, "f16" 1, "q8_0" 2);

/// The cache type that a const argument stands for.
const KV_TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8_0];

/// Converts one token's K or V of one head; `out` is as long as the padded head.
///
/// # Safety
/// `head` holds `ty.head_bytes(out.len())` bytes.
unsafe fn load_head(ty: KvType, head: *const u8, out: &mut [f32]) {
    let scales = out.len();
    for (i, x) in out.iter_mut().enumerate() {
        // SAFETY: element i and the scale of its group are inside the head.
        *x = unsafe {
            match ty {
                KvType::F32 => head.cast::<f32>().add(i).read(),
                KvType::F16 => f16::from_bits(head.cast::<u16>().add(i).read()).to_f32(),
                KvType::Q8_0 => {
                    let d = head.add(scales).cast::<u16>().add(i / KV_GROUP).read();
                    f16::from_bits(d).to_f32() * f32::from(*head.add(i) as i8)
                }
            }
        };
    }
}

/// Stores one token's K or V of one head, `padded` elements of which those from `x.len()` on are zeros.
///
/// # Safety
/// `head` holds `ty.head_bytes(padded)` bytes, aligned to 2 (4 for F32).
unsafe fn store_head(ty: KvType, x: &[f32], padded: usize, head: *mut u8) {
    let at = |i: usize| x.get(i).copied().unwrap_or(0.0);
    for begin in (0..padded).step_by(KV_GROUP) {
        let group: [f32; KV_GROUP] = std::array::from_fn(|i| at(begin + i));
        let amax = group.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let (d, inverse) = q8_scale(amax);
        for (i, &x) in group.iter().enumerate() {
            let i = begin + i;
            // SAFETY: i < padded.
            unsafe {
                match ty {
                    KvType::F32 => head.cast::<f32>().add(i).write(x),
                    KvType::F16 => head.cast::<u16>().add(i).write(f16::from_f32(x).to_bits()),
                    KvType::Q8_0 => {
                        let q = (x * inverse).round_ties_even().clamp(-127.0, 127.0);
                        head.cast::<i8>().add(i).write(q as i8);
                    }
                }
            }
        }
        if ty == KvType::Q8_0 {
            // SAFETY: the scales follow the head's integers.
            unsafe {
                head.add(padded)
                    .cast::<u16>()
                    .add(begin / KV_GROUP)
                    .write(d)
            };
        }
    }
}

/// # Safety
/// The contract of [`KvAppendFn`].
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn kv_append<const KV: usize>(
    k: *const f32,
    v: *const f32,
    kv: *mut u8,
    step: *const Step,
    kv_heads: usize,
    head_dim: usize,
    row_begin: usize,
    row_end: usize,
    k_stride: usize,
    v_stride: usize,
) {
    let ty = KV_TYPES[KV];
    let padded = head_dim.next_multiple_of(KV_GROUP);
    // SAFETY: the step is valid for the whole call.
    let step = unsafe { &*step };
    let pages = Pages::new(kv, step, ty, kv_heads, head_dim);
    for r in row_begin..row_end.min(step.rows) {
        for h in 0..kv_heads {
            // SAFETY: r < rows; the row's position has a page, and head h of row r is inside k and v.
            unsafe {
                let (slot, pos) = (*step.slots.add(r) as usize, *step.positions.add(r) as usize);
                let page = pages.head(slot, pos / PAGE_TOKENS, h);
                let at = pos % PAGE_TOKENS * pages.head_bytes;
                let k = k.byte_add(r * k_stride).add(h * head_dim);
                let v = v.byte_add(r * v_stride).add(h * head_dim);
                store_head(
                    ty,
                    std::slice::from_raw_parts(k, head_dim),
                    padded,
                    page.k.add(at),
                );
                store_head(
                    ty,
                    std::slice::from_raw_parts(v, head_dim),
                    padded,
                    page.v.add(at),
                );
            }
        }
    }
}

/// Sum of products over a multiple of 8 elements, in 8 interleaved sums.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// Softmax state of one query head.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

/// # Safety
/// The contract of [`AttentionFn`].
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn attention<const KV: usize>(
    q: *const f32,
    kv: *const u8,
    out: *mut f32,
    step: *const Step,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    unit_begin: usize,
    unit_end: usize,
    q_stride: usize,
    out_stride: usize,
    scale_bits: usize,
    window: usize,
    softcap_bits: usize,
) {
    let shape = Shape {
        heads,
        kv_heads,
        head_dim,
        scale: f32::from_bits(scale_bits as u32),
        window,
        softcap: f32::from_bits(softcap_bits as u32),
    };
    // SAFETY: the step is valid for the whole call.
    let step = unsafe { &*step };
    let pages = Pages::new(kv.cast_mut(), step, KV_TYPES[KV], kv_heads, head_dim);
    let group = heads / kv_heads;
    for unit in unit_begin..unit_end.min(step.rows * kv_heads) {
        let (r, kv_head) = (unit / kv_heads, unit % kv_heads);
        for begin in (0..group).step_by(HEAD_BATCH) {
            let first = (kv_head * group + begin) * head_dim;
            let len = HEAD_BATCH.min(group - begin) * head_dim;
            // SAFETY: these heads of row r are inside q and out, which are different buffers.
            unsafe {
                let q = std::slice::from_raw_parts(q.byte_add(r * q_stride).add(first), len);
                let out =
                    std::slice::from_raw_parts_mut(out.byte_add(r * out_stride).add(first), len);
                heads_of_row::<KV>(q, out, &pages, &shape, r, kv_head, head_dim);
            }
        }
    }
}

/// Attention of up to [`HEAD_BATCH`] query heads of row `r`.
///
/// # Safety
/// Row r is live and every position it sees has a page.
unsafe fn heads_of_row<const KV: usize>(
    q: &[f32],
    out: &mut [f32],
    pages: &Pages,
    shape: &Shape,
    r: usize,
    kv_head: usize,
    head_dim: usize,
) {
    let ty = KV_TYPES[KV];
    let padded = head_dim.next_multiple_of(KV_GROUP);
    let count = q.len() / head_dim;
    let mut queries = [[0.0f32; MAX_HEAD_DIM]; HEAD_BATCH];
    for (to, from) in queries.iter_mut().zip(q.chunks_exact(head_dim)) {
        to[..head_dim].copy_from_slice(from);
    }
    let mut sums = [[0.0f32; MAX_HEAD_DIM]; HEAD_BATCH];
    let mut state = [Running {
        max: f32::NEG_INFINITY,
        sum: 0.0,
    }; HEAD_BATCH];
    let mut token = [0.0f32; MAX_HEAD_DIM];
    let token = &mut token[..padded];
    // SAFETY: row r is live.
    let (slot, pos) = unsafe {
        let step = pages.step;
        (*step.slots.add(r) as usize, *step.positions.add(r) as usize)
    };
    let first = shape.first(pos);
    for page in first / PAGE_TOKENS..=pos / PAGE_TOKENS {
        let seen =
            first.saturating_sub(page * PAGE_TOKENS)..PAGE_TOKENS.min(pos + 1 - page * PAGE_TOKENS);
        let mut p = [[0.0f32; PAGE_TOKENS]; HEAD_BATCH];
        // SAFETY: the page holds positions the row sees.
        let base = unsafe { pages.head(slot, page, kv_head) };
        for t in seen.clone() {
            // SAFETY: token t is in the page.
            unsafe { load_head(ty, base.k.add(t * pages.head_bytes), token) };
            for (p, q) in p.iter_mut().zip(&queries).take(count) {
                let s = dot(&q[..padded], token) * shape.scale;
                p[t] = match shape.softcap {
                    0.0 => s,
                    cap => cap * (s / cap).tanh(),
                };
            }
        }
        for ((p, sums), state) in p.iter_mut().zip(&mut sums).zip(&mut state).take(count) {
            let p = &mut p[seen.clone()];
            let max = p.iter().fold(state.max, |m, &s| m.max(s));
            let keep = (state.max - max).exp();
            for s in p.iter_mut() {
                *s = (*s - max).exp();
            }
            *state = Running {
                max,
                sum: state.sum * keep + p.iter().sum::<f32>(),
            };
            for x in &mut sums[..padded] {
                *x *= keep;
            }
        }
        for t in seen {
            // SAFETY: token t is in the page.
            unsafe { load_head(ty, base.v.add(t * pages.head_bytes), token) };
            for (p, sums) in p.iter().zip(&mut sums).take(count) {
                for (x, v) in sums.iter_mut().zip(token.iter()) {
                    *x += p[t] * v;
                }
            }
        }
    }
    for ((out, sums), state) in out.chunks_exact_mut(head_dim).zip(&sums).zip(&state) {
        for (out, x) in out.iter_mut().zip(sums) {
            *out = x / state.sum;
        }
    }
}
