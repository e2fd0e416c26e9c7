//! Mixtures of experts on GPUs: the router's choice with the division of the matmuls that follow it ([`route`]), products
//! times the factors of their experts ([`scale`]), gated rows ([`gate_rows`]), and weighted sums with what is added to them
//! and the norm after them ([`sum`]). Matmuls by expert are variants of [`super::matmul`] like all others.
//!
//! ```text
//! routed row  row * used + rank, where it also lies: what an expert makes of a row
//! order       all routed rows by expert, those of one expert side by side
//! item        up to a stamp of neighbours in the order, all of one expert: what the thread blocks of a matmul along x take
//! ```
//!
//! Which rows share an item depends on the step; a routed row's bits do not, since no stamp lets them depend on other rows.
//! Nothing waits for the host: there is a thread block for every item that a step could have, and those without one end at
//! once.

use super::abi::ActForm;
use super::rows::VECTOR;
use super::{Constant, Geometry, Kernel};
use crate::experts::{MAX_EXPERTS, MAX_USED};

/// Lists of items, of one stamp each: most stamps among the matmuls that follow one router.
pub const LISTS: usize = 3;
/// Bytes of a choice (expert, weight), of an item, of a place in the order.
const CHOICE: usize = 8;
const ITEM: usize = 8;
const PLACE: usize = 4;
/// Threads of the router: a warp for each row of a thread block, a thread for each expert.
const ROUTE_THREADS: usize = 1024;
/// Rows that a thread block of the router has.
const ROUTE_ROWS: usize = ROUTE_THREADS / 32;
/// Words of shared memory before the counts of routed rows: one for each warp.
const WORDS: usize = 32;
/// Words of shared memory for these counts, some for each warp that counts.
const COUNTS: usize = 8192;

const _: () = assert!(MAX_EXPERTS <= ROUTE_THREADS && MAX_USED <= 64);

/// Where [`route`] leaves what, for a step of up to `rows` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routes {
    /// Rows of the bucket.
    pub rows: usize,
    /// Experts that a row uses.
    pub used: usize,
}

impl Routes {
    /// Bytes for each row of the bucket, a multiple of 64.
    pub const fn stride(used: usize) -> usize {
        (used * (CHOICE + LISTS * ITEM + PLACE)).next_multiple_of(64)
    }

    /// Routed rows.
    pub const fn routed(&self) -> usize {
        self.rows * self.used
    }

    /// Bytes to the items of a list.
    pub const fn items(&self, list: usize) -> usize {
        self.routed() * (CHOICE + list * ITEM)
    }

    /// Bytes to the order.
    pub const fn order(&self) -> usize {
        self.items(LISTS)
    }
}

/// How the rows of a step meet experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Routed {
    /// Experts.
    pub experts: usize,
    /// Experts that a row uses.
    pub used: usize,
}

impl Routed {
    /// Items that a step of `rows` rows can have.
    pub const fn most_items(&self, rows: usize, stamp: usize) -> usize {
        let routed = rows * self.used;
        // The more experts have a row, the more items there are; each stamp of further rows makes another one.
        let touched = if routed < self.experts {
            routed
        } else {
            self.experts
        };
        touched + (routed - touched) / stamp
    }

    /// Experts that have a row and items of a step of `rows` rows, in the mean, if routers have no preference.
    pub fn expected(&self, rows: usize, stamp: usize) -> (f64, f64) {
        let experts = self.experts as f64;
        if self.used == self.experts {
            return (experts, experts * rows.div_ceil(stamp) as f64);
        }
        let chance = self.used as f64 / experts;
        let odds = (chance / (1.0 - chance)).ln();
        // Logarithm of the probability that `n` rows use one expert: the binomial distribution.
        let mut log = rows as f64 * (1.0 - chance).ln();
        let (mut distinct, mut items) = (0.0, 0.0);
        for n in 1..=rows {
            log += ((rows + 1 - n) as f64 / n as f64).ln() + odds;
            let times = log.exp() * experts;
            distinct += times;
            items += times * n.div_ceil(stamp) as f64;
        }
        (distinct, items)
    }
}

arguments! {
    /// Arguments of [`route`]. Template: `route`.
    pub struct RouteArgs {
        /// Address of f32 rows of the experts' logits.
        logits,
        /// Address of [`Routes`].
        routes,
        /// Address of a u32, zero before and after.
        counters,
        /// Address of the live rows and live logits rows, two u32.
        live,
        /// Rows of the bucket, as in [`Routes`].
        rows,
        /// Experts that a row uses.
        used,
        /// Bytes between rows of `logits`.
        logits_stride,
        /// Stamp of the first list; 0: it is not wanted.
        stamp0,
        /// Items that there is room for; those that the step does not need are left empty.
        bound0,
        /// Stamp of the second list.
        stamp1,
        /// Its items.
        bound1,
        /// Stamp of the third list.
        stamp2,
        /// Its items.
        bound2,
    }
}

arguments! {
    /// Arguments of [`scale`]. Template: `expert_scale`.
    pub struct ScaleArgs {
        /// Address of f32 routed rows.
        x,
        /// What [`route`] left.
        routes,
        /// Address of f32 `[experts]`.
        factors,
        /// Address of the live rows and live logits rows, two u32.
        live,
        /// Address of f32 routed rows; may be `x`.
        out,
        /// Elements of a row.
        width,
        /// Experts that a row uses.
        used,
        /// Bytes between rows of `x`.
        x_stride,
        /// Bytes between rows of `out`.
        out_stride,
    }
}

arguments! {
    /// Arguments of [`gate_rows`]. Template: `gate_rows`.
    pub struct GateArgs {
        /// Address of f32 rows.
        x,
        /// Address of rows of one f32.
        gate,
        /// Address of f32 rows; may be `x`.
        out,
        /// Elements of a row.
        width,
        /// Rows.
        rows,
        /// Bytes between rows of `x`.
        x_stride,
        /// Bytes between rows of `gate`.
        gate_stride,
        /// Bytes between rows of `out`.
        out_stride,
    }
}

arguments! {
    /// Arguments of [`sum`]. Template: `expert_sum`.
    pub struct SumArgs {
        /// Address of f32 routed rows.
        x,
        /// What [`route`] left.
        routes,
        /// Address of f32 `[experts]`, or 0: a factor of each expert's rows.
        factors,
        /// Address of the live rows and live logits rows, two u32.
        live,
        /// Address of f32 rows that are added first, or 0.
        first,
        /// Address of rows of one f32, or 0: the rows that are added first are multiplied by its logistic function.
        gate,
        /// Address of f32 rows that are added then, or 0.
        second,
        /// Address of f32 rows, or 0: nobody wants them as they are. May be one of those that are added.
        out,
        /// Address of f32 `[width]`; anything without a norm.
        norm_weight,
        /// Address of normalised rows in the kernel's form; anything without a norm.
        normed,
        /// Elements of a row.
        width,
        /// Experts that a row uses.
        used,
        /// Bytes between rows of `x`.
        x_stride,
        /// Bytes between rows of `first`.
        first_stride,
        /// Bytes between rows of `gate`.
        gate_stride,
        /// Bytes between rows of `second`.
        second_stride,
        /// Bytes between rows of `out`.
        out_stride,
        /// Bytes between rows of `normed`.
        normed_stride,
        /// Added to the mean square (f32).
        eps,
    }
}

/// Chooses the experts of every live row, largest logit first, of equal ones the first, what is not a number last, and
/// their weights: the softmax over all logits, or over those of the experts used where `of_used`; divided by their sum
/// where `normalise`. Then lists the routed rows by expert.
pub fn route(experts: usize, of_used: bool, normalise: bool) -> Kernel {
    let router = Router {
        experts,
        of_used,
        normalise,
        counts: COUNTS,
    };
    router.kernel(Share::Meets)
}

/// Thread blocks of [`route`] for a bucket of `rows` rows.
pub fn route_geometry(experts: usize, rows: usize) -> Geometry {
    route_blocks(experts, COUNTS, rows.div_ceil(ROUTE_ROWS))
}

/// The launches of a router in a bucket of `rows` rows on GPUs whose thread blocks do not see what others of their launch
/// leave; all of them take the same arguments. One thread block does all if it has a warp for every row.
pub fn route_apart(
    (experts, of_used, normalise): (usize, bool, bool),
    rows: usize,
    shared_bytes: usize,
) -> Vec<(Kernel, Geometry)> {
    let router = Router {
        experts,
        of_used,
        normalise,
        counts: COUNTS.min(shared_bytes / 4 - WORDS),
    };
    let blocks = rows.div_ceil(ROUTE_ROWS);
    let launch = |share, blocks| {
        let geometry = route_blocks(experts, router.counts, blocks);
        (router.kernel(share), geometry)
    };
    match blocks {
        1 => vec![launch(Share::Alone, 1)],
        _ => vec![launch(Share::Choices, blocks), launch(Share::Lists, 1)],
    }
}

/// What of a router's work a kernel does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Share {
    /// All of it, the lists by the thread block that ends last.
    Meets,
    /// All of it, by one thread block.
    Alone,
    Choices,
    /// By one thread block.
    Lists,
}

/// A router, and words of shared memory that it has for counts.
#[derive(Clone, Copy)]
struct Router {
    experts: usize,
    of_used: bool,
    normalise: bool,
    counts: usize,
}

impl Router {
    fn kernel(self, share: Share) -> Kernel {
        let Router {
            experts,
            of_used,
            normalise,
            counts,
        } = self;
        let weights = match (of_used, normalise) {
            (false, false) => "all",
            (false, true) => "all_normalised",
            (true, false) => "used",
            (true, true) => "used_normalised",
        };
        let name = match share {
            Share::Meets => format!("route_e{experts}_{weights}"),
            Share::Alone => format!("route_e{experts}_{weights}_alone"),
            Share::Choices => format!("route_e{experts}_{weights}_choices"),
            Share::Lists => format!("route_e{experts}_lists"),
        };
        let flag = Constant::Flag;
        Kernel {
            name,
            template: "route",
            constants: vec![
                ("experts", Constant::Int(experts as i64)),
                ("of_used", flag(of_used && share != Share::Lists)),
                ("normalise", flag(normalise && share != Share::Lists)),
                ("walkers", Constant::Int(walkers(experts, counts) as i64)),
                ("chooses", flag(share != Share::Lists)),
                ("lists", flag(share != Share::Choices)),
                ("meets", flag(share == Share::Meets)),
            ],
            threads: ROUTE_THREADS as u32,
        }
    }
}

/// Warps of the router that count routed rows, with words for so many counts.
const fn walkers(experts: usize, counts: usize) -> usize {
    let most = counts / experts;
    if most < ROUTE_ROWS { most } else { ROUTE_ROWS }
}

fn route_blocks(experts: usize, counts: usize, blocks: usize) -> Geometry {
    Geometry {
        grid: [blocks as u32, 1, 1],
        shared_bytes: ((WORDS + walkers(experts, counts) * experts) * 4) as u32,
    }
}

/// Counters of [`route`], bytes.
pub const ROUTE_COUNTERS: usize = 64;

/// Bytes that [`route`] moves: logits, choices twice, the order and the items.
pub fn route_bytes(routed: Routed, rows: usize) -> u64 {
    (rows * (routed.experts * 4 + routed.used * (2 * CHOICE + PLACE + ITEM))) as u64
}

/// Seconds of [`route`] besides its bytes: choices one after the other, routed rows row after row.
pub fn route_seconds(routed: Routed, rows: usize) -> f64 {
    const CHOICE_SECONDS: f64 = 0.12e-6;
    const ROW_SECONDS: f64 = 0.1e-6;
    let walked = rows.div_ceil(walkers(routed.experts, COUNTS));
    1.5e-6 + routed.used as f64 * CHOICE_SECONDS + walked as f64 * ROW_SECONDS
}

fn kernel(template: &'static str) -> Kernel {
    Kernel {
        name: template.into(),
        template,
        constants: vec![],
        threads: 128,
    }
}

/// Routed rows times the factors of their experts.
pub fn scale() -> Kernel {
    kernel("expert_scale")
}

/// Thread blocks of [`scale`].
pub fn scale_geometry(width: usize, routed: usize) -> Geometry {
    Geometry {
        grid: [super::rows::columns(width), routed as u32, 1],
        shared_bytes: 0,
    }
}

/// Rows times the logistic functions of their gates.
pub fn gate_rows() -> Kernel {
    kernel("gate_rows")
}

/// Thread blocks of [`gate_rows`].
pub fn gate_geometry(width: usize, rows: usize) -> Geometry {
    Geometry {
        grid: [super::rows::columns(width), rows as u32, 1],
        shared_bytes: 0,
    }
}

/// Every live row's routed rows of `width`, times their weights, by rank; then what is added to them. With `norm`, the RMS
/// norm of that besides, in that form.
pub fn sum(width: usize, norm: Option<ActForm>) -> Kernel {
    let threads = (width / VECTOR).next_power_of_two().clamp(64, 1024) as u32;
    let form = norm.map_or("none", ActForm::name);
    Kernel {
        name: format!("expert_sum_norm_{form}_t{threads}"),
        template: "expert_sum",
        constants: vec![
            ("normed", Constant::Flag(norm.is_some())),
            (
                "form",
                Constant::Word(norm.unwrap_or(ActForm::F32).name().into()),
            ),
        ],
        threads,
    }
}

/// Thread blocks of [`sum`].
pub fn sum_geometry(rows: usize) -> Geometry {
    Geometry {
        grid: [rows as u32, 1, 1],
        shared_bytes: 128 + MAX_USED as u32 * 4,
    }
}

/// Bytes that [`sum`] moves, with `added` rows besides.
pub fn sum_bytes(width: usize, rows: usize, used: usize, added: usize) -> u64 {
    (rows * width * 4 * (used + added + 2)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::metal::SHARED_BYTES;

    #[test]
    fn what_a_router_leaves_lies_apart_and_has_room() {
        for (rows, used) in [(1, 1), (3, 3), (33, 8), (1024, 64)] {
            let routes = Routes { rows, used };
            let starts = [
                routes.items(0),
                routes.items(1),
                routes.items(2),
                routes.order(),
            ];
            assert_eq!(starts[0], routes.routed() * CHOICE);
            assert!(
                starts
                    .windows(2)
                    .all(|w| w[1] == w[0] + routes.routed() * ITEM)
            );
            assert!(starts.iter().all(|s| s % 8 == 0));
            let end = routes.order() + routes.routed() * PLACE;
            assert!(end <= rows * Routes::stride(used));
        }
    }

    #[test]
    fn no_step_has_more_items_than_there_is_room_for() {
        for (experts, used) in [(1, 1), (4, 2), (8, 8), (5, 3)] {
            let routed = Routed { experts, used };
            for rows in [1, 2, 7, 40] {
                for stamp in [1, 2, 8] {
                    let most = routed.most_items(rows, stamp);
                    assert!(most <= rows * used);
                    // Rows whose experts are as different as can be, and as alike as can be.
                    for step in [0, 1, used] {
                        let mut counts = vec![0usize; experts];
                        for row in 0..rows {
                            (0..used).for_each(|rank| counts[(row * step + rank) % experts] += 1);
                        }
                        let items: usize = counts.iter().map(|c| c.div_ceil(stamp)).sum();
                        assert!(items <= most, "{items} items, room for {most}");
                    }
                    let (distinct, items) = routed.expected(rows, stamp);
                    assert!(distinct <= items + 1e-9 && items <= most as f64 + 1e-9);
                }
            }
        }
    }

    #[test]
    fn expectations_are_those_of_the_distribution() {
        let (distinct, items) = Routed {
            experts: 128,
            used: 8,
        }
        .expected(1, 8);
        assert!((distinct - 8.0).abs() < 1e-9 && (items - 8.0).abs() < 1e-9);
        let routed = Routed {
            experts: 32,
            used: 4,
        };
        let chances = crate::experts::rows_of_expert(100, 32, 4);
        let times = |f: fn(usize) -> f64| -> f64 {
            let each = chances.iter().enumerate().map(|(n, p)| p * f(n));
            32.0 * each.sum::<f64>()
        };
        let (distinct, items) = routed.expected(100, 8);
        assert!((distinct - times(|n| (n > 0) as u8 as f64)).abs() < 1e-6);
        assert!((items - times(|n| n.div_ceil(8) as f64)).abs() < 1e-6);
    }

    #[test]
    fn counts_fit_the_shared_memory_of_every_gpu() {
        for experts in [1, 8, 128, 256, 257, 512, MAX_EXPERTS] {
            let geometry = route_geometry(experts, 100);
            assert!(geometry.shared_bytes <= 48 << 10 && walkers(experts, COUNTS) >= 8);
            assert_eq!(geometry.grid, [4, 1, 1]);
            // Of one thread block, of several.
            for (rows, grids) in [(32, &[1][..]), (100, &[4, 1])] {
                let launches = route_apart((experts, false, true), rows, SHARED_BYTES as usize);
                let fits = |(_, g): &(Kernel, Geometry)| g.shared_bytes <= SHARED_BYTES;
                assert!(launches.iter().all(fits), "{experts} experts");
                let found = launches.iter().map(|(_, geometry)| geometry.grid[0]);
                assert!(found.eq(grids.iter().copied()));
            }
        }
    }
}
