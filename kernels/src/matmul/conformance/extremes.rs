//! Weights, activations and scales at the ends of their ranges.

use super::*;

const K: usize = 256;

/// Exponents whose weights are still finite, and activations that bring the products back to ordinary size.
const ENDS: [([u8; 4], f32); 2] = [([0, 1, 2, 3], 1e31), ([249, 250, 251, 252], 1e-29)];

/// Levels and activations where a 16-bit sum would be the first to overflow, and scales that are barely floats.
pub fn check(isa: Isa) {
    let signs: [fn(usize) -> f32; 3] = [|_| 1.0, |_| -1.0, |i| if i % 3 == 0 { -1.0 } else { 1.0 }];
    let bytes: [fn(usize) -> u8; 4] = [|_| 0xff, |_| 0x80, |_| 0x7f, |_| 0];
    for fmt in FORMATS.iter().filter(|fmt| fmt.layout.int_bits().is_some()) {
        for (x, byte) in signs.iter().flat_map(|x| bytes.map(|byte| (x, byte))) {
            let x: Vec<f32> = (0..4 * K).map(x).collect();
            agrees(isa, case(fmt, 16, K, byte), &x);
        }
    }
    let exponents = FORMATS.iter().filter(|fmt| fmt.layout.scale == Scale::E8);
    for (fmt, (ends, size)) in exponents.flat_map(|fmt| ENDS.map(|end| (fmt, end))) {
        let mut raw = raw_rows(fmt, 16, K, varied);
        let quant_blocks = raw.chunks_exact_mut(fmt.ty.block_bytes() as usize);
        for (i, block) in quant_blocks.enumerate() {
            block[0] = ends[i % ends.len()];
        }
        let x: Vec<f32> = activations(4, K).iter().map(|v| v * size).collect();
        agrees(isa, packed(fmt, 16, K, &raw), &x);
    }
}

/// Four rows give what the reference gives on the same int8 activations.
fn agrees(isa: Isa, mut case: Case, x: &[f32]) {
    let (mut packed, values) = quantised(isa, x, K);
    let abs = |v: &[f32]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
    let exact = reference(&values, &case.weights, K);
    let magnitude = reference(&abs(&values), &abs(&case.weights), K);
    let batches = batches(case.fmt, isa, 4, 4).expect("stamp 4 exists");
    let y = run(&mut case, &batches, packed.bytes(), Init::Zero);
    let error = worst(&y, 16, &exact, &magnitude, 16);
    assert!(error < 1e-5, "{} {isa:?}: off by {error}", case.fmt.ty);
}
