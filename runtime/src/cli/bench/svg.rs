//! Decode speed over the batch as a picture: measured, predicted, and what the memory bandwidth allows. One SVG file
//! without scripts, fonts or links, on a background of its own that follows the reader's light or dark theme. Where
//! things go is decided here; nothing is measured.

#[cfg(test)]
mod tests;
mod xml;

use super::cliffs::Cliff;
use super::{Measurement, per};
use crate::manifest::{ModelCard, Stage, TargetPlan};
use xml::Xml;

/// What is drawn.
pub(super) struct Picture<'a> {
    /// Name of the bundle's file, without its extension.
    pub(super) file: &'a str,
    pub(super) model: &'a ModelCard,
    pub(super) plan: &'a TargetPlan,
    pub(super) max_batch: u32,
    /// All of one prompt and one generated length.
    pub(super) results: &'a [Measurement],
    /// One per result.
    pub(super) cliffs: &'a [Option<Cliff>],
    /// Bytes per second.
    pub(super) bandwidth: f64,
}

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 540.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 800.0;
const TOP: f64 = 104.0;
const BOTTOM: f64 = 468.0;

/// Colours by role; dark ones replace them where the reader's theme is dark.
const STYLE: &str = "
.paper{fill:#ffffff}.ink{fill:#1f2328}.soft{fill:#59636e}.grid{stroke:#d8dee4}.axis{stroke:#8c959f}
.measured{stroke:#0969da}.measured-ink{fill:#0969da}.predicted{stroke:#9a6700}.predicted-ink{fill:#9a6700}
.ceiling{stroke:#57606a}.cliff{stroke:#cf222e}.cliff-ink{fill:#cf222e}
text{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif}
@media (prefers-color-scheme:dark){
.paper{fill:#0d1117}.ink{fill:#e6edf3}.soft{fill:#9198a1}.grid{stroke:#262c36}.axis{stroke:#6e7681}
.measured{stroke:#58a6ff}.measured-ink{fill:#58a6ff}.predicted{stroke:#d29922}.predicted-ink{fill:#d29922}
.ceiling{stroke:#9198a1}.cliff{stroke:#ff7b72}.cliff-ink{fill:#ff7b72}}
";

/// The picture as an SVG document.
pub(super) fn draw(picture: &Picture<'_>) -> String {
    let mut points: Vec<(f64, f64)> = Vec::new();
    let mut ceiling: Vec<(f64, f64)> = Vec::new();
    let mut results: Vec<&Measurement> = picture.results.iter().collect();
    results.sort_by_key(|m| m.batch);
    for m in &results {
        let batch = f64::from(m.batch);
        let achieved = per(m.decode_bytes, m.decode);
        points.push((batch, m.speed()));
        if achieved > 0.0 && picture.bandwidth > 0.0 {
            ceiling.push((batch, m.speed() * picture.bandwidth / achieved));
        }
    }
    let predicted: Vec<(f64, f64)> = (1..=picture.max_batch)
        .filter_map(|b| Some((f64::from(b), predicted(picture.plan, b)?)))
        .collect();
    let last = |line: &[(f64, f64)]| line.last().map_or(1.0, |p| p.0);
    let right = last(&points).max(last(&predicted)).max(2.0);
    let highest = |line: &[(f64, f64)]| line.iter().map(|p| p.1).fold(0.0, f64::max);
    let top = 1.18 * highest(&points).max(highest(&predicted)).max(1e-3);
    let axes = Axes { right, top };

    let mut xml = Xml::svg(WIDTH, HEIGHT);
    xml.raw(&format!("<style>{STYLE}</style>"));
    xml.raw(&format!(
        "<rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"8\"/>"
    ));
    heading(&mut xml, picture, results.first().copied());
    axes.draw(&mut xml);
    let over = axes.clip(&ceiling);
    xml.line(&axes.place(&over), "ceiling", "1.5", "2 5");
    xml.line(&axes.place(&predicted), "predicted", "2", "7 5");
    xml.line(&axes.place(&points), "measured", "3", "");
    dots(&mut xml, &axes, &points, picture.cliffs);
    labels(&mut xml, &axes, &points, &predicted);
    ceiling_label(&mut xml, &axes, &over, picture.bandwidth);
    xml.end()
}

/// Tokens per second that the plan expects of `batch` sequences: of the cheapest programs that hold them.
fn predicted(plan: &TargetPlan, batch: u32) -> Option<f64> {
    let cheapest = |stage| {
        let own = plan.programs.iter().filter(|p| p.stage == stage);
        let seconds = own.filter(|p| p.rows >= batch).map(|p| p.predicted_seconds);
        seconds.min_by(f64::total_cmp)
    };
    let seconds = cheapest(Stage::Trunk)? + cheapest(Stage::Head)?;
    let speed = f64::from(batch) / seconds;
    (speed.is_finite() && speed > 0.0).then_some(speed)
}

/// From batch and tokens per second to the picture; both axes start at 0.
struct Axes {
    right: f64,
    top: f64,
}

impl Axes {
    fn x(&self, batch: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * batch / self.right
    }

    fn y(&self, speed: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * speed / self.top
    }

    fn place(&self, line: &[(f64, f64)]) -> Vec<(f64, f64)> {
        line.iter().map(|&(b, s)| (self.x(b), self.y(s))).collect()
    }

    /// `line` up to where it leaves the picture at the top.
    fn clip(&self, line: &[(f64, f64)]) -> Vec<(f64, f64)> {
        let mut inside: Vec<(f64, f64)> = Vec::new();
        let mut before = (0.0, 0.0);
        for &(b, s) in line {
            if s > self.top {
                let share = (self.top - before.1) / (s - before.1);
                inside.push((before.0 + (b - before.0) * share, self.top));
                break;
            }
            inside.push((b, s));
            before = (b, s);
        }
        inside
    }

    fn draw(&self, xml: &mut Xml) {
        let step = nice(self.top / 6.0);
        for i in 0..=(self.top / step) as u32 {
            let speed = f64::from(i) * step;
            let y = self.y(speed);
            let class = if i == 0 { "axis" } else { "grid" };
            xml.line(&[(LEFT, y), (RIGHT, y)], class, "1", "");
            let text = if step < 1.0 {
                format!("{speed:.2}")
            } else {
                format!("{speed:.0}")
            };
            xml.text((LEFT - 10.0, y + 4.5), "soft", "13", "end", &text);
        }
        let step = nice(self.right / 16.0).max(1.0);
        let mut ticks: Vec<f64> = vec![1.0];
        ticks.extend((1..=(self.right / step) as u32).map(|i| f64::from(i) * step));
        ticks.dedup();
        for batch in ticks {
            let x = self.x(batch);
            xml.line(&[(x, BOTTOM), (x, BOTTOM + 5.0)], "axis", "1", "");
            xml.text(
                (x, BOTTOM + 22.0),
                "soft",
                "13",
                "middle",
                &format!("{batch:.0}"),
            );
        }
        let middle = f64::midpoint(LEFT, RIGHT);
        let below = (middle, HEIGHT - 22.0);
        xml.text(
            below,
            "soft",
            "14",
            "middle",
            "sequences decoded together (B)",
        );
        let above = (LEFT - 48.0, TOP - 14.0);
        xml.text(
            above,
            "soft",
            "14",
            "start",
            "tokens per second, all sequences",
        );
    }
}

/// 1, 2 or 5 times a power of ten, at least `step`.
fn nice(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|f| f * power >= step * 0.999);
    factor.unwrap_or(10.0) * power
}

fn heading(xml: &mut Xml, picture: &Picture<'_>, first: Option<&Measurement>) {
    let ModelCard {
        name,
        parameters,
        source_bytes,
        ..
    } = picture.model;
    let mut title = short(if name.is_empty() { picture.file } else { name }, 44);
    if !name.is_empty() && name != picture.file {
        title += &format!(" ({})", short(picture.file, 32));
    }
    xml.text((LEFT - 48.0, 38.0), "ink", "21", "start", &title);
    let mut facts = Vec::new();
    if *parameters > 0 {
        let (count, bytes) = (*parameters as f64, *source_bytes as f64);
        facts.push(match count {
            n if n >= 1e9 => format!("{:.1} G parameters", n / 1e9),
            n => format!("{:.1} M parameters", n / 1e6),
        });
        facts.push(format!("{:.1} bits per weight", bytes * 8.0 / count));
    }
    if let Some(m) = first {
        let context = m.prompt.saturating_add(m.depth);
        facts.push(format!("{} tokens after {context} of context", m.generated));
    }
    let cpu = cpu_name().unwrap_or_else(|| picture.plan.requires.target.clone());
    facts.push(format!(
        "{}, {} threads",
        short(&cpu, 48),
        picture.plan.workers
    ));
    let facts = facts.join(" \u{b7} ");
    xml.text((LEFT - 48.0, 62.0), "soft", "14", "start", &facts);
    let brand = (WIDTH - 24.0, HEIGHT - 22.0);
    xml.text(brand, "soft", "13", "end", "coldpress bench");
}

/// What the processor calls itself, where the system tells.
fn cpu_name() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}

/// At most `most` characters.
fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most - 1).collect();
    format!("{}\u{2026}", kept.trim_end())
}

/// A dot per measured batch, ringed where it is slower than a smaller one; the deepest such says so, and so does the
/// fastest batch unless it is the last.
fn dots(xml: &mut Xml, axes: &Axes, points: &[(f64, f64)], cliffs: &[Option<Cliff>]) {
    let cliffs: Vec<&Cliff> = cliffs.iter().flatten().collect();
    for &(batch, speed) in points {
        let at = (axes.x(batch), axes.y(speed));
        if cliffs.iter().any(|c| f64::from(c.batch) == batch) {
            xml.ring(at, "cliff");
        }
        xml.dot(
            at,
            "measured-ink",
            if points.len() > 64 { 2.0 } else { 3.5 },
        );
    }
    let best = points.iter().max_by(|a, b| a.1.total_cmp(&b.1));
    if let Some(&(batch, speed)) = best.filter(|&best| points.last() != Some(best)) {
        let at = (axes.x(batch), axes.y(speed) - 13.0);
        let text = format!("{} at B={batch:.0}", digits(speed));
        xml.text(at, "measured-ink", "13", "middle", &text);
    }
    let worst = cliffs.iter().max_by(|a, b| a.share().total_cmp(&b.share()));
    if let Some(worst) = worst {
        let at = (axes.x(f64::from(worst.batch)), axes.y(worst.speed) + 24.0);
        let text = format!(
            "B={}: {:.0} % below B={}",
            worst.batch,
            worst.share() * 100.0,
            worst.smaller
        );
        let end = if at.0 > RIGHT - 90.0 { "end" } else { "middle" };
        xml.text(at, "cliff-ink", "13", end, &text);
    }
}

/// Names at the right end of the curves, apart from each other.
fn labels(xml: &mut Xml, axes: &Axes, points: &[(f64, f64)], predicted: &[(f64, f64)]) {
    let named = [
        ("measured", "measured-ink", "600", points.last()),
        ("predicted", "predicted-ink", "400", predicted.last()),
    ];
    let mut ends: Vec<_> = named
        .into_iter()
        .filter_map(|(name, class, weight, end)| Some((name, class, weight, *end?)))
        .collect();
    ends.sort_by(|a, b| b.3.1.total_cmp(&a.3.1));
    let mut free = TOP;
    for (name, class, weight, (batch, speed)) in ends {
        let y = (axes.y(speed) + 4.5).max(free).min(BOTTOM - 18.0);
        free = y + 40.0;
        let x = axes.x(batch) + 12.0;
        xml.bold((x, y), class, weight, name);
        let value = format!("{} tok/s at B={batch:.0}", digits(speed));
        xml.text((x, y + 17.0), class, "13", "start", &value);
    }
}

fn ceiling_label(xml: &mut Xml, axes: &Axes, over: &[(f64, f64)], bandwidth: f64) {
    let Some(&(batch, speed)) = over.last() else {
        return;
    };
    let (x, y) = (axes.x(batch), axes.y(speed));
    let text = format!("memory bandwidth ceiling, {:.1} GB/s", bandwidth / 1e9);
    // A steep line has room to its right under the top; one that ends inside has it above.
    let (at, anchor) = if x < f64::midpoint(LEFT, RIGHT) {
        ((x + 10.0, y + 13.0), "start")
    } else {
        ((x - 10.0, y - 8.0), "end")
    };
    xml.text(at, "soft", "13", anchor, &text);
}

fn digits(speed: f64) -> String {
    if speed < 100.0 {
        format!("{speed:.1}")
    } else {
        format!("{speed:.0}")
    }
}
