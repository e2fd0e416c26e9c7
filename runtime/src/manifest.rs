//! What a bundle says about itself: limits, memory, and per target the programs and the launches they consist of.
//! Plain data; `bundle` alone turns it into bytes and back. Names of models and formats appear only as text to show.

use coldpress_kernels::cpu::abi::KvType;
use coldpress_kernels::gpu::abi::StepLayout;
use serde::{Deserialize, Serialize};

/// Everything about a bundle except its large sections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// What was compiled.
    pub model: ModelCard,
    /// What it was compiled for.
    pub limits: Limits,
    /// One plan per target; the runtime picks the first whose requirements this machine meets.
    pub plans: Vec<TargetPlan>,
}

/// The model, as text for people and numbers the engine needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// `general.name`, or the file name.
    pub name: String,
    /// `general.architecture`, shown only.
    pub architecture: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Context length the model was trained for, in tokens.
    pub trained_context: u32,
    /// Bytes of the source file(s).
    pub source_bytes: u64,
}

/// Maxima chosen at compile time. A run may use less of each, never more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Slots: sequences that decode together.
    pub max_batch: u32,
    /// Tokens per sequence.
    pub max_context: u32,
    /// Rows of the largest trunk bucket: tokens one step can take.
    pub max_rows: u32,
}

/// Code and memory for one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetPlan {
    /// What the machine must have.
    pub requires: Requirements,
    /// Instruction streams per program.
    pub workers: u32,
    /// Micro-kernel symbols the code calls, in table order.
    pub symbols: Vec<String>,
    /// Index of the weights section among the bundle's sections.
    pub weights_section: u32,
    /// Index of the code section.
    pub code_section: u32,
    /// Activation arena bytes.
    pub arena_bytes: u64,
    /// Where head programs leave logits: arena offset of row 0.
    pub logits_offset: u64,
    /// Bytes from one logits row to the next; `vocab_size` f32 are valid in each.
    pub logits_stride: u64,
    /// KV pool.
    pub kv: KvPlan,
    /// Compiled programs, by stage then by rows ascending.
    pub programs: Vec<Program>,
    /// Predicted decode steps, by batch size ascending.
    pub curve: Vec<BatchPrediction>,
    /// What a GPU needs to run the programs' launches; none in a CPU plan, whose code section says it all.
    pub gpu: Option<GpuPlan>,
}

/// The kernels of a GPU plan and the memory they agree on. Their machine code and their source are in sections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuPlan {
    /// The step block.
    pub step: StepLayout,
    /// First bytes of the arena that are zero before the first launch; kernels leave them zero.
    pub zeroed_bytes: u64,
    /// The largest logits of each row, if head programs sort them out.
    pub candidates: Option<CandidatePlan>,
    /// Index of the section of kernel sources.
    pub source_section: u32,
    /// What launches name.
    pub kernels: Vec<GpuKernel>,
}

/// Where head programs leave the largest logits of each logits row: by logit descending, then by id ascending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidatePlan {
    /// Logits per row.
    pub count: u32,
    /// Arena offset of their ids, `[rows][count]` u32; `u32::MAX` where a row has fewer.
    pub ids_offset: u64,
    /// Arena offset of their values, `[rows][count]` f32.
    pub values_offset: u64,
}

/// One compiled kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuKernel {
    /// Symbol.
    pub name: String,
    /// Where its module (a cubin) is in the code section: offset and bytes.
    pub code: (u64, u64),
    /// Where its source is in the section of sources: offset and bytes.
    pub source: (u64, u64),
    /// Threads of a thread block.
    pub threads: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of registers that a thread keeps in memory.
    pub spill_bytes: u32,
}

/// Which kernel a launch runs, on what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grid {
    /// Index into [`GpuPlan::kernels`].
    pub kernel: u32,
    /// Thread blocks along x, y, z.
    pub grid: [u32; 3],
    /// Dynamic shared memory of a thread block.
    pub shared_bytes: u32,
    /// Arguments, 8 bytes each.
    pub args: Vec<GridArg>,
    /// Whether it may start while the launch before it still runs: it waits for that launch's results itself.
    pub overlaps: bool,
}

/// An argument of a GPU kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GridArg {
    /// A number, or the bits of an f32; 0 is also the null address.
    Const(u64),
    /// Address in the arena.
    Arena(u64),
    /// Address in the weights.
    Weights(u64),
    /// Address in the KV pool.
    Kv(u64),
    /// Address in the step block.
    Step(u64),
}

/// What a decode step of some sequences is predicted to take, and where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchPrediction {
    /// Sequences, one row each.
    pub batch: u32,
    /// Rows of the trunk program that runs them.
    pub trunk_rows: u32,
    /// Rows of the head program that runs them.
    pub head_rows: u32,
    /// Predicted time of the step, seconds.
    pub predicted_seconds: f64,
}

/// What a machine must have to run a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirements {
    /// Profile name: `cpu:avx512`.
    pub target: String,
    /// `x86_64`, `aarch64`.
    pub arch: String,
    /// CPU features by the names `is_x86_feature_detected!` uses.
    pub features: Vec<String>,
    /// Bytes the machine must have for it: what the runtime allocates (arena, KV), and on a GPU the weights, which it copies,
    /// or reads where the file is mapped.
    pub memory_bytes: u64,
    /// Of which GPU the plan's costs are, if others run it too.
    pub planned_for: Option<PlannedFor>,
}

/// A GPU whose numbers a plan was made with. Others that can do what the plan needs run it, only not as well as one that was
/// made for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFor {
    /// As its driver names it: `Apple M4 Max`.
    pub gpu: String,
    /// Number of its family: 9 of `apple9`.
    pub family: u32,
    /// Its cores.
    pub cores: u32,
    /// Bytes of memory that it comes with, at most.
    pub memory_bytes: u64,
}

/// Paged KV pool: page p of layer l starts at `layers[l].offset + p * layers[l].page_bytes`. A page table maps logical pages
/// of a slot (position / page_tokens) to pages; layers that see all of a sequence share one, layers that see a window of it
/// share one per window. Behind the pages, the pool has the recurrent states of every slot: that of slot s begins at
/// `states[i].offset + s * states[i].slot_bytes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvPlan {
    /// Element type.
    pub kv_type: KvType,
    /// Tokens per page.
    pub page_tokens: u32,
    /// Pages of a layer that sees all of a sequence, enough for `max_batch` sequences of `max_context`.
    pub pages: u32,
    /// Page-table entries per slot, of every table.
    pub pages_per_slot: u32,
    /// Tables after the first: of layers that see a window.
    pub windows: Vec<KvWindow>,
    /// Bytes of the pool.
    pub bytes: u64,
    /// Per layer.
    pub layers: Vec<KvLayerPlan>,
    /// What layers remember of a sequence in a fixed number of floats. Kernels begin with zeros at position 0.
    pub states: Vec<StatePlan>,
}

/// Where one recurrent state of every slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatePlan {
    /// Byte offset in the pool.
    pub offset: u64,
    /// Bytes of one slot.
    pub slot_bytes: u64,
}

/// Pages of layers that see a window: each slot has a ring of them, and logical page i is in place i modulo the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvWindow {
    /// Positions a row sees, its own included.
    pub tokens: u32,
    /// Pages of a slot: enough for the window of every row of a step while all of the step's rows are stored.
    pub ring: u32,
}

impl KvWindow {
    /// Least pages of a ring: all `max_rows` rows of a step are stored before the first of them looks back `tokens`
    /// positions, its own included, and the span may begin anywhere in a page.
    pub fn least_ring(tokens: u64, max_rows: u64, page_tokens: u64) -> u64 {
        let seen = tokens.saturating_add(max_rows).saturating_sub(2);
        seen.div_ceil(page_tokens.max(1)).saturating_add(1)
    }

    /// Physical page of a logical page of a slot.
    pub fn page(self, slot: u32, logical: u32) -> u32 {
        slot * self.ring + logical % self.ring.max(1)
    }
}

impl KvPlan {
    /// Bytes that a token takes in the layers that keep all of a sequence.
    pub fn bytes_per_token(&self) -> u64 {
        let whole = self.layers.iter().filter(|layer| layer.table == 0);
        whole.map(|layer| layer.page_bytes).sum::<u64>() / u64::from(self.page_tokens.max(1))
    }

    /// Bytes that a sequence takes, however long, in the layers that keep a window of it.
    pub fn window_bytes(&self) -> u64 {
        let pages = |table: u32| self.pages_of(table, 1);
        let layers = self.layers.iter().filter(|layer| layer.table > 0);
        layers
            .map(|l| pages(l.table).saturating_mul(l.page_bytes))
            .sum()
    }

    /// Bytes of the recurrent states of a sequence, however long.
    pub fn state_bytes(&self) -> u64 {
        self.states.iter().map(|state| state.slot_bytes).sum()
    }

    /// What the layers keep, in words: `2 layers keep all tokens, 10 the last 512`.
    pub fn kept(&self) -> String {
        let count = |table| self.layers.iter().filter(|l| l.table == table).count();
        let mut parts = vec![format!("{} layers keep all tokens", count(0))];
        for (table, window) in (1..).zip(&self.windows) {
            parts.push(format!("{} the last {}", count(table), window.tokens));
        }
        if !self.states.is_empty() {
            parts.push(format!("{} recurrent states", self.states.len()));
        }
        parts.join(", ")
    }

    /// Pages of a layer that looks them up in `table`; 0 where there is no such table.
    pub fn pages_of(&self, table: u32, slots: u32) -> u64 {
        match (table, self.window(table)) {
            (0, _) => self.pages.into(),
            (_, Some(window)) => u64::from(window.ring) * u64::from(slots),
            (_, None) => 0,
        }
    }

    /// What layers that look up pages in `table` see; none if that is all, or there is no such table.
    pub fn window(&self, table: u32) -> Option<KvWindow> {
        self.windows.get(table.checked_sub(1)? as usize).copied()
    }
}

/// Where one layer's pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvLayerPlan {
    /// Page table: 0, or 1 + an index into `KvPlan::windows`.
    pub table: u32,
    /// Byte offset in the pool.
    pub offset: u64,
    /// Bytes of one page.
    pub page_bytes: u64,
}

/// The two halves of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// All rows: embedding to the last layer's residual stream.
    Trunk,
    /// Rows whose logits are wanted: final norm and output matmul.
    Head,
}

/// One stage compiled for one row count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// Which half.
    pub stage: Stage,
    /// Bucket: the row count it was compiled for; fewer live rows are allowed.
    pub rows: u32,
    /// Offset of each worker's entry point in the code section.
    pub entries: Vec<u64>,
    /// Predicted time, seconds.
    pub predicted_seconds: f64,
    /// What the code does, in order.
    pub launches: Vec<Launch>,
}

impl Program {
    /// Launches of the layer that has most, the first aside, whose first launches serve all; none without a second layer.
    /// Layers are told by the labels of graphs: `blk.3.`.
    pub fn launches_of_a_layer(&self) -> Option<usize> {
        let mut layers = std::collections::BTreeMap::<u32, usize>::new();
        for launch in &self.launches {
            let number = launch
                .label
                .strip_prefix("blk.")
                .and_then(|l| l.split('.').next());
            if let Some(layer) = number.and_then(|n| n.parse().ok()) {
                *layers.entry(layer).or_default() += 1;
            }
        }
        layers.into_values().skip(1).max()
    }
}

/// One kernel launch (on the CPU: one span of the step program between barriers).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// Graph label: `blk.3.ffn_down`.
    pub label: String,
    /// Variant ids or inlined loops it runs.
    pub kernel: String,
    /// Why this variant; empty where there was no choice.
    pub reason: String,
    /// Bytes it reads and writes that do not fit in cache: weights, KV is counted at run time.
    pub bytes: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Predicted time, seconds.
    pub predicted_seconds: f64,
    /// What a GPU runs; none on the CPU.
    pub grid: Option<Grid>,
}

/// A prompt and the logits this compiler expects for it, so that a bundle can be checked on the machine it runs on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoldenPrompt {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Positions whose logits are kept.
    pub positions: Vec<u32>,
    /// Ids of kept logits, per position (the reference's top ids).
    pub ids: Vec<Vec<u32>>,
    /// f32 logits, same shape as `ids`.
    pub logits: Vec<Vec<f32>>,
    /// Largest allowed normalised mean square error over the kept logits.
    pub nmse: f64,
}
