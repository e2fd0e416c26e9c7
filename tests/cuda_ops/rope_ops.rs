use super::cache::Cache;
use super::{Device, SEEDS, values};
use crate::simt::Dialect;
use coldpress_kernels::cpu::abi::KvType;
use coldpress_kernels::gpu::Kernel;
use coldpress_kernels::gpu::rope::{self, AppendArgs, TableArgs, append, append_geometry};
use coldpress_kernels::rope::{Shape, reference, reference_table};

#[test]
fn tables_are_exact_up_to_long_positions() {
    Dialect::ALL
        .into_iter()
        .for_each(tables_are_exact_up_to_long_positions_in);
}

fn tables_are_exact_up_to_long_positions_in(dialect: Dialect) {
    let kernel = rope::table();
    let Some(device) = Device::in_dialect(dialect, std::slice::from_ref(&kernel)) else {
        return;
    };
    let positions = [0, 1, 4095, 131_071, 9_999_991, (1 << 24) - 1, 77];
    let live = positions.len() - 1;
    for (half, seed) in [16, 40, 128].into_iter().zip(SEEDS) {
        let frequency = |i: usize| 1e6f32.powf(-(i as f32) / half as f32);
        let inv_freq: Vec<f32> = (0..half).map(frequency).collect();
        let stride = half * 8 + 64;
        let out = device.simt.alloc(positions.len() * stride);
        let args = TableArgs {
            positions: device.u32s(&positions).into(),
            inv_freq: device.f32s(&inv_freq).into(),
            out: out.into(),
            half: (half as u32).into(),
            mscale: 1.25.into(),
            live: device.u32s(&[live as u32, 0]).into(),
            out_stride: (stride as u32).into(),
        };
        let geometry = rope::table_geometry(positions.len());
        device.launch(&kernel, geometry, args.list(), seed);
        let found = device.read_f32(&out);
        let expected = reference_table(&positions, &inv_freq, 1.25);
        for (r, row) in found.chunks_exact(stride / 4).enumerate() {
            let (row, after) = row.split_at(2 * half);
            assert!(after.iter().all(|v| v.is_nan()), "beyond row {r}");
            if r >= live {
                assert!(row.iter().all(|v| v.is_nan()), "not live");
                continue;
            }
            for (found, expected) in row.iter().zip(&expected[r * 2 * half..]) {
                assert!(
                    (found - expected).abs() <= 1.2e-7,
                    "position {}",
                    positions[r]
                );
            }
        }
    }
}

/// Heads of a step, and what is done to them.
#[derive(Clone, Copy)]
struct Case {
    kv: KvType,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rot_dim: usize,
    neox: bool,
    normalised: bool,
}

impl Case {
    fn kernel(&self) -> Kernel {
        rope::legal(self.head_dim, self.rot_dim).expect("legal");
        append(self.kv, self.head_dim, self.neox)
    }

    fn what(&self) -> String {
        let kv = self.kv.name();
        let Case {
            heads,
            kv_heads,
            head_dim,
            rot_dim,
            neox,
            normalised,
            ..
        } = self;
        format!(
            "{kv} {heads}/{kv_heads} d{head_dim} r{rot_dim} neox {neox} normalised {normalised}"
        )
    }

    /// Rows of `heads` heads as they should become.
    fn expected(&self, rows: &[f32], heads: usize, w: &[f32], table: &[f32], eps: f32) -> Vec<f32> {
        let shape = Shape {
            heads,
            head_dim: self.head_dim,
            rot_dim: self.rot_dim,
            neox: self.neox,
        };
        let rows = rows.chunks_exact(heads * self.head_dim).enumerate();
        let w = self.normalised.then_some(w);
        rows.flat_map(|(r, row)| {
            let table = &table[r * self.rot_dim..][..self.rot_dim];
            reference(row, w, table, &shape, eps)
        })
        .collect()
    }

    fn check(&self, device: &Device, seed: u64) {
        let &Case {
            heads,
            kv_heads,
            head_dim,
            rot_dim,
            ..
        } = self;
        let what = self.what();
        // Slots and positions; the last row is not live.
        let rows = [(1usize, 31usize), (0, 64), (0, 65), (1, 3)];
        let (count, live) = (rows.len(), rows.len() - 1);
        let mut cache = Cache::of(self.kv, (kv_heads.max(1), head_dim), 2, 80);
        let (q_width, k_width) = (heads * head_dim, kv_heads * head_dim);
        let q = values(1, count * q_width, 3.0);
        let (k, v) = (
            values(2, count * k_width, 2.0),
            values(3, count * k_width, 5.0),
        );
        let (q_norm, k_norm) = (values(4, head_dim, 1.5), values(5, head_dim, 1.5));
        let positions: Vec<u32> = rows.iter().map(|r| r.1 as u32).collect();
        let slots: Vec<u32> = rows.iter().map(|r| r.0 as u32).collect();
        let inv_freq: Vec<f32> = (0..rot_dim / 2).map(|i| 0.8f32.powi(i as i32)).collect();
        let table = reference_table(&positions, &inv_freq, 1.0);
        let stride = |width: usize| (width * 4 + 64) as u32;
        let upload = |rows: &[f32], width: usize| match width {
            0 => device.f32s(&[]),
            _ => device.rows(rows, width, stride(width) as usize),
        };
        let q_rows = upload(&q, q_width);
        let pool = device.simt.upload(&cache.pool);
        let norm = |w: &[f32]| match self.normalised {
            true => device.f32s(w).into(),
            false => 0.into(),
        };
        let args = AppendArgs {
            q: q_rows.into(),
            k: upload(&k, k_width).into(),
            v: upload(&v, k_width).into(),
            table: upload(&table, rot_dim).into(),
            q_norm: norm(&q_norm),
            k_norm: norm(&k_norm),
            kv: pool.into(),
            positions: device.u32s(&positions).into(),
            slots: device.u32s(&slots).into(),
            page_table: device.u32s(&cache.table).into(),
            live: device.u32s(&[live as u32, 0]).into(),
            heads: (heads as u32).into(),
            kv_heads: (kv_heads as u32).into(),
            rot_dim: (rot_dim as u32).into(),
            q_stride: stride(q_width).into(),
            k_stride: stride(k_width).into(),
            v_stride: stride(k_width).into(),
            table_stride: stride(rot_dim).into(),
            q_eps: 1e-5.into(),
            k_eps: 1e-6.into(),
            pages_per_slot: (cache.pages_per_slot as u32).into(),
        };
        let geometry = append_geometry(heads, kv_heads, count, head_dim);
        device.launch(&self.kernel(), geometry, args.list(), seed);

        if heads > 0 {
            let found = device.read_f32(&q_rows);
            let expected = self.expected(&q, heads, &q_norm, &table, 1e-5);
            for (r, row) in found.chunks_exact(stride(q_width) as usize / 4).enumerate() {
                let (row, after) = row.split_at(q_width);
                assert!(after.iter().all(|v| v.is_nan()), "{what}: beyond");
                let from = if r < live { &expected } else { &q };
                let expected = &from[r * q_width..][..q_width];
                for (found, expected) in row.iter().zip(expected) {
                    assert!(
                        (found - expected).abs() <= 4e-6,
                        "{what}: {found} {expected}"
                    );
                }
            }
        }
        if kv_heads == 0 {
            assert_eq!(device.read(&pool), cache.pool, "{what}");
            return;
        }
        let expected = self.expected(&k, kv_heads, &k_norm, &table, 1e-6);
        cache.pool = device.read(&pool);
        for (r, &(slot, position)) in rows[..live].iter().enumerate() {
            let of_row = r * k_width..(r + 1) * k_width;
            let v = cache.encoded(&v[of_row.clone()]);
            assert_eq!(cache.stored(slot, position, true), v, "{what}: v");
            let expected = &expected[of_row];
            if rot_dim == 0 && !self.normalised {
                let k = cache.encoded(expected);
                assert_eq!(cache.stored(slot, position, false), k, "{what}: k");
            }
            let padded = cache.stored(slot, position, false);
            let bytes = self.kv.head_bytes(head_dim.next_multiple_of(32));
            let element = bytes / head_dim.next_multiple_of(32);
            let padding = &padded[0][head_dim * element..head_dim.next_multiple_of(32) * element];
            assert!(padding.iter().all(|&b| b == 0), "{what}: padding");
            let loss = match self.kv {
                KvType::F32 => 4e-6,
                KvType::F16 => 4e-3,
                KvType::Q8_0 => 0.05,
            };
            let found = cache.read(slot, position, false);
            for (found, expected) in found.iter().zip(expected) {
                assert!(
                    (found - expected).abs() <= loss,
                    "{what}: {found} {expected}"
                );
            }
            cache.erase(slot, position);
        }
        assert!(cache.pool.iter().all(|&b| b == 0xff), "{what}: other bytes");
    }
}

#[test]
fn heads_are_normalised_rotated_and_stored() {
    Dialect::ALL
        .into_iter()
        .for_each(heads_are_normalised_rotated_and_stored_in);
}

fn heads_are_normalised_rotated_and_stored_in(dialect: Dialect) {
    for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
        let base = Case {
            kv,
            heads: 3,
            kv_heads: 2,
            head_dim: 64,
            rot_dim: 64,
            neox: true,
            normalised: false,
        };
        let mut cases = Vec::new();
        for (head_dim, rot_dim) in [
            (32, 32),
            (64, 64),
            (80, 32),
            (96, 96),
            (128, 128),
            (256, 64),
        ] {
            for neox in [true, false] {
                for normalised in [true, false] {
                    cases.push(Case {
                        head_dim,
                        rot_dim,
                        neox,
                        normalised,
                        ..base
                    });
                }
            }
        }
        // Parts of the work alone: a head norm, a rotation, appending; a head that is no multiple of 32.
        cases.push(Case {
            kv_heads: 0,
            rot_dim: 0,
            normalised: true,
            ..base
        });
        cases.push(Case {
            kv_heads: 0,
            ..base
        });
        cases.push(Case {
            heads: 0,
            rot_dim: 0,
            ..base
        });
        cases.push(Case {
            head_dim: 36,
            rot_dim: 34,
            ..base
        });
        cases.push(Case {
            head_dim: 512,
            rot_dim: 512,
            normalised: true,
            ..base
        });
        let kernels: Vec<Kernel> = cases.iter().map(Case::kernel).collect();
        let Some(device) = Device::in_dialect(dialect, &kernels) else {
            return;
        };
        for (case, seed) in cases.iter().zip(SEEDS.into_iter().cycle()) {
            case.check(&device, seed);
        }
    }
}
