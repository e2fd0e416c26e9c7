//! The few SVG elements a chart is made of. Every text is escaped here, and every number finite.

use std::fmt::Write;

/// A document under construction.
pub(super) struct Xml(String);

impl Xml {
    pub(super) fn svg(width: f64, height: f64) -> Self {
        Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n"
        ))
    }

    /// Markup of the caller's own making.
    pub(super) fn raw(&mut self, markup: &str) {
        let _ = writeln!(self.0, "{markup}");
    }

    /// A line through `points`; `dashes` as in SVG, empty for none. Points that are no numbers are left out.
    pub(super) fn line(&mut self, points: &[(f64, f64)], class: &str, width: &str, dashes: &str) {
        let finite = |p: &&(f64, f64)| p.0.is_finite() && p.1.is_finite();
        let points: Vec<String> = points
            .iter()
            .filter(finite)
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        if points.is_empty() {
            return;
        }
        let dashes = match dashes {
            "" => String::new(),
            dashes => format!(" stroke-dasharray=\"{dashes}\""),
        };
        self.raw(&format!(
            "<polyline class=\"{class}\" fill=\"none\" stroke-width=\"{width}\" stroke-linejoin=\"round\"{dashes} points=\"{}\"/>",
            points.join(" ")
        ));
    }

    pub(super) fn dot(&mut self, at: (f64, f64), class: &str, radius: f64) {
        self.circle(at, &format!("class=\"{class}\" r=\"{radius}\""));
    }

    pub(super) fn ring(&mut self, at: (f64, f64), class: &str) {
        self.circle(
            at,
            &format!("class=\"{class}\" fill=\"none\" stroke-width=\"2\" r=\"8\""),
        );
    }

    fn circle(&mut self, (x, y): (f64, f64), attributes: &str) {
        if x.is_finite() && y.is_finite() {
            self.raw(&format!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" {attributes}/>"
            ));
        }
    }

    /// Text at its baseline; `anchor` is `start`, `middle` or `end`.
    pub(super) fn text(
        &mut self,
        at: (f64, f64),
        class: &str,
        size: &str,
        anchor: &str,
        text: &str,
    ) {
        let font = format!("font-size=\"{size}\" text-anchor=\"{anchor}\"");
        self.write(at, class, &font, text);
    }

    pub(super) fn bold(&mut self, at: (f64, f64), class: &str, weight: &str, text: &str) {
        let font = format!("font-size=\"15\" font-weight=\"{weight}\"");
        self.write(at, class, &font, text);
    }

    fn write(&mut self, (x, y): (f64, f64), class: &str, font: &str, text: &str) {
        if x.is_finite() && y.is_finite() {
            self.raw(&format!(
                "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" {font}>{}</text>",
                escape(text)
            ));
        }
    }

    pub(super) fn end(mut self) -> String {
        self.raw("</svg>");
        self.0
    }
}

/// Text as XML content: markup escaped, characters that XML cannot hold replaced.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => out.push(' '),
            '\0'..'\u{20}' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => {
                out.push(char::REPLACEMENT_CHARACTER);
            }
            c => out.push(c),
        }
    }
    out
}

/// Panics unless `document` is what this file can write and well-formed: tags that match, attributes in quotes, text
/// without stray markup, no character outside XML's.
#[cfg(test)]
pub(super) fn check(document: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = document;
    while let Some((text, tail)) = rest.split_once('<') {
        check_text(text);
        let (tag, tail) = tail.split_once('>').expect("a tag ends");
        rest = tail;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "the tag that was opened last");
            continue;
        }
        let (tag, closed) = tag
            .strip_suffix('/')
            .map_or((tag, false), |tag| (tag, true));
        let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase()),
            "{name}"
        );
        while let Some((key, value)) = attributes.trim_start().split_once("=\"") {
            assert!(
                key.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-'),
                "{key}"
            );
            let (value, tail) = value.split_once('"').expect("a value ends");
            assert!(!value.contains("NaN") && !value.contains("inf"), "{value}");
            check_text(value);
            attributes = tail;
        }
        assert_eq!(attributes.trim(), "", "after the attributes of {name}");
        if !closed {
            open.push(name);
        }
    }
    check_text(rest);
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?}");
}

#[cfg(test)]
fn check_text(text: &str) {
    let allowed = |c: char| c >= ' ' || matches!(c, '\n' | '\t' | '\r');
    assert!(
        text.chars()
            .all(|c| allowed(c) && !matches!(c, '\u{fffe}' | '\u{ffff}'))
    );
    for (_, entity) in text.match_indices('&').map(|(i, _)| text.split_at(i)) {
        let known = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"];
        assert!(known.iter().any(|k| entity.starts_with(k)), "{entity}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(
            escape("a<b>&\"'\u{1}\n"),
            "a&lt;b&gt;&amp;&quot;&#39;\u{fffd} "
        );
        let mut xml = Xml::svg(10.0, 10.0);
        xml.text((1.0, 2.0), "ink", "12", "end", "<x>&amp;");
        xml.text((f64::NAN, 2.0), "ink", "12", "end", "nowhere");
        xml.line(
            &[(0.0, 1.0), (f64::INFINITY, 2.0), (3.0, 4.0)],
            "grid",
            "1",
            "2 2",
        );
        let document = xml.end();
        check(&document);
        assert!(document.contains("&lt;x&gt;&amp;amp;") && !document.contains("nowhere"));
        assert!(document.contains("points=\"0.0,1.0 3.0,4.0\""));
    }

    #[test]
    fn the_check_can_fail() {
        for broken in [
            "<a>",
            "<a></b>",
            "<a x=1/>",
            "<a>&nope;</a>",
            "</a>",
            "<a/>\u{1}",
        ] {
            let refused = std::panic::catch_unwind(|| check(broken)).is_err();
            assert!(refused, "{broken}");
        }
        check("<a x=\"1\"><b/>text &amp; more</a>");
    }
}
