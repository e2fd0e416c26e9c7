//! Measured matmul costs: which shapes a model has, timing their stamps on this machine, and the tune cache that carries
//! the times into later compiles. Kernels run in `coldpress_kernels::matmul::measure`; what is picked is the plan's
//! decision.

pub mod cache;

use crate::error::Error;
use crate::explain::Notes;
use crate::graph::{Op, OpGraph};
use crate::plan::select::packed_layout;
use crate::target::{MeasuredShape, TargetProfile};
use coldpress_kernels::cpu::abi::TILE_N;
use coldpress_kernels::cpu::tile::tile_bytes;
use coldpress_kernels::matmul::measure::{Bench, Failure, middle};
use coldpress_kernels::matmul::{Reason, Timing, VARIANTS, Variant};
use coldpress_kernels::quant::{FORMATS, PackedLayout};
use std::fmt;
use std::time::{Duration, Instant};

/// Rounds over all stamps of a shape: fewer tell nothing, more tell nothing more.
const LEAST_ROUNDS: usize = 3;
const MOST_ROUNDS: usize = 60;

/// A matmul shape of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Layout of the packed weights.
    pub layout: PackedLayout,
    /// Outputs.
    pub n: usize,
    /// Reduction length.
    pub k: usize,
    /// Matrices of this shape that one step reads.
    pub count: usize,
}

impl Shape {
    /// Weight bytes one step reads in this shape.
    pub fn bytes(&self) -> u64 {
        let tile = tile_bytes(&self.layout, self.k).unwrap_or(0) as u64;
        (self.n.div_ceil(TILE_N) as u64)
            .saturating_mul(tile)
            .saturating_mul(self.count as u64)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}, {}]", self.layout, self.n, self.k)
    }
}

/// The matmul shapes of a graph, those that cost most bytes first.
///
/// # Errors
/// `Unsupported` naming a weight that no kernel reads.
pub fn shapes(graph: &OpGraph) -> Result<Vec<Shape>, Error> {
    let mut found = Vec::new();
    for node in graph.order() {
        // Of experts, as many matrices as one row uses.
        let (parts, experts, times) = match &graph.nodes[node].op {
            Op::MatMul { parts, .. } => (parts, 1, 1),
            Op::ExpertMatMul { parts, experts } => {
                let routes = graph.inputs(node)[1];
                (parts, *experts, graph.value_type(routes).width)
            }
            _ => continue,
        };
        for part in parts {
            let w = &graph.weights[part.weight.0 as usize];
            for _ in 0..times {
                count(&mut found, packed_layout(w)?, w.n / experts, w.k);
            }
        }
    }
    Ok(sorted(found))
}

/// The matmul shapes of a compiled model, from its notes; layouts this build does not know are left out.
pub fn shapes_of_notes(notes: &Notes) -> Vec<Shape> {
    let mut found = Vec::new();
    for tensor in notes.tensors.iter().filter(|t| t.choice.is_some()) {
        let (Ok(n), Ok(k)) = (usize::try_from(tensor.n), usize::try_from(tensor.k)) else {
            continue;
        };
        if let Some(layout) = layout_named(&tensor.layout) {
            count(&mut found, layout, n, k);
        }
    }
    sorted(found)
}

/// The layout with this short name.
fn layout_named(name: &str) -> Option<PackedLayout> {
    let mut layouts = FORMATS.iter().map(|f| f.layout);
    layouts.find(|layout| layout.name() == name)
}

fn count(shapes: &mut Vec<Shape>, layout: PackedLayout, n: usize, k: usize) {
    let known = |s: &&mut Shape| (s.layout, s.n, s.k) == (layout, n, k);
    match shapes.iter_mut().find(known) {
        Some(shape) => shape.count += 1,
        None => shapes.push(Shape {
            layout,
            n,
            k,
            count: 1,
        }),
    }
}

fn sorted(mut shapes: Vec<Shape>) -> Vec<Shape> {
    shapes.sort_by_key(|s| std::cmp::Reverse(s.bytes()));
    shapes
}

/// What to time, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// Whose kernels.
    pub target: &'a TargetProfile,
    /// Worker threads.
    pub workers: usize,
    /// Rows of the largest stamp that a bucket could use.
    pub max_rows: usize,
    /// Time for everything; the first shape is timed whatever it is.
    pub budget: Duration,
}

/// A shape that was timed.
#[derive(Clone, Debug)]
pub struct Timed {
    /// Its place among the shapes asked for.
    pub index: usize,
    /// What was found.
    pub measured: MeasuredShape,
    /// Samples of each stamp.
    pub rounds: usize,
}

/// Times the shapes in order until the budget is spent. `watch` hears of each before it is timed.
///
/// # Errors
/// `Unsupported` if this machine cannot run the target's kernels or a result is wrong.
pub fn time(
    shapes: &[Shape],
    task: Task<'_>,
    mut watch: impl FnMut(usize, &Shape),
) -> Result<Vec<Timed>, Error> {
    let isa = task.target.isa();
    if !isa.available() {
        return Err(Error::Unsupported {
            what: format!("--target {}", task.target.name),
            why: format!(
                "its kernels cannot be timed here, they need {} (tune on the machine itself, or take --target native)",
                isa.needs().join("+")
            ),
        });
    }
    let start = Instant::now();
    let mut timed = Vec::new();
    for (index, shape) in shapes.iter().enumerate() {
        let left = task.budget.saturating_sub(start.elapsed());
        if left.is_zero() && index > 0 {
            break;
        }
        watch(index, shape);
        let share = left / (shapes.len() - index) as u32;
        let (timings, rounds) = time_shape(shape, task, share)?;
        timed.push(Timed {
            index,
            measured: MeasuredShape {
                layout: shape.layout,
                n: shape.n,
                k: shape.k,
                timings,
            },
            rounds,
        });
    }
    Ok(timed)
}

/// Times every stamp of one shape, in rounds so that what disturbs the machine disturbs all alike.
fn time_shape(
    shape: &Shape,
    task: Task<'_>,
    share: Duration,
) -> Result<(Vec<Timing>, usize), Error> {
    let start = Instant::now();
    let failed = |why: String| Error::Unsupported {
        what: shape.to_string(),
        why,
    };
    let class = task.target.isa().numeric_class();
    let variants: Vec<&Variant> = VARIANTS
        .iter()
        .filter(|v| v.isa.numeric_class() == class && task.target.isas.contains(&v.isa))
        .filter(|v| v.isa.available() && v.stamp <= task.max_rows)
        .collect();
    let widest = variants.iter().map(|v| v.stamp).max().unwrap_or(1);
    let (n, k) = (shape.n, shape.k);
    let mut bench = Bench::new(
        shape.layout,
        (n, k),
        widest,
        task.workers,
        task.target.l2_bytes,
    )
    .map_err(|why| failed(why.to_string()))?;
    let mut samples = vec![(Vec::new(), Vec::new()); variants.len()];
    let mut rounds = 0;
    while rounds < LEAST_ROUNDS || (rounds < MOST_ROUNDS && start.elapsed() < share) {
        for (variant, (cold, warm)) in variants.iter().zip(&mut samples) {
            match bench.sample(variant.isa, variant.stamp) {
                Ok(sample) => {
                    cold.push(sample.cold);
                    warm.push(sample.warm);
                }
                Err(Failure::Illegal(Reason::NoStamp(_))) => {}
                Err(why) => return Err(failed(why.to_string())),
            }
        }
        rounds += 1;
    }
    let timings = variants
        .iter()
        .zip(samples)
        .filter(|(_, (cold, _))| !cold.is_empty())
        .map(|(variant, (cold, warm))| Timing {
            isa: variant.isa,
            stamp: variant.stamp,
            cold_seconds: middle(cold),
            warm_seconds: middle(warm),
        });
    Ok((timings.collect(), rounds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pass;
    use crate::pass::tests::Tiny;
    use coldpress_kernels::quant::{F32, Q8_0};

    #[test]
    fn shapes_are_counted_and_ordered_by_bytes() {
        let mut graph = Tiny {
            layers: 3,
            ..Tiny::PLAIN
        }
        .graph();
        pass::run_all(&mut graph, None).expect("passes");
        let found = shapes(&graph).expect("packable");
        assert!(found.is_sorted_by_key(|s| std::cmp::Reverse(s.bytes())));
        let matmuls: usize = graph
            .order()
            .into_iter()
            .map(|n| match &graph.nodes[n].op {
                Op::MatMul { parts, .. } => parts.len(),
                _ => 0,
            })
            .sum();
        assert_eq!(found.iter().map(|s| s.count).sum::<usize>(), matmuls);
        assert!(found.iter().any(|s| s.count >= 3), "{found:?}");
    }

    #[test]
    fn a_spent_budget_still_times_the_first_shape() {
        let shape = |n| Shape {
            layout: Q8_0.layout,
            n,
            k: 64,
            count: 1,
        };
        let target = TargetProfile::parse("cpu:scalar").expect("a preset");
        let task = Task {
            target: &target,
            workers: 2,
            max_rows: 64,
            budget: Duration::ZERO,
        };
        let mut seen = Vec::new();
        let timed = time(&[shape(48), shape(16)], task, |i, _| seen.push(i)).expect("times");
        assert_eq!((timed.len(), seen), (1, vec![0]));
        assert_eq!((timed[0].index, timed[0].measured.n), (0, 48));
        let stamps: Vec<usize> = timed[0].measured.timings.iter().map(|t| t.stamp).collect();
        assert_eq!(stamps, [1, 4]);
        let narrow = Task {
            max_rows: 1,
            ..task
        };
        let timed = time(&[shape(16)], narrow, |_, _| {}).expect("times");
        assert_eq!(timed[0].measured.timings.len(), 1);
    }

    #[test]
    fn an_impossible_shape_is_named() {
        let target = TargetProfile::parse("cpu:scalar").expect("a preset");
        let shape = Shape {
            layout: Q8_0.layout,
            n: 16,
            k: 33,
            count: 1,
        };
        let task = Task {
            target: &target,
            workers: 1,
            max_rows: 1,
            budget: Duration::ZERO,
        };
        let error = time(&[shape], task, |_, _| {}).expect_err("k");
        assert!(error.to_string().contains("i8f16 [16, 33]"), "{error}");
    }

    #[test]
    fn layouts_have_names() {
        assert_eq!(layout_named("f32"), Some(F32.layout));
        assert_eq!(layout_named("i3"), None);
    }
}
