//! Portable routing, gathering of routed rows, their weighted sum, and the gating of whole rows. Vector ISAs have no
//! kernels of their own: what these read is little beside the experts' weights.

use crate::cpu::abi::Step;
use crate::cpu::groups::Routes;
use crate::cpu::symbols::{Named, Symbol};
use crate::experts::{GateRowsFn, GatherFn, LEAST_SUM, MAX_EXPERTS, RouteFn, ScaleFn, SumFn};

/// `route_scalar`, `gather_experts_scalar`, `expert_scale_scalar`, `expert_sum_scalar` and `gate_rows_scalar`, of the types
/// of [`crate::experts`].
pub const SYMBOLS: &[Named] = &[
    ("route_scalar", Symbol(route as RouteFn as *const ())),
    (
        "gather_experts_scalar",
        Symbol(gather as GatherFn as *const ()),
    ),
    ("expert_scale_scalar", Symbol(scale as ScaleFn as *const ())),
    ("expert_sum_scalar", Symbol(sum as SumFn as *const ())),
    (
        "gate_rows_scalar",
        Symbol(gate_rows as GateRowsFn as *const ()),
    ),
];

/// # Safety
/// The contract of [`RouteFn`]: `logits` and `routes` hold the live rows below `end`.
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn route(
    logits: *const f32,
    routes: *mut u8,
    step: *const Step,
    experts: usize,
    used: usize,
    of_used: usize,
    normalise: usize,
    begin: usize,
    end: usize,
    logits_stride: usize,
    routes_stride: usize,
) {
    // SAFETY: the step is valid for the launch.
    let live = unsafe { (*step).rows };
    for row in begin..end.min(live) {
        // SAFETY: the row is live: it has `experts` logits, and room for `used` experts and weights.
        let (logits, chosen, weights) = unsafe {
            let at = routes.add(row * routes_stride).cast::<u32>();
            (
                std::slice::from_raw_parts(logits.byte_add(row * logits_stride), experts),
                std::slice::from_raw_parts_mut(at, used),
                std::slice::from_raw_parts_mut(at.add(used).cast::<f32>(), used),
            )
        };
        choose(logits, chosen);
        weigh(logits, chosen, weights, of_used == 1, normalise == 1);
    }
}

/// The experts of the largest logits, in that order. One that is not a number is less than any that is, so that whatever
/// the logits every expert is below their number and none comes twice.
fn choose(logits: &[f32], chosen: &mut [u32]) {
    let mut taken = [false; MAX_EXPERTS];
    for place in chosen {
        let mut best: Option<(usize, f32)> = None;
        for (expert, &logit) in logits.iter().enumerate().filter(|&(e, _)| !taken[e]) {
            let better = match best {
                None => true,
                Some((_, most)) => logit > most || (most.is_nan() && !logit.is_nan()),
            };
            if better {
                best = Some((expert, logit));
            }
        }
        let expert = best.map_or(0, |(expert, _)| expert);
        taken[expert] = true;
        *place = expert as u32;
    }
}

fn weigh(logits: &[f32], chosen: &[u32], weights: &mut [f32], of_used: bool, normalise: bool) {
    let largest = logits[chosen[0] as usize];
    let exp = |logit: f32| (logit - largest).exp();
    for (weight, &expert) in weights.iter_mut().zip(chosen) {
        *weight = exp(logits[expert as usize]);
    }
    let total: f32 = match of_used {
        true => weights.iter().sum(),
        false => logits.iter().map(|&logit| exp(logit)).sum(),
    };
    weights.iter_mut().for_each(|weight| *weight /= total);
    if normalise {
        let share = weights.iter().sum::<f32>().max(LEAST_SUM as f32);
        weights.iter_mut().for_each(|weight| *weight /= share);
    }
}

/// # Safety
/// The contract of [`GatherFn`].
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn gather(
    x: *const u8,
    routes: *const u8,
    step: *const Step,
    out: *mut u8,
    experts: usize,
    used: usize,
    row_bytes: usize,
    begin: usize,
    end: usize,
    x_stride: usize,
    routes_stride: usize,
    out_stride: usize,
) {
    // SAFETY: promised by the caller.
    let routes = unsafe { Routes::new(routes, routes_stride, &*step, used, experts) };
    routes.places(begin..end, |row, places| {
        for &place in places {
            // SAFETY: the row is live, and places are routed rows of live rows.
            unsafe {
                let to = out.add(place as usize * out_stride);
                to.copy_from_nonoverlapping(x.add(row * x_stride), row_bytes);
            }
        }
    });
}

/// # Safety
/// The contract of [`ScaleFn`].
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn scale(
    x: *mut f32,
    routes: *const u8,
    step: *const Step,
    factors: *const f32,
    width: usize,
    experts: usize,
    used: usize,
    begin: usize,
    end: usize,
    x_stride: usize,
    routes_stride: usize,
) {
    // SAFETY: promised by the caller.
    let routes = unsafe { Routes::new(routes, routes_stride, &*step, used, experts) };
    routes.places(begin..end, |row, places| {
        for (&place, &expert) in places.iter().zip(routes.experts(row)) {
            // SAFETY: places are routed rows of live rows, and there is a factor for every expert.
            unsafe {
                let factor = *factors.add(expert as usize);
                let x = x.byte_add(place as usize * x_stride);
                let x = std::slice::from_raw_parts_mut(x, width);
                x.iter_mut().for_each(|x| *x *= factor);
            }
        }
    });
}

/// # Safety
/// The contract of [`SumFn`].
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn sum(
    x: *const f32,
    routes: *const u8,
    step: *const Step,
    out: *mut f32,
    width: usize,
    experts: usize,
    used: usize,
    begin: usize,
    end: usize,
    x_stride: usize,
    routes_stride: usize,
    out_stride: usize,
) {
    // SAFETY: promised by the caller.
    let routes = unsafe { Routes::new(routes, routes_stride, &*step, used, experts) };
    routes.places(begin..end, |row, places| {
        // SAFETY: the row is live.
        let out = unsafe { std::slice::from_raw_parts_mut(out.byte_add(row * out_stride), width) };
        out.fill(0.0);
        for (&place, &weight) in places.iter().zip(routes.weights(row)) {
            // SAFETY: places are routed rows of live rows.
            let x =
                unsafe { std::slice::from_raw_parts(x.byte_add(place as usize * x_stride), width) };
            out.iter_mut().zip(x).for_each(|(o, &x)| *o += weight * x);
        }
    });
}

/// # Safety
/// The contract of [`GateRowsFn`]: both hold `rows` rows.
unsafe extern "C" fn gate_rows(
    x: *mut f32,
    gate: *const f32,
    width: usize,
    rows: usize,
    x_stride: usize,
    gate_stride: usize,
) {
    for row in 0..rows {
        // SAFETY: the row is inside both.
        unsafe {
            let gate = 1.0 / (1.0 + (-*gate.byte_add(row * gate_stride)).exp());
            let x = std::slice::from_raw_parts_mut(x.byte_add(row * x_stride), width);
            x.iter_mut().for_each(|x| *x *= gate);
        }
    }
}
