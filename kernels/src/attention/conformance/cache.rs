//! A cache that the kernels under test fill and read, with shuffled pages and NaN wherever nothing was appended.

use super::super::*;
use crate::cpu;

/// Every way of dividing work that results must not depend on.
pub const WORKERS: [usize; 4] = [1, 2, 3, 8];

/// A filled cache and the values it stands for.
pub struct Cache {
    /// ISA of all kernels called.
    pub isa: Isa,
    /// Element type.
    pub ty: KvType,
    kv_heads: usize,
    head_dim: usize,
    slots: usize,
    pages_per_slot: usize,
    table: Vec<u32>,
    pool: Vec<u64>,
    /// `[slot][token][kv_heads][head_dim]` as stored.
    pub k: Vec<Vec<f32>>,
    /// As `k`.
    pub v: Vec<Vec<f32>>,
    /// A score for each query head, if there are sinks.
    pub sinks: Option<Vec<f32>>,
}

/// Floats in -scale..scale that repeat after a prime.
pub fn values(seed: usize, len: usize, scale: f32) -> Vec<f32> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
    (0..len).map(|i| value(i) * scale).collect()
}

/// One token's K or V of one head as the cache holds it.
fn decode(ty: KvType, head: &[u8], head_dim: usize) -> Vec<f32> {
    let padded = head_dim.next_multiple_of(32);
    let half = |at: usize| half::f16::from_le_bytes([head[at], head[at + 1]]).to_f32();
    let all: Vec<f32> = (0..padded)
        .map(|i| match ty {
            KvType::F32 => f32::from_le_bytes([
                head[4 * i],
                head[4 * i + 1],
                head[4 * i + 2],
                head[4 * i + 3],
            ]),
            KvType::F16 => half(2 * i),
            KvType::Q8_0 => half(padded + i / 32 * 2) * f32::from(head[i] as i8),
        })
        .collect();
    assert!(
        all[head_dim..].iter().all(|&x| x == 0.0),
        "padding of the head is not zero"
    );
    all[..head_dim].to_vec()
}

impl Cache {
    /// Appends `tokens` tokens of each of `slots` slots, interleaved, one padding row at the end of each step.
    pub fn filled(
        isa: Isa,
        ty: KvType,
        (kv_heads, head_dim): (usize, usize),
        slots: usize,
        tokens: usize,
    ) -> Cache {
        let pages_per_slot = pages(tokens + 20);
        let physical = slots * pages_per_slot;
        let mut cache = Cache {
            isa,
            ty,
            kv_heads,
            head_dim,
            slots,
            pages_per_slot,
            // A prime that is no number of pages: every page once.
            table: (0..physical)
                .map(|i| ((i * 1009 + 3) % physical) as u32)
                .collect(),
            // 0xffff.. is NaN in every float format, so whatever is read but was not appended shows.
            pool: vec![u64::MAX; physical * ty.page_bytes(kv_heads, head_dim) / 8],
            k: Vec::new(),
            v: Vec::new(),
            sinks: None,
        };
        let width = kv_heads * head_dim;
        let count = slots;
        let slots: Vec<u32> = (0..=count as u32).map(|s| s % count as u32).collect();
        for t in 0..tokens {
            let positions = vec![t as u32; count + 1];
            let (k, v) = (
                values(2 * t, (count + 1) * width, 1.5),
                values(2 * t + 1, (count + 1) * width, 2.0),
            );
            cache.append(&k, &v, &slots, &positions, count);
            for s in 0..count {
                let stored = cache.read(s, t);
                let loss = match ty {
                    KvType::F32 => 0.0,
                    KvType::F16 => 1e-3,
                    KvType::Q8_0 => 0.01,
                };
                for (stored, given) in [(&stored.0, &k), (&stored.1, &v)] {
                    for (a, b) in stored.iter().zip(&given[s * width..]) {
                        assert!(
                            (a - b).abs() <= loss,
                            "{} {ty:?}: {a} stored for {b}",
                            isa.name()
                        );
                    }
                }
                if t == 0 {
                    cache.k.push(Vec::new());
                    cache.v.push(Vec::new());
                }
                cache.k[s].extend(stored.0);
                cache.v[s].extend(stored.1);
            }
        }
        cache
    }

    fn step(&self, slots: &[u32], positions: &[u32], rows: usize) -> Step {
        assert!(slots.iter().all(|&s| (s as usize) < self.slots));
        Step {
            rows,
            logits: 0,
            tokens: std::ptr::null(),
            positions: positions.as_ptr(),
            slots: slots.as_ptr(),
            logit_rows: std::ptr::null(),
            page_table: self.table.as_ptr(),
            pages_per_slot: self.pages_per_slot,
        }
    }

    /// Appends a step of rows through the kernel.
    pub fn append(&mut self, k: &[f32], v: &[f32], slots: &[u32], positions: &[u32], live: usize) {
        let symbol = cpu::lookup(&append_symbol(self.ty, self.isa)).expect("listed");
        let step = self.step(slots, positions, live);
        let stride = self.kv_heads * self.head_dim * 4;
        // SAFETY: the symbol has this type by its name; buffers hold the rows, the pool all pages.
        unsafe {
            let append: KvAppendFn = std::mem::transmute(symbol.0);
            let pool = self.pool.as_mut_ptr().cast();
            let (heads, dim) = (self.kv_heads, self.head_dim);
            append(
                k.as_ptr(),
                v.as_ptr(),
                pool,
                &step,
                heads,
                dim,
                0,
                slots.len(),
                stride,
                stride,
            );
        }
    }

    /// K and V of one token, all heads, as stored.
    pub fn read(&self, slot: usize, t: usize) -> (Vec<f32>, Vec<f32>) {
        let bytes: Vec<u8> = {
            let page = self.table[slot * self.pages_per_slot + t / PAGE_TOKENS] as usize;
            let words = self.ty.page_bytes(self.kv_heads, self.head_dim) / 8;
            self.pool[page * words..][..words]
                .iter()
                .flat_map(|w| w.to_le_bytes())
                .collect()
        };
        let head_bytes = self.ty.head_bytes(self.head_dim);
        let plane = |i: usize| {
            let at = (i * PAGE_TOKENS + t % PAGE_TOKENS) * head_bytes;
            decode(self.ty, &bytes[at..][..head_bytes], self.head_dim)
        };
        let all = |odd: usize| {
            (0..self.kv_heads)
                .flat_map(|h| plane(2 * h + odd))
                .collect()
        };
        (all(0), all(1))
    }

    /// Runs every worker of the kernel one after the other, last one first, then of the combining kernel; output rows are
    /// one float apart and start as `f32::MAX`, the scratch starts as NaN and has no byte to spare.
    pub fn attend(
        &self,
        shape: &Shape,
        q: &[f32],
        rows: &[(u32, u32)],
        live: usize,
        workers: usize,
    ) -> Vec<f32> {
        let (slots, positions): (Vec<u32>, Vec<u32>) = rows.iter().copied().unzip();
        let step = self.step(&slots, &positions, live);
        let width = shape.heads * shape.head_dim;
        let mut out = vec![f32::MAX; rows.len() * (width + 1)];
        let longest = positions.iter().max().map_or(0, |&pos| pos as usize + 1);
        let cell = shape.queries_per_unit(rows.len()) * partial_bytes(shape.head_dim);
        let slot = splits(longest) * cell;
        let mut scratch = vec![u64::MAX; (workers - 1) * slot / 8];
        let kernel = cpu::lookup(&symbol(self.ty, self.isa)).expect("listed");
        let combine = cpu::lookup(&combine_symbol(self.isa)).expect("listed");
        let (heads, kv_heads, head_dim) = (shape.heads, shape.kv_heads, shape.head_dim);
        let sinks = self
            .sinks
            .as_ref()
            .map_or(std::ptr::null(), |sinks| sinks.as_ptr());
        // SAFETY: the symbols have these types by their names; buffers hold the rows, the pool all pages, the scratch a
        // slot for every worker but the last and in it a cell for every split.
        unsafe {
            let attention: AttentionFn = std::mem::transmute(kernel.0);
            let combine: CombineFn = std::mem::transmute(combine.0);
            for worker in (0..workers).rev() {
                attention(
                    q.as_ptr(),
                    self.pool.as_ptr().cast(),
                    out.as_mut_ptr(),
                    scratch.as_mut_ptr().cast(),
                    &step,
                    heads,
                    kv_heads,
                    head_dim,
                    worker,
                    workers,
                    width * 4,
                    (width + 1) * 4,
                    slot,
                    cell,
                    shape.scale.to_bits() as usize,
                    shape.window,
                    shape.softcap.to_bits() as usize,
                    sinks,
                );
            }
            for worker in (0..workers).rev() {
                combine(
                    scratch.as_ptr().cast(),
                    out.as_mut_ptr(),
                    &step,
                    heads,
                    kv_heads,
                    head_dim,
                    worker,
                    workers,
                    (width + 1) * 4,
                    slot,
                    cell,
                    shape.window,
                    sinks,
                );
            }
        }
        out
    }
}
