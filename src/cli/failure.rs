//! [`Failure`]: how a command ends that does not end well.

use bitnet_rust::error::Error;
use std::error::Error as StdError;

/// Why a command stops, and with what exit code.
#[derive(Debug)]
pub enum Failure {
    /// The command line asks for something that cannot be: exit code 2.
    Usage(String),
    /// Something went wrong: exit code 1.
    Failed(String),
    /// Ctrl-C: exit code 130, as shells have it.
    Interrupted,
    /// Nobody reads stdout any more (`bitnet … | head`): no failure at all.
    BrokenPipe,
}

impl Failure {
    /// A failure with `what` was tried in front of why it failed.
    pub fn because(what: impl std::fmt::Display, source: &dyn StdError) -> Self {
        Failure::Failed(format!("{what}: {}", chain(source)))
    }

    /// The line for stderr.
    pub fn message(&self) -> Option<&str> {
        match self {
            Failure::Usage(m) | Failure::Failed(m) => Some(m),
            Failure::Interrupted | Failure::BrokenPipe => None,
        }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Failure::Usage(_) => 2,
            Failure::Failed(_) => 1,
            Failure::Interrupted => 130,
            Failure::BrokenPipe => 0,
        }
    }
}

/// An error and its causes, in one line. Many errors quote their cause already.
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    // Terminals must not obey what a file's strings say.
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        match &e {
            Error::InvalidArgument { .. } | Error::Sampling(_) => Failure::Usage(chain(&e)),
            Error::Cancelled => Failure::Interrupted,
            _ => Failure::Failed(chain(&e)),
        }
    }
}
