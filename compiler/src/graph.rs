//! The op graph: what one step computes over its rows, before and after fusion. Nodes say *what*, never *how* or *where*:
//! no target, no variant, no buffer. The only dynamic dimension is the row count, so a type is a row domain, a width and
//! an element type.
//!
//! Built by `model`, rewritten by `pass`, checked by `graph::verify`, evaluated by `graph::interpret`, lowered by `plan`.

mod build;
pub mod dump;
mod infer;
pub mod interpret;
mod stored;
pub mod verify;

pub use coldpress_kernels::gated::Activation;
use coldpress_kernels::recurrent::Heads;
use coldpress_kernels::tensor_type::TensorType;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};

/// Which rows a value has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rows {
    /// Every row of the step.
    Step,
    /// Only rows whose logits are wanted.
    Logits,
    /// Every row of the step once for each of the `used` experts that it uses. A device chooses the order in memory.
    Routed {
        /// Experts that a row uses.
        used: usize,
    },
}

/// Element type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// int8 with one f32 scale per 16 elements and the sums the kernels need.
    Q8,
    /// No data: says that K and V of all rows of a layer are in the cache.
    KvWritten,
    /// For each expert that a row uses, by rank, its number and the weight of its result. `width` is how many.
    Routes,
}

/// Type of one value: `[rows, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ValueType {
    /// Row domain.
    pub rows: Rows,
    /// Elements per row (0 for `KvWritten`).
    pub width: usize,
    /// Element type.
    pub dtype: DType,
}

/// Index into `OpGraph::weights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub u32);

/// A parameter of the model: a matrix `[n, k]` (packed for matmuls), or a vector (n = 1) kept as f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// GGUF tensor name, `blk.3.ffn_down.weight`, followed by the rows where it is not all of them, `[0..256]`; a computed
    /// table has a name of its own in angle brackets.
    pub name: String,
    /// GGUF type; F32 for computed tables.
    pub ty: TensorType,
    /// Output features (matrix rows).
    pub n: usize,
    /// Row length.
    pub k: usize,
    /// Where the bytes come from.
    pub source: Source,
}

/// Where a weight's bytes come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// The GGUF tensor of that name.
    Gguf,
    /// Elements of a GGUF tensor from `first` on, in the order of the file: whole rows of a matrix, or part of a vector.
    Slice {
        /// Its name.
        tensor: String,
        /// Elements before the first.
        first: usize,
    },
    /// Runs of elements of a GGUF tensor: whole rows of a matrix, or parts of a vector.
    Runs {
        /// Its name.
        tensor: String,
        /// Elements before the first run.
        first: usize,
        /// Elements of a run.
        run: usize,
        /// Elements from one run to the next.
        stride: usize,
    },
    /// Computed when the graph was built, from metadata (RoPE frequencies) or from a small tensor.
    Computed(Vec<f32>),
}

/// How a router's logits become weights of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gating {
    /// Softmax over all experts.
    Softmax,
    /// Softmax over the logits of the experts that are used.
    SoftmaxOfUsed,
}

/// How each row chooses its experts: those of the largest logits, of equal ones the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Routing {
    /// Experts that a row uses.
    pub used: usize,
    /// Where the weights come from.
    pub gating: Gating,
    /// Whether a row's weights are divided by their sum.
    pub normalise: bool,
}

/// How rotary pairs are laid out in a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// Pairs (2i, 2i+1): llama.
    Interleaved,
    /// Pairs (i, i + rot_dim/2): qwen, gemma, phi.
    Neox,
}

/// One weight of a (possibly fused) matmul, with its bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// Matrix `[n, k]`.
    pub weight: WeightId,
    /// Vector `[n]` added to every row.
    pub bias: Option<WeightId>,
}

/// Shape of one rotary application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RopeShape {
    /// Elements per head.
    pub head_dim: usize,
    /// Leading elements of a head that rotate; even.
    pub rot_dim: usize,
    /// Pairing.
    pub style: RopeStyle,
}

/// A per-head RMS norm applied before RoPE.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadNorm {
    /// Vector `[head_dim]`.
    pub weight: WeightId,
    /// Added to the mean square.
    pub eps: f32,
}

/// What a node computes. Inputs are listed in port order; every op has one output unless it says otherwise.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// () -> rows of the embedding matrix, times `scale`.
    Embed {
        /// Matrix `[vocab, hidden]`.
        weight: WeightId,
        /// Multiplier (1 for most models).
        scale: f32,
    },
    /// x -> x / rms(x) * weight.
    RmsNorm {
        /// Vector `[width]`.
        weight: WeightId,
        /// Added to the mean square.
        eps: f32,
    },
    /// x [, residual when `residual`] -> one output per part: x W^T + bias, or + residual (one part without a bias).
    MatMul {
        /// Matrices that share the input.
        parts: Vec<Part>,
        /// Whether input 1 is added to the output.
        residual: bool,
    },
    /// logits `[rows, experts]` -> Routes.
    Route(Routing),
    /// x, Routes -> routed rows, one output per part: x W^T + bias with the matrices of each routed row's expert. x has
    /// the step's rows, or is routed itself.
    ExpertMatMul {
        /// Matrices of `experts` times n rows; biases are `[experts, n]`.
        parts: Vec<Part>,
        /// Experts.
        experts: usize,
    },
    /// routed rows, Routes -> each times the factor of its expert.
    ExpertScale {
        /// Vector `[experts]`.
        factors: WeightId,
    },
    /// routed rows, Routes -> each row's weighted sum over its experts, by rank.
    ExpertSum,
    /// () -> `[rows, 2 * half]`: cos and sin of position * inv_freq, interleaved, times `mscale`.
    RopeTable {
        /// Computed vector `[half]`.
        inv_freq: WeightId,
        /// YaRN magnitude factor (1 otherwise).
        mscale: f32,
    },
    /// x -> per-head RMS norm.
    HeadNorm {
        /// Weight and epsilon.
        norm: HeadNorm,
        /// Heads in a row.
        heads: usize,
    },
    /// x, table -> rotated x.
    Rope {
        /// Heads in a row.
        heads: usize,
        /// Head shape and pairing.
        shape: RopeShape,
    },
    /// k, v -> KvWritten.
    KvAppend {
        /// Index into `OpGraph::kv`.
        layer: usize,
    },
    /// Fused: q, k, v, table -> rotated q, KvWritten. Norms come first where present.
    RopeAppend {
        /// Index into `OpGraph::kv`.
        layer: usize,
        /// Query heads.
        heads: usize,
        /// Head shape and pairing.
        shape: RopeShape,
        /// Per-head norm of q.
        q_norm: Option<HeadNorm>,
        /// Per-head norm of k.
        k_norm: Option<HeadNorm>,
    },
    /// q, KvWritten -> softmax(scale q K^T) V per head, each row up to its own position.
    Attention {
        /// Index into `OpGraph::kv`.
        layer: usize,
        /// Query heads.
        heads: usize,
        /// Multiplier of q k.
        scale: f32,
        /// cap * tanh(s / cap) on the scores.
        softcap: Option<f32>,
        /// Vector `[heads]`: a score in each head's softmax that brings no value.
        sinks: Option<WeightId>,
    },
    /// x -> SiLU of a causal convolution of every column with its own taps, over the rows of a slot.
    ShortConv {
        /// Index into `OpGraph::states`: the last inputs, one fewer than there are taps.
        state: usize,
        /// Matrix `[taps, width]`, kept as f32, the oldest input's tap first.
        weight: WeightId,
    },
    /// queries, keys and values side by side, alpha, beta -> what each head's state says of the query, after it has decayed
    /// and moved towards the value (`coldpress_kernels::recurrent::delta_reference`).
    DeltaRule {
        /// Index into `OpGraph::states`: a matrix for each head.
        state: usize,
        /// Heads of keys and of values.
        heads: Heads,
        /// Vector `[heads]`: the decay is the exponential of this times softplus(alpha + dt).
        a: WeightId,
        /// Vector `[heads]`.
        dt: WeightId,
        /// Added to the sums of squares that queries and keys are divided by.
        eps: f32,
    },
    /// x -> activation(x).
    Act(Activation),
    /// a, b -> a * b.
    Mul,
    /// a, b -> a + b.
    Add,
    /// Fused: gate, up -> activation(gate) * up.
    GatedAct(Activation),
    /// x, gate `[rows, 1]` -> x * sigmoid(gate).
    GateRows,
    /// x -> x * factor.
    Scale(f32),
    /// x -> columns `start..start + width` of x, which keep their place in memory.
    Columns {
        /// First column, a multiple of [`VIEW_COLUMNS`].
        start: usize,
        /// Columns, a multiple of [`VIEW_COLUMNS`].
        width: usize,
    },
    /// x -> cap * tanh(x / cap).
    Softcap(f32),
    /// x -> int8 rows.
    Quantise,
    /// Fused RmsNorm + Quantise.
    NormQuantise {
        /// Vector `[width]`.
        weight: WeightId,
        /// Added to the mean square.
        eps: f32,
    },
    /// Fused GatedAct + Quantise.
    GatedActQuantise(Activation),
    /// Step rows -> logits rows.
    SelectRows,
    /// x -> (); x is the step's logits.
    Logits,
}

/// Columns of a value that may be a value of their own begin and end at multiples of this: a cache line of f32.
pub const VIEW_COLUMNS: usize = 16;

/// One node.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// GGUF-style label without `.weight`: `blk.3.attn_q`, `blk.3.attn`, `output_norm`.
    pub label: String,
    /// Type of each output.
    pub outputs: Vec<ValueType>,
}

/// Output `from` of the source feeds input `to` of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    /// Output port of the producer.
    pub from: u16,
    /// Input port of the consumer.
    pub to: u16,
}

/// An output of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    /// Producer.
    pub node: NodeIndex,
    /// Output port.
    pub port: u16,
}

/// KV cache shape of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayer {
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Sliding window in tokens, if not the whole context.
    pub window: Option<usize>,
}

/// What a layer remembers of a sequence, whatever its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateLayer {
    /// f32 elements of a slot.
    pub floats: usize,
}

/// The graph of one step and the weights it names.
#[derive(Clone, Debug, Default)]
pub struct OpGraph {
    /// Nodes and edges. Iterate with `order()`, never in hash order: same input, same bytes out.
    pub nodes: StableDiGraph<Node, Edge>,
    /// Parameters, in order of first use.
    pub weights: Vec<Weight>,
    /// KV shape per layer.
    pub kv: Vec<KvLayer>,
    /// Recurrent states.
    pub states: Vec<StateLayer>,
}
