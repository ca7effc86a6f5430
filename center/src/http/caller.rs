//! Who asks.

/// What somebody may do. Each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look at everything that is no secret.
    View,
    /// Give tasks, and say what agents run.
    Operate,
    /// Decide who may do what.
    Admin,
}

/// Who sent a request, and what they may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// A user's name; `local` for who is on this host where there are no users, `access-key` for who signs requests.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Where the request came from: an address with its port.
    pub origin: String,
}
