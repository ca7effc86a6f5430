//! Who asks, and what they may do.

use std::fmt;
use std::str::FromStr;

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

impl Role {
    const ALL: [(Self, &str); 3] = [(Self::View, "view"), (Self::Operate, "operate"), (Self::Admin, "admin")];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(role, _)| role == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text);
        found.map(|(role, _)| *role).ok_or_else(|| format!("role {text:?}, expected view, operate or admin"))
    }
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
    /// What they are known by.
    pub(super) proof: Proof,
}

/// What a caller is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Proof {
    /// They are on this host, and there are no users.
    Local,
    /// They signed the request with the access key.
    Key,
    /// They have the key that the center writes for this host's own commands.
    Token,
    /// They signed in; this is the hash of the session's key.
    Session(String),
}

impl Caller {
    /// Checks that they may do what takes this role.
    ///
    /// # Errors
    /// A text that says which role it takes and which they have.
    pub fn must(&self, role: Role) -> Result<(), String> {
        if self.role >= role {
            return Ok(());
        }
        let Self { role: has, proof, .. } = self;
        Err(match proof {
            Proof::Local => format!(
                "this takes the role {role}, and whoever has not signed in has {has}; a command on this host has the key in the file \
                 local-token of the center's data"
            ),
            Proof::Key | Proof::Token | Proof::Session(_) => format!("this takes the role {role}; you have {has}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_may_do_what_those_before_it_may() {
        let session = || Proof::Session(String::new());
        let caller = |role| Caller { name: "ann".to_owned(), role, origin: String::new(), proof: session() };
        for (has, wanted, may) in [
            (Role::View, Role::View, true),
            (Role::View, Role::Operate, false),
            (Role::Operate, Role::View, true),
            (Role::Operate, Role::Admin, false),
            (Role::Admin, Role::Operate, true),
        ] {
            assert_eq!(caller(has).must(wanted).is_ok(), may, "{has} {wanted}");
        }
        assert_eq!(caller(Role::View).must(Role::Operate).unwrap_err(), "this takes the role operate; you have view");
        let local = Caller { proof: Proof::Local, ..caller(Role::View) };
        assert!(local.must(Role::Admin).unwrap_err().contains("local-token"));
    }

    #[test]
    fn a_role_is_read_as_it_is_written() {
        for role in [Role::View, Role::Operate, Role::Admin] {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().unwrap_err().contains("\"root\""));
    }
}
