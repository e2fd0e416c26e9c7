use super::cache::Cache;
use super::{Device, FORMS, SEEDS, assert_row, values};
use coldpress_kernels::attention::{Shape, reference};
use coldpress_kernels::cpu::abi::KvType;
use coldpress_kernels::gpu::Kernel;
use coldpress_kernels::gpu::abi::ActForm;
use coldpress_kernels::gpu::attention::{
    self, AttentionArgs, PlanArgs, cells, counter_bytes, parts, plan, plan_bytes, rows_per_tile,
    scratch_bytes,
};

const KV_TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8_0];
/// Every bucket here has room for more rows than are live.
const MAX_ROWS: usize = 21;

/// A model's attention, and how a plan divides it.
#[derive(Clone, Copy)]
struct Case {
    kv: KvType,
    shape: Shape,
    split: usize,
}

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
        attention::legal(&shape).expect("legal");
        Case {
            kv,
            shape,
            split: 64,
        }
    }

    /// The forms in which rows can be left.
    fn forms(&self) -> &'static [ActForm] {
        match attention::leaves_any_form(self.shape.head_dim) {
            true => &FORMS,
            false => &[ActForm::F32],
        }
    }

    fn kernel(&self, form: ActForm) -> Kernel {
        attention::attention(self.kv, self.shape.head_dim, self.shape.group(), form)
    }

    fn kernels(&self) -> Vec<Kernel> {
        let forms = self.forms().iter().map(|&form| self.kernel(form));
        [plan()].into_iter().chain(forms).collect()
    }

    fn width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    /// Slots' caches up to the last positions in `rows`, filled.
    fn cache(&self, rows: &[(u32, u32)]) -> Cache {
        let slots = rows.iter().map(|r| r.0).max().map_or(0, |s| s as usize + 1);
        let longest = rows.iter().map(|r| r.1).max().map_or(0, |p| p as usize + 1);
        let (kv_heads, head_dim) = (self.shape.kv_heads, self.shape.head_dim);
        let mut cache = Cache::of(self.kv, (kv_heads, head_dim), slots, longest + 40);
        for slot in 0..slots {
            let last = rows.iter().filter(|r| r.0 as usize == slot).map(|r| r.1);
            for token in 0..last.max().map_or(0, |p| p as usize + 1) {
                for v in [false, true] {
                    let seed = 2 * (token + 1000 * slot) + usize::from(v);
                    let values = values(seed, kv_heads * head_dim, 2.0);
                    cache.write(slot, token, v, &values);
                }
            }
        }
        cache
    }

    /// Queries of one row, which depend on its slot and position alone.
    fn query(&self, (slot, pos): (u32, u32)) -> Vec<f32> {
        values((slot * 577 + pos) as usize, self.width(), 2.0)
    }

    fn expected(&self, cache: &Cache, (slot, pos): (u32, u32)) -> Vec<f32> {
        let all = |v: bool| {
            let tokens = 0..=pos as usize;
            let tokens = tokens.flat_map(|t| cache.read(slot as usize, t, v));
            tokens.collect::<Vec<f32>>()
        };
        reference(
            &self.query((slot, pos)),
            &all(false),
            &all(true),
            &self.shape,
        )
    }

    /// The step's output rows in `form`, those that are not live included.
    fn attend(
        &self,
        device: &Device,
        cache: &Cache,
        rows: &[(u32, u32)],
        form: ActForm,
        by: Division,
    ) -> Vec<u8> {
        let simt = &device.simt;
        let shape = &self.shape;
        let (slots, positions): (Vec<u32>, Vec<u32>) = rows.iter().copied().unzip();
        let q: Vec<f32> = rows.iter().flat_map(|&r| self.query(r)).collect();
        let q_stride = self.width() * 4 + 64;
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
            kv: simt.upload(&cache.pool).into(),
            plan: divided.into(),
            scratch: scratch.into(),
            counters: counters.into(),
            out: out.into(),
            positions: positions.into(),
            slots: slots.into(),
            page_table: device.u32s(&cache.table).into(),
            max_rows: (MAX_ROWS as u32).into(),
            kv_heads: (shape.kv_heads as u32).into(),
            q_stride: (q_stride as u32).into(),
            out_stride: (form.stride(self.width()) as u32).into(),
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
        device.launch(&self.kernel(form), geometry, attention_args.list(), by.seed);
        assert!(device.read(&counters).iter().all(|&b| b == 0), "counters");
        device.read(&out)
    }

    /// Attends under several divisions, forms and schedules; compares with the reference, and f32 rows bit by bit.
    fn check(&self, device: &Device, rows: &[(u32, u32)]) {
        let cache = self.cache(rows);
        let shape = &self.shape;
        let what = format!(
            "{} d{} {}/{} window {} softcap {} split {}",
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
        let expected: Vec<Vec<f32>> = rows.iter().map(|&r| self.expected(&cache, r)).collect();
        let mut first: Option<Vec<u8>> = None;
        for (i, &by) in divisions.iter().enumerate() {
            let form = match i {
                0..3 => self.forms()[(i + 2) % self.forms().len()],
                _ => ActForm::F32,
            };
            let out = self.attend(device, &cache, rows, form, by);
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
        let cases =
            shapes.map(|(heads, kv_heads, head_dim)| Case::of(kv, heads, kv_heads, head_dim));
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
        }
    }
}

#[test]
fn many_query_heads_of_one_kv_head_are_the_reference() {
    let rows = [(0, 40), (0, 41), (1, 3)];
    for kv in KV_TYPES {
        let cases = [(24, 1), (16, 1), (10, 2)].map(|(h, kv_heads)| Case::of(kv, h, kv_heads, 32));
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
        let mut case = Case::of(kv, 8, 2, 64);
        (case.split, case.shape.window) = (32, 25);
        let Some(device) = Device::of(&case.kernels()) else {
            return;
        };
        let cache = case.cache(&together);
        let stride = ActForm::F32.stride(case.width());
        let cells = cells(MAX_ROWS, 91, 32);
        let all = case.attend(&device, &cache, &together, ActForm::F32, by(4, cells, 5));
        for (i, &row) in together.iter().enumerate() {
            for (warps, cells) in [(1, 1), (1 << 20, cells)] {
                let alone = by(warps, cells, 6);
                let alone = case.attend(&device, &cache, &[row], ActForm::F32, alone);
                let same = alone[..stride] == all[i * stride..][..stride];
                assert!(same, "{} row {i}", kv.name());
            }
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
    let out = case.attend(&device, &cache, &[], ActForm::F32, by);
    assert!(out.iter().all(|&b| b == 0xff));
}
