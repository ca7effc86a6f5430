//! `/api/v1/users`: who may sign in, and what they may do. `/api/v1/links`: links that need no password.

use super::{Answer, Ask, Refusal, bad, failed, no_route, ok, refuse};
use crate::clock::now_ms;
use crate::http::access::{ACCESS_KEY, Access, LINK, LINK_MS, LOCAL, State};
use crate::http::caller::{Proof, Role};
use crate::http::password;
use crate::http::reply::json_response;
use crate::http::sign_in::MAX_NAME;
use crate::store::site::{SiteError, User};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

/// The most users. A small site has a few.
const MAX_USERS: usize = 1_000;

pub(super) async fn answer(ask: &Ask<'_>) -> Answer {
    ask.must(Role::Admin)?;
    match (ask.method, ask.rest, ask.name()) {
        (&Method::GET, "", _) => list(&ask.shared.access),
        (&Method::POST, "", _) => add(ask).await,
        (&Method::PUT, _, Some(name)) => change(&name, ask).await,
        (&Method::DELETE, _, Some(name)) => remove(&name, ask),
        _ => no_route(ask),
    }
}

/// `POST`: makes a link that opens the page once, as an admin. Only this host's own commands get one, since nobody can tell who opens it.
pub(super) fn links(ask: &Ask<'_>) -> Answer {
    if (ask.method, ask.rest) != (&Method::POST, "") {
        return no_route(ask);
    }
    ask.must(Role::Admin)?;
    if !matches!(ask.caller.proof, Proof::Local | Proof::Token) {
        return refuse(StatusCode::FORBIDDEN, "only a command on the center's own host makes links");
    }
    let link = ask.shared.new_link().map_err(|error| failed(&error))?;
    ask.audit("link.new", "", "", "ok");
    Ok(json_response(StatusCode::CREATED, &json!({ "link": link, "expires_s": LINK_MS / 1000 })))
}

fn list(access: &Access) -> Answer {
    let users: Vec<_> = access.state().users.values().map(told).collect();
    ok(&json!(users))
}

fn told(user: &User) -> Value {
    json!({
        "name": user.name,
        "role": user.role,
        "created_ms": user.created_ms,
        "last_login_ms": user.last_login_ms,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewUser {
    name: String,
    password: String,
    role: String,
}

async fn add(ask: &Ask<'_>) -> Answer {
    let (NewUser { name, password, role }, access) = (ask.json()?, &ask.shared.access);
    check_name(&name)?;
    let role: Role = role.parse().map_err(|error: String| bad(&error))?;
    password::check(&password).map_err(|error| bad(&error))?;
    if !access.keeps() {
        return refuse(StatusCode::CONFLICT, "this center has no store that could keep users");
    }
    may_add(&access.state(), &name, role)?;
    let password = access.hasher.hash(password).await.map_err(|error| failed(&error))?;
    let user = User { name: name.clone(), role: role.to_string(), password, created_ms: now_ms(), last_login_ms: None };
    {
        let mut state = access.state();
        // Somebody else may have added one meanwhile.
        may_add(&state, &name, role)?;
        access.keep(|store| store.site().users().set(&user)).map_err(|error| full(&error))?;
        state.users.insert(name.clone(), user.clone());
    }
    ask.audit("user.add", &name, &role.to_string(), "ok");
    Ok(json_response(StatusCode::CREATED, &told(&user)))
}

fn may_add(state: &State, name: &str, role: Role) -> Result<(), Refusal> {
    if state.users.contains_key(name) {
        return refuse(StatusCode::CONFLICT, format!("there is a user {name:?} already"));
    }
    if state.users.is_empty() && role != Role::Admin {
        return refuse(StatusCode::CONFLICT, "the first user has to be an admin, or there would be none");
    }
    if state.users.len() >= MAX_USERS {
        return refuse(StatusCode::CONFLICT, format!("there are {MAX_USERS} users, and there may be no more"));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) {
        return Err(bad(&format!(
            "name {name:?}, expected 1 to {MAX_NAME} letters, digits, dots, dashes, underscores or @"
        )));
    }
    if [LOCAL, LINK, ACCESS_KEY, "nobody"].contains(&name) {
        return Err(bad(&format!("{name:?} stands for somebody else in the audit trail")));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserChange {
    name: Option<String>,
    password: Option<String>,
    role: Option<String>,
}

/// `{"password", "role"}`, or one of them. Sessions of whose password is changed end.
async fn change(name: &str, ask: &Ask<'_>) -> Answer {
    let (change, access): (UserChange, _) = (ask.json()?, &ask.shared.access);
    if change.name.is_some_and(|other| other != name) {
        return Err(bad(&"a user keeps the name"));
    }
    let role: Option<Role> = change.role.map(|role| role.parse()).transpose().map_err(|error: String| bad(&error))?;
    let stored = match change.password {
        None => None,
        Some(password) => {
            password::check(&password).map_err(|error| bad(&error))?;
            Some(access.hasher.hash(password).await.map_err(|error| failed(&error))?)
        }
    };
    let detail = [stored.as_ref().map(|_| "password".to_owned()), role.map(|role| role.to_string())];
    let (user, ended) = {
        let mut state = access.state();
        let Some(user) = state.users.get(name) else { return unknown(name) };
        let mut user = user.clone();
        if role.is_some_and(|role| role != Role::Admin) {
            not_the_last_admin(&state, name)?;
        }
        user.role = role.map_or(user.role, |role| role.to_string());
        let ends = stored.is_some();
        user.password = stored.unwrap_or(user.password);
        access.keep(|store| store.site().users().set(&user)).map_err(|error| full(&error))?;
        state.users.insert(name.to_owned(), user.clone());
        (user, if ends { state.sessions.end_all(name, None) } else { Vec::new() })
    };
    access.keep(|store| store.site().sessions().remove(&ended)).map_err(|error| full(&error))?;
    ask.audit("user.change", name, &detail.into_iter().flatten().collect::<Vec<_>>().join(", "), "ok");
    ok(&told(&user))
}

fn remove(name: &str, ask: &Ask<'_>) -> Answer {
    let access = &ask.shared.access;
    {
        let mut state = access.state();
        if !state.users.contains_key(name) {
            return unknown(name);
        }
        not_the_last_admin(&state, name)?;
        access.keep(|store| store.site().users().remove(name).map(|_| ())).map_err(|error| full(&error))?;
        state.users.remove(name);
        state.sessions.end_all(name, None);
    }
    ask.audit("user.remove", name, "", "ok");
    ok(&json!({}))
}

fn not_the_last_admin(state: &State, name: &str) -> Result<(), Refusal> {
    let admin = |user: &User| user.role == Role::Admin.to_string();
    let last = state.users.get(name).is_some_and(admin)
        && !state.users.values().any(|other| other.name != name && admin(other));
    if last {
        return refuse(StatusCode::CONFLICT, format!("{name:?} is the last admin, and has to stay one"));
    }
    Ok(())
}

fn unknown(name: &str) -> Answer {
    refuse(StatusCode::NOT_FOUND, format!("there is no user {name:?}"))
}

fn full(error: &SiteError) -> Refusal {
    Refusal { status: StatusCode::INSUFFICIENT_STORAGE, error: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, role: Role) -> User {
        let (name, role) = (name.to_owned(), role.to_string());
        User { name, role, password: String::new(), created_ms: 0, last_login_ms: None }
    }

    fn state(users: &[(&str, Role)]) -> State {
        let mut state = State::default();
        state.users = users.iter().map(|(name, role)| ((*name).to_owned(), user(name, *role))).collect();
        state
    }

    #[test]
    fn there_is_always_an_admin() {
        assert!(may_add(&state(&[]), "ann", Role::Operate).is_err());
        assert!(may_add(&state(&[]), "ann", Role::Admin).is_ok());
        let one = state(&[("ann", Role::Admin), ("bob", Role::View)]);
        assert!(not_the_last_admin(&one, "ann").is_err());
        assert!(not_the_last_admin(&one, "bob").is_ok());
        assert!(may_add(&one, "bob", Role::View).is_err(), "the name is taken");
        let two = state(&[("ann", Role::Admin), ("bob", Role::Admin)]);
        assert!(not_the_last_admin(&two, "ann").is_ok());
    }

    #[test]
    fn a_name_is_not_taken_for_somebody_else() {
        for name in ["ann", "Ann.B-c_d@example.org", &"x".repeat(64)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "local", "link", "access-key", "nobody", "a b", "a\n", "ännchen", &"x".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
