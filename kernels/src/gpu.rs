//! What can be stamped for GPUs: how a kernel is named and rendered, what it agrees on with the runtime, the order of packed
//! weights, and the matmul catalogue. Text only: sources are templates, code generation and execution are elsewhere.

#[macro_use]
mod arguments;

pub mod abi;
pub mod attention;
pub mod embed;
pub mod experts;
pub mod logits;
pub mod matmul;
pub mod metal;
pub mod rates;
pub mod recurrent;
pub mod rope;
pub mod rows;
pub mod tile;

/// A kernel to render from a template. Equal kernels have equal names, and the name says all constants that matter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Symbol, file name and profile label: `matmul_mma_i8_i4u8m_n8_m2_store`.
    pub name: String,
    /// Stem of its template: `matmul_mma`.
    pub template: &'static str,
    /// What the template's head declares, by name.
    pub constants: Vec<(&'static str, Constant)>,
    /// Threads of a thread block.
    pub threads: u32,
}

/// The value of a template's parameter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Constant {
    /// An integer.
    Int(i64),
    /// A switch.
    Flag(bool),
    /// A word: an activation form, an epilogue.
    Word(String),
    /// The text of another kernel.
    Kernel(Box<Kernel>),
}

/// How many thread blocks of a kernel run, and what each needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Thread blocks along x, y, z.
    pub grid: [u32; 3],
    /// Dynamic shared memory of a thread block.
    pub shared_bytes: u32,
}
