//! A table of text for a terminal: columns as wide as their cells, or as many of them as fit.

use crate::ui::terminal::truncate_to_width;
use unicode_width::UnicodeWidthStr;

/// The space between two columns.
const COLUMN_GAP: &str = "  ";

/// The width below which no column is shortened.
const MIN_COLUMN_WIDTH: usize = 4;

/// A column: its title, and how to make its cell from a row.
pub(crate) struct Column<R> {
    /// The title.
    pub title: &'static str,
    /// When the column is left out of a table that is too wide: the one with the highest number first, 0 never.
    pub drop_order: u8,
    /// The width to which the column is shortened before any is left out.
    pub shrinks_to: usize,
    /// Returns the cell of a row.
    pub cell: fn(&R) -> String,
}

/// A column with its cells.
struct FilledColumn {
    title: &'static str,
    drop_order: u8,
    /// The width that it keeps if others can be shortened or dropped.
    kept_width: usize,
    cells: Vec<String>,
    width: usize,
}

/// Returns the table, one line for each row. Columns whose cells are all empty are left out. With a maximum width,
/// columns are dropped, and then shortened, until the table fits.
pub(crate) fn render<R>(columns: &[Column<R>], rows: &[R], max_width: Option<usize>) -> String {
    let columns = columns.iter().map(|column| FilledColumn::new(column, rows));
    let mut columns: Vec<FilledColumn> = columns
        .filter(|column| column.cells.iter().any(|cell| !cell.is_empty()))
        .collect();
    if let Some(max_width) = max_width {
        drop_columns(&mut columns, max_width);
        shorten_columns(&mut columns, max_width);
    }
    let mut table = line(&columns, |column| column.title);
    for row in 0..rows.len() {
        table += &line(&columns, |column| &column.cells[row]);
    }
    table
}

impl FilledColumn {
    fn new<R>(column: &Column<R>, rows: &[R]) -> FilledColumn {
        let cells = rows.iter().map(|row| (column.cell)(row).replace(char::is_control, " "));
        let cells: Vec<String> = cells.collect();
        let cell_width = cells.iter().map(|cell| cell.width()).max().unwrap_or_default();
        let width = cell_width.max(column.title.width());
        FilledColumn {
            title: column.title,
            drop_order: column.drop_order,
            kept_width: width.min(column.shrinks_to),
            width,
            cells,
        }
    }
}

fn table_width(columns: &[FilledColumn], width: fn(&FilledColumn) -> usize) -> usize {
    let widths: usize = columns.iter().map(width).sum();
    widths + COLUMN_GAP.len() * columns.len().saturating_sub(1)
}

/// Drops columns until the rest fits, or only those are left that are never dropped.
fn drop_columns(columns: &mut Vec<FilledColumn>, max_width: usize) {
    while table_width(columns, |column| column.kept_width) > max_width {
        let droppable = columns.iter().enumerate().filter(|(_, column)| column.drop_order > 0);
        match droppable.max_by_key(|(_, column)| column.drop_order) {
            Some((index, _)) => drop(columns.remove(index)),
            None => return,
        }
    }
}

/// Shortens the widest column until the table fits, or no column can be shortened any further. Columns that are wider
/// than they are kept come first.
fn shorten_columns(columns: &mut [FilledColumn], max_width: usize) {
    while table_width(columns, |column| column.width) > max_width {
        let widest = |column: &&mut FilledColumn| (column.width > column.kept_width, column.width);
        match columns.iter_mut().max_by_key(widest) {
            Some(widest) if widest.width > MIN_COLUMN_WIDTH => widest.width -= 1,
            _ => return,
        }
    }
}

fn line<'a>(columns: &'a [FilledColumn], cell: impl Fn(&'a FilledColumn) -> &'a str) -> String {
    let cells = columns.iter().map(|column| {
        let cell = truncate_to_width(cell(column), column.width);
        let padding = column.width.saturating_sub(cell.width());
        format!("{cell}{}", " ".repeat(padding))
    });
    let cells: Vec<String> = cells.collect();
    format!("{}\n", cells.join(COLUMN_GAP).trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Row = [&'static str; 3];

    const COLUMNS: [Column<Row>; 3] = [
        Column {
            title: "NAME",
            drop_order: 0,
            shrinks_to: usize::MAX,
            cell: |row| row[0].into(),
        },
        Column {
            title: "EMPTY",
            drop_order: 2,
            shrinks_to: usize::MAX,
            cell: |row| row[1].into(),
        },
        Column {
            title: "NOTE",
            drop_order: 1,
            shrinks_to: usize::MAX,
            cell: |row| row[2].into(),
        },
    ];

    #[test]
    fn columns_are_aligned_dropped_and_shortened() {
        let rows = [["backup", "", "a\nb"], ["\u{9375}", "", ""]];
        let table = |max_width| render(&COLUMNS, &rows, max_width);
        let whole = "NAME    NOTE\nbackup  a b\n\u{9375}\n";
        assert_eq!(table(None), whole);
        assert_eq!(table(Some(12)), whole);
        assert_eq!(table(Some(11)), "NAME\nbackup\n\u{9375}\n");
        assert_eq!(table(Some(5)), "NAME\nback~\n\u{9375}\n");
        assert_eq!(table(Some(1)), "NAME\nbac~\n\u{9375}\n");
        assert_eq!(render(&COLUMNS, &[], None), "\n");
    }

    #[test]
    fn a_column_is_shortened_before_another_is_dropped() {
        let columns = COLUMNS.map(|column| Column {
            shrinks_to: if column.title == "NAME" { 5 } else { usize::MAX },
            ..column
        });
        let table = |max_width| render(&columns, &[["a long name", "", "a note"]], Some(max_width));
        assert_eq!(table(19), "NAME         NOTE\na long name  a note\n");
        assert_eq!(table(13), "NAME   NOTE\na lo~  a note\n");
        assert_eq!(table(12), "NAME\na long name\n");
        assert_eq!(table(4), "NAME\na l~\n");
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_the_terminal(
            texts in prop::collection::vec("\\PC{0,30}", 3),
            max_width in 10usize..60,
        ) {
            let columns: [Column<Vec<String>>; 3] = [
                Column { title: "A", drop_order: 0, shrinks_to: usize::MAX, cell: |row| row[0].clone() },
                Column { title: "B", drop_order: 1, shrinks_to: usize::MAX, cell: |row| row[1].clone() },
                Column { title: "C", drop_order: 0, shrinks_to: usize::MAX, cell: |row| row[2].clone() },
            ];
            for line in render(&columns, &[texts], Some(max_width)).lines() {
                prop_assert!(line.width() <= max_width, "{line:?}");
            }
        }
    }
}
