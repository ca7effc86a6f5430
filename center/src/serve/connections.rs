//! The open connections of those who are to have few: of each agent whose certificate is for it alone, and of each address from which
//! clients come without a certificate.

use super::interpose::ConnectionStep;
use super::shared::lock;
use std::collections::HashMap;
use std::sync::Mutex;
use tokio::sync::mpsc;

/// Connections of an agent at a time. It has one, and more while those of before have not been found dead yet.
const PER_AGENT: usize = 16;

/// Connections at a time that have no certificate, from one address.
const PER_ADDRESS: usize = 8;

/// Orders for a connection. A channel has room for 32 values from the beginning, which is why they are boxed.
pub(crate) type Orders = mpsc::UnboundedSender<Box<ConnectionStep>>;

/// Whose a connection is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    /// The agent of this id.
    Agent(String),
    /// Whoever is at this address, or in this network.
    Address(String),
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Connections(Mutex<HashMap<Whose, Vec<Orders>>>);

impl Connections {
    /// Counts a connection for as long as what this returns lives. An agent's oldest one makes room for a new one, because it may be
    /// dead; an address that has too many gets none.
    pub(super) fn enter(&self, whose: Whose, orders: Orders) -> Option<Entered<'_>> {
        let mut all = lock(&self.0);
        let open = all.entry(whose.clone()).or_default();
        match &whose {
            Whose::Agent(_) if open.len() >= PER_AGENT => close(open.drain(..=open.len() - PER_AGENT)),
            Whose::Address(_) if open.len() >= PER_ADDRESS => return None,
            Whose::Agent(_) | Whose::Address(_) => {}
        }
        open.push(orders.clone());
        drop(all);
        Some(Entered { connections: self, whose, orders })
    }

    /// Returns the connections that an agent has now.
    pub(super) fn of_agent(&self, agent_id: &str) -> Vec<Orders> {
        lock(&self.0).get(&Whose::Agent(agent_id.to_owned())).cloned().unwrap_or_default()
    }
}

/// Closes connections. One that is gone already has nothing to close.
pub(super) fn close(connections: impl IntoIterator<Item = Orders>) {
    for orders in connections {
        _ = orders.send(Box::new(ConnectionStep::Close));
    }
}

/// A connection that counts.
#[derive(Debug)]
pub(super) struct Entered<'a> {
    connections: &'a Connections,
    whose: Whose,
    orders: Orders,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut all = lock(&self.connections.0);
        if let Some(open) = all.get_mut(&self.whose) {
            open.retain(|orders| !orders.same_channel(&self.orders));
            if open.is_empty() {
                all.remove(&self.whose);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::UnboundedReceiver;

    fn connection() -> (Orders, UnboundedReceiver<Box<ConnectionStep>>) {
        mpsc::unbounded_channel()
    }

    fn is_closed(orders: &mut UnboundedReceiver<Box<ConnectionStep>>) -> bool {
        matches!(orders.try_recv().as_deref(), Ok(ConnectionStep::Close))
    }

    #[test]
    fn the_oldest_connection_of_an_agent_makes_room() {
        let connections = Connections::default();
        let mut open: Vec<_> = (0..=PER_AGENT).map(|_| connection()).collect();
        let enter = |n: usize| connections.enter(Whose::Agent("a".into()), open[n].0.clone());
        let mut entered: Vec<_> = (0..=PER_AGENT).map(|n| enter(n).unwrap()).collect();
        assert_eq!(connections.of_agent("a").len(), PER_AGENT);
        assert!(connections.of_agent("b").is_empty());
        entered.truncate(3);
        assert_eq!(connections.of_agent("a").len(), 2, "the first of the three does not count any more");
        drop(entered);
        assert!(lock(&connections.0).is_empty());
        let closed: Vec<bool> = open.iter_mut().map(|(_, orders)| is_closed(orders)).collect();
        assert_eq!(closed.iter().position(|closed| *closed), Some(0));
        assert_eq!(closed.iter().filter(|closed| **closed).count(), 1);
    }

    #[test]
    fn an_address_that_has_too_many_gets_none_until_one_ends() {
        let connections = Connections::default();
        let enter = |address: &str| connections.enter(Whose::Address(address.into()), connection().0);
        let mut entered: Vec<_> = (0..PER_ADDRESS).map(|_| enter("10.0.0.1").unwrap()).collect();
        assert!(enter("10.0.0.1").is_none());
        assert!(enter("10.0.0.2").is_some());
        entered.pop();
        assert!(enter("10.0.0.1").is_some());
    }
}
