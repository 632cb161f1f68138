//! Aligned columns of text. PURE.

use std::fmt::Write as _;

/// How a cell looks where there are colours. It says nothing that the text does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Style {
    /// As it is.
    #[default]
    Plain,
    /// Header.
    Bold,
    /// As it should be.
    Good,
    /// On its way.
    Warning,
    /// As it should not be.
    Bad,
}

impl Style {
    /// `text` with the codes around it.
    pub(super) fn paint(self, text: &str, colour: bool) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Bold => "1",
            Self::Good => "32",
            Self::Warning => "33",
            Self::Bad => "31",
        };
        if colour {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Text with a style.
#[derive(Debug, Clone, Default)]
pub(super) struct Cell(String, Style);

impl Cell {
    /// A cell that is not plain.
    pub(super) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self(text.into(), style)
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self(text.into(), Style::Plain)
    }
}

/// Rows under a header, as wide as their widest cells.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    rows: Vec<[Cell; N]>,
}

impl<const N: usize> Table<N> {
    /// A header without rows.
    pub(super) fn new(header: [&str; N]) -> Self {
        Self {
            rows: vec![header.map(|h| Cell::styled(h, Style::Bold))],
        }
    }

    /// Columns without a header.
    pub(super) fn headless() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: [Cell; N]) {
        self.rows.push(cells);
    }

    /// The lines.
    pub(super) fn render(&self, colour: bool) -> String {
        let shown: Vec<Vec<(String, Style)>> = self
            .rows
            .iter()
            .map(|row| row.iter().map(|Cell(t, s)| (printable(t), *s)).collect())
            .collect();
        let width = |i: usize| {
            shown
                .iter()
                .map(|row| row[i].0.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: [usize; N] = std::array::from_fn(width);
        let mut text = String::new();
        for row in &shown {
            // Nothing trails after the last cell that says something.
            let last = row.iter().rposition(|(cell, _)| !cell.is_empty());
            for (i, (cell, style)) in row.iter().enumerate().take(last.map_or(0, |l| l + 1)) {
                text.push_str(&style.paint(cell, colour));
                if Some(i) != last {
                    let gap = widths[i] - cell.chars().count() + 2;
                    // Writing to a string cannot fail.
                    let _ = write!(text, "{:gap$}", "");
                }
            }
            text.push('\n');
        }
        text
    }
}

/// Control characters could move a terminal's cursor: what others send is shown, never obeyed.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_whatever_their_colour_and_nothing_trails() {
        let mut table = Table::new(["ID", "STATE", "WHY"]);
        table.row(["1".into(), Cell::styled("up", Style::Good), "".into()]);
        table.row([
            "100".into(),
            Cell::styled("down", Style::Bad),
            "\u{1b}[2J".into(),
        ]);
        assert_eq!(
            table.render(false),
            "ID   STATE  WHY\n1    up\n100  down   \u{fffd}[2J\n"
        );
        let coloured = table.render(true);
        assert!(coloured.contains("\u{1b}[32mup\u{1b}[0m\n"), "{coloured:?}");
        assert!(
            coloured.contains("\u{1b}[31mdown\u{1b}[0m   \u{fffd}"),
            "{coloured:?}"
        );
    }
}
