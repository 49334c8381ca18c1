//! Charts as SVG, drawn by hand: points with error bars, bars with error bars, lines. Colours come from the page's style sheet.

use super::table::number;
use std::fmt::Write;

/// Sizes of a chart, and room for its scales, in units of the drawing.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 48.0;
/// Height of a line of text.
const LINE: f64 = 14.0;
/// Width of a letter, about.
const LETTER: f64 = 6.6;
/// Colours that the style sheet has.
pub const COLOURS: usize = 10;

/// A figure with the ends of its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// Lower end.
    pub low: f64,
    /// The figure.
    pub value: f64,
    /// Upper end.
    pub high: f64,
}

impl Figure {
    /// One that is known exactly.
    pub fn exact(value: f64) -> Figure {
        Figure { low: value, value, high: value }
    }
}

/// A named point.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its name.
    pub name: String,
    /// Which colour.
    pub colour: usize,
    /// Across.
    pub x: Figure,
    /// Upwards.
    pub y: Figure,
}

/// A line under the points, and perhaps a band around it.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Which colour.
    pub colour: usize,
    /// Its places.
    pub line: Vec<[f64; 2]>,
    /// Across, lower and upper end.
    pub band: Vec<[f64; 3]>,
    /// Drawn in dashes.
    pub is_dashed: bool,
    /// Written at its end.
    pub name: String,
}

/// A scale.
#[derive(Clone, Debug)]
pub struct Axis {
    title: String,
    low: f64,
    high: f64,
    is_log: bool,
}

impl Axis {
    /// Holds all figures with room to either side; by powers of ten if `is_log`, for figures above zero.
    pub fn of(title: &str, figures: &[Figure], is_log: bool) -> Axis {
        let ends = figures.iter().flat_map(|f| [f.low, f.value, f.high]);
        let ends = ends.filter(|x| x.is_finite() && (!is_log || *x > 0.0));
        let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), x| (l.min(x), h.max(x)));
        let (low, high) = if low <= high { (low, high) } else { (1.0, 1.0) };
        let (low, high) = match is_log {
            true => ((low.log10() - 0.1).max(-300.0), high.log10() + 0.1),
            false => {
                let room = if high > low { 0.08 * (high - low) } else { 0.05 * high.abs().max(1e-9) };
                (low - room, high + room)
            }
        };
        Axis { title: title.to_string(), low, high, is_log }
    }

    /// The same from zero on.
    pub fn rooted(self) -> Axis {
        Axis { low: 0.0, ..self }
    }

    /// Where a figure lies, from 0 to 1.
    fn at(&self, x: f64) -> f64 {
        let x = if self.is_log { x.max(1e-300).log10() } else { x };
        ((x - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Figures to write beside the scale.
    fn ticks(&self) -> Vec<f64> {
        if self.is_log {
            let decades = (self.low.ceil() as i32)..=(self.high.floor() as i32);
            if decades.clone().count() >= 2 {
                return decades.map(|power| 10f64.powi(power)).collect();
            }
            let around = (self.low.floor() as i32)..=(self.high.ceil() as i32);
            let of = |power: i32| [1.0, 2.0, 3.0, 5.0, 7.0].map(|digit| digit * 10f64.powi(power));
            return around.flat_map(of).filter(|x| (self.low..=self.high).contains(&x.log10())).collect();
        }
        let rough = (self.high - self.low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
        let first = (self.low / step).ceil() as i64;
        (first..=(self.high / step).floor() as i64).take(12).map(|n| n as f64 * step).collect()
    }
}

/// A figure beside a scale, without zeros that say nothing.
fn ticked(x: f64) -> String {
    if x.abs() >= 1e5 {
        return format!("{x:e}");
    }
    let text = number(x);
    let (digits, power) = text.split_once('e').map_or((text.as_str(), None), |(d, p)| (d, Some(p)));
    let short =
        if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
    power.map_or(short.to_string(), |power| format!("{short}e{power}"))
}

/// Text that stands for itself in HTML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Somewhere to draw.
struct Sheet {
    text: String,
}

impl Sheet {
    fn new(describe: &str) -> Sheet {
        let describe = escaped(describe);
        let text = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{describe}\">\n<title>{describe}</title>\n"
        );
        Sheet { text }
    }

    fn line(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
        let _ = writeln!(
            self.text,
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        );
    }

    fn words(&mut self, class: &str, [x, y]: [f64; 2], text: &str) {
        let _ =
            writeln!(self.text, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escaped(text));
    }

    /// The scale on the left, with lines across.
    fn upright(&mut self, axis: &Axis) {
        for tick in axis.ticks() {
            let y = up(axis, tick);
            self.line("grid", [LEFT, y], [WIDTH - RIGHT, y]);
            self.words("end", [LEFT - 6.0, y + 4.0], &ticked(tick));
        }
        let middle = (TOP + HEIGHT - BOTTOM) / 2.0;
        let _ = writeln!(
            self.text,
            "<text class=\"middle name\" transform=\"translate(14 {middle:.1}) rotate(-90)\">{}</text>",
            escaped(&axis.title)
        );
    }

    fn trace(&mut self, x: &Axis, y: &Axis, trace: &Trace) {
        let class = format!("c{}", trace.colour % COLOURS);
        let path = |places: &mut dyn Iterator<Item = [f64; 2]>| {
            let place = |[px, py]: [f64; 2]| format!("{:.1},{:.1}", across(x, px), up(y, py));
            places.map(place).collect::<Vec<_>>().join(" ")
        };
        if !trace.band.is_empty() {
            let lower = trace.band.iter().map(|&[x, low, _]| [x, low]);
            let upper = trace.band.iter().rev().map(|&[x, _, high]| [x, high]);
            let around = path(&mut lower.chain(upper));
            let _ = writeln!(self.text, "<polygon class=\"{class}\" points=\"{around}\"/>");
        }
        let dashed = if trace.is_dashed { " dashed" } else { "" };
        let line = path(&mut trace.line.iter().copied());
        let _ = writeln!(self.text, "<polyline class=\"{class}{dashed}\" points=\"{line}\"/>");
        if let Some(&[end_x, end_y]) = trace.line.last().filter(|_| !trace.name.is_empty()) {
            let (at_x, at_y) = (across(x, end_x), up(y, end_y) - 5.0);
            match at_x < WIDTH / 2.0 {
                true => self.words("name", [at_x + 4.0, at_y], &trace.name),
                false => self.words("end", [at_x - 4.0, at_y], &trace.name),
            }
        }
    }

    fn title_below(&mut self, title: &str) {
        self.words("middle name", [(LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 8.0], title);
    }

    fn done(self) -> String {
        self.text + "</svg>\n"
    }
}

fn across(axis: &Axis, x: f64) -> f64 {
    LEFT + axis.at(x) * (WIDTH - LEFT - RIGHT)
}

fn up(axis: &Axis, y: f64) -> f64 {
    HEIGHT - BOTTOM - axis.at(y) * (HEIGHT - TOP - BOTTOM)
}

/// Points with their names and error bars.
pub fn scatter(describe: &str, x: &Axis, y: &Axis, points: &[Point]) -> String {
    plot(describe, x, y, &[], points)
}

/// The same over lines and bands.
pub fn plot(describe: &str, x: &Axis, y: &Axis, traces: &[Trace], points: &[Point]) -> String {
    let mut sheet = Sheet::new(describe);
    sheet.upright(y);
    for tick in x.ticks() {
        let at = across(x, tick);
        sheet.line("grid", [at, TOP], [at, HEIGHT - BOTTOM]);
        sheet.words("middle", [at, HEIGHT - BOTTOM + LINE + 2.0], &ticked(tick));
    }
    sheet.title_below(&x.title);
    traces.iter().for_each(|trace| sheet.trace(x, y, trace));
    let mut taken: Vec<[f64; 4]> =
        points.iter().map(|p| around(across(x, p.x.value), up(y, p.y.value))).collect();
    for point in points {
        let (cx, cy) = (across(x, point.x.value), up(y, point.y.value));
        let class = format!("c{}", point.colour % COLOURS);
        sheet.line(&class, [across(x, point.x.low), cy], [across(x, point.x.high), cy]);
        sheet.line(&class, [cx, up(y, point.y.low)], [cx, up(y, point.y.high)]);
        let told = format!("{}: {} / {}", point.name, number(point.x.value), number(point.y.value));
        let _ = writeln!(
            sheet.text,
            "<circle class=\"{class}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"5\"><title>{}</title></circle>",
            escaped(&told)
        );
        let place = free_place(&mut taken, cx, cy - 9.0, point.name.chars().count() as f64 * LETTER, true);
        sheet.words("label", place, &point.name);
    }
    sheet.done()
}

/// The room that a point takes.
fn around(x: f64, y: f64) -> [f64; 4] {
    [x - 6.0, y - 6.0, x + 6.0, y + 6.0]
}

/// Where a name beside a point covers nothing: right of it, left if it may, above, below, then further away.
fn free_place(taken: &mut Vec<[f64; 4]>, x: f64, y: f64, width: f64, both_sides: bool) -> [f64; 2] {
    let room = |[x, y]: [f64; 2]| [x, y - LINE + 3.0, x + width, y + 3.0];
    let steps = [0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0];
    let places = steps.iter().flat_map(|step| {
        let y = y + 4.0 + step * LINE;
        [[x + 9.0, y], [if both_sides { x - 9.0 - width } else { x + 9.0 }, y]]
    });
    let is_free = |place: &[f64; 2]| {
        let [x1, y1, x2, y2] = room(*place);
        let inside = x1 >= LEFT && x2 <= WIDTH && y1 >= 0.0 && y2 <= HEIGHT - BOTTOM + 4.0;
        inside && taken.iter().all(|&[a1, b1, a2, b2]| x2 <= a1 || a2 <= x1 || y2 <= b1 || b2 <= y1)
    };
    let place = places.into_iter().find(is_free).unwrap_or([x + 9.0, y + 4.0]);
    taken.push(room(place));
    place
}

/// Bars from zero, each with its name below and its interval.
pub fn bars(describe: &str, y: &Axis, bars: &[(String, usize, Figure)]) -> String {
    let mut sheet = Sheet::new(describe);
    sheet.upright(y);
    let each = (WIDTH - LEFT - RIGHT) / bars.len().max(1) as f64;
    for (number_of, (name, colour, figure)) in bars.iter().enumerate() {
        let class = format!("c{}", colour % COLOURS);
        let middle = LEFT + (number_of as f64 + 0.5) * each;
        let (top, width) = (up(y, figure.value), (0.7 * each).min(60.0));
        let _ = writeln!(
            sheet.text,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{:.1}\"><title>{}: {}</title></rect>",
            middle - width / 2.0,
            HEIGHT - BOTTOM - top,
            escaped(name),
            number(figure.value)
        );
        sheet.line("whisker", [middle, up(y, figure.low)], [middle, up(y, figure.high)]);
        for end in [figure.low, figure.high] {
            sheet.line("whisker", [middle - 4.0, up(y, end)], [middle + 4.0, up(y, end)]);
        }
        // Two heights, so that long names do not meet.
        let is_tight = name.chars().count() as f64 * LETTER > each;
        let below = if is_tight && number_of % 2 == 1 { 2.0 * LINE } else { LINE };
        sheet.words("middle", [middle, HEIGHT - BOTTOM + below + 2.0], name);
    }
    sheet.done()
}

/// One line a name over numbered places, with dots.
pub fn lines(describe: &str, below: &str, y: &Axis, lines: &[(String, usize, Vec<f64>)]) -> String {
    let mut sheet = Sheet::new(describe);
    sheet.upright(y);
    sheet.title_below(below);
    let count = lines.iter().map(|line| line.2.len()).max().unwrap_or(0);
    let room = LETTER * lines.iter().map(|line| line.0.chars().count()).max().unwrap_or(0) as f64 + 12.0;
    let at = |n: usize| {
        let share = if count > 1 { n as f64 / (count - 1) as f64 } else { 0.5 };
        LEFT + 8.0 + share * (WIDTH - LEFT - RIGHT - room)
    };
    let mut taken = vec![];
    for (name, colour, values) in lines {
        let class = format!("c{}", colour % COLOURS);
        let dots: Vec<[f64; 2]> =
            values.iter().enumerate().filter(|v| v.1.is_finite()).map(|(n, &v)| [at(n), up(y, v)]).collect();
        let path: Vec<String> = dots.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(sheet.text, "<polyline class=\"{class}\" points=\"{}\"/>", path.join(" "));
        for [x, y] in &dots {
            let _ = writeln!(sheet.text, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"/>");
        }
        if let Some(&[x, y]) = dots.last() {
            let place = free_place(&mut taken, x, y, name.chars().count() as f64 * LETTER, false);
            sheet.words("label", place, name);
        }
    }
    sheet.done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_round_figures_inside_their_ends() {
        let linear = Axis::of("x", &[Figure::exact(3.1), Figure::exact(32.0)], false);
        assert_eq!(linear.ticks(), [10.0, 20.0, 30.0]);
        let log = Axis::of("x", &[Figure::exact(2e-5), Figure::exact(3e-2), Figure::exact(0.0)], true);
        assert_eq!(log.ticks().len(), 3);
        assert_eq!(
            [1e-3, 5.0, 60.0, 1200.0, 1.05, 0.0].map(ticked),
            ["1e-3", "5", "60", "1200", "1.05", "0"]
        );
        assert_eq!([1e9, 250_000.0].map(ticked), ["1e9", "2.5e5"]);
        let narrow = Axis::of("x", &[Figure::exact(1.5), Figure::exact(6.0)], true);
        assert_eq!(narrow.ticks(), [2.0, 3.0, 5.0, 7.0]);
        for alone in [Axis::of("x", &[], true), Axis::of("x", &[Figure::exact(5.0)], false)] {
            assert!(!alone.ticks().is_empty() && alone.at(1.0).is_finite(), "{alone:?}");
        }
    }

    #[test]
    fn names_of_neighbours_do_not_cover_each_other() {
        let mut taken = vec![around(100.0, 100.0), around(102.0, 101.0)];
        let first = free_place(&mut taken, 100.0, 100.0, 40.0, true);
        let second = free_place(&mut taken, 102.0, 101.0, 40.0, true);
        let apart = (first[0] - second[0]).abs() >= 40.0 || (first[1] - second[1]).abs() >= LINE;
        assert!(apart, "{first:?} {second:?}");
    }

    #[test]
    fn drawings_are_whole_and_names_are_escaped() {
        let axis = Axis::of("a<b", &[Figure::exact(1.0), Figure::exact(2.0)], false);
        let point =
            |name: &str, x| Point { name: name.into(), colour: 12, x: Figure::exact(x), y: Figure::exact(x) };
        let svg = scatter("d", &axis, &axis, &[point("<p>", 1.0), point("q", 2.0)]);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && svg.contains("&lt;p&gt;"));
        assert!(!svg.contains("NaN") && !svg.contains("<p>") && svg.contains("class=\"c2\""));
        let trace = Trace {
            line: vec![[1.0, 1.0], [2.0, 2.0]],
            band: vec![[1.0, 0.9, 1.1], [2.0, 1.9, 2.1]],
            is_dashed: true,
            ..Trace::default()
        };
        let over = plot("d", &axis, &axis, &[trace], &[point("q", 2.0)]);
        assert!(over.find("<polygon").unwrap() < over.find("<circle").unwrap(), "points lie over bands");
        let bar = bars(
            "d",
            &axis.clone().rooted(),
            &[("f32".into(), 0, Figure { low: 1.0, value: 1.5, high: 2.0 })],
        );
        assert_eq!(bar.matches("<rect").count(), 1);
        let line = lines("d", "layer", &axis, &[("s".into(), 1, vec![1.0, f64::INFINITY, 2.0])]);
        assert!(line.matches("<circle").count() == 2 && !line.contains("inf"));
    }
}
