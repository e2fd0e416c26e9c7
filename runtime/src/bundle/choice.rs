//! Which of a bundle's plans a machine runs, and why not the others.

use super::{Bundle, Machine};
use crate::error::Error;
use crate::manifest::TargetPlan;

impl Bundle {
    /// Everything that keeps `machine` from running this bundle, each line with what to do; empty if a plan runs.
    pub fn mismatches(&self, machine: &Machine) -> Vec<String> {
        let plans = self.manifest.plans.iter();
        let lines = plans.map(|plan| machine.lacks(&plan.requires));
        let lines: Vec<Vec<String>> = lines.collect();
        if lines.iter().any(Vec::is_empty) {
            return Vec::new();
        }
        lines.concat()
    }

    /// This machine, as far as the bundle's plans ask about it.
    pub fn machine(&self) -> Machine {
        Machine::detect_for(self.manifest.plans.iter().map(|plan| &plan.requires))
    }

    /// The plan that fits `machine` best of those it can run: plans for GPUs before others, and of these the one that was made
    /// for this GPU or for the nearest to it. Plans that fit alike come in the bundle's order.
    ///
    /// # Errors
    /// [`Error::Memory`] if only memory is missing, else [`Error::Mismatch`] with all of [`Bundle::mismatches`].
    pub fn pick_plan(&self, machine: &Machine) -> Result<&TargetPlan, Error> {
        let runs = |plan: &&TargetPlan| machine.platform_mismatches(&plan.requires).is_empty();
        let mut candidates: Vec<&TargetPlan> = self.manifest.plans.iter().filter(runs).collect();
        candidates.sort_by_key(|plan| machine.fit(&plan.requires));
        let Some(first) = candidates.first() else {
            return Err(Error::Mismatch(self.mismatches(machine)));
        };
        let shortage = machine.memory_mismatch(&first.requires).unwrap_or_default();
        let mut candidates = candidates.into_iter();
        candidates
            .find(|plan| machine.memory_mismatch(&plan.requires).is_none())
            .ok_or(Error::Memory(shortage))
    }

    /// Why `machine` runs none of the plans for GPUs, where it runs one for the CPU in their place; else nothing.
    pub fn passed_over(&self, machine: &Machine) -> Vec<String> {
        let plans = &self.manifest.plans;
        match self.pick_plan(machine) {
            Ok(picked) if picked.gpu.is_none() => plans
                .iter()
                .filter(|plan| plan.gpu.is_some())
                .flat_map(|plan| machine.refusal(&plan.requires, &picked.requires))
                .collect(),
            _ => Vec::new(),
        }
    }
}
