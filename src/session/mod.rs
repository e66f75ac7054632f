//! Sessions: a model loaded onto a machine, and the text it writes.
//!
//! [`Loader`] takes a model's bytes as they come and puts them on the device; [`Session`] holds the
//! result and runs [`Generation`]s; [`files`] does the reading where there are files.
//!
//! ```no_run
//! # fn main() -> Result<(), bitnet_rust::error::Error> {
//! use bitnet_rust::session::{Event, LoadOptions, Request, files};
//! use std::path::Path;
//!
//! let options = LoadOptions::default();
//! let mut session = files::load(Path::new("model.gguf"), &options, &mut |_| true)?;
//! let mut story = session.start(Request::text("Once upon a time"))?;
//! loop {
//!     match pollster::block_on(session.next(&mut story))? {
//!         Event::Text(piece) => print!("{}", piece.text),
//!         Event::Finished(_) => break,
//!         Event::Prefill { .. } => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! May import: floors 0 to 3.

mod device;
pub mod eval;
#[cfg(not(target_arch = "wasm32"))]
pub mod files;
mod generate;
mod i2s;
mod info;
mod loader;
pub(crate) mod repack;
mod stop;
pub mod trace;
mod transcript;

pub use device::{Device, DeviceChoice, DeviceOptions};
pub use generate::{
    Completion, Event, FinishReason, Generation, Logprob, Piece, Prompt, Request, Session, Timings,
    Usage,
};
pub use info::ModelInfo;
pub use loader::{HfFiles, LoadOptions, Loader, Phase, Progress};
