//! Bit fields that several quant blocks share.

use super::Unpacked;

/// Splits bytes into low nibbles (first half of `q`) and high nibbles (second half).
pub fn nibbles(bytes: &[u8], q: &mut [u8]) {
    let (low, high) = q.split_at_mut(bytes.len());
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = byte & 15;
        *high = byte >> 4;
    }
}

/// Splits the 64 bytes that hold the low two bits of Q2_K and Q3_K: each half of 128 weights takes 32 bytes, weight
/// 32 j + i of the half at bit 2 j of its byte i.
pub fn two_bits(bytes: &[u8], q: &mut [u8; 256]) {
    for (half, bytes) in q.chunks_exact_mut(128).zip(bytes.chunks_exact(32)) {
        for (j, q) in half.chunks_exact_mut(32).enumerate() {
            for (q, &byte) in q.iter_mut().zip(bytes) {
                *q = byte >> (2 * j) & 3;
            }
        }
    }
}

/// Adds the fifth bits of Q5_0 and Q5_1: bit i of the little-endian word belongs to weight i.
pub fn fifth_bits(bits: &[u8], q: &mut [u8]) {
    for (q, &bits) in q.chunks_exact_mut(8).zip(bits) {
        for (i, q) in q.iter_mut().enumerate() {
            *q |= (bits >> i & 1) << 4;
        }
    }
}

/// Unpacks the 12 bytes that hold 8 six-bit scales and 8 six-bit mins of Q4_K and Q5_K (ggml's `get_scale_min_k4`).
pub fn k_scales(bytes: &[u8], u: &mut Unpacked) {
    for j in 0..4 {
        u.sc[j] = bytes[j] & 63;
        u.mn[j] = bytes[j + 4] & 63;
        u.sc[j + 4] = bytes[j + 8] & 15 | bytes[j] >> 6 << 4;
        u.mn[j + 4] = bytes[j + 8] >> 4 | bytes[j + 4] >> 6 << 4;
    }
}
