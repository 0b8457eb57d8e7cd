//! The one error type of the runtime: a code of the public error union, a message, a cure.

use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// A code of the TypeScript error union, or `CANCELLED`, which the bindings never show.
    pub code: &'static str,
    pub message: String,
    pub cure: &'static str,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn plan(message: impl Into<String>) -> Self {
        Self {
            code: "PLAN_INVALID",
            message: message.into(),
            cure: "The model's architecture function built a plan the executor cannot run; report it with the file's metadata.",
        }
    }

    pub fn memory(what: &str, bytes: Option<usize>) -> Self {
        let size = bytes.map_or("more bytes than can be addressed".into(), |b| format!("{b} bytes"));
        Self {
            code: "OUT_OF_MEMORY",
            message: format!("{what} needs {size}, which this machine cannot give"),
            cure: "Use a smaller or more strongly quantised model, a shorter context, or fewer sequences at once.",
        }
    }

    pub fn argument(message: impl Into<String>, cure: &'static str) -> Self {
        Self { code: "INVALID_ARGUMENT", message: message.into(), cure }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self {
            code: "INTERNAL",
            message: message.into(),
            cure: "This is a fault of the engine; report it with the command that shows it.",
        }
    }

    pub fn disposed(what: &str) -> Self {
        Self {
            code: "DISPOSED",
            message: format!("{what} was disposed of"),
            cure: "Load the model again, or keep it until the last call has ended.",
        }
    }

    pub fn source_read(message: String) -> Self {
        Self {
            code: "SOURCE_READ",
            message,
            cure: "Check that the file is complete, unchanged since it was opened, and readable.",
        }
    }

    /// Every sequence of the step was freed while it ran.
    pub fn cancelled() -> Self {
        Self { code: "CANCELLED", message: "the step's sequences were freed".into(), cure: "Nothing to do." }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}. {}", self.code, self.message, self.cure)
    }
}

impl std::error::Error for Error {}
