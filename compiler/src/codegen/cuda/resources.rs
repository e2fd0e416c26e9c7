//! What a compiled kernel takes of a multiprocessor, and whether its main loop has the instructions to keep up with memory.
//! Facts for reports, checks and costs; what follows from them is the plan's decision.

use super::nvrtc::Cubin;
use super::sass::{Counts, Inspection, Loads};
use crate::target::cuda::{CudaProfile, Occupancy};
use std::fmt;

/// How a kernel is launched, and what its main loop is there for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Use {
    /// Threads of a thread block.
    pub threads: u32,
    /// Shared memory that the launch asks for, bytes.
    pub dynamic_shared: u32,
    /// Weights a thread block works through in one pass of its main loop as compiled; 0 of a kernel without weights. A loop
    /// that the compiler unrolls goes through more than its source says.
    pub weights: u32,
    /// Kernels that this one is, side by side: each has a main loop, and `weights` those of a pass of all of them.
    pub kernels: u32,
    /// Bytes a weight takes in memory, its share of scales included: 0.5625 of 4.5 bits.
    pub weight_bytes: f64,
}

/// A kernel on a target.
#[derive(Clone, Debug, PartialEq)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes spilled and reloaded, as the assembler counts them.
    pub spill_bytes: u32,
    /// Instructions that use local memory.
    pub local: u32,
    /// Loads of addresses that may be of any memory.
    pub generic: u32,
    /// Shared memory of a thread block, static and dynamic, bytes.
    pub shared_bytes: u32,
    /// Resident thread blocks.
    pub occupancy: Occupancy,
    /// Warps a multiprocessor has room for.
    pub max_warps: u32,
    /// Instructions of the whole kernel.
    pub instructions: u32,
    /// Instructions of one pass of the main loop.
    pub loop_instructions: u32,
    /// Global loads of one pass of the main loop.
    pub loads: Loads,
    /// Lane instructions against the target's time for them; `None` of a kernel without weights or without a loop.
    pub issue: Option<Issue>,
    /// What the assembler warned of.
    pub warnings: Vec<String>,
}

/// Lane instructions of one weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Issue {
    /// What the main loop spends on one.
    pub per_weight: f64,
    /// What the target can issue while it reads one at full bandwidth.
    pub budget: f64,
}

impl Issue {
    /// Share of the budget that is spent; above 1 instructions bind, not memory.
    pub fn share(&self) -> f64 {
        self.per_weight / self.budget
    }
}

impl Resources {
    /// What `cubin`, with the code `inspection` describes, takes of `target`.
    pub fn of(cubin: &Cubin, inspection: &Inspection, target: &CudaProfile, launch: Use) -> Self {
        let shared_bytes = cubin.static_shared.saturating_add(launch.dynamic_shared);
        let mains = inspection.main_loops(launch.kernels);
        let counts = mains
            .iter()
            .fold(Counts::default(), |sum, l| sum.plus(l.counts));
        let whole = mains.len() == launch.kernels as usize;
        let lanes = f64::from(counts.instructions) * f64::from(launch.threads);
        let issue = (whole && launch.weights > 0).then(|| Issue {
            per_weight: lanes / f64::from(launch.weights),
            budget: target.issue_budget(launch.weight_bytes),
        });
        Resources {
            registers: cubin.registers,
            spill_bytes: cubin.spill_bytes,
            local: inspection.total.local,
            generic: inspection.total.loads.generic,
            shared_bytes,
            occupancy: target.occupancy(cubin.registers, shared_bytes, launch.threads),
            max_warps: target.max_threads_per_sm / 32,
            instructions: inspection.total.instructions,
            loop_instructions: counts.instructions,
            loads: counts.loads,
            issue,
            warnings: cubin.warnings.clone(),
        }
    }

    /// What no generated kernel may have: one line each, none of a sound kernel.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.occupancy.blocks == 0 {
            faults.push(format!(
                "cannot be launched: too many {} ({} registers, {} bytes of shared memory)",
                self.occupancy.limit, self.registers, self.shared_bytes
            ));
        }
        if self.spill_bytes > 0 {
            faults.push(format!(
                "{} bytes of registers are spilled",
                self.spill_bytes
            ));
        } else if self.local > 0 {
            faults.push(format!("{} instructions use local memory", self.local));
        }
        if self.generic > 0 {
            faults.push(format!("{} loads are of any memory", self.generic));
        }
        faults.extend(self.warnings.iter().cloned());
        faults
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (registers, spilled) = (self.registers, self.spill_bytes);
        let (occupancy, max) = (self.occupancy, self.max_warps);
        write!(
            f,
            "{registers} registers, {spilled} bytes spilled, {} bytes shared; {} thread blocks = {} of {max} warps ({}); \
             {} instructions, {} in the main loop",
            self.shared_bytes,
            occupancy.blocks,
            occupancy.warps,
            occupancy.limit,
            self.instructions,
            self.loop_instructions,
        )?;
        let loads = &self.loads;
        let widths = [
            (loads.w256, "256-bit"),
            (loads.w128, "128-bit"),
            (loads.w64, "64-bit"),
            (loads.w32, "32-bit"),
            (loads.narrow, "narrower"),
            (loads.bulk, "bulk"),
            (loads.generic, "generic"),
        ];
        let there = widths.iter().filter(|(count, _)| *count > 0);
        for (i, (count, width)) in there.enumerate() {
            let before = if i == 0 { ", loads " } else { " + " };
            write!(f, "{before}{count} {width}")?;
        }
        if let Some(issue) = self.issue {
            let (spent, budget) = (issue.per_weight, issue.budget);
            let percent = 100.0 * issue.share();
            write!(f, "; {spent:.2} of {budget:.2} per weight ({percent:.0} %)")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codegen::cuda::sass::Loop;
    use crate::target::cuda::Limit;

    fn cubin() -> Cubin {
        Cubin {
            bytes: vec![],
            registers: 64,
            spill_bytes: 0,
            static_shared: 1024,
            constant_bytes: 0,
            stack_bytes: 0,
            warnings: vec![],
        }
    }

    /// A loop of 70 instructions, two 128-bit loads among them, in a kernel of 200.
    fn inspection() -> Inspection {
        let loads = Loads {
            w128: 2,
            narrow: 1,
            ..Loads::default()
        };
        let counts = Counts {
            instructions: 70,
            loads,
            ..Counts::default()
        };
        Inspection {
            total: Counts {
                instructions: 200,
                ..counts
            },
            loops: vec![Loop {
                start: 50,
                end: 120,
                counts,
            }],
        }
    }

    const USE: Use = Use {
        threads: 128,
        dynamic_shared: 7 * 1024,
        // Two words of 16 bytes of every thread, 4 bits each.
        weights: 128 * 64,
        kernels: 1,
        weight_bytes: 0.5625,
    };

    #[test]
    fn a_kernel_within_its_budget() {
        let target = CudaProfile::named("h200").expect("preset");
        let found = Resources::of(&cubin(), &inspection(), &target, USE);
        assert_eq!(found.shared_bytes, 8 * 1024);
        // 64 registers of 128 threads are an eighth of 65536.
        assert_eq!(
            (found.occupancy.blocks, found.occupancy.limit),
            (8, Limit::Registers)
        );
        let issue = found.issue.expect("has weights");
        assert!((issue.per_weight - 70.0 / 64.0).abs() < 1e-9);
        assert!((issue.budget - 4.376).abs() < 1e-3, "{}", issue.budget);
        assert!((issue.share() - 0.25).abs() < 1e-3);
        assert_eq!(found.faults(), Vec::<String>::new());
        assert_eq!(
            found.to_string(),
            "64 registers, 0 bytes spilled, 8192 bytes shared; 8 thread blocks = 32 of 64 warps (registers); \
             200 instructions, 70 in the main loop, loads 2 128-bit + 1 narrower; 1.09 of 4.38 per weight (25 %)"
        );
    }

    #[test]
    fn faults_are_told() {
        let target = CudaProfile::named("rtx4090").expect("preset");
        let mut spilling = cubin();
        spilling.spill_bytes = 24;
        spilling.warnings = vec!["serialised".into()];
        let mut wandering = inspection();
        wandering.total.local = 3;
        wandering.total.loads.generic = 2;
        let greedy = Use {
            dynamic_shared: u32::MAX,
            ..USE
        };
        let faults = Resources::of(&spilling, &wandering, &target, greedy).faults();
        assert_eq!(faults.len(), 4, "{faults:?}");
        assert!(faults[0].contains("shared memory"), "{faults:?}");
        assert!(faults[1].contains("24 bytes"), "{faults:?}");
        assert!(faults[2].contains("2 loads"), "{faults:?}");
        assert_eq!(faults[3], "serialised");
        let local = Resources::of(&cubin(), &wandering, &target, USE).faults();
        assert!(local[0].contains("3 instructions"), "{local:?}");
    }

    #[test]
    fn without_weights_or_a_loop_there_is_no_budget() {
        let target = CudaProfile::named("a100").expect("preset");
        let none = Use { weights: 0, ..USE };
        let found = Resources::of(&cubin(), &inspection(), &target, none);
        assert_eq!(found.issue, None);
        assert!(!found.to_string().contains("per weight"));
        let mut straight = inspection();
        straight.loops.clear();
        let found = Resources::of(&cubin(), &straight, &target, USE);
        assert_eq!((found.issue, found.loop_instructions), (None, 0));
    }
}
