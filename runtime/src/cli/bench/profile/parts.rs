//! From the times of calls to the parts of a step. A call is of the first launch, at or after that of the call before,
//! which runs its symbol; after a barrier, of a later launch than before. Launches have names, so a part is what all
//! layers spend on the same thing. On a GPU a call is a launch, and every launch is called in order.

use std::collections::BTreeMap;

use super::{Group, Part};
use crate::device::{Timeline, WorkerTimeline};
use crate::manifest::{Launch, TargetPlan};

/// What one step took; seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct StepTimes {
    /// In the engine, without what the profile itself took.
    pub(super) wall: f64,
    /// In the executor's step.
    pub(super) executor: f64,
    /// Choosing tokens.
    pub(super) sampling: f64,
    /// What the profile itself took.
    pub(super) aside: f64,
    /// The programs that ran.
    pub(super) timelines: Vec<Timeline>,
}

/// The names of a plan's launches, by program and symbol.
pub(super) struct Parts {
    /// The symbol all workers meet in, if there is one.
    barrier: Option<u32>,
    workers: usize,
    /// Whether calls are launches.
    gpu: bool,
    programs: Vec<Vec<Named>>,
}

/// A launch that makes calls.
struct Named {
    symbols: Vec<u32>,
    name: String,
    bytes: u64,
}

/// Seconds per worker.
type Seconds = Vec<f64>;

impl Parts {
    pub(super) fn new(plan: &TargetPlan) -> Self {
        let symbol = |name: &str| plan.symbols.iter().position(|s| s == name);
        let symbol = |name: &str| symbol(name).and_then(|i| u32::try_from(i).ok());
        let named = |launch: &Launch| {
            let symbols: Vec<u32> = match &launch.grid {
                Some(grid) => vec![grid.kernel],
                None => launch.kernel.split(" + ").filter_map(symbol).collect(),
            };
            (!symbols.is_empty()).then(|| Named {
                symbols,
                name: name(launch),
                bytes: launch.bytes,
            })
        };
        Self {
            barrier: symbol("barrier"),
            workers: plan.workers as usize,
            gpu: plan.gpu.is_some(),
            programs: plan
                .programs
                .iter()
                .map(|program| program.launches.iter().filter_map(named).collect())
                .collect(),
        }
    }

    /// Mean parts of `steps`, kernels by time.
    pub(super) fn of(&self, steps: &[StepTimes]) -> Vec<Part> {
        let mut sums: BTreeMap<(Group, String), Seconds> = BTreeMap::new();
        let mut add = |group, name: &str, worker: usize, seconds: f64| {
            let all = sums.entry((group, name.to_owned()));
            all.or_insert_with(|| vec![0.0; self.workers])[worker] += seconds;
        };
        for step in steps {
            let programs: f64 = step.timelines.iter().map(|t| t.seconds).sum();
            let request = step.wall - step.executor - step.sampling;
            for worker in 0..self.workers {
                add(Group::Outside, SAMPLING, worker, step.sampling);
                add(Group::Outside, ROWS, worker, step.executor - programs);
                add(Group::Outside, REQUESTS, worker, request);
            }
            for timeline in &step.timelines {
                for (worker, times) in timeline.workers.iter().enumerate().take(self.workers) {
                    let mut add = |group, name: &str, seconds| add(group, name, worker, seconds);
                    self.worker(timeline, times, &mut add);
                }
            }
        }
        let bytes = match self.gpu {
            true => self.bytes(steps),
            false => BTreeMap::new(),
        };
        let per_step = 1.0 / steps.len().max(1) as f64;
        let mut parts: Vec<Part> = sums
            .into_iter()
            .map(|((group, name), seconds)| {
                let least = seconds.iter().copied().fold(f64::INFINITY, f64::min);
                let most = seconds.iter().copied().fold(0.0, f64::max);
                Part {
                    bytes: bytes.get(&name).map_or(0.0, |&sum| sum as f64 * per_step),
                    group,
                    name,
                    seconds: seconds.iter().sum::<f64>() / self.workers as f64 * per_step,
                    range: (least * per_step, most * per_step),
                }
            })
            .collect();
        parts.sort_by(|a, b| {
            let by_time = b.seconds.total_cmp(&a.seconds);
            a.group.cmp(&b.group).then(by_time)
        });
        parts
    }

    /// Bytes of the launches that ran, by name.
    fn bytes(&self, steps: &[StepTimes]) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for timeline in steps.iter().flat_map(|step| &step.timelines) {
            for launch in self.programs.get(timeline.program).into_iter().flatten() {
                *sums.entry(launch.name.clone()).or_default() += launch.bytes;
            }
        }
        sums
    }

    /// Divides one worker's part of a run.
    fn worker(
        &self,
        timeline: &Timeline,
        times: &WorkerTimeline,
        add: &mut impl FnMut(Group, &str, f64),
    ) {
        let launches = self.programs.get(timeline.program);
        let launches = launches.map_or(&[][..], Vec::as_slice);
        let mut inside = 0.0;
        let (mut from, mut past) = (0, 0);
        for &(symbol, seconds) in &times.calls {
            inside += seconds;
            if Some(symbol) == self.barrier {
                add(Group::Waiting, BARRIERS, seconds);
                from = past;
                continue;
            }
            let found = launches[from..]
                .iter()
                .position(|launch| launch.symbols.contains(&symbol));
            match found {
                Some(ahead) => {
                    from += ahead;
                    past = from + 1;
                    if self.gpu {
                        from = past;
                    }
                    add(Group::Kernels, &launches[past - 1].name, seconds);
                }
                None => add(Group::Kernels, OTHER, seconds),
            }
        }
        if self.gpu {
            return;
        }
        add(Group::Kernels, INLINE, times.ran - inside);
        add(Group::Outside, WAKING, times.woken);
        let rest = timeline.seconds - times.woken - times.ran;
        add(Group::Waiting, ENDS, rest);
    }
}

const SAMPLING: &str = "sampling";
const ROWS: &str = "rows and pages";
const REQUESTS: &str = "requests and text";
const WAKING: &str = "starting workers";
const BARRIERS: &str = "barriers";
const ENDS: &str = "ends of programs";
const INLINE: &str = "inline loops, calling";
const OTHER: &str = "other";

/// `matmul ffn_down`: the kernel's family, and where it streams weights which ones, the same for every layer.
fn name(launch: &Launch) -> String {
    let family = launch.kernel.split('_').next().unwrap_or_default();
    if launch.bytes == 0 {
        return family.to_owned();
    }
    let label = launch.label.as_str();
    let layer = |rest: &str| {
        let (number, kind) = rest.split_once('.')?;
        number.parse::<u32>().ok().map(|_| kind.to_owned())
    };
    let kind = label.split_once('.').and_then(|(_, rest)| layer(rest));
    format!("{family} {}", kind.as_deref().unwrap_or(label))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::sample;
    use crate::manifest::Program;

    fn launch(label: &str, kernel: &str) -> Launch {
        Launch {
            label: label.into(),
            kernel: kernel.into(),
            reason: String::new(),
            bytes: u64::from(kernel.starts_with("matmul")),
            macs: 0,
            predicted_seconds: 0.0,
            grid: None,
        }
    }

    /// Two layers; the first two matmuls share a symbol, with a barrier between.
    fn plan() -> TargetPlan {
        let mut plan = sample::manifest().plans.remove(0);
        plan.symbols = ["barrier", "norm_x", "matmul_a", "matmul_b"]
            .map(String::from)
            .into();
        let layer = |i: u32| {
            [
                launch(&format!("blk.{i}.norm"), "norm_x"),
                launch(&format!("blk.{i}.up"), "matmul_a + matmul_b"),
                launch(&format!("blk.{i}.act"), "inline Silu"),
                launch(&format!("blk.{i}.down"), "matmul_b"),
            ]
        };
        let launches = (0..2).flat_map(layer).collect();
        plan.programs = vec![Program {
            launches,
            ..plan.programs[0].clone()
        }];
        plan
    }

    fn part<'a>(parts: &'a [Part], name: &str) -> &'a Part {
        let found = parts.iter().find(|p| p.name == name);
        found.unwrap_or_else(|| panic!("{name} in {parts:?}"))
    }

    #[test]
    fn calls_find_their_launches_and_everything_adds_up() {
        // The second worker has no norm. Loops over spans call both symbols of `up` in turn.
        let first = [1, 0, 2, 3, 2, 3, 0, 3, 0, 1, 0, 2, 3, 0, 3];
        let second = [0, 2, 3, 0, 3, 0, 0, 2, 0, 3];
        let worker = |calls: &[u32]| WorkerTimeline {
            woken: 0.5,
            ran: 40.0,
            calls: calls
                .iter()
                .map(|&symbol| (symbol, f64::from(symbol + 1)))
                .collect(),
        };
        let timeline = Timeline {
            program: 0,
            seconds: 42.0,
            workers: vec![worker(&first), worker(&second)],
            lost: 0,
        };
        let step = StepTimes {
            wall: 50.0,
            executor: 43.0,
            sampling: 5.0,
            aside: 9.0,
            timelines: vec![timeline],
        };
        let parts = Parts::new(&plan()).of(&[step.clone(), step]);
        let range = |name| part(&parts, name).range;
        assert_eq!(range("norm"), (0.0, 4.0));
        assert_eq!(range("matmul up"), (10.0, 21.0));
        assert_eq!(range("matmul down"), (8.0, 8.0));
        assert_eq!(range("barriers"), (5.0, 5.0));
        assert_eq!(range("ends of programs"), (1.5, 1.5));
        assert_eq!(range("starting workers"), (0.5, 0.5));
        assert_eq!(range("sampling"), (5.0, 5.0));
        assert_eq!(range("rows and pages"), (1.0, 1.0));
        assert_eq!(range("requests and text"), (2.0, 2.0));
        assert_eq!(part(&parts, "norm").seconds, 2.0);
        assert_eq!(parts.iter().map(|p| p.seconds).sum::<f64>(), 50.0);
        assert!(parts.is_sorted_by_key(|p| p.group));
        assert!(parts.iter().all(|p| p.name != OTHER));
    }

    #[test]
    fn on_a_gpu_every_call_is_the_next_launch() {
        let mut plan = sample::gpu_manifest().plans.remove(0);
        let again = plan.programs[3].launches[1].clone();
        plan.programs[3].launches.push(Launch {
            label: "blk.7.again".into(),
            ..again
        });
        // Twice the same kernel in a row: two launches, not one that called it twice.
        let worker = WorkerTimeline {
            woken: 0.0,
            ran: 7.0,
            calls: vec![(1, 1.0), (2, 2.0), (2, 4.0)],
        };
        let step = StepTimes {
            timelines: vec![Timeline {
                program: 3,
                seconds: 7.0,
                workers: vec![worker],
                lost: 0,
            }],
            ..StepTimes::default()
        };
        let parts = Parts::new(&plan).of(&[step.clone(), step]);
        let of = |name| (part(&parts, name).seconds, part(&parts, name).bytes);
        assert_eq!(of("gather gather"), (1.0, 64.0));
        assert_eq!(of("output output"), (2.0, 64.0));
        assert_eq!(of("output again"), (4.0, 64.0));
        assert!(parts.iter().all(|p| p.name != INLINE && p.name != OTHER));
    }

    #[test]
    fn a_call_no_launch_explains_is_not_dropped() {
        let worker = WorkerTimeline {
            woken: 0.0,
            ran: 3.0,
            calls: vec![(1, 1.0), (9, 2.0)],
        };
        for program in [0, 99] {
            let step = StepTimes {
                timelines: vec![Timeline {
                    program,
                    workers: vec![worker.clone()],
                    ..Timeline::default()
                }],
                ..StepTimes::default()
            };
            let parts = Parts::new(&plan()).of(&[step]);
            assert_eq!(
                part(&parts, OTHER).range.1,
                if program == 0 { 2.0 } else { 3.0 }
            );
        }
    }
}
