//! Pages that are written from the code, and so can't say anything else. `make docs` writes them anew.

/// Says where the committed page is not what the code says; with `UPDATE_DOCS` set, writes it.
#[track_caller]
pub(crate) fn agree(path: &str, page: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, page).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == page, "{path} is not of this code: run `make docs`");
}

/// Text for a cell of a table.
pub(crate) fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
