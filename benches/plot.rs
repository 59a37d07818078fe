//! The results as pictures (SVG), drawn by hand: bars for the works, lines for how cost grows.
//!
//! Text is dark on white in any theme, since the picture brings its own ground.

use crate::works::Work;
use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const FONT: &str = "font-family=\"sans-serif\" fill=\"#222\"";

fn picture(height: f64, inside: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{inside}</svg>\n"
    )
}

fn text(x: f64, y: f64, size: u32, anchor: &str, words: &str) -> String {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\" {FONT}>{words}</text>\n")
}

/// What took milliseconds, in proportion to the floor: the median as a bar, and what lies between the quartiles as a
/// line.
pub fn bars(works: &[Work]) -> String {
    const LEFT: f64 = 400.0;
    const LINE: f64 = 17.0;
    // So many pixels are one floor; what is longer is cut, and its number says how long it is.
    const UNIT: f64 = 80.0;
    let longest = (WIDTH - LEFT - 60.0) / UNIT;
    let mut inside = text(
        10.0,
        22.0,
        15,
        "start",
        "Time, in proportion to the floor (a client written by hand)",
    );
    let mut y = 40.0;
    for work in works.iter().filter(|work| work.unit == "ms" && work.samples.len() > 1) {
        let floor = work.samples[0].median();
        for (index, sample) in work.samples.iter().enumerate() {
            let [low, ratio, high] = [0.25, 0.5, 0.75].map(|part| sample.quantile(part) / floor);
            if index == 0 {
                inside += &text(10.0, y + 12.0, 12, "start", work.name);
            }
            inside += &text(LEFT - 6.0, y + 12.0, 11, "end", sample.name);
            let colour = if sample.name.starts_with("pglock") {
                "#2a6fb0"
            } else {
                "#b8bcc2"
            };
            let _ = writeln!(
                inside,
                "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"11\" fill=\"{colour}\"/>",
                y + 3.0,
                ratio.min(longest) * UNIT
            );
            if high < longest {
                let _ = writeln!(
                    inside,
                    "<path d=\"M{:.1} {y2:.1}H{:.1}\" stroke=\"#222\"/>",
                    LEFT + low * UNIT,
                    LEFT + high * UNIT,
                    y2 = y + 8.5
                );
            }
            let end = LEFT + ratio.max(high).min(longest) * UNIT + 6.0;
            inside += &text(end, y + 12.0, 11, "start", &format!("{ratio:.2}"));
            y += LINE;
        }
        y += 8.0;
    }
    picture(y + 6.0, &inside)
}

/// A curve: its name, colour, and points.
pub struct Curve<'a> {
    pub name: &'a str,
    pub colour: &'a str,
    pub points: Vec<(f64, f64)>,
}

/// Curves over the same numbers, both axes logarithmic, several panels one below the other.
pub fn lines(panels: &[(&str, Vec<Curve>)]) -> String {
    const HEIGHT: f64 = 230.0;
    let mut inside = String::new();
    for (number, (title, curves)) in panels.iter().enumerate() {
        let top = HEIGHT * number as f64;
        inside += &text(10.0, top + 20.0, 14, "start", title);
        panel(&mut inside, top + 36.0, HEIGHT - 66.0, curves);
    }
    picture(HEIGHT * panels.len() as f64, &inside)
}

fn panel(inside: &mut String, top: f64, height: f64, curves: &[Curve]) {
    const LEFT: f64 = 70.0;
    let width = WIDTH - LEFT - 190.0;
    let all = || curves.iter().flat_map(|curve| curve.points.iter());
    let decade = |value: f64| value.log10();
    let most = |values: &mut dyn Iterator<Item = f64>| decade(values.fold(f64::MIN, f64::max)).ceil();
    let least = |values: &mut dyn Iterator<Item = f64>| decade(values.fold(f64::MAX, f64::min)).floor();
    let (x0, x1) = (least(&mut all().map(|p| p.0)), most(&mut all().map(|p| p.0)));
    let (y0, y1) = (least(&mut all().map(|p| p.1)), most(&mut all().map(|p| p.1)));
    let x = |value: f64| LEFT + (decade(value) - x0) / (x1 - x0).max(1.0) * width;
    let y = |value: f64| top + height - (decade(value) - y0) / (y1 - y0).max(1.0) * height;
    let grid = |from: f64, to: f64| (from as i32..=to.max(from + 1.0) as i32).map(|power| 10f64.powi(power));
    for value in grid(y0, y1) {
        let _ = writeln!(
            inside,
            "<path d=\"M{LEFT} {0:.1}H{1:.1}\" stroke=\"#ddd\"/>",
            y(value),
            LEFT + width
        );
        *inside += &text(LEFT - 6.0, y(value) + 4.0, 11, "end", &value.to_string());
    }
    for value in grid(x0, x1) {
        let _ = writeln!(
            inside,
            "<path d=\"M{0:.1} {top:.1}V{1:.1}\" stroke=\"#ddd\"/>",
            x(value),
            top + height
        );
        *inside += &text(x(value), top + height + 15.0, 11, "middle", &value.to_string());
    }
    for (number, Curve { name, colour, points }) in curves.iter().enumerate() {
        let path: Vec<String> = points.iter().map(|p| format!("{:.1} {:.1}", x(p.0), y(p.1))).collect();
        let _ = writeln!(
            inside,
            "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join("L")
        );
        let line = top + 12.0 + 16.0 * number as f64;
        let _ = writeln!(
            inside,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>",
            LEFT + width + 14.0,
            line - 9.0
        );
        *inside += &text(LEFT + width + 30.0, line, 11, "start", name);
    }
}
