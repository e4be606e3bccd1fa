//! Plots as SVG: horizontal bars with whiskers, or dots where the scale is logarithmic. Every bar has its name and its
//! value as text, so that colours are of help only.

use std::fmt::Write as _;

use super::{
    number,
    plots::{Bar, Plot},
};

const WIDTH: f64 = 820.0;
/// Where bars begin, and the most to which whiskers reach.
const LEFT: f64 = 210.0;
const RIGHT: f64 = 660.0;
const MARGIN: f64 = 20.0;

const HEAD: f64 = 64.0;
const PART_HEAD: f64 = 26.0;
const ROW: f64 = 22.0;
const BAR: f64 = 14.0;
const PART_GAP: f64 = 10.0;
const FOOT: f64 = 40.0;

/// So much more is the largest than the smallest, and it is drawn by powers of ten.
const WIDE: f64 = 50.0;

/// After Okabe and Ito: told apart with any kind of colour vision, on white and on black.
const COLOURS: [&str; 8] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c8c", "#b8a900",
];

const STYLE: &str = "\
.paper{fill:#ffffff;stroke:#d0d7de}\
text{fill:#1f2328;font:13px system-ui,-apple-system,\"Segoe UI\",sans-serif}\
.title{font-size:16px;font-weight:600}\
.part{font-weight:600}\
.faint{fill:#59636e;font-size:12px}\
.grid{stroke:#d0d7de}\
.whisker{stroke:#1f2328;stroke-width:1.5;fill:none}\
@media(prefers-color-scheme:dark){\
.paper{fill:#0d1117;stroke:#3d444d}\
text{fill:#f0f6fc}\
.faint{fill:#9198a1}\
.grid{stroke:#3d444d}\
.whisker{stroke:#f0f6fc}\
}";

/// From values to places.
enum Scale {
    Linear { max: f64 },
    Logarithmic { min: f64, max: f64 },
}

pub(super) fn draw(plot: &Plot) -> String {
    let scale = Scale::of(plot);
    let rows: usize = plot.parts.iter().map(|part| part.bars.len()).sum();
    let body = plot.parts.len() as f64 * (PART_HEAD + PART_GAP) + rows as f64 * ROW;
    let height = HEAD + body + FOOT;
    let title = escaped(&plot.title);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"6\"/>\n",
        WIDTH - 1.0,
        height - 1.0
    );
    text(&mut svg, MARGIN, 30.0, "title", "start", &plot.title);
    let logarithmic = match scale {
        Scale::Linear { .. } => "",
        Scale::Logarithmic { .. } => "; logarithmic scale",
    };
    let axis = format!(
        "{}; median, and from the least to the most of all rounds{logarithmic}",
        plot.axis
    );
    text(
        &mut svg,
        MARGIN,
        49.0,
        "faint",
        "start",
        axis.trim_start_matches("; "),
    );

    for tick in scale.ticks() {
        let x = scale.place(tick);
        let (top, bottom) = (HEAD, HEAD + body);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>"
        );
        text(&mut svg, x, bottom + 18.0, "faint", "middle", &number(tick));
    }
    let mut y = HEAD;
    for part in &plot.parts {
        text(&mut svg, MARGIN, y + 17.0, "part", "start", &part.title);
        y += PART_HEAD;
        for bar in &part.bars {
            draw_bar(&mut svg, &scale, bar, y);
            y += ROW;
        }
        y += PART_GAP;
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_bar(svg: &mut String, scale: &Scale, bar: &Bar, y: f64) {
    let colour = COLOURS[bar.colour % COLOURS.len()];
    let middle = y + ROW / 2.0;
    text(
        svg,
        LEFT - 8.0,
        middle + 4.5,
        "",
        "end",
        &shortened(&bar.contestant, 28),
    );
    let [from, at, to] = [bar.spread.min, bar.spread.median, bar.spread.max].map(|value| scale.place(value));
    match scale {
        Scale::Linear { .. } => {
            let (top, width) = (middle - BAR / 2.0, at - LEFT);
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{colour}\"/>"
            );
        }
        Scale::Logarithmic { .. } => {
            let _ = writeln!(
                svg,
                "<circle cx=\"{at:.1}\" cy=\"{middle:.1}\" r=\"5\" fill=\"{colour}\"/>"
            );
        }
    }
    let (above, below) = (middle - 4.0, middle + 4.0);
    let _ = writeln!(
        svg,
        "<path class=\"whisker\" d=\"M{from:.1} {middle:.1}H{to:.1}M{from:.1} {above:.1}V{below:.1}\
         M{to:.1} {above:.1}V{below:.1}\"/>"
    );
    text(
        svg,
        to.max(at) + 9.0,
        middle + 4.5,
        "faint",
        "start",
        &bar.spread.to_string(),
    );
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{}</text>",
        escaped(text)
    );
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most - 1).collect();
    format!("{kept}…")
}

/// As XML wants it in texts and in attributes, without what it does not allow at all.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            _ if char.is_control() => escaped.push(' '),
            _ => escaped.push(char),
        }
    }
    escaped
}

impl Scale {
    fn of(plot: &Plot) -> Self {
        let bars = || plot.parts.iter().flat_map(|part| &part.bars);
        let max = bars().map(|bar| bar.spread.max).fold(0.0, f64::max);
        let medians = || bars().map(|bar| bar.spread.median);
        let least = medians().fold(f64::INFINITY, f64::min);
        let most = medians().fold(0.0, f64::max);
        let min = bars().map(|bar| bar.spread.min).fold(f64::INFINITY, f64::min);
        if min > 0.0 && most / least > WIDE {
            Self::Logarithmic {
                min: 10_f64.powf(min.log10().floor()),
                max: 10_f64.powf(max.log10().ceil()),
            }
        } else {
            Self::Linear { max }
        }
    }

    fn place(&self, value: f64) -> f64 {
        let part = match self {
            Self::Linear { max } => value / max,
            Self::Logarithmic { min, max } => (value / min).ln() / (max / min).ln(),
        };
        LEFT + part.clamp(0.0, 1.0) * (RIGHT - LEFT)
    }

    fn ticks(&self) -> Vec<f64> {
        match self {
            Self::Linear { max } => {
                // One, two or five of a power of ten, so that there are three to six.
                let power = 10_f64.powf((max / 3.0).log10().floor());
                let steps = [5.0, 2.0, 1.0].map(|step| step * power);
                let step = steps.into_iter().find(|step| max / step >= 3.0).unwrap_or(power);
                (0..)
                    .map(|count| f64::from(count) * step)
                    .take_while(|tick| tick <= max)
                    .collect()
            }
            Self::Logarithmic { min, max } => {
                let mut ticks: Vec<f64> = std::iter::successors(Some(*min), |tick| Some(tick * 10.0))
                    .take_while(|tick| *tick <= max * 1.001)
                    .collect();
                // No more than there is room for.
                let every = ticks.len().div_ceil(8).max(1);
                let mut number = 0;
                ticks.retain(|_| {
                    number += 1;
                    (number - 1) % every == 0
                });
                ticks
            }
        }
    }
}
