//! The floors of the crate (see `src/lib.rs`): a room imports only rooms below it.

use std::path::{Path, PathBuf};

/// Rooms and their floors.
const FLOORS: &[(&str, u32)] = &[
    ("format", 0),
    ("ternary", 0),
    ("plan", 0),
    ("sampling", 0),
    ("tokenizer", 1),
    ("model", 1),
    ("backend", 1),
    ("probe", 1),
    ("cpu", 2),
    ("gpu", 2),
    ("error", 3),
    ("selfcheck", 3),
    ("session", 4),
    ("quantize", 5),
    ("synthetic", 5),
    ("js", 6),
];

/// Largest file that one reader can hold in mind.
const MAX_LINES: usize = 800;

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The room a file is in: the first part of its path, without `.rs`.
fn room(file: &Path) -> String {
    let first = file.strip_prefix(src()).unwrap().components().next().unwrap();
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_string()
}

fn floor(room: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
}

#[test]
fn rooms_import_only_lower_floors() {
    let mut breaches = Vec::new();
    for file in rust_files(&src()) {
        let here = room(&file);
        if ["lib", "main", "cli"].contains(&here.as_str()) {
            continue;
        }
        let own = floor(&here).unwrap_or_else(|| panic!("{here} has no floor in tests/house.rs"));
        let text = std::fs::read_to_string(&file).unwrap();
        for (number, line) in text.lines().enumerate() {
            // Documentation may point anywhere.
            if line.trim_start().starts_with("//") {
                continue;
            }
            for after in line.split("crate::").skip(1) {
                let name: String =
                    after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let Some(other) = floor(&name) else { continue };
                if name != here && other >= own {
                    let place = format!("{}:{}", file.display(), number + 1);
                    breaches.push(format!("{place}: {here} ({own}) imports {name} ({other})"));
                }
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn the_program_uses_the_library_as_an_outsider() {
    for file in rust_files(&src().join("cli")) {
        let text = std::fs::read_to_string(&file).unwrap();
        for (name, _) in FLOORS {
            let inside = format!("crate::{name}::");
            assert!(!text.contains(&inside), "{} reaches into {inside}", file.display());
        }
    }
}

#[test]
fn files_are_of_a_readable_length() {
    let long: Vec<_> = rust_files(&src())
        .into_iter()
        .filter_map(|f| {
            let lines = std::fs::read_to_string(&f).unwrap().lines().count();
            (lines > MAX_LINES).then(|| format!("{}: {lines}", f.display()))
        })
        .collect();
    assert!(long.is_empty(), "files over {MAX_LINES} lines:\n{}", long.join("\n"));
}
