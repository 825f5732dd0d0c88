//! The connections of a listener whose client has not sent a request yet.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::Request;
use axum::middleware;
use tokio::task::AbortHandle;

/// Those connections, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting(Arc<Mutex<Connections>>);

#[derive(Debug, Default)]
struct Connections {
    last: u64,
    waiting: BTreeMap<u64, AbortHandle>,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a connection in a task of its own. It waits until the router gets its request, or until it ends.
    pub fn spawn<F>(&self, router: Router, serve: impl FnOnce(Router) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // Held until the task is in the map: it may have its request at once.
        let mut connections = self.lock();
        connections.last += 1;
        let entry = Arc::new(Entry { all: self.clone(), number: connections.last });
        let asked = entry.clone();
        let served = serve(router.layer(middleware::map_request(move |request: Request| {
            asked.remove();
            async move { request }
        })));
        let task = tokio::spawn(async move {
            served.await;
            entry.remove();
        });
        let number = connections.last;
        connections.waiting.insert(number, task.abort_handle());
    }

    /// Ends the connection that waits longest; `false` when none waits.
    pub fn close_oldest(&self) -> bool {
        let oldest = self.lock().waiting.pop_first();
        oldest.inspect(|(_, task)| task.abort()).is_some()
    }
}

/// One connection's place in the list.
struct Entry {
    all: Waiting,
    number: u64,
}

impl Entry {
    fn remove(&self) {
        self.all.lock().waiting.remove(&self.number);
    }
}
