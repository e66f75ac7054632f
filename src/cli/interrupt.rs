//! Ctrl-C: the first one asks whoever is at work to stop, the second one ends the program.

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Starts to listen. Called by the commands that have something to stop.
pub fn listen() {
    // Only fails when called twice; Ctrl-C then ends the program, as without us.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    });
}

/// Whether Ctrl-C was pressed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Forgets it, once it has been acted on.
pub fn clear() {
    INTERRUPTED.store(false, Ordering::SeqCst);
}
