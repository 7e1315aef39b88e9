//! The thread that keeps all memberships of a cluster in this process.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use trunkline_connector::{Error, Result};

use super::member::{Member, Sent};
use super::membership::Shared;
use super::topics::{Topics, Wanted};
use crate::kafka::client::Cluster;
use crate::kafka::wire::Lost;
use crate::kafka::wire::brokers::{Brokers, CallError};
use crate::kafka::wire::connection::readiness::wait;
use crate::kafka::wire::wake::{WakeUps, wake};

/// Time to connect to a broker, with TLS and a login over a slow network, or for a lookup. No
/// heartbeat is sent meanwhile, so it is less than half of the default session.
const CALL_LIMIT: Duration = Duration::from_secs(4);

/// A broker whose connection failed after more than this is left alone for twice as long as that
/// took, so that heartbeats to other brokers are sent in between.
const SLOW: Duration = Duration::from_millis(200);

/// Without anything to do, the thread looks this often.
const IDLE: Duration = Duration::from_secs(60);

/// The keeper of a cluster, shared by its clones.
#[derive(Clone, Default)]
pub(in crate::kafka) struct Keepers(Arc<Mutex<Weak<Keeper>>>);

/// A handle of the thread, which ends with the last handle.
pub(super) struct Keeper {
    control: Arc<Control>,
}

/// What the thread and its handles share.
struct Control {
    arrivals: Mutex<Vec<Arc<Shared>>>,
    thread: Arc<UnixStream>,
    is_released: AtomicBool,
    /// The thread has ended.
    is_over: AtomicBool,
}

impl Keepers {
    /// The keeper of this cluster; started if there is none.
    pub(super) fn get(&self, cluster: &Cluster) -> Result<Arc<Keeper>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keeper) = known.upgrade().filter(|keeper| keeper.check().is_ok()) {
            return Ok(keeper);
        }
        let keeper = Arc::new(Keeper::start(cluster)?);
        *known = Arc::downgrade(&keeper);
        Ok(keeper)
    }
}

impl Keeper {
    fn start(cluster: &Cluster) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::external("kafka.wake", format!("cannot start the thread for consumer groups: {error}"))
        };
        let wake_ups = WakeUps::new().map_err(failed)?;
        let control = Arc::new(Control {
            arrivals: Mutex::default(),
            thread: wake_ups.sender(),
            is_released: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        });
        let rounds = Rounds {
            control: control.clone(),
            wake_ups,
            context: Context {
                brokers: Brokers::new(cluster, &client_id(cluster)),
                topics: Topics::new(),
                silent: HashMap::new(),
            },
            members: BTreeMap::new(),
            heartbeats: HashMap::new(),
            last_member: 0,
        };
        let thread = std::thread::Builder::new().name("kafka-groups".to_owned());
        thread.spawn(move || rounds.run()).map_err(failed)?;
        Ok(Self { control })
    }

    pub(super) fn add(&self, member: Arc<Shared>) {
        self.control.arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(member);
        self.wake();
    }

    /// Makes the thread look at its members.
    pub(super) fn wake(&self) {
        wake(&self.control.thread);
    }

    /// Fails if the thread has ended, which only a fault in it can cause.
    pub(super) fn check(&self) -> Result<()> {
        if self.control.is_over.load(Ordering::Acquire) {
            return Err(Error::internal("kafka.keeper", "the thread that keeps the consumer groups has ended"));
        }
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.control.is_released.store(true, Ordering::Release);
        self.wake();
    }
}

fn client_id(cluster: &Cluster) -> String {
    cluster.config(&[]).get("client.id").unwrap_or("trunkline").to_owned()
}

/// What the members of a process share.
pub(super) struct Context {
    pub(super) brokers: Brokers,
    pub(super) topics: Topics,
    /// Brokers that did not answer, and until when they are left alone.
    silent: HashMap<i32, Instant>,
}

impl Context {
    /// The deadline of a call.
    pub(super) fn deadline() -> Instant {
        Instant::now() + CALL_LIMIT
    }

    /// Makes a call that may connect to a broker.
    pub(super) fn reach<T>(
        &mut self,
        node: i32,
        call: impl FnOnce(&mut Brokers, Instant) -> Result<T, Lost>,
    ) -> Result<T, Lost> {
        let begun = Instant::now();
        if self.silent.get(&node).is_some_and(|until| begun < *until) {
            return Err(Lost(format!("broker {node} has not answered")));
        }
        let reached = call(&mut self.brokers, begun + CALL_LIMIT);
        let took = begun.elapsed();
        if reached.is_err() && took > SLOW {
            self.silent.insert(node, Instant::now() + 2 * took);
        } else {
            self.silent.remove(&node);
        }
        reached
    }
}

/// The state of the thread.
struct Rounds {
    control: Arc<Control>,
    wake_ups: WakeUps,
    context: Context,
    members: BTreeMap<u64, Member>,
    /// The members whose heartbeats are not answered, by connection and request.
    heartbeats: HashMap<(u64, i32), u64>,
    last_member: u64,
}

impl Drop for Rounds {
    fn drop(&mut self) {
        self.control.is_over.store(true, Ordering::Release);
        self.members.values().for_each(Member::notify);
    }
}

impl Rounds {
    fn run(mut self) {
        while !self.control.is_released.load(Ordering::Acquire) {
            self.take_arrivals();
            self.look_up_topics();
            self.take_answers();
            let next = self.step();
            let mut sockets = vec![self.wake_ups.readiness()];
            sockets.extend(self.context.brokers.readiness());
            sockets.extend(self.members.values().filter_map(Member::readiness));
            wait(&sockets, next);
            self.wake_ups.clear();
        }
    }

    fn take_arrivals(&mut self) {
        let arrivals = std::mem::take(&mut *self.control.arrivals.lock().unwrap_or_else(PoisonError::into_inner));
        for shared in arrivals {
            self.context.topics.need(&shared.options);
            self.last_member += 1;
            self.members.insert(self.last_member, Member::new(shared, self.context.topics.answers));
        }
    }

    fn look_up_topics(&mut self) {
        if self.context.topics.due() > Instant::now() || self.members.is_empty() {
            return;
        }
        let names: BTreeSet<_> = self.members.values().flat_map(Member::topics).collect();
        let wanted = Wanted { names, all: self.members.values().any(Member::has_pattern) };
        let Context { brokers, topics, .. } = &mut self.context;
        match topics.look_up(brokers, &wanted, Context::deadline()) {
            Ok(()) => {}
            Err(CallError::Lost(Lost(reason))) => {
                tracing::debug!(reason, "the topics of consumer groups are not known")
            }
            Err(CallError::Refused(error)) => {
                tracing::debug!(%error, "the topics of consumer groups are not known");
            }
        }
    }

    /// Takes the answers of heartbeats and of members that leave.
    fn take_answers(&mut self) {
        for node in self.context.brokers.nodes() {
            while let Some((serial, correlation, body)) = self.next_answer(node) {
                let Some(member) = self.heartbeats.remove(&(serial, correlation)) else { continue };
                if let Some(member) = self.members.get_mut(&member) {
                    member.take_answer(&mut self.context, (node, serial, correlation), body);
                }
            }
        }
    }

    fn next_answer(&mut self, node: i32) -> Option<(u64, i32, Bytes)> {
        let connection = self.context.brokers.open_connection(node)?;
        let serial = connection.serial();
        match connection.progress() {
            Ok(answer) => answer.map(|(correlation, body)| (serial, correlation, body)),
            Err(lost) => {
                self.context.brokers.note_lost(&lost);
                self.context.brokers.close(node);
                self.heartbeats.retain(|(lost, _), _| *lost != serial);
                None
            }
        }
    }

    /// Lets every member do what is due. Returns when the next step is due.
    fn step(&mut self) -> Instant {
        let mut next = Instant::now() + IDLE;
        if !self.members.is_empty() {
            next = next.min(self.context.topics.due());
        }
        let mut closed = Vec::new();
        for (id, member) in &mut self.members {
            let had = member.sent().copied();
            match member.step(&mut self.context) {
                Some(due) => next = next.min(due),
                None => closed.push(*id),
            }
            if let Some(Sent { serial, correlation, .. }) = member.sent().copied()
                && member.sent() != had.as_ref()
            {
                self.heartbeats.insert((serial, correlation), *id);
            }
        }
        closed.iter().for_each(|id| drop(self.members.remove(id)));
        // Writes the requests.
        self.take_answers();
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_does_not_answer_is_left_alone_for_a_while() {
        let cluster = Cluster::new("b:1", &BTreeMap::new()).unwrap();
        let brokers = Brokers::new(&cluster, "test");
        let mut context = Context { brokers, topics: Topics::new(), silent: HashMap::new() };
        let lost = || Err::<(), Lost>(Lost("gone".to_owned()));
        // A refused connection costs no time.
        assert_eq!(context.reach(1, |_, _| lost()).unwrap_err().0, "gone");
        assert_eq!(context.reach(1, |_, _| lost()).unwrap_err().0, "gone");
        let is_slow = |_: &mut Brokers, deadline: Instant| {
            assert!(deadline > Instant::now());
            std::thread::park_timeout(SLOW + Duration::from_millis(50));
            lost()
        };
        assert_eq!(context.reach(1, is_slow).unwrap_err().0, "gone");
        let asked = Instant::now();
        assert_eq!(context.reach(1, is_slow).unwrap_err().0, "broker 1 has not answered");
        assert!(asked.elapsed() < SLOW);
        context.reach(2, |_, _| Ok(())).unwrap();
        let until = context.silent[&1];
        assert!(until > asked + SLOW && until < asked + Duration::from_secs(5));
        context.silent.insert(1, asked);
        context.reach(1, |_, _| Ok(())).unwrap();
        assert!(context.silent.is_empty());
    }
}
