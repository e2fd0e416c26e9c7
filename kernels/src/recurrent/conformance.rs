//! Every recurrent kernel this CPU can run: against the references over several slots, and the same bits however rows are
//! cut into steps, whatever shares them, and however many workers there are.

use super::*;
use crate::cpu;

/// So large that where it is added shows.
const EPS: f32 = 0.05;
/// Slots: the last is used by one test alone, and otherwise stays as it was.
const SLOTS: usize = 4;
/// The slot whose inputs are no numbers.
const GARBAGE: u32 = 3;

fn each_isa(check: impl Fn(Isa)) {
    for isa in Isa::classes() {
        if isa.available() {
            check(isa);
        } else {
            println!("skipped: {}", isa.name());
        }
    }
}

/// Slot and position of a row.
type Row = (u32, u32);

/// Values with a prime period, different for each `seed`, in -1..1.
fn values(seed: usize, len: usize) -> Vec<f32> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0;
    (0..len).map(value).collect()
}

/// Input row of a token: the same wherever it is computed.
fn input(row: Row, kind: usize, width: usize) -> Vec<f32> {
    if row.0 == GARBAGE {
        return vec![f32::NAN; width];
    }
    values((row.0 * 1000 + row.1) as usize * 8 + kind, width)
}

/// Rows of all tokens, `gap` floats between them.
fn inputs(rows: &[Row], kind: usize, width: usize, gap: usize) -> Vec<f32> {
    let row = |&row: &Row| {
        let mut x = input(row, kind, width);
        x.resize(width + gap, f32::NAN);
        x
    };
    rows.iter().flat_map(row).collect()
}

/// A family of kernels and its shape, with the states of all slots.
trait Layer {
    /// Floats of a row of the result.
    fn width(&self) -> usize;
    /// Floats of a slot's state.
    fn floats(&self) -> usize;
    /// One worker's share of a step.
    fn call(&self, isa: Isa, step: &Step, rows: &[Row], share: (usize, usize), memory: Memory);
    /// The result of a row that follows those before it of its slot.
    fn expected(&self, slot: u32, tokens: u32) -> Vec<Vec<f64>>;
}

/// Results and states.
struct Memory<'a> {
    out: &'a mut [f32],
    out_stride: usize,
    state: &'a mut [f32],
    slot_stride: usize,
}

/// Floats between rows of the result, and between states of slots.
const GAP: usize = 5;

/// Results of `steps` in turn, by row; the states begin as garbage.
fn run(layer: &dyn Layer, isa: Isa, steps: &[Vec<Row>], workers: usize) -> Vec<(Row, Vec<f32>)> {
    let (width, floats) = (layer.width(), layer.floats());
    let mut state = vec![f32::NAN; SLOTS * (floats + GAP)];
    let mut results = Vec::new();
    for rows in steps {
        let slots: Vec<u32> = rows.iter().map(|row| row.0).collect();
        let positions: Vec<u32> = rows.iter().map(|row| row.1).collect();
        let step = Step {
            rows: rows.len(),
            logits: 0,
            tokens: std::ptr::null(),
            positions: positions.as_ptr(),
            slots: slots.as_ptr(),
            logit_rows: std::ptr::null(),
            page_table: std::ptr::null(),
            pages_per_slot: 0,
        };
        // One padding row, which stays as it was.
        let mut out = vec![f32::MAX; (rows.len() + 1) * (width + GAP)];
        for worker in 0..workers {
            let memory = Memory {
                out: &mut out,
                out_stride: (width + GAP) * 4,
                state: &mut state,
                slot_stride: (floats + GAP) * 4,
            };
            layer.call(isa, &step, rows, (worker, workers), memory);
        }
        let (live, padding) = out.split_at(rows.len() * (width + GAP));
        assert!(
            padding.iter().all(|&x| x == f32::MAX),
            "padding row written"
        );
        for (&row, out) in rows.iter().zip(live.chunks_exact(width + GAP)) {
            assert_eq!(out[width..], [f32::MAX; GAP], "wrote past a row");
            results.push((row, out[..width].to_vec()));
        }
    }
    let used = |slot: usize| steps.iter().flatten().any(|row| row.0 as usize == slot);
    for (slot, state) in state.chunks_exact(floats + GAP).enumerate() {
        let (own, after) = state.split_at(floats);
        assert!(after.iter().all(|x| x.is_nan()), "wrote past a state");
        let numbers = used(slot) && slot != GARBAGE as usize;
        assert!(own.iter().all(|x| x.is_nan() != numbers), "slot {slot}");
    }
    results
}

/// Tokens of each slot that the tests compute.
const TOKENS: [u32; 3] = [9, 4, 1];

/// The same tokens in different steps: each alone, slots as wholes, chunks that share steps, all at once.
fn schedules() -> Vec<Vec<Vec<Row>>> {
    let slots = || (0..).zip(TOKENS);
    let whole: Vec<Vec<Row>> = slots()
        .map(|(slot, tokens)| (0..tokens).map(|p| (slot, p)).collect())
        .collect();
    let by_position = |position| {
        let live = slots().filter(move |&(_, tokens)| position < tokens);
        live.map(move |(slot, _)| (slot, position)).collect()
    };
    let alone = whole.concat().into_iter().map(|row| vec![row]).collect();
    let mut all = whole.concat();
    // Rows of several slots take turns; those of one keep their order.
    all.sort_by_key(|&(slot, position)| (position / 2, slot, position));
    let mixed = all.chunks(5).map(<[Row]>::to_vec).collect();
    vec![
        alone,
        whole,
        (0..TOKENS[0]).map(by_position).collect(),
        mixed,
        vec![all],
    ]
}

fn sorted(mut results: Vec<(Row, Vec<f32>)>) -> Vec<(Row, Vec<f32>)> {
    results.sort_by_key(|(row, _)| *row);
    results
}

fn check(layer: &dyn Layer, what: &str) {
    each_isa(|isa| {
        let name = isa.name();
        let mut first = None;
        for (i, steps) in schedules().iter().enumerate() {
            for workers in [1, 2, 3, 7] {
                let results = sorted(run(layer, isa, steps, workers));
                let first = first.get_or_insert_with(|| results.clone());
                assert_eq!(
                    &results, first,
                    "{name} {what}: schedule {i} with {workers} workers"
                );
            }
        }
        let results = first.expect("some schedule");
        for (slot, tokens) in (0..).zip(TOKENS) {
            let expected = layer.expected(slot, tokens);
            for (position, expected) in (0..).zip(&expected) {
                let found = results.iter().find(|(row, _)| *row == (slot, position));
                let (_, found) = found.expect("every row has a result");
                let scale = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
                for (x, e) in found.iter().zip(expected) {
                    assert!(
                        (f64::from(*x) - e).abs() <= 1e-5 * scale,
                        "{name} {what}: slot {slot} position {position}: {x} for {e}"
                    );
                }
            }
        }
        // What is no number stays in its slot.
        let mut beside: Vec<Row> = (0..3).map(|p| (GARBAGE, p)).collect();
        beside.extend((0..TOKENS[0]).flat_map(|p| [(0, p), (GARBAGE, p + 3)]));
        let mut beside = run(layer, isa, &[beside], 2);
        beside.retain(|(row, _)| row.0 == 0);
        assert_eq!(beside, results[..beside.len()], "{name} {what}: beside NaN");
        // A slot that is used again knows nothing of the sequence before.
        let again = vec![
            (0..5).map(|p| (0, p)).collect(),
            (0..3).map(|p| (0, p)).collect(),
        ];
        let again = run(layer, isa, &again, 2);
        assert_eq!(again[5..], results[..3], "{name} {what}: a second sequence");
    });
}

struct Conv {
    channels: usize,
    taps: usize,
    w: Vec<f32>,
}

impl Layer for Conv {
    fn width(&self) -> usize {
        self.channels
    }

    fn floats(&self) -> usize {
        conv_state_floats(self.channels, self.taps)
    }

    fn call(
        &self,
        isa: Isa,
        step: &Step,
        rows: &[Row],
        (worker, workers): (usize, usize),
        memory: Memory,
    ) {
        let x = inputs(rows, 0, self.channels, 3);
        let kind = Kind::ShortConv;
        let symbol = cpu::lookup(&VariantId { kind, isa }.to_string()).expect("listed");
        // SAFETY: the symbol has this type by its name; all buffers hold the rows at these strides.
        unsafe {
            let short_conv: ShortConvFn = std::mem::transmute(symbol.0);
            short_conv(
                x.as_ptr(),
                self.w.as_ptr(),
                memory.out.as_mut_ptr(),
                memory.state.as_mut_ptr(),
                step,
                self.channels,
                self.taps,
                worker,
                workers,
                (self.channels + 3) * 4,
                memory.out_stride,
                memory.slot_stride,
            );
        }
    }

    fn expected(&self, slot: u32, tokens: u32) -> Vec<Vec<f64>> {
        let mut history = vec![vec![0.0; self.channels]; self.taps - 1];
        let row = |position| {
            let x = input((slot, position), 0, self.channels);
            let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
            conv_reference(&x, &self.w, &mut history)
        };
        (0..tokens).map(row).collect()
    }
}

#[test]
fn convolutions_equal_the_reference_however_rows_are_cut() {
    for (channels, taps) in [(16, 2), (48, 3), (80, 4), (528, 4), (32, 8)] {
        conv_legal(channels, taps).expect("legal");
        let conv = Conv {
            channels,
            taps,
            w: values(77, channels * taps),
        };
        check(&conv, &format!("{channels} channels, {taps} taps"));
    }
}

struct Delta {
    shape: Heads,
    a: Vec<f32>,
    dt: Vec<f32>,
}

impl Layer for Delta {
    fn width(&self) -> usize {
        self.shape.heads * self.shape.dim
    }

    fn floats(&self) -> usize {
        delta_state_floats(self.shape.heads, self.shape.dim)
    }

    fn call(
        &self,
        isa: Isa,
        step: &Step,
        rows: &[Row],
        (worker, workers): (usize, usize),
        memory: Memory,
    ) {
        let Heads {
            key_heads,
            heads,
            dim,
            grouped,
        } = self.shape;
        let width = self.shape.width();
        let x = inputs(rows, 0, width, 1);
        let (alpha, beta) = (inputs(rows, 1, heads, 2), inputs(rows, 2, heads, 3));
        let kind = Kind::DeltaRule;
        let symbol = cpu::lookup(&VariantId { kind, isa }.to_string()).expect("listed");
        // SAFETY: the symbol has this type by its name; all buffers hold the rows at these strides.
        unsafe {
            let delta_rule: DeltaRuleFn = std::mem::transmute(symbol.0);
            delta_rule(
                x.as_ptr(),
                alpha.as_ptr(),
                beta.as_ptr(),
                self.a.as_ptr(),
                self.dt.as_ptr(),
                memory.out.as_mut_ptr(),
                memory.state.as_mut_ptr(),
                step,
                key_heads,
                heads,
                dim,
                usize::from(grouped),
                worker,
                workers,
                (width + 1) * 4,
                (heads + 2) * 4,
                (heads + 3) * 4,
                memory.out_stride,
                memory.slot_stride,
                EPS.to_bits() as usize,
            );
        }
    }

    fn expected(&self, slot: u32, tokens: u32) -> Vec<Vec<f64>> {
        let Heads {
            key_heads,
            heads,
            dim,
            ..
        } = self.shape;
        let mut states = vec![vec![0.0; dim * dim]; heads];
        let mut row = |position| {
            let wide = |kind, width| -> Vec<f64> {
                let x = input((slot, position), kind, width);
                x.iter().map(|&x| x.into()).collect()
            };
            let (x, alpha, beta) = (wide(0, self.shape.width()), wide(1, heads), wide(2, heads));
            let part = |at: usize| &x[at * dim..(at + 1) * dim];
            let head = |head: usize| {
                let key = self.shape.key_of(head);
                let row = DeltaRow {
                    q: part(key),
                    k: part(key_heads + key),
                    v: part(2 * key_heads + head),
                    alpha: alpha[head],
                    a: self.a[head],
                    dt: self.dt[head],
                    beta: beta[head],
                    eps: EPS,
                };
                delta_reference(&row, &mut states[head])
            };
            (0..heads).flat_map(head).collect()
        };
        (0..tokens).map(&mut row).collect()
    }
}

#[test]
fn delta_rules_equal_the_reference_however_rows_are_cut() {
    for (key_heads, heads, dim, grouped) in [
        (1, 1, 16, false),
        (2, 4, 16, false),
        (2, 4, 16, true),
        (2, 2, 48, false),
        (1, 3, 128, false),
    ] {
        let shape = Heads {
            key_heads,
            heads,
            dim,
            grouped,
        };
        shape.legal().expect("legal");
        let delta = Delta {
            shape,
            a: (0..heads).map(|h| -0.2 - h as f32 * 0.7).collect(),
            dt: values(5, heads),
        };
        check(&delta, &format!("{shape:?}"));
    }
}

#[test]
fn keys_take_turns_or_follow_each_other() {
    let shape = |grouped| Heads {
        key_heads: 2,
        heads: 4,
        dim: 16,
        grouped,
    };
    let keys = |grouped| [0, 1, 2, 3].map(|head| shape(grouped).key_of(head));
    assert_eq!(keys(false), [0, 1, 0, 1]);
    assert_eq!(keys(true), [0, 0, 1, 1]);
    assert_eq!(shape(true).width(), (2 * 2 + 4) * 16);
}

/// By hand: two tokens, keys of length 1 that are the same, so that the second reads what the first wrote.
#[test]
fn a_state_moves_towards_the_value_and_decays() {
    let mut state = vec![0.0; 4];
    let row = |v| DeltaRow {
        q: &[3.0, 0.0],
        k: &[0.5, 0.0],
        v,
        // softplus(0) is ln 2, so the decay is 1/2.
        alpha: -1.0,
        a: -1.0,
        dt: 1.0,
        beta: 0.0,
        eps: 0.0,
    };
    let first = delta_reference(&row(&[4.0, 8.0]), &mut state);
    assert_eq!(state, [2.0, 4.0, 0.0, 0.0]);
    let root = 2.0f64.sqrt();
    assert!((first[0] - 2.0 / root).abs() < 1e-12 && (first[1] - 4.0 / root).abs() < 1e-12);
    delta_reference(&row(&[1.0, 0.0]), &mut state);
    // Halved to (1, 2), then half way to (1, 0).
    for (found, expected) in state.iter().zip([1.0, 1.0, 0.0, 0.0]) {
        assert!((found - expected).abs() < 1e-12, "{state:?}");
    }
}

#[test]
fn shapes_without_kernels_are_refused_with_the_number() {
    let says = |result: Result<(), Reason>| result.expect_err("no kernel").to_string();
    assert_eq!(
        says(conv_legal(64, 1)),
        "a convolution of 1 taps (supported: 2 to 8)"
    );
    assert_eq!(
        says(conv_legal(64, 1 << 30)),
        "a convolution of 1073741824 taps (supported: 2 to 8)"
    );
    assert_eq!(says(conv_legal(40, 4)), "40 channels are no multiple of 16");
    assert_eq!(says(conv_legal(0, 4)), "0 channels are no multiple of 16");
    let heads = |key_heads, heads, dim| {
        Heads {
            key_heads,
            heads,
            dim,
            grouped: false,
        }
        .legal()
    };
    assert_eq!(heads(2, 4, 256), Ok(()));
    for dim in [0, 8, 24, 272] {
        let most = MAX_DIM;
        assert_eq!(heads(2, 4, dim), Err(Reason::Dim { dim, most }));
    }
    assert_eq!(says(heads(3, 4, 16)), "4 heads of values over 3 of keys");
    assert!(heads(0, 4, 16).is_err() && heads(2, 0, 16).is_err());
}

#[test]
fn gates_of_extreme_inputs_are_numbers() {
    use crate::cpu::scalar::recurrent::gates;
    for (alpha, beta, decay, step) in [
        (-1e4, -1e4, 1.0, 0.0),
        (1e4, 1e4, 0.0, 1.0),
        (0.0, 0.0, (-0.5 * std::f32::consts::LN_2).exp(), 0.5),
        (30.0, 2.0, (-15.0f32).exp(), 1.0 / (1.0 + (-2.0f32).exp())),
    ] {
        let found = gates(alpha, -0.5, 0.0, beta);
        let close =
            |found: f32, expected: f32| (found - expected).abs() <= 1e-6 * (1e-3 + expected);
        assert!(
            close(found.decay, decay) && close(found.step, step),
            "{alpha} {beta}: {} {}",
            found.decay,
            found.step
        );
    }
}
