//! How the program ends, for scripts: the one place where exit codes are given their meaning.

use nsm_api::Kind;
use std::process::ExitCode;

/// The exit codes. They do not change between versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, or everything checked holds.
    Ok,
    /// Tried and failed, or something checked does not hold.
    Failed,
    /// The command line, a setting or a file is wrong.
    Usage,
    /// The mesh refused, or has no such thing.
    Refused,
    /// Somebody cannot be reached or did not answer in time.
    Unavailable,
    /// Told to stop, and stopped before everything was undone.
    Forced,
}

impl Exit {
    /// All, for `--help`.
    pub const ALL: [Exit; 6] = [Exit::Ok, Exit::Failed, Exit::Usage, Exit::Refused, Exit::Unavailable, Exit::Forced];

    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Refused => 3,
            Exit::Unavailable => 4,
            Exit::Forced => 5,
        }
    }
    /// What it means.
    pub fn meaning(self) -> &'static str {
        match self {
            Exit::Ok => "done; everything that was checked holds",
            Exit::Failed => "tried and failed, or something that was checked does not hold",
            Exit::Usage => "the command line, a setting or a file is wrong",
            Exit::Refused => "the mesh refused, or has no such thing (yet)",
            Exit::Unavailable => "somebody cannot be reached or did not answer in time",
            Exit::Forced => "told to stop, and stopped before everything was undone",
        }
    }
}

impl From<Kind> for Exit {
    fn from(kind: Kind) -> Exit {
        match kind {
            Kind::Invalid => Exit::Usage,
            Kind::NotFound | Kind::Denied | Kind::Exhausted | Kind::Unsupported | Kind::Conflict => Exit::Refused,
            Kind::Unavailable | Kind::Timeout => Exit::Unavailable,
            Kind::Kernel | Kind::Internal => Exit::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        exit.code().into()
    }
}
