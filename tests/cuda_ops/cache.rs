use coldpress_kernels::cpu::abi::{KvType, PAGE_TOKENS};
use coldpress_kernels::cpu::pages::q8_scale;
use half::f16;

/// One layer's pages, shuffled, with NaN wherever nothing was written.
#[derive(Clone)]
pub struct Cache {
    ty: KvType,
    kv_heads: usize,
    head_dim: usize,
    pub pages_per_slot: usize,
    /// Page of (slot, position / 32).
    pub table: Vec<u32>,
    pub pool: Vec<u8>,
}

impl Cache {
    pub fn of(
        ty: KvType,
        (kv_heads, head_dim): (usize, usize),
        slots: usize,
        tokens: usize,
    ) -> Cache {
        let pages_per_slot = tokens.div_ceil(PAGE_TOKENS);
        let pages = slots * pages_per_slot;
        Cache {
            ty,
            kv_heads,
            head_dim,
            pages_per_slot,
            // A prime that is no number of pages: every page once.
            table: (0..pages)
                .map(|i| ((i * 1009 + 3) % pages) as u32)
                .collect(),
            pool: vec![0xff; pages * ty.page_bytes(kv_heads, head_dim)],
        }
    }

    /// The same tables with other pages.
    pub fn with(&self, pool: &[u8]) -> Cache {
        let pool = pool.to_vec();
        Cache {
            pool,
            ..self.clone()
        }
    }

    /// Offset of K (or V) of one token and head.
    fn at(&self, slot: usize, token: usize, kv_head: usize, v: bool) -> usize {
        let page = self.table[slot * self.pages_per_slot + token / PAGE_TOKENS] as usize;
        let head_bytes = self.ty.head_bytes(self.head_dim);
        page * self.ty.page_bytes(self.kv_heads, self.head_dim)
            + ((2 * kv_head + usize::from(v)) * PAGE_TOKENS + token % PAGE_TOKENS) * head_bytes
    }

    /// One token's K (or V) of all heads as the cache should hold it, padding included.
    pub fn encoded(&self, values: &[f32]) -> Vec<Vec<u8>> {
        let heads = values.chunks_exact(self.head_dim);
        heads.map(|head| encode(self.ty, head)).collect()
    }

    pub fn write(&mut self, slot: usize, token: usize, v: bool, values: &[f32]) {
        for (kv_head, bytes) in self.encoded(values).into_iter().enumerate() {
            let at = self.at(slot, token, kv_head, v);
            self.pool[at..][..bytes.len()].copy_from_slice(&bytes);
        }
    }

    /// The bytes of one token's K (or V) of every head.
    pub fn stored(&self, slot: usize, token: usize, v: bool) -> Vec<Vec<u8>> {
        let bytes = self.ty.head_bytes(self.head_dim);
        (0..self.kv_heads)
            .map(|h| self.pool[self.at(slot, token, h, v)..][..bytes].to_vec())
            .collect()
    }

    /// As if nothing had been written for the token.
    pub fn erase(&mut self, slot: usize, token: usize) {
        let bytes = self.ty.head_bytes(self.head_dim);
        for (kv_head, v) in (0..self.kv_heads).flat_map(|h| [(h, false), (h, true)]) {
            let at = self.at(slot, token, kv_head, v);
            self.pool[at..at + bytes].fill(0xff);
        }
    }

    /// What they stand for, `[kv_heads][head_dim]`.
    pub fn read(&self, slot: usize, token: usize, v: bool) -> Vec<f32> {
        let heads = self.stored(slot, token, v);
        let heads = heads.iter().map(|head| decode(self.ty, head));
        heads.flat_map(|h| h[..self.head_dim].to_vec()).collect()
    }
}

fn encode(ty: KvType, head: &[f32]) -> Vec<u8> {
    let mut padded = head.to_vec();
    padded.resize(head.len().next_multiple_of(32), 0.0);
    match ty {
        KvType::F32 => padded.iter().flat_map(|v| v.to_le_bytes()).collect(),
        KvType::F16 => padded
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect(),
        KvType::Q8_0 => {
            let (mut integers, mut scales) = (vec![], vec![]);
            for group in padded.chunks_exact(32) {
                let (d, inverse) = q8_scale(group.iter().fold(0.0, |m: f32, v| m.max(v.abs())));
                scales.extend(d.to_le_bytes());
                let q = |v: &f32| (v * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
                integers.extend(group.iter().map(|v| q(v) as u8));
            }
            integers.extend(scales);
            integers
        }
    }
}

fn decode(ty: KvType, head: &[u8]) -> Vec<f32> {
    let float = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let half = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
    match ty {
        KvType::F32 => head.chunks_exact(4).map(float).collect(),
        KvType::F16 => head.chunks_exact(2).map(half).collect(),
        KvType::Q8_0 => {
            let elements = head.len() / 34 * 32;
            let scale = |i: usize| half(&head[elements + i / 32 * 2..]);
            (0..elements)
                .map(|i| f32::from(head[i] as i8) * scale(i))
                .collect()
        }
    }
}
