//! Aligned columns, as kubectl prints them.

use std::io::Write;

use serde::Serialize;

use crate::failure::Failure;

/// Prints a table to standard output.
pub(crate) fn print(head: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    write(&format(head, rows))
}

/// Prints any text to standard output.
pub(crate) fn write(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::output)
}

/// Prints a value for programs.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::Talk(e.to_string()))?;
    write(&(text + "\n"))
}

pub(crate) fn format(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&head).chain(rows).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| all.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in all {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width - cell.chars().count() + 3));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `1.5Gi`, `64Mi`, `12Ki`, `7`.
pub(crate) fn bytes(n: u64) -> String {
    for (shift, unit) in [(30, "Gi"), (20, "Mi"), (10, "Ki")] {
        if n >= 1 << shift {
            let tenths = (u128::from(n) * 10) >> shift;
            let (whole, tenth) = (tenths / 10, tenths % 10);
            return if tenth == 0 { format!("{whole}{unit}") } else { format!("{whole}.{tenth}{unit}") };
        }
    }
    n.to_string()
}

/// `2`, `500m`.
pub(crate) fn cpu(milli: u64) -> String {
    if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_clean() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["longer".to_owned(), String::new()]];
        assert_eq!(format(&["NAME", "N"], &rows), "NAME     N\na        1\nlonger\n");
    }

    #[test]
    fn amounts_are_short() {
        assert_eq!([bytes(7), bytes(64 << 20), bytes(3 << 29)], ["7", "64Mi", "1.5Gi"]);
        assert_eq!([cpu(2000), cpu(500)], ["2", "500m"]);
    }
}
