//! `/elklet.Enrollment/Enroll`: a host's key goes up, its certificate comes down. Who gets one is [`crate::enrolment`]'s affair.
//!
//! It is the one call that clients without a certificate may make, so that everything about it is bounded.

use super::connection::ConnectionHandle;
use super::grpc::{Encoding, MessageReader, Outgoing, Status};
use super::shared::Shared;
use crate::authority::Peer;
use crate::clock::now_ms;
use crate::enrolment::{Enrolled, Refused};
use crate::http::audit;
use crate::store::site::Unusable;
use bytes::Bytes;
use elklet_proto::enrollment::{EnrollRequest, EnrollResponse};
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// The call's path.
pub(super) const PATH: &str = "/elklet.Enrollment/Enroll";

/// The longest request. One has a token, an id and a key of some 200 bytes.
const MAX_REQUEST: usize = 4 << 10;

/// How long the request may take to arrive, and the answer to leave.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves one call to its end.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    connection: ConnectionHandle,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let encoding = Encoding::of(request.headers());
    let mut outgoing = Outgoing::new(respond, *encoding.as_ref().unwrap_or(&Encoding::Identity));
    let id = request.body().stream_id();
    let answered = match encoding {
        Ok(encoding) => answer(&shared, &connection, request.into_body(), encoding).await,
        Err(status) => Err(status),
    };
    connection.closed(id);
    let status = match answered {
        Ok(certificate) => {
            let answer = EnrollResponse { certificate }.encode_to_vec();
            let message = outgoing.encoding().message(&answer);
            match timeout(PATIENCE, outgoing.send(message, usize::MAX)).await {
                Ok(Ok(())) => Status::ok(),
                Ok(Err(_)) => Status::new(Status::UNAVAILABLE, "the answer could not be sent"),
                Err(_) => Status::new(Status::DEADLINE_EXCEEDED, "the answer was not taken in time"),
            }
        }
        Err(status) => status,
    };
    // The host may have gone.
    _ = outgoing.finish(&status);
}

async fn answer(
    shared: &Arc<Shared>,
    connection: &ConnectionHandle,
    body: RecvStream,
    encoding: Encoding,
) -> Result<Vec<u8>, Status> {
    let mut reader = {
        let unstored = connection.unstored.clone();
        MessageReader::new(body, encoding, MAX_REQUEST, connection.window, unstored, Arc::clone(&shared.assembling))
    };
    let bad = |what: &dyn std::fmt::Display| Status::new(Status::INVALID_ARGUMENT, what.to_string());
    let message = match timeout(PATIENCE, reader.next()).await {
        Ok(Ok(Some(message))) => message.body(MAX_REQUEST).map_err(|error| bad(&error))?,
        Ok(Ok(None)) => return Err(bad(&"the call has no request")),
        Ok(Err(error)) => return Err(bad(&error)),
        Err(_) => return Err(Status::new(Status::DEADLINE_EXCEEDED, "the request did not come in time")),
    };
    let request = EnrollRequest::decode(message).map_err(|error| bad(&error))?;
    // It asks the disk, and checks and makes signatures.
    tokio::task::block_in_place(|| decide(shared, connection, &request))
}

fn decide(shared: &Shared, connection: &ConnectionHandle, request: &EnrollRequest) -> Result<Vec<u8>, Status> {
    let EnrollRequest { token, agent_id, request } = request;
    let (enrolment, peer, now_ms) = (&shared.enrolment, connection.peer, now_ms());
    let decided = match (&connection.who, token.as_str()) {
        (Peer::Agent(bound), "") => {
            let signed = enrolment.renew(shared.db(), bound, (agent_id, request), peer.ip(), now_ms);
            signed.map(|signed| (signed, None))
        }
        (Peer::Anonymous | Peer::Anyone, "") => Err(Refused::Nothing),
        (_, token) => {
            let enrolled = enrolment.enrol(shared.db(), (token, agent_id, request), peer.ip(), now_ms);
            if let Ok(Enrolled { certificate, is_repeated: true, .. }) = enrolled {
                shared.note(format!("agent {agent_id} at {peer} asks for its first certificate once more"));
                return Ok(certificate);
            }
            enrolled.map(|enrolled| (enrolled.certificate, Some(enrolled.token)))
        }
    };
    let origin = peer.to_string();
    match decided {
        Ok((signed, None)) => {
            shared.change(|fleet| fleet.totals.renewed += 1);
            shared.note(format!("agent {agent_id} at {peer} has its next certificate"));
            Ok(signed)
        }
        Ok((signed, Some(token))) => {
            shared.change(|fleet| fleet.totals.enrolled += 1);
            shared.note(format!("agent {agent_id} at {peer} is enrolled with token {}", token.id));
            let (who, detail) = (format!("token {}", token.id), format!("use {} of {}", token.used, token.uses));
            audit(shared, &who, &origin, "enrol", agent_id, &detail, "ok");
            if let Some(group) = token.group {
                join(shared, agent_id, &group, (&who, &origin));
            }
            Ok(signed)
        }
        Err(refused) => {
            shared.change(|fleet| fleet.totals.refused_enrolments += 1);
            shared.note(format!(
                "agent {:.256} at {peer} gets no certificate: {refused}",
                agent_id.escape_debug().to_string()
            ));
            if enrolment.is_told(peer.ip(), now_ms) {
                audit(shared, "nobody", &origin, "enrol", agent_id, "", &refused.to_string());
            }
            Err(status(&refused))
        }
    }
}

/// Puts a newcomer into the group of its token.
fn join(shared: &Shared, agent_id: &str, group: &str, (who, origin): (&str, &str)) {
    let outcome = match shared.change_desired(who, |desired| desired.set_group(agent_id, Some(group.to_owned()))) {
        Ok(Ok(())) => "ok".to_owned(),
        Ok(Err(too_much)) => too_much.to_string(),
        Err(error) => error.to_string(),
    };
    if outcome != "ok" {
        log::error!("agent {agent_id} is not in the group {group}: {outcome}");
    }
    audit(shared, who, origin, "host.group", agent_id, group, &outcome);
}

fn status(refused: &Refused) -> Status {
    let code = match refused {
        Refused::NoAuthority(_) => Status::UNIMPLEMENTED,
        Refused::TooMany(_) => Status::RESOURCE_EXHAUSTED,
        Refused::Request(_) => Status::INVALID_ARGUMENT,
        Refused::Token(Unusable::Taken) => Status::ALREADY_EXISTS,
        Refused::Token(_) | Refused::AnotherAgent => Status::PERMISSION_DENIED,
        Refused::Nothing | Refused::Revoked => Status::UNAUTHENTICATED,
        Refused::Broken(_) => Status::UNAVAILABLE,
    };
    Status::new(code, refused.to_string())
}
