//! Elklet's center: a server for small sites, which agents of the Elkeid host security system connect to.
//!
//! The binary `elklet-center` runs it. Tests embed it, and wrap faults around it.
//!
//! [`serve`] speaks with agents, [`fleet`] is what is known of them, [`desired`] is what they should run, [`rollout`] brings them there
//! step by step with [`files`] that they fetch, [`sink`] is where their records go, [`store`] keeps them, [`forward`] passes them
//! on, and [`http`] is the port for those who ask and command. `authority` and `enrolment` give hosts certificates, and `given`
//! reads the files that it was given. [`cli`] is the
//! program.
#![forbid(unsafe_code)]
// Where standard error is a full disk or a closed pipe, `eprintln!` panics.
#![warn(clippy::print_stderr)]

mod authority;
pub mod cli;
mod clock;
pub mod desired;
mod enrolment;
pub mod files;
pub mod fleet;
pub mod forward;
mod given;
mod hex;
pub mod http;
pub mod keep;
pub mod kinds;
pub mod logger;
pub mod message;
pub mod rollout;
pub mod serve;
pub mod settings;
pub mod sink;
pub mod store;
