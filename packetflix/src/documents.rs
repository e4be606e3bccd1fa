//! Tables in `docs/` that are made from the program, so that they say what it does.

use std::{env, fs, path::Path};

/// Compares the part of a page in `docs/` between `<!-- NAME: begin -->` and `<!-- NAME: end -->` with the table that belongs
/// there, or writes it if `UPDATE_DOCS` is set.
///
/// # Panics
/// If the page has another table, or lacks the marks.
pub(crate) fn check(page: &str, name: &str, head: &[&str], rows: &[Vec<String>]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("docs/{page}: {error}"));
    let (begin, end) = (
        format!("<!-- {name}: begin -->\n"),
        format!("<!-- {name}: end -->\n"),
    );
    let (before, rest) = text.split_once(&begin).expect("the page has a beginning mark");
    let (found, after) = rest.split_once(&end).expect("the page has an end mark");
    let table = format!("\n{}\n", table(head, rows));
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, [before, &begin, &table, &end, after].concat()).expect("the page is ours");
        return;
    }
    let differing = table
        .lines()
        .zip(found.lines())
        .find(|(ours, theirs)| ours != theirs);
    assert!(
        found == table,
        "the table `{name}` of docs/{page} is not what the program makes it: `cargo xtask docs` writes it anew: {differing:#?}"
    );
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut table = line(head.iter().map(|&cell| cell.to_owned()).collect());
    table.push_str(&"|---".repeat(head.len()));
    table.push_str("|\n");
    for row in rows {
        table.push_str(&line(row.iter().map(|cell| cell.replace('|', "\\|")).collect()));
    }
    table
}
