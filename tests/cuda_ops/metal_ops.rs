use super::cache::Cache;
use super::{Device, SEEDS, assert_row, values};
use crate::simt::{ARCH, Dialect, Simt, Source, syncs, without_sync};
use coldpress_compiler::codegen::metal::render;
use coldpress_kernels::attention::{Shape, reference_with_sinks};
use coldpress_kernels::cpu::abi::KvType;
use coldpress_kernels::gpu::Kernel;
use coldpress_kernels::gpu::abi::ActForm;
use coldpress_kernels::gpu::metal::{AttentionArgs, attention, attention_geometry};

const KV_TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8_0];
const FORMS: [ActForm; 2] = [ActForm::F32, ActForm::F16];

/// A model's attention.
#[derive(Clone, Copy)]
struct Case {
    kv: KvType,
    shape: Shape,
    split: usize,
    sinks: bool,
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
        let split = 32;
        Case {
            kv,
            shape,
            split,
            sinks: false,
        }
    }

    fn forms(&self) -> &'static [ActForm] {
        match self.shape.head_dim.is_multiple_of(32) {
            true => &FORMS,
            false => &FORMS[..1],
        }
    }

    fn kernel(&self, form: ActForm) -> Kernel {
        attention(self.kv, self.shape.head_dim, self.shape.group(), form)
    }

    fn kernels(&self) -> Vec<Kernel> {
        self.forms().iter().map(|&form| self.kernel(form)).collect()
    }

    fn width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    /// Of some heads far below all scores, of others above.
    fn sink_scores(&self) -> Vec<f32> {
        (0..self.shape.heads)
            .map(|h| h as f32 * 4.0 - 9.0)
            .collect()
    }

    fn query(&self, (slot, position): (u32, u32)) -> Vec<f32> {
        values((slot * 577 + position) as usize, self.width(), 2.0)
    }

    /// Slots' caches up to the last positions in `rows`.
    fn cache(&self, rows: &[(u32, u32)]) -> Cache {
        let slots = rows.iter().map(|r| r.0).max().map_or(0, |s| s as usize + 1);
        let longest = rows.iter().map(|r| r.1).max().map_or(0, |p| p as usize + 1);
        let (kv_heads, head_dim) = (self.shape.kv_heads, self.shape.head_dim);
        let mut cache = Cache::of(self.kv, (kv_heads, head_dim), slots, longest + 40);
        for slot in 0..slots {
            let last = rows.iter().filter(|r| r.0 as usize == slot).map(|r| r.1);
            for token in 0..last.max().map_or(0, |p| p as usize + 1) {
                let stored =
                    |v: usize| values(2 * (token + 1000 * slot) + v, kv_heads * head_dim, 2.0);
                cache.write(slot, token, false, &stored(0));
                cache.write(slot, token, true, &stored(1));
            }
        }
        cache
    }

    fn expected(&self, cache: &Cache, row: (u32, u32)) -> Vec<f32> {
        let all = |v: bool| {
            let tokens = 0..=row.1 as usize;
            let tokens = tokens.flat_map(|t| cache.read(row.0 as usize, t, v));
            tokens.collect::<Vec<f32>>()
        };
        let (query, k, v) = (self.query(row), all(false), all(true));
        let sinks = self.sinks.then(|| self.sink_scores());
        reference_with_sinks(&query, &k, &v, &self.shape, sinks.as_deref())
    }

    /// The step's output rows in `form`, one that is not live included.
    fn attend(
        &self,
        device: &Device,
        cache: &Cache,
        rows: &[(u32, u32)],
        form: ActForm,
        seed: u64,
    ) -> Vec<u8> {
        let name = self.kernel(form).name;
        let left = self.attend_with(device, (&name, form), cache, rows, seed);
        left.unwrap_or_else(|e| panic!("{name} under schedule {seed}: {e}"))
    }

    /// The same by the kernel `name`.
    ///
    /// # Errors
    /// What the shim found wrong.
    fn attend_with(
        &self,
        device: &Device,
        (name, form): (&str, ActForm),
        cache: &Cache,
        rows: &[(u32, u32)],
        seed: u64,
    ) -> Result<Vec<u8>, String> {
        let (slots, positions): (Vec<u32>, Vec<u32>) = rows.iter().copied().unzip();
        let q: Vec<f32> = rows.iter().flat_map(|&r| self.query(r)).collect();
        let q_stride = self.width() * 4 + 64;
        let out = device
            .simt
            .alloc((rows.len() + 1) * form.stride(self.width()));
        let args = AttentionArgs {
            q: device.rows(&q, self.width(), q_stride).into(),
            sinks: match self.sinks {
                true => device.f32s(&self.sink_scores()).into(),
                false => 0.into(),
            },
            kv: device.simt.upload(&cache.pool).into(),
            out: out.into(),
            positions: device.u32s(&positions).into(),
            slots: device.u32s(&slots).into(),
            page_table: device.u32s(&cache.table).into(),
            live: device.u32s(&[rows.len() as u32, 0]).into(),
            kv_heads: (self.shape.kv_heads as u32).into(),
            q_stride: (q_stride as u32).into(),
            out_stride: (form.stride(self.width()) as u32).into(),
            pages_per_slot: (cache.pages_per_slot as u32).into(),
            split: (self.split as u32).into(),
            window: (self.shape.window as u32).into(),
            scale: self.shape.scale.into(),
            softcap: self.shape.softcap.into(),
        };
        let geometry = attention_geometry(&self.shape, rows.len() + 1);
        device.simt.launch(name, geometry, &args.list(), seed)?;
        Ok(device.read(&out))
    }

    fn check(&self, device: &Device, rows: &[(u32, u32)]) {
        let cache = self.cache(rows);
        let what = format!("{} {:?} split {}", self.kv.name(), self.shape, self.split);
        for (seed, form) in SEEDS.into_iter().zip(self.forms()) {
            let out = self.attend(device, &cache, rows, *form, seed);
            let stride = form.stride(self.width());
            let (live, rest) = out.split_at(rows.len() * stride);
            for (&row, found) in rows.iter().zip(live.chunks_exact(stride)) {
                let expected = self.expected(&cache, row);
                assert_row(&what, *form, found, &expected, (0.0, 3e-5));
            }
            assert!(rest.iter().all(|&b| b == 0xff), "{what}: not live");
        }
    }
}

#[test]
fn attention_on_apple_gpus_is_the_reference() {
    let shapes = [
        (4, 2, 32),
        (8, 2, 80),
        (5, 1, 96),
        (14, 2, 64),
        (4, 1, 128),
        (2, 2, 256),
        (3, 1, 512),
        (1, 1, 36),
    ];
    // Pages and splits begin at 32; more splits than a thread block has warps.
    let rows = [(0, 0), (1, 31), (2, 32), (3, 63), (4, 64), (5, 300)];
    for kv in KV_TYPES {
        let cases = shapes.map(|(heads, kv_heads, d)| Case::of(kv, heads, kv_heads, d));
        let kernels: Vec<Kernel> = cases.iter().flat_map(Case::kernels).collect();
        let Some(device) = Device::in_dialect(Dialect::Metal, &kernels) else {
            return;
        };
        for case in cases {
            case.check(&device, &rows);
        }
        for case in [cases[3], cases[6]] {
            Case {
                sinks: true,
                ..case
            }
            .check(&device, &rows);
        }
        for (window, softcap, split) in [(20, 0.0, 64), (30, 5.0, 32), (1, 0.0, 32)] {
            let mut case = Case { split, ..cases[0] };
            (case.shape.window, case.shape.softcap) = (window, softcap);
            case.check(&device, &rows);
            case.sinks = true;
            case.check(&device, &rows);
        }
    }
}

#[test]
fn rows_on_apple_gpus_have_the_same_bits_in_any_company() {
    let together: Vec<(u32, u32)> = (30..40).map(|p| (0, p)).chain([(1, 290), (2, 5)]).collect();
    let case = Case::of(KvType::F16, 8, 2, 64);
    let Some(device) = Device::in_dialect(Dialect::Metal, &case.kernels()) else {
        return;
    };
    let cache = case.cache(&together);
    let stride = ActForm::F32.stride(case.width());
    let all = case.attend(&device, &cache, &together, ActForm::F32, 1);
    for (i, &row) in together.iter().enumerate() {
        let alone = case.attend(&device, &cache, &[row], ActForm::F32, 2 + i as u64);
        assert!(alone[..stride] == all[i * stride..][..stride], "row {i}");
    }
}

/// Without any one of its barriers some schedule gives an error or other bits.
#[test]
fn every_barrier_of_attention_on_apple_gpus_is_needed() {
    let case = Case::of(KvType::F16, 4, 1, 64);
    let kernel = case.kernel(ActForm::F16);
    let whole = Source::in_dialect(Dialect::Metal, &kernel);
    let all = syncs(&whole.body);
    assert!(all.len() >= 3, "{all:?}");
    let name = |i: usize| format!("{}_{i}", kernel.name);
    let mutants = (0..all.len()).map(|i| Source {
        name: name(i),
        body: without_sync(&whole.body, i),
        ..whole.clone()
    });
    let sources: Vec<_> = [whole.clone()].into_iter().chain(mutants).collect();
    let Some(simt) = Simt::build(&sources, ARCH) else {
        return;
    };
    let device = Device { simt };
    // More splits than a thread block has warps.
    let rows = [(0, 300)];
    let cache = case.cache(&rows);
    let left = |device: &Device, name: &str, seed| {
        case.attend_with(device, (name, ActForm::F16), &cache, &rows, seed)
    };
    let expected = left(&device, &kernel.name, 1).expect("runs");
    for (i, sync) in all.iter().enumerate() {
        let fails = (1..40).any(|seed| {
            let simt = device.simt.fresh();
            left(&Device { simt }, &name(i), seed).as_ref() != Ok(&expected)
        });
        assert!(fails, "nothing happens without {sync}");
    }
}

#[test]
fn attention_on_apple_gpus_takes_the_arguments_that_are_documented() {
    let kernel = Case::of(KvType::Q8_0, 8, 2, 64).kernel(ActForm::F16);
    let body = render::body(&kernel).expect("renders");
    let fields = body.split("struct Params {").nth(1).expect("has arguments");
    let fields = fields.split('}').next().expect("ends");
    let fields = fields
        .lines()
        .map(|l| l.split("//").next().expect("one part"));
    let fields = fields.filter_map(|l| l.trim().strip_suffix(';'));
    let fields: Vec<&str> = fields
        .map(|f| f.rsplit([' ', '*']).next().expect("a name"))
        .collect();
    assert_eq!(fields, AttentionArgs::NAMES);
}
