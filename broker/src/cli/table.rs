//! Aligned columns of text. PURE.

use std::fmt;

/// Rows under a header; as wide as its widest cells.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    header: [&'static str; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// An empty table; an all-empty header is not written.
    pub(crate) fn new(header: [&'static str; N]) -> Self {
        Self {
            header,
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = self.header.map(str::to_owned);
        let headed = self.header.iter().any(|h| !h.is_empty());
        let lines = || headed.then_some(&header).into_iter().chain(&self.rows);
        let width: [usize; N] =
            std::array::from_fn(|i| lines().map(|l| printable(&l[i]).count()).max().unwrap_or(0));
        for line in lines() {
            let cells = line.iter().zip(width).map(|(cell, width)| {
                let cell: String = printable(cell).collect();
                format!("{cell:width$}")
            });
            let text = cells.collect::<Vec<_>>().join("  ");
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// Control characters could move a terminal's cursor; what a broker sends is shown, never obeyed.
fn printable(text: &str) -> impl Iterator<Item = char> {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_do_not_trail() {
        let mut table = Table::new(["ID", "NAME"]);
        table.row(["1".into(), "a".into()]);
        table.row(["100".into(), String::new()]);
        assert_eq!(table.to_string(), "ID   NAME\n1    a\n100\n");
    }

    #[test]
    fn an_empty_header_is_left_out_and_control_characters_are_shown() {
        let mut table = Table::new(["", ""]);
        table.row(["key:".into(), "a\u{1b}[2J".into()]);
        assert_eq!(table.to_string(), "key:  a\u{fffd}[2J\n");
    }
}
