//! A grid launch agrees with what it says it touches: every address it is given is one that its accesses name, every
//! access is passed, and nothing lies outside its memory. The kernel's own indexing is the conformance tests' business.

use crate::plan::{Access, Grid, Launch, Plan, Space};
use coldpress_runtime::manifest::GridArg;

/// Most thread blocks along x; along y and z.
const MOST: [u32; 3] = [(1 << 31) - 1, 65535, 65535];

/// Fails with the first argument or access that has no counterpart.
pub(super) fn arguments(plan: &Plan, launch: &Launch, grid: &Grid) -> Result<(), String> {
    let blocks = grid.geometry.grid;
    if blocks.iter().zip(MOST).any(|(&n, most)| n == 0 || n > most) {
        return Err(format!("{blocks:?} thread blocks"));
    }
    let threads = grid.kernel.threads;
    if !(1..=1024).contains(&threads) || !threads.is_multiple_of(32) {
        return Err(format!("{threads} threads in a block"));
    }
    if !launch.barrier {
        return Err("does not wait for the launch before it".into());
    }
    let named = |space: Space, offset: usize| {
        launch
            .accesses
            .iter()
            .any(|a| a.space == space && a.offset == offset)
    };
    for arg in &grid.args {
        match *arg {
            GridArg::Weights(offset) if !plan.weights.iter().any(|p| p.offset == offset) => {
                return Err(format!("no weight begins at {offset}"));
            }
            GridArg::Kv(offset) => {
                let layer = plan.kv.layers.iter().position(|l| l.offset == offset);
                let state = plan.kv.states.iter().position(|s| s.offset == offset);
                let space = layer.map(Space::Kv).or(state.map(Space::State));
                if !space.is_some_and(|space| named(space, 0)) {
                    return Err(format!("nothing says that kv+{offset} is touched"));
                }
            }
            GridArg::Arena(offset)
                if offset >= plan.reserved_bytes as u64
                    && !named(Space::Arena, offset as usize) =>
            {
                return Err(format!("nothing says that arena+{offset} is touched"));
            }
            _ => {}
        }
    }
    let passed = |access: &Access| match access.space {
        Space::Arena => grid.args.contains(&GridArg::Arena(access.offset as u64)),
        Space::Kv(layer) => grid
            .args
            .contains(&GridArg::Kv(plan.kv.layers[layer].offset)),
        Space::State(state) => grid
            .args
            .contains(&GridArg::Kv(plan.kv.states[state].offset)),
    };
    match launch.accesses.iter().find(|a| !passed(a)) {
        Some(access) => Err(format!("{access:?} is not passed")),
        None => Ok(()),
    }
}
