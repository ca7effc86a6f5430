//! Other versions of the agent.

use std::fs;

use elklet_proto::grpc::Config;
use elklet_tests::files::How;
use elklet_tests::harness::config;

use super::Attempt;
use super::stage::Stage;
use crate::downloads::sha256;

const NEXT: &str = env!("CARGO_BIN_EXE_elklet-next");

pub(super) const ATTEMPTS: &[Attempt] = &[
    ("update-to-earlier", |stage| update(stage, "0.0.1", b"#!/bin/sh\necho elklet 0.0.1\n")),
    ("update-to-other-program", |stage| update(stage, "7.0.0", b"#!/bin/sh\necho something else\n")),
    ("update", |stage| update(stage, "9.9.9", &fs::read(NEXT).unwrap())),
];

/// Returns true if the agent's program becomes this one.
fn update(stage: &Stage, version: &str, program: &[u8]) -> bool {
    let url = stage.files.serve(version, program, How::Right);
    let hash = sha256(program);
    let entry =
        Config { r#type: "agent".into(), download_urls: vec![url], ..config("elkeid-agent", version, &hash, "") };
    stage.site.configure(&stage.agent, &[entry]);
    let is_there = |stage: &Stage| fs::read(stage.program()).is_ok_and(|found| found == program);
    let is_refused = |stage: &Stage| stage.audited_refusals().iter().any(|refusal| refusal.contains(version));
    stage.decide(version, is_there, is_refused)
}
