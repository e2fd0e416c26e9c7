//! What intrinsics compute against formulas that share nothing with the shim: fragments as the PTX manual numbers them,
//! halves by integer arithmetic.

use super::{ARCH, Simt, Source};
use crate::harness::Random;
use coldpress_kernels::gpu::Geometry;
use half::f16;

/// One thread block.
const ONE: Geometry = Geometry {
    grid: [1, 1, 1],
    shared_bytes: 0,
};

fn words(bytes: &[u8]) -> Vec<u32> {
    let chunks = bytes.chunks_exact(4);
    chunks
        .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Runs a kernel of one block on words, and gives `out` words back. `None` without a compiler.
fn run(body: &str, shared_bytes: u32, input: &[u32], out: usize) -> Option<Vec<u32>> {
    let body = format!("struct Params {{ const u32* in; u32* out; }};\n{body}");
    let simt = Simt::build(&[Source::new("probe", &body)], ARCH)?;
    let (input, output) = (simt.upload(&bytes(input)), simt.alloc(out * 4));
    let geometry = Geometry {
        shared_bytes,
        ..ONE
    };
    let mut last = None;
    for seed in 0..4 {
        let result = simt.launch("probe", geometry, &[input.into(), output.into()], seed);
        result.unwrap_or_else(|e| panic!("{e}"));
        let got = words(&simt.read(&output, 0, out * 4));
        assert!(
            last.is_none_or(|l| l == got),
            "results differ with the schedule"
        );
        last = Some(got);
    }
    last
}

/// Elements of a fragment in the manual's terms: lane, element number to row and column.
type Fragment = fn(lane: usize, i: usize) -> (usize, usize);

/// Packs the elements of a matrix into the registers of each lane: `[lane][registers]`.
fn pack(
    elements: usize,
    bits: usize,
    at: Fragment,
    value: impl Fn(usize, usize) -> u32,
) -> Vec<Vec<u32>> {
    let per_word = 32 / bits;
    let lane = |lane| {
        let mut registers = vec![0u32; elements / per_word];
        for i in 0..elements {
            let (row, column) = at(lane, i);
            registers[i / per_word] |= value(row, column) << (i % per_word * bits);
        }
        registers
    };
    (0..32).map(lane).collect()
}

fn accumulator(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + if i < 2 { 0 } else { 8 }, lane % 4 * 2 + (i & 1))
}

#[test]
fn integer_tensor_cores_multiply_matrices() {
    let a32: Fragment = |lane, i| {
        let row = if i < 4 || (8..12).contains(&i) {
            lane / 4
        } else {
            lane / 4 + 8
        };
        (row, lane % 4 * 4 + (i & 3) + if i < 8 { 0 } else { 16 })
    };
    let b32: Fragment = |lane, i| {
        (
            lane % 4 * 4 + (i & 3) + if i < 4 { 0 } else { 16 },
            lane / 4,
        )
    };
    let a16: Fragment = |lane, i| (lane / 4 + if i < 4 { 0 } else { 8 }, lane % 4 * 4 + (i & 3));
    let b16: Fragment = |lane, i| (lane % 4 * 4 + i, lane / 4);
    for (name, k, a_at, b_at) in [
        ("mma_s8_k32", 32, a32, b32),
        ("mma_u8s8_k32", 32, a32, b32),
        ("mma_s8_k16", 16, a16, b16),
        ("mma_u8s8_k16", 16, a16, b16),
    ] {
        let unsigned = name.contains("u8s8");
        let mut random = Random(7);
        let mut draw = |n: usize| -> Vec<u8> { (0..n).map(|_| random.next() as u8).collect() };
        let (a, b) = (draw(16 * k), draw(k * 8));
        let c: Vec<i32> = (0..128).map(|i| i * 1000 - 64_000).collect();
        let fragments = [
            pack(k / 2, 8, a_at, |m, i| u32::from(a[m * k + i])),
            pack(k / 4, 8, b_at, |i, n| u32::from(b[i * 8 + n])),
            pack(4, 32, accumulator, |m, n| c[m * 8 + n] as u32),
        ];
        let input: Vec<u32> = (0..32)
            .flat_map(|lane| fragments.iter().flat_map(move |f| f[lane].clone()))
            .collect();
        let (na, nb) = (k / 8, k / 16);
        let b_arg = if k == 32 { "b" } else { "b[0]" };
        let body = format!(
            "KERNEL(probe, 32, Params) {{
                const u32* in = p.in + lane() * {};
                u32 a[{na}], b[{nb}];
                i32 c[4];
                for (u32 i = 0; i < {na}; i++) a[i] = in[i];
                for (u32 i = 0; i < {nb}; i++) b[i] = in[{na} + i];
                for (u32 i = 0; i < 4; i++) c[i] = in[{na} + {nb} + i];
                {name}(c, a, {b_arg});
                for (u32 i = 0; i < 4; i++) p.out[lane() * 4 + i] = c[i];
            }}",
            na + nb + 4
        );
        let Some(out) = run(&body, 0, &input, 128) else {
            return;
        };
        for lane in 0..32 {
            for i in 0..4 {
                let (m, n) = accumulator(lane, i);
                let mut expected = c[m * 8 + n];
                for j in 0..k {
                    let x = a[m * k + j];
                    let x = if unsigned {
                        i32::from(x)
                    } else {
                        i32::from(x as i8)
                    };
                    expected += x * i32::from(b[j * 8 + n] as i8);
                }
                assert_eq!(
                    out[lane * 4 + i] as i32,
                    expected,
                    "{name}: row {m}, column {n}"
                );
            }
        }
    }
}

fn a_half(lane: usize, i: usize) -> (usize, usize) {
    let row = if i < 2 || (4..6).contains(&i) {
        lane / 4
    } else {
        lane / 4 + 8
    };
    (row, lane % 4 * 2 + (i & 1) + if i < 4 { 0 } else { 8 })
}

/// A random half of magnitude below 4.
fn random_half(random: &mut Random) -> f16 {
    f16::from_f32(random.uniform() * 4.0)
}

#[test]
fn half_tensor_cores_multiply_matrices() {
    let b_at: Fragment = |lane, i| (lane % 4 * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, lane / 4);
    let mut random = Random(11);
    let a: Vec<f16> = (0..256).map(|_| random_half(&mut random)).collect();
    let b: Vec<f16> = (0..128).map(|_| random_half(&mut random)).collect();
    let c: Vec<f32> = (0..128).map(|_| random.uniform()).collect();
    let fragments = [
        pack(8, 16, a_half, |m, k| u32::from(a[m * 16 + k].to_bits())),
        pack(4, 16, b_at, |k, n| u32::from(b[k * 8 + n].to_bits())),
        pack(4, 32, accumulator, |m, n| c[m * 8 + n].to_bits()),
    ];
    let input: Vec<u32> = (0..32)
        .flat_map(|lane| fragments.iter().flat_map(move |f| f[lane].clone()))
        .collect();
    let body = "KERNEL(probe, 32, Params) {
        const u32* in = p.in + lane() * 10;
        f32 c[4];
        for (u32 i = 0; i < 4; i++) c[i] = bits_f32(in[6 + i]);
        mma_f16(c, {in[0], in[1], in[2], in[3]}, {in[4], in[5]});
        for (u32 i = 0; i < 4; i++) p.out[lane() * 4 + i] = f32_bits(c[i]);
    }";
    let Some(out) = run(body, 0, &input, 128) else {
        return;
    };
    for lane in 0..32 {
        for i in 0..4 {
            let (m, n) = accumulator(lane, i);
            let exact: f64 = f64::from(c[m * 8 + n])
                + (0..16)
                    .map(|k| a[m * 16 + k].to_f64() * b[k * 8 + n].to_f64())
                    .sum::<f64>();
            let got = f64::from(f32::from_bits(out[lane * 4 + i]));
            assert!(
                (got - exact).abs() < 1e-5,
                "row {m}, column {n}: {got}, not {exact}"
            );
        }
    }
}

#[test]
fn warpgroup_tensor_cores_multiply_matrices() {
    // Two groups of 32 k each; B is stored element by element where wgmma_offset says.
    for n in [8usize, 16, 32, 48, 64, 128] {
        let mut random = Random(13);
        let a: Vec<f16> = (0..64 * 64).map(|_| random_half(&mut random)).collect();
        let b: Vec<f16> = (0..64 * n).map(|_| random_half(&mut random)).collect();
        let mut input: Vec<u32> = vec![];
        for thread in 0..128 {
            for step in 0..4 {
                let value = |m: usize, k: usize| {
                    u32::from(a[(thread / 32 * 16 + m) * 64 + step * 16 + k].to_bits())
                };
                input.extend(&pack(8, 16, a_half, value)[thread % 32]);
            }
        }
        input.extend(b.iter().map(|x| u32::from(x.to_bits())));
        let body = format!(
            "KERNEL(probe, 128, Params) {{
                u8* b = shared<u8>() + 256;
                for (u32 i = thread_x(); i < 64 * {n}; i += 128) {{
                    const u32 k = i / {n}, n = i % {n};
                    *reinterpret_cast<u16*>(b + wgmma_offset<{n}>(n, k)) = p.in[128 * 16 + i];
                }}
                fence_async();
                sync_block();
                f32 acc[{n} / 2];
                for (u32 i = 0; i < {n} / 2; i++) acc[i] = 1.0f;
                const u32* in = p.in + thread_x() * 16;
                wgmma_fence(acc);
                for (u32 half = 0; half < 2; half++) {{
                    for (u32 step = 2 * half; step < 2 * half + 2; step++) {{
                        const u32 a[4] = {{in[4 * step], in[4 * step + 1], in[4 * step + 2], in[4 * step + 3]}};
                        wgmma_f16<{n}>(acc, a, wgmma_descriptor<{n}>(b + step * 32 * {n}));
                    }}
                    wgmma_commit();
                }}
                wgmma_wait<1>(acc);
                wgmma_wait<0>(acc);
                for (u32 i = 0; i < {n} / 2; i++) p.out[thread_x() * ({n} / 2) + i] = f32_bits(acc[i]);
            }}"
        );
        let Some(out) = run(&body, 256 + 128 * n as u32, &input, 64 * n) else {
            return;
        };
        for thread in 0..128 {
            for i in 0..n / 2 {
                let row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2);
                let column = i / 4 * 8 + thread % 4 * 2 + i % 2;
                let exact: f64 = 1.0
                    + (0..64)
                        .map(|k| a[row * 64 + k].to_f64() * b[k * n + column].to_f64())
                        .sum::<f64>();
                let got = f64::from(f32::from_bits(out[thread * (n / 2) + i]));
                assert!(
                    (got - exact).abs() < 1e-4,
                    "n {n}, row {row}, column {column}: {got}, not {exact}"
                );
            }
        }
    }
}

#[test]
fn a_descriptor_has_the_fields_of_the_manual() {
    // Start address, leading and stride byte offsets, in units of 16 bytes at bits 0, 16 and 32; no swizzle.
    let body = "KERNEL(probe, 32, Params) {
        if (thread_x() == 0) {
            const u64 d = wgmma_descriptor<32>(shared<u8>() + 0x4560);
            p.out[0] = u32(d);
            p.out[1] = u32(d >> 32);
            p.out[2] = wgmma_offset<32>(1, 0);
            p.out[3] = wgmma_offset<32>(8, 0);
            p.out[4] = wgmma_offset<32>(0, 1);
            p.out[5] = wgmma_offset<32>(0, 8);
        }
    }";
    let Some(out) = run(body, 0x8000, &[0], 6) else {
        return;
    };
    assert_eq!(out[0], 0x456 | (512 / 16) << 16);
    assert_eq!(out[1], 128 / 16);
    // Rows of a core matrix are 16 bytes apart; core matrices 128 bytes along n (stride) and 512 along k (leading).
    assert_eq!(out[2..], [16, 128, 2, 512]);
}

#[test]
fn ldmatrix_distributes_rows() {
    // Matrix j's row r starts at 16 * (8j + (r * 3) % 8): the addresses are the lanes' own.
    for (name, transposed) in [("ldmatrix_x4", false), ("ldmatrix_x4_transposed", true)] {
        let body = format!(
            "KERNEL(probe, 32, Params) {{
                u16* s = shared<u16>();
                for (u32 i = lane(); i < 256; i += 32) s[i] = 1000 + i;
                sync_warp();
                u32 r[4];
                {name}(r, s + 8 * (lane() / 8 * 8 + lane() * 3 % 8));
                for (u32 j = 0; j < 4; j++) p.out[lane() * 4 + j] = r[j];
            }}"
        );
        let Some(out) = run(&body, 512, &[0], 128) else {
            return;
        };
        let element = |j: usize, row: usize, column: usize| {
            (1000 + 8 * (8 * j + row * 3 % 8) + column) as u32
        };
        for lane in 0..32 {
            for j in 0..4 {
                let pair = [0, 1].map(|i| {
                    let (row, column) = (lane / 4, lane % 4 * 2 + i);
                    if transposed {
                        element(j, column, row)
                    } else {
                        element(j, row, column)
                    }
                });
                assert_eq!(
                    out[lane * 4 + j],
                    pair[0] | pair[1] << 16,
                    "{name}: lane {lane}, matrix {j}"
                );
            }
        }
    }
}

#[test]
fn lanes_exchange_values() {
    let body = "KERNEL(probe, 64, Params) {
        const u32 i = thread_x();
        const u32 v = p.in[i];
        u32* out = p.out + i * 7;
        out[0] = shuffle(v, lane() * 5 + 3);
        out[1] = shuffle_xor(v, 5);
        out[2] = shuffle_down(v, 7);
        out[3] = ballot(v % 3 == 0);
        out[4] = u32(shuffle_xor(-1 - i32(v), 16));
        out[5] = f32_bits(shuffle_xor(f32(v) * 0.5f, 1));
        out[6] = lowest_bit(v);
    }";
    let input: Vec<u32> = (0..64).map(|i| i * i + 5).collect();
    let Some(out) = run(body, 0, &input, 64 * 7) else {
        return;
    };
    for thread in 0..64 {
        let (warp, lane) = (thread / 32 * 32, thread % 32);
        let of = |lane: usize| input[warp + lane];
        let ballot = (0..32).fold(0, |bits, l| bits | u32::from(of(l) % 3 == 0) << l);
        let expected = [
            of((lane * 5 + 3) % 32),
            of(lane ^ 5),
            of(if lane + 7 < 32 { lane + 7 } else { lane }),
            ballot,
            !of(lane ^ 16),
            (of(lane ^ 1) as f32 * 0.5).to_bits(),
            of(lane).trailing_zeros(),
        ];
        assert_eq!(out[thread * 7..][..7], expected, "thread {thread}");
    }
}

#[test]
fn bytes_and_bits_are_combined() {
    let body = "KERNEL(probe, 32, Params) {
        for (u32 i = lane(); i < 256; i += 32) {
            const u32 a = p.in[3 * i], b = p.in[3 * i + 1], c = p.in[3 * i + 2];
            u32* out = p.out + 5 * i;
            out[0] = u32(dp4a(i32(a), i32(b), i32(c)));
            out[1] = u32(dp4a_us(a, i32(b), i32(c)));
            out[2] = prmt(a, b, c);
            out[3] = lop3_and_or(a, b, c);
            out[4] = u32(round_to_int(f32(i32(a)) / 65536.0f + 0.5f));
        }
    }";
    let mut random = Random(17);
    let input: Vec<u32> = (0..768).map(|_| random.next() as u32).collect();
    let Some(out) = run(body, 0, &input, 256 * 5) else {
        return;
    };
    for (i, abc) in input.chunks_exact(3).enumerate() {
        let (a, b, c) = (abc[0].to_le_bytes(), abc[1].to_le_bytes(), abc[2]);
        let dot = |left: &dyn Fn(u8) -> i32| {
            (0..4).fold(c as i32, |sum, j| {
                sum.wrapping_add(left(a[j]) * i32::from(b[j] as i8))
            })
        };
        let pool = [a, b].concat();
        let permuted = [0, 1, 2, 3].map(|j| {
            let byte = pool[(c >> (4 * j) & 7) as usize];
            if c >> (4 * j) & 8 == 0 {
                byte
            } else {
                ((byte as i8) >> 7) as u8
            }
        });
        let expected = [
            dot(&|x| i32::from(x as i8)) as u32,
            dot(&i32::from) as u32,
            u32::from_le_bytes(permuted),
            (abc[0] & abc[1]) | c,
            (abc[0] as i32 as f32 / 65536.0 + 0.5).round_ties_even() as i32 as u32,
        ];
        assert_eq!(out[5 * i..][..5], expected, "{abc:x?}");
    }
}

/// A finite half in units of 2^-48.
fn units(x: f16) -> i128 {
    let exponent = i32::from(x.to_bits() >> 10 & 31);
    let mantissa = i128::from(x.to_bits() & 1023) + if exponent > 0 { 1024 } else { 0 };
    let magnitude = mantissa << (24 + exponent.max(1) - 1);
    if x.is_sign_negative() {
        -magnitude
    } else {
        magnitude
    }
}

/// The half nearest to a number of 2^-48, ties to even; a zero has the sign `negative`.
fn nearest(value: i128, negative: bool) -> u16 {
    let sign = if value < 0 || value == 0 && negative {
        0x8000
    } else {
        0
    };
    let magnitude = value.unsigned_abs();
    // The weight of the last bit: that of subnormals, or ten below the highest bit.
    let last = (127 - (magnitude | 1).leading_zeros())
        .saturating_sub(10)
        .max(24);
    let (whole, rest) = (magnitude >> last, magnitude & ((1 << last) - 1));
    let tie = 1u128 << (last - 1);
    let whole = whole + u128::from(rest > tie || rest == tie && whole & 1 == 1);
    let bits = (u128::from(last - 24) << 10) + whole;
    sign | bits.min(0x7c00) as u16
}

#[test]
fn halves_are_rounded_once() {
    let body = "KERNEL(probe, 32, Params) {
        for (u32 i = lane(); i < 4096; i += 32) {
            const u32 a = p.in[3 * i], b = p.in[3 * i + 1], c = p.in[3 * i + 2];
            u32* out = p.out + 6 * i;
            out[0] = hfma2(a, b, c);
            out[1] = hadd2(a, b);
            out[2] = hsub2(a, b);
            out[3] = hmul2(a, b);
            out[4] = pack_f16(unpack_lo(a) * 1.0009765f, unpack_hi(a) * 0.00031f);
            out[5] = f32_bits(to_f32(f16{u16(b)}));
        }
    }";
    let mut random = Random(19);
    let mut half = || loop {
        // Near exponents, so that sums tie and cancel; sometimes any.
        let bits = random.next() as u16;
        let bits = if random.below(4) > 0 {
            bits & 0x87ff | 0x3000
        } else {
            bits
        };
        // Products of these fit in 128 bits.
        if bits & 0x7fff < 0x7400 {
            return u32::from(bits);
        }
    };
    let input: Vec<u32> = (0..4096 * 3).map(|_| half() | half() << 16).collect();
    let Some(out) = run(body, 0, &input, 4096 * 6) else {
        return;
    };
    let one = 48;
    for (i, abc) in input.chunks_exact(3).enumerate() {
        for part in [0, 16] {
            let halves = [0, 1, 2].map(|j| f16::from_bits((abc[j] >> part) as u16));
            let [a, b, c] = halves.map(units);
            let [na, nb, nc] = halves.map(f16::is_sign_negative);
            let product = a * b;
            let got = |j: usize| (out[6 * i + j] >> part) as u16;
            // Products are whole in 2^-96; round those as 2^-48 with a sticky bit below.
            let fused = product + (c << one);
            let rounded = |v: i128, negative| {
                nearest(v >> one | i128::from(v & ((1 << one) - 1) != 0), negative)
            };
            let context = format!("{halves:?}");
            assert_eq!(
                got(0),
                rounded_sign(fused, (na != nb) && nc, rounded),
                "fma {context}"
            );
            assert_eq!(got(1), nearest(a + b, na && nb), "add {context}");
            assert_eq!(got(2), nearest(a - b, na && !nb), "sub {context}");
            assert_eq!(
                got(3),
                rounded_sign(product, na != nb, rounded),
                "mul {context}"
            );
            let factor = if part == 0 { 1.000_976_5_f32 } else { 0.000_31 };
            assert_eq!(
                got(4),
                f16::from_f32(halves[0].to_f32() * factor).to_bits(),
                "convert {context}"
            );
        }
        let b = f16::from_bits(abc[1] as u16);
        assert_eq!(f32::from_bits(out[6 * i + 5]), b.to_f32());
    }
}

/// Rounds the magnitude, so that the sticky bit only ever adds to it.
fn rounded_sign(v: i128, zero_negative: bool, round: impl Fn(i128, bool) -> u16) -> u16 {
    if v < 0 {
        round(-v, false) | 0x8000
    } else {
        round(v, v == 0 && zero_negative)
    }
}

#[test]
fn functions_are_those_of_the_names() {
    let body = "KERNEL(probe, 32, Params) {
        const f32 x = bits_f32(p.in[lane()]);
        f32 out[12] = {exp_(x), log_(x), sqrt_(x), rsqrt_(x), tanh_(x), fma_(x, x, -x), 0, 0, max_(x, 1.0f), min_(x, 1.0f), abs_(-x),
                       f32(max_(3, i32(x)) + min_(3, i32(x)) + abs_(-i32(x)) + i32(max_(1u, u32(x)) + min_(1u, u32(x))))};
        sin_cos(x, out[6], out[7]);
        for (u32 i = 0; i < 12; i++) p.out[lane() * 12 + i] = f32_bits(out[i]);
    }";
    let input: Vec<u32> = (0..32)
        .map(|i| (0.03f32 + i as f32 * 0.37).to_bits())
        .collect();
    let Some(out) = run(body, 0, &input, 32 * 12) else {
        return;
    };
    for (lane, &bits) in input.iter().enumerate() {
        let x = f64::from(f32::from_bits(bits));
        let whole = x.trunc();
        let expected = [
            x.exp(),
            x.ln(),
            x.sqrt(),
            1.0 / x.sqrt(),
            x.tanh(),
            x * x - x,
            x.sin(),
            x.cos(),
            x.max(1.0),
            x.min(1.0),
            x,
            whole.max(3.0) + whole.min(3.0) + whole + whole.max(1.0) + whole.min(1.0),
        ];
        for (i, expected) in expected.into_iter().enumerate() {
            let got = f64::from(f32::from_bits(out[lane * 12 + i]));
            assert!(
                (got - expected).abs() <= 1e-6 * expected.abs().max(0.1),
                "{i} of {x}: {got}, not {expected}"
            );
        }
    }
}
