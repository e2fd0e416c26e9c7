//! Random weights of a tensor type, of a chosen size. Knows no layout of a quant block: formats are asked.

use std::error::Error;

use coldpress_kernels::quant::{self, QuantFormat, Unpacked, dequantise_row};
use coldpress_kernels::tensor_type::TensorType;
use half::f16;

/// xorshift64*, seeded through splitmix64 so that neighbouring seeds are unrelated.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        let z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((z ^ (z >> 31)) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Makes random weights of one type: random bytes, in which the f16 scales of a quant block are then set so that weights
/// have mean 0 and standard deviation 1 / `unit`. Where they are is found by looking what a format makes of a probe.
pub struct Recipe {
    pub ty: TensorType,
    /// Byte offset of the f16 scale, and of the f16 min where there is one.
    scale: Option<usize>,
    min: Option<usize>,
    /// Min for a scale of 1.
    min_per_scale: f32,
    /// Standard deviation with a scale of 1.
    unit: f32,
}

impl Recipe {
    pub fn new(ty: TensorType) -> Result<Self, Box<dyn Error>> {
        let format = quant::format(ty).ok_or_else(|| format!("{ty} is not supported"))?;
        let mut recipe = Self {
            ty,
            scale: None,
            min: None,
            min_per_scale: 0.0,
            unit: 1.0,
        };
        if matches!(ty, TensorType::F16 | TensorType::F32) {
            return Ok(recipe);
        }
        recipe.scale =
            Some(find(format, |u| u.d[0]).ok_or_else(|| format!("{ty} has no f16 scale"))?);
        recipe.min = find(format, |u| u.m[0]).filter(|_| format.layout.min);
        if recipe.min.is_some() {
            let (scaled, _) = recipe.moments(format, 1.0, 0.0);
            let (lowered, _) = recipe.moments(format, 0.0, 1.0);
            recipe.min_per_scale = -scaled / lowered;
        }
        recipe.unit = recipe.moments(format, 1.0, recipe.min_per_scale).1;
        Ok(recipe)
    }

    /// Mean and root mean square of many random weights.
    fn moments(&self, format: &QuantFormat, scale: f32, min: f32) -> (f32, f32) {
        let count = 512;
        let mut bytes = vec![0; count * self.ty.block_bytes() as usize];
        Random::new(7).fill(&mut bytes);
        self.set(&mut bytes, scale, min);
        let mut weights = vec![0.0; count * self.ty.block_len() as usize];
        dequantise_row(format, &bytes, &mut weights);
        let mean = |f: fn(f64) -> f64| {
            let sum: f64 = weights.iter().map(|&w| f(f64::from(w))).sum();
            (sum / weights.len() as f64) as f32
        };
        (mean(|w| w), mean(|w| w * w).sqrt())
    }

    fn set(&self, bytes: &mut [u8], scale: f32, min: f32) {
        let (scale, min) = (f16::from_f32(scale), f16::from_f32(min));
        for bytes in bytes.chunks_exact_mut(self.ty.block_bytes() as usize) {
            for (at, value) in [(self.scale, scale), (self.min, min)] {
                if let Some(at) = at {
                    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
                }
            }
        }
    }

    /// Fills whole quant blocks.
    pub fn fill(&self, bytes: &mut [u8], deviation: f32, random: &mut Random) {
        random.fill(bytes);
        if self.scale.is_some() {
            let scale = deviation / self.unit;
            return self.set(bytes, scale, scale * self.min_per_scale);
        }
        // Floats: 4096 values evenly over a range of this deviation.
        let reach = deviation * 3f32.sqrt();
        let value = |i: u16| (f32::from(i) / 2047.5 - 1.0) * reach;
        if self.ty == TensorType::F32 {
            for bytes in bytes.as_chunks_mut::<4>().0 {
                *bytes = value(u16::from_le_bytes([bytes[0], bytes[1]]) & 4095).to_le_bytes();
            }
            return;
        }
        let half = |i: u16| f16::from_f32(value(i)).to_le_bytes();
        let table: Vec<[u8; 2]> = (0..4096).map(half).collect();
        for bytes in bytes.as_chunks_mut::<2>().0 {
            *bytes = table[usize::from(u16::from_le_bytes(*bytes) & 4095)];
        }
    }
}

/// Where in a quant block an f16 is that unpacking leaves as `field`.
fn find(format: &QuantFormat, field: impl Fn(&Unpacked) -> u16) -> Option<usize> {
    const PROBE: u16 = 0x1234;
    let bytes = format.ty.block_bytes() as usize;
    (0..bytes - 1).find(|&at| {
        let mut probe = vec![0; bytes];
        probe[at..at + 2].copy_from_slice(&PROBE.to_le_bytes());
        let mut unpacked = Unpacked::zeros(&format.layout);
        (format.unpack)(&probe, &mut unpacked);
        // A min may be kept with its sign turned.
        field(&unpacked) & 0x7fff == PROBE
    })
}
