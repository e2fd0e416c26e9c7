use super::cache::Cache;
use super::{Device, FORMS, SEEDS, assert_row, values};
use crate::simt::SimtArg;
use coldpress_kernels::attention::{Shape, reference_with_sinks};
use coldpress_kernels::cpu::abi::KvType;
use coldpress_kernels::gpu::Kernel;
use coldpress_kernels::gpu::abi::ActForm;
use coldpress_kernels::gpu::attention::{
    self, AttentionArgs, PlanArgs, cells, counter_bytes, parts, plan, plan_bytes, rows_per_tile,
    scratch_bytes,
};
use coldpress_kernels::rope;

/// Attention without one of its barriers.
mod barriers;

const KV_TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8_0];
/// Every bucket here has room for more rows than are live.
const MAX_ROWS: usize = 21;

/// A model's attention, and how a plan divides it.
#[derive(Clone, Copy)]
struct Case {
    kv: KvType,
    shape: Shape,
    split: usize,
    rotation: Option<Rotation>,
    /// Whether each head has a score that brings no value.
    sinks: bool,
}

/// What happens to heads before attention, which then stores K and V of the step's rows itself.
#[derive(Clone, Copy)]
struct Rotation {
    rot_dim: usize,
    neox: bool,
    normalised: bool,
}

const Q_EPS: f32 = 1e-5;
const K_EPS: f32 = 1e-3;

/// How a step's work is divided; results must not depend on it.
#[derive(Clone, Copy)]
struct Division {
    /// Warps that the plan believes in: many have every tile cut, few none.
    warps: u32,
    cells: usize,
    blocks: u32,
    seed: u64,
}

impl Case {
    fn of(kv: KvType, heads: usize, kv_heads: usize, head_dim: usize) -> Case {
        let shape = Shape {
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window: 0,
            softcap: 0.0,
        };
        attention::legal(&shape, kv).expect("legal");
        Case {
            kv,
            shape,
            split: 64,
            rotation: None,
            sinks: false,
        }
    }

    /// The same, heads normalised or not, rotated by the first `rot_dim` elements.
    fn rotating(self, rot_dim: usize, neox: bool, normalised: bool) -> Case {
        let rotation = Some(Rotation {
            rot_dim,
            neox,
            normalised,
        });
        Case { rotation, ..self }
    }

    /// Rows of cosines and sines.
    fn table(&self, positions: &[u32]) -> Vec<f32> {
        let half = self.rotation.map_or(0, |r| r.rot_dim / 2);
        let inv_freq: Vec<f32> = (0..half).map(|i| 0.7f32.powi(i as i32)).collect();
        rope::reference_table(positions, &inv_freq, 1.0)
    }

    fn norm(&self, seed: usize) -> Vec<f32> {
        let weight = values(seed, self.shape.head_dim, 0.5);
        weight.iter().map(|w| w + 1.0).collect()
    }

    /// Heads of one row as attention meets them.
    fn ready(&self, heads: &[f32], position: u32, norm: &[f32], eps: f32) -> Vec<f32> {
        let Some(rotation) = self.rotation else {
            return heads.to_vec();
        };
        let shape = rope::Shape {
            heads: heads.len() / self.shape.head_dim,
            head_dim: self.shape.head_dim,
            rot_dim: rotation.rot_dim,
            neox: rotation.neox,
        };
        let norm = rotation.normalised.then_some(norm);
        rope::reference(heads, norm, &self.table(&[position]), &shape, eps)
    }

    /// The forms in which rows can be left.
    fn forms(&self) -> &'static [ActForm] {
        match attention::leaves_any_form(self.shape.head_dim) {
            true => &FORMS,
            false => &[ActForm::F32],
        }
    }

    fn kernel(&self, form: ActForm) -> Kernel {
        let neox = self.rotation.is_none_or(|r| r.neox);
        let (head_dim, group) = (self.shape.head_dim, self.shape.group());
        attention::attention(self.kv, head_dim, group, neox, form)
    }

    fn kernels(&self) -> Vec<Kernel> {
        let forms = self.forms().iter().map(|&form| self.kernel(form));
        [plan()].into_iter().chain(forms).collect()
    }

    fn width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    /// K or V of one token before anything happens to it.
    fn token(&self, slot: usize, token: usize, v: bool) -> Vec<f32> {
        let seed = 2 * (token + 1000 * slot) + usize::from(v);
        values(seed, self.shape.kv_heads * self.shape.head_dim, 2.0)
    }

    /// Slots' caches up to the last positions in `rows`, filled; without the rows if attention is to store them.
    fn cache(&self, rows: &[(u32, u32)]) -> Cache {
        let slots = rows.iter().map(|r| r.0).max().map_or(0, |s| s as usize + 1);
        let longest = rows.iter().map(|r| r.1).max().map_or(0, |p| p as usize + 1);
        let (kv_heads, head_dim) = (self.shape.kv_heads, self.shape.head_dim);
        let mut cache = Cache::of(self.kv, (kv_heads, head_dim), slots, longest + 40);
        for slot in 0..slots {
            let last = rows.iter().filter(|r| r.0 as usize == slot).map(|r| r.1);
            for token in 0..last.max().map_or(0, |p| p as usize + 1) {
                let k = self.token(slot, token, false);
                let k = self.ready(&k, token as u32, &self.norm(5), K_EPS);
                cache.write(slot, token, false, &k);
                cache.write(slot, token, true, &self.token(slot, token, true));
            }
        }
        for &(slot, token) in rows.iter().filter(|_| self.rotation.is_some()) {
            cache.erase(slot as usize, token as usize);
        }
        cache
    }

    /// Queries of one row, which depend on its slot and position alone.
    fn query(&self, (slot, pos): (u32, u32)) -> Vec<f32> {
        values((slot * 577 + pos) as usize, self.width(), 2.0)
    }

    /// From far below what tokens score to far above.
    fn sink_scores(&self) -> Vec<f32> {
        let score = |head: usize| (head * 5 % 8) as f32 * 4.0 - 14.0;
        (0..self.shape.heads).map(score).collect()
    }

    fn expected(&self, cache: &Cache, (slot, pos): (u32, u32)) -> Vec<f32> {
        let query = self.query((slot, pos));
        let query = self.ready(&query, pos, &self.norm(4), Q_EPS);
        let all = |v: bool| {
            let tokens = 0..=pos as usize;
            let tokens = tokens.flat_map(|t| cache.read(slot as usize, t, v));
            tokens.collect::<Vec<f32>>()
        };
        let sinks = self.sinks.then(|| self.sink_scores());
        let (k, v) = (all(false), all(true));
        reference_with_sinks(&query, &k, &v, &self.shape, sinks.as_deref())
    }

    /// What was stored for the step's rows is what should have been, and nothing else changed.
    fn check_stored(&self, before: &Cache, after: &Cache, rows: &[(u32, u32)], what: &str) {
        let mut rest = after.clone();
        for &(slot, position) in rows {
            let (s, t) = (slot as usize, position as usize);
            let v = before.encoded(&self.token(s, t, true));
            assert_eq!(after.stored(s, t, true), v, "{what}: v of {t}");
            let k = self.token(s, t, false);
            let k = self.ready(&k, position, &self.norm(5), K_EPS);
            let loss = match self.kv {
                KvType::F32 => 4e-6,
                KvType::F16 => 4e-3,
                KvType::Q8_0 => 0.05,
            };
            for (found, expected) in after.read(s, t, false).iter().zip(k) {
                let apart = (found - expected).abs();
                assert!(apart <= loss, "{what}: k of {t}: {found} {expected}");
            }
            rest.erase(s, t);
        }
        assert!(rest.pool == before.pool, "{what}: other bytes of the cache");
    }

    /// The step's output rows in `form`, those that are not live included, and the pages as they are after it.
    fn attend(
        &self,
        device: &Device,
        cache: &Cache,
        rows: &[(u32, u32)],
        form: ActForm,
        by: Division,
    ) -> (Vec<u8>, Vec<u8>) {
        let name = self.kernel(form).name;
        let left = self.attend_with(device, &name, cache, rows, form, by);
        left.unwrap_or_else(|e| panic!("{name} under schedule {}: {e}", by.seed))
    }

    /// The same by a kernel of another name.
    fn attend_with(
        &self,
        device: &Device,
        name: &str,
        cache: &Cache,
        rows: &[(u32, u32)],
        form: ActForm,
        by: Division,
    ) -> Result<(Vec<u8>, Vec<u8>), String> {
        let simt = &device.simt;
        let shape = &self.shape;
        let (slots, positions): (Vec<u32>, Vec<u32>) = rows.iter().copied().unzip();
        let q: Vec<f32> = rows.iter().flat_map(|&r| self.query(r)).collect();
        let q_stride = self.width() * 4 + 64;
        let table = self.table(&positions);
        let kv_width = shape.kv_heads * shape.head_dim;
        let kv_stride = kv_width * 4 + 64;
        let tokens = |v| -> Vec<f32> {
            let rows = rows.iter();
            rows.flat_map(|r| self.token(r.0 as usize, r.1 as usize, v))
                .collect()
        };
        let stored = |v: bool| -> SimtArg {
            match self.rotation {
                Some(_) => device.rows(&tokens(v), kv_width, kv_stride).into(),
                None => 0.into(),
            }
        };
        let rot_dim = self.rotation.map_or(0, |r| r.rot_dim);
        let norm = |seed| -> SimtArg {
            match self.rotation {
                Some(Rotation {
                    normalised: true, ..
                }) => device.f32s(&self.norm(seed)).into(),
                _ => 0.into(),
            }
        };
        let pool = simt.upload(&cache.pool);
        let (slots, positions) = (device.u32s(&slots), device.u32s(&positions));
        let live = device.u32s(&[rows.len() as u32, 0]);
        let divided = simt.alloc(plan_bytes(MAX_ROWS, by.cells));
        let cells = by.cells;
        let scratch = simt.alloc(scratch_bytes(shape.heads, shape.head_dim, cells));
        let counters = counter_bytes(MAX_ROWS, shape.kv_heads, shape.group());
        let counters = simt.upload(&vec![0; counters]);
        let out = simt.alloc((rows.len() + 1) * form.stride(self.width()));
        let window = (shape.window as u32).into();
        let plan_args = PlanArgs {
            positions: positions.into(),
            slots: slots.into(),
            live: live.into(),
            plan: divided.into(),
            max_rows: (MAX_ROWS as u32).into(),
            cells: (cells as u32).into(),
            tile_rows: (rows_per_tile(shape.group()) as u32).into(),
            parts: (parts(shape.kv_heads, shape.group()) as u32).into(),
            warps: by.warps.into(),
            split: (self.split as u32).into(),
            window,
        };
        let attention_args = AttentionArgs {
            q: device.rows(&q, self.width(), q_stride).into(),
            k: stored(false),
            v: stored(true),
            table: device.f32s(&table).into(),
            q_norm: norm(4),
            k_norm: norm(5),
            sinks: match self.sinks {
                true => device.f32s(&self.sink_scores()).into(),
                false => 0.into(),
            },
            kv: pool.into(),
            plan: divided.into(),
            scratch: scratch.into(),
            counters: counters.into(),
            out: out.into(),
            positions: positions.into(),
            slots: slots.into(),
            page_table: device.u32s(&cache.table).into(),
            live: live.into(),
            max_rows: (MAX_ROWS as u32).into(),
            kv_heads: (shape.kv_heads as u32).into(),
            q_stride: (q_stride as u32).into(),
            k_stride: (kv_stride as u32).into(),
            v_stride: (kv_stride as u32).into(),
            table_stride: (rot_dim as u32 * 4).into(),
            out_stride: (form.stride(self.width()) as u32).into(),
            rot_dim: (rot_dim as u32).into(),
            q_eps: Q_EPS.into(),
            k_eps: K_EPS.into(),
            pages_per_slot: (cache.pages_per_slot as u32).into(),
            split: (self.split as u32).into(),
            window,
            scale: shape.scale.into(),
            softcap: shape.softcap.into(),
        };
        let mut geometry = attention::geometry(self.kv, shape.head_dim, 1);
        geometry.grid[0] = by.blocks;
        device.launch(
            &plan(),
            attention::plan_geometry(),
            plan_args.list(),
            by.seed,
        );
        simt.launch(name, geometry, &attention_args.list(), by.seed)?;
        match device.read(&counters).iter().all(|&b| b == 0) {
            true => Ok((device.read(&out), device.read(&pool))),
            false => Err("leaves its counters".into()),
        }
    }

    /// Attends under several divisions, forms and schedules; compares with the reference, and f32 rows bit by bit.
    fn check(&self, device: &Device, rows: &[(u32, u32)]) {
        let cache = self.cache(rows);
        let shape = &self.shape;
        let how = match self.rotation {
            Some(Rotation {
                rot_dim,
                neox,
                normalised,
            }) => format!("rotation {rot_dim} neox {neox} normalised {normalised}"),
            None => String::new(),
        };
        let what = format!(
            "{} d{} {}/{} window {} softcap {} split {} {how}",
            self.kv.name(),
            shape.head_dim,
            shape.heads,
            shape.kv_heads,
            shape.window,
            shape.softcap,
            self.split
        );
        let longest = rows.iter().map(|r| r.1).max().map_or(0, |p| p as usize + 1);
        let ample = cells(MAX_ROWS, longest, self.split) + MAX_ROWS;
        // All cut, on one block; nothing cut, for there are no cells; some cut, on more blocks than there is work.
        let divisions = [
            (1 << 20, ample, 1),
            (1 << 20, rows.len(), 2),
            (1 << 20, rows.len() + 5, 3),
            (1, ample, 40),
        ];
        let divisions = divisions.into_iter().zip(SEEDS.into_iter().cycle());
        let divisions: Vec<Division> = divisions
            .map(|((warps, cells, blocks), seed)| Division {
                warps,
                cells,
                blocks,
                seed,
            })
            .collect();
        // Values of V are up to 2, scores up to 10; halves have 11 bits.
        let errors = match self.kv {
            KvType::F32 => (0.0, 3e-5),
            KvType::F16 | KvType::Q8_0 => (0.0, 4e-3),
        };
        let mut expected: Vec<Vec<f32>> = vec![];
        let mut stored: Option<Cache> = None;
        let mut first: Option<Vec<u8>> = None;
        for (i, &by) in divisions.iter().enumerate() {
            let form = match i {
                0..3 => self.forms()[(i + 2) % self.forms().len()],
                _ => ActForm::F32,
            };
            let (out, pool) = self.attend(device, &cache, rows, form, by);
            let stored = stored.get_or_insert_with(|| {
                let after = cache.with(&pool);
                match self.rotation {
                    Some(_) => self.check_stored(&cache, &after, rows, &what),
                    None => assert!(after.pool == cache.pool, "{what}: the cache"),
                }
                // Of what is in the cache: its rounding is another test's.
                expected = rows.iter().map(|&r| self.expected(&after, r)).collect();
                after
            });
            assert!(stored.pool == pool, "{what}: other keys by division {i}");
            let stride = form.stride(self.width());
            let (live, rest) = out.split_at(rows.len() * stride);
            for (r, row) in live.chunks_exact(stride).enumerate() {
                let what = format!("{what}, row {r} of division {i}");
                assert_row(&what, form, row, &expected[r], errors);
            }
            assert!(rest.iter().all(|&b| b == 0xff), "{what}: not live");
            if form == ActForm::F32 {
                let same = first.get_or_insert_with(|| out.clone());
                assert!(*same == out, "{what}: other bits by division {i}");
            }
        }
    }
}

#[test]
fn decode_rows_of_every_head_shape_are_the_reference() {
    let shapes = [
        (4, 2, 32),
        (2, 1, 64),
        (8, 2, 80),
        (3, 1, 96),
        (4, 1, 128),
        (2, 2, 256),
        (1, 1, 36),
    ];
    // Pages and splits begin at 32 and 64: around both.
    let rows = [(0, 0), (1, 31), (2, 32), (3, 63), (4, 64), (5, 130)];
    for kv in KV_TYPES {
        let plain = shapes.map(|(heads, kv_heads, d)| Case::of(kv, heads, kv_heads, d));
        let rotating = plain.into_iter().enumerate().map(|(i, case)| {
            let rot_dim = if i % 2 == 0 { case.shape.head_dim } else { 32 };
            case.rotating(rot_dim, i % 3 != 0, i % 4 < 2)
        });
        let cases: Vec<Case> = plain.into_iter().chain(rotating).collect();
        let kernels: Vec<Kernel> = cases.iter().flat_map(Case::kernels).collect();
        let Some(device) = Device::of(&kernels) else {
            return;
        };
        for case in cases {
            case.check(&device, &rows);
        }
    }
}

/// Their sums are two warps' work. They come rotated, and f32 caches do not have them.
#[test]
fn the_longest_heads_are_the_reference() {
    // A prompt chunk across a page and a split, and decode rows.
    let rows: Vec<(u32, u32)> = (60..67).map(|pos| (1, pos)).collect();
    let rows = [rows, vec![(0, 130), (2, 0), (3, 31)]].concat();
    for kv in [KvType::F16, KvType::Q8_0] {
        let mut cases = [(2, 1, 320), (4, 2, 512), (20, 1, 512)].map(|(heads, kv_heads, d)| {
            let case = Case::of(kv, heads, kv_heads, d);
            Case {
                sinks: d == 320,
                ..case
            }
        });
        cases[1].shape.window = 40;
        let kernels: Vec<Kernel> = cases.iter().flat_map(Case::kernels).collect();
        let Some(device) = Device::of(&kernels) else {
            return;
        };
        for case in cases {
            case.check(&device, &rows);
        }
    }
}

#[test]
fn windows_softcaps_and_prompt_rows_are_the_reference() {
    // A prompt chunk that ends amid a tile, decode rows, and another chunk whose positions are below a page.
    let mut rows: Vec<(u32, u32)> = (60..69).map(|pos| (2, pos)).collect();
    rows.extend([(0, 100), (1, 7)]);
    rows.extend((3..6).map(|pos| (3, pos)));
    for kv in KV_TYPES {
        let base = Case::of(kv, 8, 2, 64);
        let Some(device) = Device::of(&base.kernels()) else {
            return;
        };
        for (window, softcap, split) in [(0, 0.0, 32), (20, 0.0, 64), (30, 5.0, 32), (1, 0.0, 32)] {
            let mut case = Case { split, ..base };
            (case.shape.window, case.shape.softcap) = (window, softcap);
            case.check(&device, &rows);
            case.sinks = true;
            case.rotating(48, true, true).check(&device, &rows);
        }
    }
}

#[test]
fn many_query_heads_of_one_kv_head_are_the_reference() {
    let rows = [(0, 40), (0, 41), (1, 3)];
    for kv in KV_TYPES {
        let plain = [(24, 1), (16, 1), (10, 2)].map(|(h, kv_heads)| Case::of(kv, h, kv_heads, 32));
        let rotating = plain.map(|case| case.rotating(32, true, false));
        let cases = [plain, rotating].concat();
        let kernels: Vec<Kernel> = cases.iter().flat_map(Case::kernels).collect();
        let Some(device) = Device::of(&kernels) else {
            return;
        };
        for case in cases {
            case.check(&device, &rows);
        }
    }
}

#[test]
fn bits_of_a_row_do_not_depend_on_its_company() {
    let together: Vec<(u32, u32)> = (30..40).map(|p| (0, p)).chain([(1, 90), (2, 5)]).collect();
    let by = |warps, cells, seed| Division {
        warps,
        cells,
        blocks: 2,
        seed,
    };
    for kv in KV_TYPES {
        let mut case = Case::of(kv, 8, 2, 64).rotating(64, false, true);
        (case.split, case.shape.window) = (32, 25);
        let Some(device) = Device::of(&case.kernels()) else {
            return;
        };
        let cache = case.cache(&together);
        let stride = ActForm::F32.stride(case.width());
        let cells = cells(MAX_ROWS, 91, 32);
        let (all, pool) = case.attend(&device, &cache, &together, ActForm::F32, by(4, cells, 5));
        for (warps, cells) in [(1, 1), (1 << 20, cells)] {
            // One after the other, each finds what those before it stored.
            let mut cache = cache.clone();
            for (i, &row) in together.iter().enumerate() {
                let alone = by(warps, cells, 6);
                let (alone, stored) = case.attend(&device, &cache, &[row], ActForm::F32, alone);
                cache.pool = stored;
                let same = alone[..stride] == all[i * stride..][..stride];
                assert!(same, "{} row {i}", kv.name());
            }
            assert!(cache.pool == pool, "{}: what is stored", kv.name());
        }
    }
}

#[test]
fn a_step_without_live_rows_has_no_work() {
    let case = Case::of(KvType::F16, 8, 2, 64);
    let Some(device) = Device::of(&case.kernels()) else {
        return;
    };
    let cache = Cache::of(KvType::F16, (2, 64), 1, 32);
    let by = Division {
        warps: 8,
        cells: 1,
        blocks: 2,
        seed: 1,
    };
    let (out, _) = case.attend(&device, &cache, &[], ActForm::F32, by);
    assert!(out.iter().all(|&b| b == 0xff));
}
