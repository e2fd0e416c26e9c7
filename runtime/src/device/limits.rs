//! What every step must be within before a device runs it: compiled code takes it for granted.

use super::{GIVEN, StepInput};
use crate::manifest::{KvWindow, Limits, Manifest, Stage, TargetPlan};
use coldpress_kernels::cpu::abi::PAGE_TOKENS;

/// The bounds of one plan's steps.
#[derive(Clone, Debug)]
pub(super) struct StepLimits {
    limits: Limits,
    vocab_size: u32,
    kv_pages: u32,
    windows: Vec<KvWindow>,
}

impl StepLimits {
    pub(super) fn new(manifest: &Manifest, plan: &TargetPlan) -> Self {
        Self {
            limits: manifest.limits,
            vocab_size: manifest.model.vocab_size,
            kv_pages: plan.kv.pages,
            windows: plan.kv.windows.clone(),
        }
    }

    /// Whether a program of `stage`, compiled for `most` rows, can run `step`; the reason if not. Tokens may follow
    /// candidates of rows below `followed`.
    pub(super) fn check(
        &self,
        stage: Stage,
        most: usize,
        followed: u32,
        step: &StepInput<'_>,
    ) -> Result<(), String> {
        let rows = step.tokens.len();
        if step.positions.len() != rows || step.slots.len() != rows {
            return Err("tokens, positions and slots differ in length".into());
        }
        let live = match stage {
            Stage::Trunk => rows,
            Stage::Head => step.logit_rows.len(),
        };
        if live == 0 || live > most || rows > self.limits.max_rows as usize {
            return Err(format!("{live} rows in a program for 1 to {most}"));
        }
        let outside = |values: &[u32], end: u32| values.iter().find(|&&v| v >= end).copied();
        if let Some(token) = outside(step.tokens, self.vocab_size) {
            return Err(format!(
                "token {token}: the vocabulary has {}",
                self.vocab_size
            ));
        }
        if let Some(position) = outside(step.positions, self.limits.max_context) {
            return Err(format!("position {position} is outside the context"));
        }
        if ![0, rows].contains(&step.follows.len()) {
            return Err("tokens and the rows they follow differ in number".into());
        }
        let followed = |&&row: &&u32| row != GIVEN && row >= followed;
        if let Some(row) = step.follows.iter().find(followed) {
            return Err(format!("a token follows candidates of row {row}"));
        }
        let kv = step.kv;
        let per_slot = self.limits.max_context.div_ceil(PAGE_TOKENS as u32);
        let other = kv.pages() > self.kv_pages
            || kv.slots() > self.limits.max_batch
            || kv.windows() != self.windows;
        if other || kv.pages_per_slot() < per_slot {
            return Err("the page table is of another plan".into());
        }
        if let Some(slot) = outside(step.slots, kv.slots()) {
            return Err(format!("slot {slot} does not exist"));
        }
        if let Some(row) = outside(step.logit_rows, rows as u32) {
            return Err(format!("logits of row {row} of {rows}"));
        }
        Ok(())
    }
}
