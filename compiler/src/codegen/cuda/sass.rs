//! What machine code of a GPU contains: instructions, loops, loads by width, matrix instructions, local memory. Enough of the
//! 128-bit instructions of sm_75 to sm_120 is decoded to count these, and nothing more; encodings are as `nvdisasm` shows
//! them. The counts are of the code, not of a run.

use super::elf;
use crate::error::Error;
use std::ops::AddAssign;

/// Global loads, by bytes a thread asks for at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loads {
    /// Fewer than 32 bits.
    pub narrow: u32,
    /// 32 bits.
    pub w32: u32,
    /// 64 bits.
    pub w64: u32,
    /// 128 bits.
    pub w128: u32,
    /// 256 bits.
    pub w256: u32,
    /// Copies of a whole range or tile into shared memory, asked for by one thread.
    pub bulk: u32,
    /// Loads of an address that may be global, shared or local, of any width: the compiler lost track of the pointer.
    pub generic: u32,
}

impl Loads {
    /// All of them.
    pub fn all(&self) -> u32 {
        self.narrow + self.w32 + self.w64 + self.w128 + self.w256 + self.bulk + self.generic
    }

    fn plus(self, other: Loads) -> Loads {
        Loads {
            narrow: self.narrow + other.narrow,
            w32: self.w32 + other.w32,
            w64: self.w64 + other.w64,
            w128: self.w128 + other.w128,
            w256: self.w256 + other.w256,
            bulk: self.bulk + other.bulk,
            generic: self.generic + other.generic,
        }
    }

    /// Bytes one thread asks for, roughly: a narrow load counts as 1, a generic one as 4, a bulk copy as 4096.
    fn bytes(&self) -> u64 {
        [
            (self.narrow, 1),
            (self.w32, 4),
            (self.w64, 8),
            (self.w128, 16),
            (self.w256, 32),
            (self.bulk, 4096),
            (self.generic, 4),
        ]
        .into_iter()
        .map(|(count, bytes)| u64::from(count) * bytes)
        .sum()
    }
}

/// Instructions of some range of code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub instructions: u32,
    /// Global loads, those that go straight to shared memory included.
    pub loads: Loads,
    /// Matrix instructions of the tensor cores.
    pub tensor: u32,
    /// Dot products of four bytes.
    pub dot: u32,
    /// Loads and stores of local memory: spills, and arrays that are not in registers.
    pub local: u32,
}

impl Counts {
    /// What is in both ranges.
    pub fn plus(self, other: Counts) -> Counts {
        Counts {
            instructions: self.instructions + other.instructions,
            loads: self.loads.plus(other.loads),
            tensor: self.tensor + other.tensor,
            dot: self.dot + other.dot,
            local: self.local + other.local,
        }
    }
}

/// The code between a backward branch and its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loop {
    /// Index of its first instruction.
    pub start: usize,
    /// Index past its last instruction, a branch to the first.
    pub end: usize,
    /// What is in it, loops inside included.
    pub counts: Counts,
}

/// What a kernel's code contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The whole kernel without padding.
    pub total: Counts,
    /// Its loops, in the order of their first instructions.
    pub loops: Vec<Loop>,
}

impl Inspection {
    /// Inspects kernel `name` of `cubin`, compiled for `arch` such as `sm_90a`.
    ///
    /// # Errors
    /// `Internal` if the file is no cubin with that kernel, or `arch` is none whose instructions are known here.
    pub fn of(cubin: &[u8], name: &str, arch: &str) -> Result<Inspection, Error> {
        let failed = |why: &str| Error::Internal(format!("inspecting kernel {name}: {why}"));
        let sm = generation(arch).ok_or_else(|| failed("no such architecture"))?;
        let sections = elf::sections(cubin).ok_or_else(|| failed("no ELF file"))?;
        let text = sections
            .iter()
            .find(|s| s.name.strip_prefix(".text.") == Some(name))
            .ok_or_else(|| failed("not in its cubin"))?;
        let code: Vec<u128> = text
            .bytes
            .chunks_exact(16)
            .map(|b| b.try_into().map_or(0, u128::from_le_bytes))
            .collect();
        Ok(inspect(&code, sm))
    }

    /// The smallest loop with at least half of the matrix instructions that are in loops; without any, of the dot products;
    /// without any, of the bytes loaded: the loop over the weights in a matmul. Neither a loop around it, nor one that waits
    /// inside it, nor one that adds up results after it. A kernel that has none of these has its longest loop.
    pub fn main_loop(&self) -> Option<&Loop> {
        main_loop_of(&self.loops)
    }

    /// The main loops of a kernel that is several side by side: one in each of the outermost loops with most in them.
    pub fn main_loops(&self, kernels: u32) -> Vec<&Loop> {
        if kernels == 1 {
            return self.main_loop().into_iter().collect();
        }
        let work = |l: &Loop| {
            let c = &l.counts;
            (c.tensor, c.dot, c.loads.bytes())
        };
        let mut outermost: Vec<&Loop> = outermost(&self.loops).collect();
        outermost.sort_by_key(|l| std::cmp::Reverse(work(l)));
        outermost.truncate(kernels as usize);
        let inside = |outer: &Loop| {
            let of_it = |l: &&Loop| outer.start <= l.start && l.end <= outer.end;
            let loops: Vec<Loop> = self.loops.iter().filter(of_it).copied().collect();
            let main = *main_loop_of(&loops)?;
            self.loops.iter().find(|&&l| l == main)
        };
        outermost.into_iter().filter_map(inside).collect()
    }

    /// Instructions of the main loop; 0 without a loop.
    pub fn loop_instructions(&self) -> u32 {
        self.main_loop().map_or(0, |l| l.counts.instructions)
    }
}

/// As [`Inspection::main_loop`], among some of a kernel's loops.
fn main_loop_of(loops: &[Loop]) -> Option<&Loop> {
    let measures: [fn(&Counts) -> u64; 3] =
        [|c| c.tensor.into(), |c| c.dot.into(), |c| c.loads.bytes()];
    let measure = measures
        .into_iter()
        .find(|of| loops.iter().any(|l| of(&l.counts) > 0));
    let Some(measure) = measure else {
        return loops.iter().max_by_key(|l| l.counts.instructions);
    };
    let inside = outermost(loops).map(|l| measure(&l.counts)).sum::<u64>();
    loops
        .iter()
        .filter(|l| 2 * measure(&l.counts) >= inside)
        .min_by_key(|l| l.counts.instructions)
}

/// The loops that begin in no other, of loops in the order of their first instructions.
fn outermost(loops: &[Loop]) -> impl Iterator<Item = &Loop> {
    let mut covered = 0;
    loops.iter().filter(move |l| {
        let outer = l.start >= covered;
        covered = covered.max(l.end);
        outer
    })
}

/// The number of an architecture whose encodings are known: 90 of `sm_90a`.
fn generation(arch: &str) -> Option<u32> {
    let digits = arch.strip_prefix("sm_")?.trim_end_matches(['a', 'f']);
    let sm = digits.parse().ok()?;
    (75..130).contains(&sm).then_some(sm)
}

/// Operation, in the low 9 bits of an instruction; bits 9 to 11 say where operands come from.
mod op {
    pub const IDP: u128 = 0x026;
    pub const IMMA: u128 = 0x037;
    pub const HMMA: u128 = 0x03c;
    pub const BMMA: u128 = 0x03d;
    pub const DMMA: u128 = 0x03f;
    pub const QMMA: u128 = 0x07a;
    pub const NOP: u128 = 0x118;
    pub const BRA: u128 = 0x147;
    pub const EXIT: u128 = 0x14d;
    pub const LDG_256: u128 = 0x17e;
    pub const LD: u128 = 0x180;
    pub const LDG: u128 = 0x181;
    pub const LDL: u128 = 0x183;
    pub const STL: u128 = 0x187;
    pub const LDGSTS: u128 = 0x1ae;
    pub const UTMALDG: u128 = 0x1b4;
    pub const UBLKCP: u128 = 0x1ba;
    /// Fifth-generation matrix instructions of any type.
    pub const UTCMMA: u128 = 0x1ea;
    /// Warpgroup matrix instructions: half, integer, bit, eight-bit float.
    pub const HGMMA: u128 = 0x1f0;
    pub const QGMMA: u128 = 0x1f3;
}

fn operation(instruction: u128) -> u128 {
    bits(instruction, 0, 9)
}

fn bits(instruction: u128, from: u32, count: u32) -> u128 {
    (instruction >> from) & ((1 << count) - 1)
}

fn counts(code: &[u128], sm: u32) -> Counts {
    let mut counts = Counts::default();
    code.iter().for_each(|&i| counts += count(i, sm));
    counts
}

fn count(instruction: u128, sm: u32) -> Counts {
    let mut counts = Counts {
        instructions: 1,
        ..Counts::default()
    };
    let loads = &mut counts.loads;
    match operation(instruction) {
        op::LDG => match bits(instruction, 73, 3) {
            0..=3 => loads.narrow = 1,
            4 => loads.w32 = 1,
            5 => loads.w64 = 1,
            _ => loads.w128 = 1,
        },
        op::LDG_256 if sm >= 100 => loads.w256 = 1,
        op::LDGSTS => match bits(instruction, if sm >= 100 { 74 } else { 73 }, 2) {
            0 => loads.w32 = 1,
            1 => loads.w64 = 1,
            _ => loads.w128 = 1,
        },
        op::UTMALDG | op::UBLKCP if sm >= 90 => loads.bulk = 1,
        op::LD => loads.generic = 1,
        op::LDL | op::STL => counts.local = 1,
        op::IDP => counts.dot = 1,
        op::IMMA | op::HMMA | op::BMMA | op::DMMA => counts.tensor = 1,
        op::QMMA if sm >= 89 => counts.tensor = 1,
        op::HGMMA..=op::QGMMA if sm == 90 => counts.tensor = 1,
        op::UTCMMA if sm >= 100 => counts.tensor = 1,
        _ => {}
    }
    counts
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.instructions += other.instructions;
        self.loads.narrow += other.loads.narrow;
        self.loads.w32 += other.loads.w32;
        self.loads.w64 += other.loads.w64;
        self.loads.w128 += other.loads.w128;
        self.loads.w256 += other.loads.w256;
        self.loads.bulk += other.loads.bulk;
        self.loads.generic += other.loads.generic;
        self.tensor += other.tensor;
        self.dot += other.dot;
        self.local += other.local;
    }
}

fn inspect(code: &[u128], sm: u32) -> Inspection {
    let code = trim(code, sm);
    let mut loops: Vec<(usize, usize)> = Vec::new();
    for (at, &instruction) in code.iter().enumerate() {
        let Some(start) = target(instruction, at, sm).filter(|&target| target < at) else {
            continue;
        };
        // A rare path that is kept behind the kernel's end comes back like this; it is no loop.
        if code[start..at].iter().any(|&i| ends_always(i)) {
            continue;
        }
        match loops.iter_mut().find(|(s, _)| *s == start) {
            Some((_, end)) => *end = at + 1,
            None => loops.push((start, at + 1)),
        }
    }
    loops.sort_unstable();
    Inspection {
        total: counts(code, sm),
        loops: loops
            .into_iter()
            .map(|(start, end)| Loop {
                start,
                end,
                counts: counts(&code[start..end], sm),
            })
            .collect(),
    }
}

/// The code without what fills its section: a branch to itself, then nothing.
fn trim(code: &[u128], sm: u32) -> &[u128] {
    let last = code.iter().rposition(|&i| operation(i) != op::NOP);
    let code = &code[..last.map_or(0, |last| last + 1)];
    match code {
        [body @ .., last] if target(*last, body.len(), sm) == Some(body.len()) => body,
        _ => code,
    }
}

/// Whether no thread gets past an instruction: an exit whose predicate is always true.
fn ends_always(instruction: u128) -> bool {
    operation(instruction) == op::EXIT && bits(instruction, 12, 4) == 7
}

/// Index of the instruction that a branch goes to; `None` of any other instruction.
fn target(instruction: u128, at: usize, sm: u32) -> Option<usize> {
    if operation(instruction) != op::BRA {
        return None;
    }
    let signed = |value: u128, width: u32| ((value << (128 - width)) as i128) >> (128 - width);
    // Bytes from the next instruction on.
    let bytes = if sm >= 90 {
        let high = signed(bits(instruction, 34, 48), 48);
        (high << 8 | bits(instruction, 16, 8) as i128) * 4
    } else {
        signed(bits(instruction, 32, 50), 50)
    };
    // The lowest bits of an offset are flags of the branch.
    usize::try_from(at as i128 + 1 + (bytes >> 4)).ok()
}

#[cfg(test)]
mod tests;
