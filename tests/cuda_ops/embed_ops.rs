use super::{Device, SEEDS};
use crate::simt::{Dialect, SimtArg};
use coldpress_kernels::gpu::Kernel;
use coldpress_kernels::gpu::abi::StepLayout;
use coldpress_kernels::gpu::embed::{self, EmbedArgs, embed};
use coldpress_kernels::gpu::tile::{TILE_N, matrix_bytes, pack_tile_row, units};
use coldpress_kernels::quant::{FORMATS, dequantise_row};

#[test]
fn embeddings_are_the_dequantised_rows_in_every_format() {
    Dialect::ALL
        .into_iter()
        .for_each(embeddings_are_the_dequantised_rows_in_every_format_in);
}

fn embeddings_are_the_dequantised_rows_in_every_format_in(dialect: Dialect) {
    let kernels: Vec<Kernel> = FORMATS.iter().map(|fmt| embed(&fmt.layout)).collect();
    let Some(device) = Device::in_dialect(dialect, &kernels) else {
        return;
    };
    let (vocab, tokens, live) = (35, [16u32, 0, 34, u32::MAX], 3);
    for (fmt, kernel) in FORMATS.iter().zip(&kernels) {
        for (k, seed) in [32, 96, 512, 1024]
            .into_iter()
            .zip(SEEDS.into_iter().cycle())
        {
            let Some(bytes) = matrix_bytes(&fmt.layout, TILE_N, k) else {
                continue;
            };
            let row_bytes = fmt.ty.row_bytes(k as u64).expect("legal k") as usize;
            // Bytes below 0x3c keep every f16, bf16 and f32 finite; others keep their highest bits.
            let raw: Vec<u8> = (0..vocab * row_bytes)
                .map(|i| (i * 31 % 59) as u8 + if i % 5 == 0 { 128 } else { 0 })
                .collect();
            let raw_rows: Vec<&[u8]> = raw.chunks_exact(row_bytes).collect();
            let mut packed = vec![0; vocab.div_ceil(TILE_N) * bytes];
            for (rows, out) in raw_rows.chunks(TILE_N).zip(packed.chunks_exact_mut(bytes)) {
                pack_tile_row(fmt, k, rows, out);
            }
            let stride = k * 4 + 64;
            let out = device.simt.alloc(tokens.len() * stride);
            // Where rows follow candidates, what is given for them has nothing to say; no candidate is the last row.
            let following = k % 64 == 0;
            let given = match following {
                true => [16, u32::MAX, u32::MAX, u32::MAX],
                false => tokens,
            };
            let ids = [u32::MAX, 5, 9, 9, 0, 9, 9, 9];
            let ids = match following {
                true => device.u32s(&ids).into(),
                false => SimtArg::Const(0),
            };
            let args = EmbedArgs {
                weights: device.simt.upload(&packed).into(),
                tokens: device.u32s(&given).into(),
                follows: device.u32s(&[StepLayout::GIVEN, 2, 0, 7]).into(),
                ids,
                live: device.u32s(&[live, 0]).into(),
                out: out.into(),
                k: (k as u32).into(),
                units: (units(&fmt.layout, k) as u32).into(),
                out_stride: (stride as u32).into(),
                scale: 1.5.into(),
                ids_count: 2.into(),
                vocab: (vocab as u32).into(),
            };
            device.launch(kernel, embed::geometry(k, tokens.len()), args.list(), seed);
            let found = device.read_f32(&out);
            let mut expected = vec![0.0; k];
            for (r, row) in found.chunks_exact(stride / 4).enumerate() {
                let (row, after) = row.split_at(k);
                assert!(after.iter().all(|v| v.to_bits() == u32::MAX), "beyond");
                if r >= live as usize {
                    assert!(row.iter().all(|v| v.to_bits() == u32::MAX), "not live");
                    continue;
                }
                dequantise_row(fmt, raw_rows[tokens[r] as usize], &mut expected);
                for (i, (found, expected)) in row.iter().zip(&expected).enumerate() {
                    let expected = expected * 1.5;
                    let same = found.to_bits() == expected.to_bits() || *found == expected;
                    let nan = found.is_nan() && expected.is_nan();
                    assert!(same || nan, "{} k {k} row {r} element {i}", fmt.ty);
                }
            }
        }
    }
}
