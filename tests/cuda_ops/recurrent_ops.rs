use super::{Device, SEEDS};
use crate::nvrtc::{ARCHITECTURES, nvrtc};
use crate::simt::{ARCH, Buffer, Dialect, Simt, SimtArg, Source, syncs, without_sync};
use coldpress_compiler::codegen::cuda::render;
use coldpress_kernels::gpu::recurrent::{
    self, DeltaRuleArgs, ShortConvArgs, delta_rule, delta_rule_geometry, short_conv,
    short_conv_geometry,
};
use coldpress_kernels::gpu::{Geometry, Kernel};
use coldpress_kernels::recurrent::{
    DeltaRow, Heads, conv_reference, conv_state_floats, delta_reference, delta_state_floats,
};

/// So large that where it is added shows.
const EPS: f32 = 0.05;
/// Tokens of each slot; a slot between them has none.
const TOKENS: [u32; 4] = [7, 0, 3, 1];
/// Rows of the bucket.
const ROWS: usize = 6;

/// Slot and position.
type Row = (u32, u32);

fn input((slot, position): Row, kind: usize, width: usize) -> Vec<f32> {
    super::values(
        (slot * 100 + position) as usize * 8 + kind,
        width,
        [1.0, 1.5, 2.0][kind],
    )
}

/// The same tokens in steps of at most [`ROWS`] rows: each alone, slots as wholes, all slots together, chunks that share
/// steps.
fn schedules() -> Vec<Vec<Vec<Row>>> {
    let slots = || (0..).zip(TOKENS);
    let all: Vec<Row> = slots()
        .flat_map(|(slot, tokens)| (0..tokens).map(move |p| (slot, p)))
        .collect();
    let wholes = slots().flat_map(|(slot, tokens)| {
        let rows: Vec<Row> = (0..tokens).map(|p| (slot, p)).collect();
        rows.chunks(ROWS).map(<[Row]>::to_vec).collect::<Vec<_>>()
    });
    let at = |position| {
        let live = slots().filter(move |&(_, tokens)| position < tokens);
        live.map(move |(slot, _)| (slot, position)).collect()
    };
    let mut mixed = all.clone();
    mixed.sort_by_key(|&(slot, position)| (position / 2, slot, position));
    vec![
        all.iter().map(|&row| vec![row]).collect(),
        wholes.collect(),
        (0..TOKENS[0]).map(at).collect(),
        mixed.chunks(5).map(<[Row]>::to_vec).collect(),
    ]
}

/// A step in device memory.
struct Step {
    slots: Buffer,
    positions: Buffer,
    live: Buffer,
}

impl Step {
    fn new(device: &Device, rows: &[Row]) -> Step {
        // Rows beyond the live ones say something that must not matter.
        let padded = |of: fn(&Row) -> u32| -> Vec<u32> {
            let rows = rows.iter().map(of);
            rows.chain(std::iter::repeat(0)).take(ROWS).collect()
        };
        Step {
            slots: device.u32s(&padded(|row| row.0)),
            positions: device.u32s(&padded(|row| row.1)),
            live: device.u32s(&[rows.len() as u32, 0]),
        }
    }
}

/// Rows of the bucket of one kind of input, the live ones first.
fn inputs(device: &Device, rows: &[Row], kind: usize, width: usize, gap: usize) -> Buffer {
    let live = rows.iter().flat_map(|&row| input(row, kind, width));
    let padding = std::iter::repeat_n(f32::NAN, (ROWS - rows.len()) * width);
    let values: Vec<f32> = live.chain(padding).collect();
    device.rows(&values, width, (width + gap) * 4)
}

/// One family and its shape.
trait Layer {
    fn kernel(&self) -> Kernel;
    fn width(&self) -> usize;
    fn floats(&self) -> usize;
    fn geometry(&self, slots: usize) -> (Geometry, bool);
    /// Arguments of a step: `(x of the result, its stride, the states, bytes of one)`.
    fn args(
        &self,
        device: &Device,
        rows: &[Row],
        by_row: bool,
        memory: (Buffer, usize, Buffer, usize),
    ) -> Vec<SimtArg>;
    fn expected(&self, slot: u32, tokens: u32) -> Vec<Vec<f64>>;
}

/// Floats between rows, and between states.
const GAP: usize = 16;

fn run(
    device: &Device,
    layer: &dyn Layer,
    steps: &[Vec<Row>],
    slots: usize,
    seed: u64,
) -> Vec<(Row, Vec<u32>)> {
    let name = layer.kernel().name;
    let results = run_as(device, (&name, layer), steps, slots, seed);
    results.unwrap_or_else(|e| panic!("{name} under schedule {seed}: {e}"))
}

/// The results of all rows by the kernel `name`, sorted.
///
/// # Errors
/// What the shim found wrong.
fn run_as(
    device: &Device,
    (name, layer): (&str, &dyn Layer),
    steps: &[Vec<Row>],
    slots: usize,
    seed: u64,
) -> Result<Vec<(Row, Vec<u32>)>, String> {
    let (width, floats) = (layer.width(), layer.floats());
    let (stride, slot_bytes) = ((width + GAP) * 4, (floats + GAP) * 4);
    let state = device.simt.alloc(slots * slot_bytes);
    let mut results = Vec::new();
    for rows in steps {
        let out = device.simt.alloc(ROWS * stride);
        let (geometry, by_row) = layer.geometry(slots);
        let args = layer.args(device, rows, by_row, (out, stride, state, slot_bytes));
        device.simt.launch(name, geometry, &args, seed)?;
        let found = device.read_u32(&out);
        for (i, found) in found.chunks_exact(stride / 4).enumerate() {
            let (values, after) = found.split_at(width);
            assert!(after.iter().all(|&v| v == u32::MAX), "beyond row {i}");
            match rows.get(i) {
                Some(&row) => results.push((row, values.to_vec())),
                None => assert!(values.iter().all(|&v| v == u32::MAX), "not live"),
            }
        }
    }
    let states = device.read_u32(&state);
    for (slot, state) in states.chunks_exact(slot_bytes / 4).enumerate() {
        let used = steps.iter().flatten().any(|row| row.0 as usize == slot);
        let (own, after) = state.split_at(floats);
        assert!(after.iter().all(|&v| v == u32::MAX), "beyond a state");
        assert!(own.iter().all(|&v| (v != u32::MAX) == used), "slot {slot}");
    }
    results.sort_by_key(|(row, _)| *row);
    Ok(results)
}

fn check(layer: &dyn Layer) {
    Dialect::ALL.into_iter().for_each(|d| check_in(d, layer));
}

fn check_in(dialect: Dialect, layer: &dyn Layer) {
    let kernel = layer.kernel();
    let Some(device) = Device::in_dialect(dialect, std::slice::from_ref(&kernel)) else {
        return;
    };
    let name = &kernel.name;
    let mut first: Option<Vec<(Row, Vec<u32>)>> = None;
    for (i, steps) in schedules().iter().enumerate() {
        // More slots than rows, and fewer.
        for (slots, seed) in [4, 9].into_iter().zip(SEEDS) {
            let found = run(&device, layer, steps, slots, seed + i as u64);
            let first = first.get_or_insert_with(|| found.clone());
            assert!(&found == first, "{name}: schedule {i}, {slots} slots");
        }
    }
    let first = first.expect("some schedule");
    for (slot, tokens) in (0..).zip(TOKENS) {
        for (position, expected) in (0..).zip(layer.expected(slot, tokens)) {
            let found = first.iter().find(|(row, _)| *row == (slot, position));
            let (_, found) = found.expect("every row");
            let scale = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
            for (&x, e) in found.iter().zip(expected) {
                let x = f32::from_bits(x);
                assert!(
                    (f64::from(x) - e).abs() <= 1e-5 * scale,
                    "{name}: slot {slot} position {position}: {x} for {e}"
                );
            }
        }
    }
    let again: Vec<Vec<Row>> = [5, 3]
        .map(|tokens| (0..tokens).map(|p| (0, p)).collect())
        .to_vec();
    let mut second = run(&device, layer, &again[1..], 4, 9);
    let both = run(&device, layer, &again, 4, 9);
    // Sorted by row: of two results of a row, the second sequence's comes second.
    second.retain(|result| both.contains(result));
    assert_eq!(second.len(), 3, "{name}: a second sequence");
}

struct Conv {
    channels: usize,
    taps: usize,
}

impl Conv {
    fn weights(&self) -> Vec<f32> {
        super::values(77, self.channels * self.taps, 1.0)
    }
}

impl Layer for Conv {
    fn kernel(&self) -> Kernel {
        short_conv(self.taps)
    }

    fn width(&self) -> usize {
        self.channels
    }

    fn floats(&self) -> usize {
        conv_state_floats(self.channels, self.taps)
    }

    fn geometry(&self, slots: usize) -> (Geometry, bool) {
        short_conv_geometry(self.channels, ROWS, slots)
    }

    fn args(
        &self,
        device: &Device,
        rows: &[Row],
        by_row: bool,
        (out, out_stride, state, slot_bytes): (Buffer, usize, Buffer, usize),
    ) -> Vec<SimtArg> {
        let step = Step::new(device, rows);
        let args = ShortConvArgs {
            x: inputs(device, rows, 0, self.channels, GAP).into(),
            weight: device.f32s(&self.weights()).into(),
            out: out.into(),
            state: state.into(),
            slots: step.slots.into(),
            positions: step.positions.into(),
            live: step.live.into(),
            channels: (self.channels as u32).into(),
            by_row: u32::from(by_row).into(),
            x_stride: ((self.channels + GAP) as u32 * 4).into(),
            out_stride: (out_stride as u32).into(),
            slot_stride: (slot_bytes as u32).into(),
        };
        args.list()
    }

    fn expected(&self, slot: u32, tokens: u32) -> Vec<Vec<f64>> {
        let mut history = vec![vec![0.0; self.channels]; self.taps - 1];
        let w = self.weights();
        let row = |position| {
            let x = input((slot, position), 0, self.channels);
            let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
            conv_reference(&x, &w, &mut history)
        };
        (0..tokens).map(row).collect()
    }
}

#[test]
fn convolutions_are_the_reference_however_rows_are_cut() {
    for (channels, taps) in [(48, 2), (144, 4), (16, 8)] {
        check(&Conv { channels, taps });
    }
}

/// Heads, and whether their norm follows.
struct Delta(Heads, bool);

impl Delta {
    /// Weight of the norm.
    fn weight(&self) -> Vec<f32> {
        super::values(6, self.0.dim, 1.5)
    }

    /// Vectors of the decay: a, and what is added to alpha.
    fn vectors(&self) -> (Vec<f32>, Vec<f32>) {
        let heads = self.0.heads;
        let a = (0..heads).map(|h| -0.2 - h as f32 * 0.7).collect();
        (a, super::values(5, heads, 1.0))
    }
}

impl Layer for Delta {
    fn kernel(&self) -> Kernel {
        delta_rule(&self.0, self.1)
    }

    fn width(&self) -> usize {
        self.0.heads * self.0.dim
    }

    fn floats(&self) -> usize {
        delta_state_floats(self.0.heads, self.0.dim)
    }

    fn geometry(&self, slots: usize) -> (Geometry, bool) {
        delta_rule_geometry(&self.0, ROWS, slots)
    }

    fn args(
        &self,
        device: &Device,
        rows: &[Row],
        by_row: bool,
        (out, out_stride, state, slot_bytes): (Buffer, usize, Buffer, usize),
    ) -> Vec<SimtArg> {
        let (step, heads) = (Step::new(device, rows), self.0.heads);
        let (a, dt) = self.vectors();
        let stride = |width: usize| SimtArg::from((width + GAP) as u32 * 4);
        let args = DeltaRuleArgs {
            x: inputs(device, rows, 0, self.0.width(), GAP).into(),
            alpha: inputs(device, rows, 1, heads, GAP).into(),
            beta: inputs(device, rows, 2, heads, GAP).into(),
            a: device.f32s(&a).into(),
            dt: device.f32s(&dt).into(),
            out: out.into(),
            state: state.into(),
            slots: step.slots.into(),
            positions: step.positions.into(),
            live: step.live.into(),
            key_heads: (self.0.key_heads as u32).into(),
            heads: (heads as u32).into(),
            by_row: u32::from(by_row).into(),
            x_stride: stride(self.0.width()),
            alpha_stride: stride(heads),
            beta_stride: stride(heads),
            out_stride: (out_stride as u32).into(),
            slot_stride: (slot_bytes as u32).into(),
            eps: EPS.into(),
            norm: match self.1 {
                true => device.f32s(&self.weight()).into(),
                false => 0.into(),
            },
            norm_eps: EPS.into(),
        };
        args.list()
    }

    fn expected(&self, slot: u32, tokens: u32) -> Vec<Vec<f64>> {
        let Heads {
            key_heads,
            heads,
            dim,
            ..
        } = self.0;
        let (a, dt) = self.vectors();
        let mut states = vec![vec![0.0; dim * dim]; heads];
        let mut row = |position| {
            let wide = |kind, width| -> Vec<f64> {
                let x = input((slot, position), kind, width);
                x.iter().map(|&x| x.into()).collect()
            };
            let (x, alpha, beta) = (wide(0, self.0.width()), wide(1, heads), wide(2, heads));
            let part = |at: usize| &x[at * dim..(at + 1) * dim];
            let head = |head: usize| {
                let key = self.0.key_of(head);
                let row = DeltaRow {
                    q: part(key),
                    k: part(key_heads + key),
                    v: part(2 * key_heads + head),
                    alpha: alpha[head],
                    a: a[head],
                    dt: dt[head],
                    beta: beta[head],
                    eps: EPS,
                };
                let y = delta_reference(&row, &mut states[head]);
                if !self.1 {
                    return y;
                }
                let squares: f64 = y.iter().map(|y| y * y).sum();
                let inverse = 1.0 / (squares / dim as f64 + f64::from(EPS)).sqrt();
                let weight = self.weight().into_iter().map(f64::from);
                y.iter().zip(weight).map(|(y, w)| y * inverse * w).collect()
            };
            (0..heads).flat_map(head).collect()
        };
        (0..tokens).map(&mut row).collect()
    }
}

#[test]
fn delta_rules_are_the_reference_however_rows_are_cut() {
    for (key_heads, heads, dim, grouped) in [
        (1, 2, 16, false),
        (2, 4, 48, false),
        (2, 4, 32, true),
        (1, 2, 80, false),
        (1, 1, 128, false),
    ] {
        let heads = Heads {
            key_heads,
            heads,
            dim,
            grouped,
        };
        recurrent::legal(&heads).expect("legal");
        for normed in [false, true] {
            check(&Delta(heads, normed));
        }
    }
}

/// Without any one of its barriers some schedule gives an error or other bits.
#[test]
fn every_barrier_of_a_delta_rule_is_needed() {
    let heads = Heads {
        key_heads: 1,
        heads: 2,
        dim: 80,
        grouped: false,
    };
    let layer = Delta(heads, true);
    for dialect in Dialect::ALL {
        let kernel = layer.kernel();
        let whole = Source::in_dialect(dialect, &kernel);
        let all = syncs(&whole.body);
        assert_eq!(all.len(), 3, "{all:?}");
        let name = |i: usize| format!("{}_{i}", kernel.name);
        let mutants = (0..all.len()).map(|i| Source {
            name: name(i),
            body: without_sync(&whole.body, i).replace(&kernel.name, &name(i)),
            ..whole.clone()
        });
        let sources: Vec<_> = [whole.clone()].into_iter().chain(mutants).collect();
        let Some(simt) = Simt::build(&sources, ARCH) else {
            return;
        };
        let steps = [(0..4).map(|position| (0, position)).collect()];
        let device = Device { simt };
        let expected = run(&device, &layer, &steps, 2, 1);
        for (i, sync) in all.iter().enumerate() {
            let fails = (1..40).any(|seed| {
                let simt = device.simt.fresh();
                let left = run_as(&Device { simt }, (&name(i), &layer), &steps, 2, seed);
                left.as_ref() != Ok(&expected)
            });
            assert!(fails, "{dialect:?}: nothing happens without {sync}");
        }
    }
}

#[test]
fn states_stay_in_registers_on_every_architecture() {
    let Some(nvrtc) = nvrtc() else { return };
    let heads = |dim, grouped| Heads {
        key_heads: 2,
        heads: 4,
        dim,
        grouped,
    };
    for kernel in [
        short_conv(2),
        short_conv(4),
        short_conv(8),
        delta_rule(&heads(recurrent::MAX_DIM, true), false),
        delta_rule(&heads(recurrent::MAX_DIM, false), true),
        delta_rule(&heads(64, false), true),
        delta_rule(&heads(16, false), true),
    ] {
        let source = render::source(&kernel).expect("renders");
        for arch in ARCHITECTURES {
            let what = format!("{} for {arch}", kernel.name);
            let cubin = nvrtc.compile(&kernel.name, &source, arch).expect(&what);
            assert_eq!((cubin.spill_bytes, cubin.stack_bytes), (0, 0), "{what}");
            println!("{what}: {} registers", cubin.registers);
        }
    }
}
