//! The open connections of those who are to have few: of each agent whose certificate is for it alone, and of each address from which
//! clients come without a certificate, or with one that says nothing about whose connection it is.

use super::interpose::ConnectionStep;
use super::shared::lock;
use std::collections::HashMap;
use std::sync::Mutex;
use tokio::sync::mpsc;

/// Connections of an agent at a time. It has one, and more while those of before have not been found dead yet.
const PER_AGENT: usize = 16;

/// Connections at a time that have no certificate, from one address.
const PER_ADDRESS: usize = 8;

/// Connections at a time with a certificate that is for no agent alone, from one address, beyond two for each agent that the center takes. A
/// whole fleet may be behind the address, and have its broken connections there until they are found dead. Whoever has more than that has no
/// agents on them, but would have the center's descriptors, and keep those at other addresses out.
const PER_SHARED: usize = 16;

/// Orders for a connection. A channel has room for 32 values from the beginning, which is why they are boxed.
pub(crate) type Orders = mpsc::UnboundedSender<Box<ConnectionStep>>;

/// Whose a connection is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    /// The agent of this id.
    Agent(String),
    /// Whoever is at this address, or in this network.
    Address(String),
    /// Any agent's that is at this address, or in this network.
    Shared(String),
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Connections {
    of_few: Mutex<HashMap<Whose, Vec<Orders>>>,
    /// How many there are with certificates that are for no agent alone, by address. There may be thousands at one.
    shared: Mutex<HashMap<String, usize>>,
    per_shared: usize,
}

impl Connections {
    /// There are none. The center takes so many agents at a time.
    pub(super) fn new(agents: usize) -> Self {
        Self { of_few: Mutex::default(), shared: Mutex::default(), per_shared: 2 * agents + PER_SHARED }
    }

    /// Counts a connection for as long as what this returns lives. An agent's oldest one makes room for a new one, because it may be
    /// dead; an address that has too many gets none.
    pub(super) fn enter(&self, whose: Whose, orders: Orders) -> Option<Entered<'_>> {
        if let Whose::Shared(address) = &whose {
            let mut all = lock(&self.shared);
            let open = all.entry(address.clone()).or_default();
            if *open >= self.per_shared {
                return None;
            }
            *open += 1;
            drop(all);
            return Some(Entered { connections: self, whose, orders });
        }
        let mut all = lock(&self.of_few);
        let open = all.entry(whose.clone()).or_default();
        match &whose {
            Whose::Agent(_) if open.len() >= PER_AGENT => close(open.drain(..=open.len() - PER_AGENT)),
            Whose::Address(_) if open.len() >= PER_ADDRESS => return None,
            Whose::Agent(_) | Whose::Address(_) | Whose::Shared(_) => {}
        }
        open.push(orders.clone());
        drop(all);
        Some(Entered { connections: self, whose, orders })
    }

    /// Returns the connections that an agent has now.
    pub(super) fn of_agent(&self, agent_id: &str) -> Vec<Orders> {
        lock(&self.of_few).get(&Whose::Agent(agent_id.to_owned())).cloned().unwrap_or_default()
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
        if let Whose::Shared(address) = &self.whose {
            let mut all = lock(&self.connections.shared);
            if let Some(open) = all.get_mut(address) {
                *open -= 1;
                if *open == 0 {
                    all.remove(address);
                }
            }
            return;
        }
        let mut all = lock(&self.connections.of_few);
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
        let connections = Connections::new(1);
        let mut open: Vec<_> = (0..=PER_AGENT).map(|_| connection()).collect();
        let enter = |n: usize| connections.enter(Whose::Agent("a".into()), open[n].0.clone());
        let mut entered: Vec<_> = (0..=PER_AGENT).map(|n| enter(n).unwrap()).collect();
        assert_eq!(connections.of_agent("a").len(), PER_AGENT);
        assert!(connections.of_agent("b").is_empty());
        entered.truncate(3);
        assert_eq!(connections.of_agent("a").len(), 2, "the first of the three does not count any more");
        drop(entered);
        assert!(lock(&connections.of_few).is_empty());
        let closed: Vec<bool> = open.iter_mut().map(|(_, orders)| is_closed(orders)).collect();
        assert_eq!(closed.iter().position(|closed| *closed), Some(0));
        assert_eq!(closed.iter().filter(|closed| **closed).count(), 1);
    }

    #[test]
    fn an_address_that_has_too_many_gets_none_until_one_ends() {
        let connections = Connections::new(1);
        let enter = |address: &str| connections.enter(Whose::Address(address.into()), connection().0);
        let mut entered: Vec<_> = (0..PER_ADDRESS).map(|_| enter("10.0.0.1").unwrap()).collect();
        assert!(enter("10.0.0.1").is_none());
        assert!(enter("10.0.0.2").is_some());
        entered.pop();
        assert!(enter("10.0.0.1").is_some());
    }
    #[test]
    fn a_fleet_behind_one_address_has_room_and_nobody_there_has_all_of_it() {
        let connections = Connections::new(500);
        let enter = |address: &str| connections.enter(Whose::Shared(address.into()), connection().0);
        let mut entered: Vec<_> = (0..1000 + PER_SHARED).map(|_| enter("10.0.0.1").unwrap()).collect();
        assert!(enter("10.0.0.1").is_none());
        assert!(enter("10.0.0.2").is_some());
        entered.pop();
        assert!(enter("10.0.0.1").is_some());
        drop(entered);
        assert!(lock(&connections.shared).is_empty());
    }
}
