//! A curve in the terminal.

/// Draws `points` (x, y) as text of `width` by `height` cells, with a dashed line at `floor`.
///
/// Several points in one column are averaged; the y axis is labelled at top and bottom.
pub fn curve(points: &[(f64, f64)], floor: Option<f64>, width: usize, height: usize) -> String {
    let finite: Vec<(f64, f64)> = points.iter().copied().filter(|(_, y)| y.is_finite()).collect();
    if finite.is_empty() || width == 0 || height < 2 {
        return String::new();
    }
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (x_low, x_high) = range(&mut finite.iter().map(|p| p.0));
    let (y_low, y_high) = range(&mut finite.iter().map(|p| p.1).chain(floor));
    let scale = |v: f64, low: f64, high: f64, cells: usize| {
        if high > low { ((v - low) / (high - low) * (cells - 1) as f64).round() as usize } else { 0 }
    };
    let mut columns: Vec<(f64, usize)> = vec![(0.0, 0); width];
    for (x, y) in &finite {
        let (sum, count) = &mut columns[scale(*x, x_low, x_high, width)];
        *sum += y;
        *count += 1;
    }
    let mut cells = vec![vec![' '; width]; height];
    if let Some(floor) = floor {
        let row = height - 1 - scale(floor, y_low, y_high, height);
        cells[row].iter_mut().step_by(2).for_each(|cell| *cell = '-');
    }
    for (column, (sum, count)) in columns.iter().enumerate().filter(|(_, c)| c.1 > 0) {
        let row = height - 1 - scale(sum / *count as f64, y_low, y_high, height);
        cells[row][column] = '*';
    }
    let mut text = String::new();
    for (row, line) in cells.iter().enumerate() {
        let label = match row {
            0 => format!("{y_high:>7.3}"),
            r if r == height - 1 => format!("{y_low:>7.3}"),
            _ => " ".repeat(7),
        };
        text.push_str(&format!("{label} |{}\n", line.iter().collect::<String>().trim_end()));
    }
    let (left, right) = (format!("{x_low:.0}"), format!("{x_high:.0}"));
    let gap = width.saturating_sub(left.len() + right.len());
    text.push_str(&format!(
        "{} +{}\n{}{left}{}{right}\n",
        " ".repeat(7),
        "-".repeat(width),
        " ".repeat(9),
        " ".repeat(gap)
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_line_falls_from_the_upper_left_to_the_lower_right() {
        let points: Vec<_> = (0..5).map(|i| (i as f64, 4.0 - i as f64)).collect();
        let expected = "  4.000 |*\n        | *\n        |  *\n        |   *\n  0.000 |    *\n        +-----\n         0   4\n";
        assert_eq!(curve(&points, None, 5, 5), expected);
    }

    #[test]
    fn the_floor_is_drawn_and_nothing_finite_draws_nothing() {
        let text = curve(&[(0.0, 2.0), (1.0, 1.0)], Some(0.0), 4, 3);
        assert!(text.lines().nth(2).unwrap().contains("- -"), "{text}");
        assert_eq!(curve(&[(0.0, f64::NAN)], None, 4, 3), "");
    }
}
