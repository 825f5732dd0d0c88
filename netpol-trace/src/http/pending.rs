//! The connections of a listener whose client has not sent a request yet.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::Request;
use axum::middleware;
use tokio::task::AbortHandle;

/// The connections without a request, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct PendingConnections(Arc<Mutex<Connections>>);

#[derive(Debug, Default)]
struct Connections {
    last: u64,
    pending: BTreeMap<u64, AbortHandle>,
}

impl PendingConnections {
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a connection in a task of its own. It is pending until the router gets its request, or until it ends.
    pub fn spawn<F>(&self, router: Router, serve: impl FnOnce(Router) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // The lock is held until the task is in the map, because its request may come at once.
        let mut connections = self.lock();
        connections.last += 1;
        let connection = Arc::new(PendingConnection { all: self.clone(), number: connections.last });
        let with_request = connection.clone();
        let served = serve(router.layer(middleware::map_request(move |request: Request| {
            with_request.remove();
            async move { request }
        })));
        let task = tokio::spawn(async move {
            served.await;
            connection.remove();
        });
        let number = connections.last;
        connections.pending.insert(number, task.abort_handle());
    }

    /// Ends the connection that has been pending longest; `false` when none is pending.
    pub fn close_oldest(&self) -> bool {
        let oldest = self.lock().pending.pop_first();
        oldest.inspect(|(_, task)| task.abort()).is_some()
    }
}

/// One connection in the list.
struct PendingConnection {
    all: PendingConnections,
    number: u64,
}

impl PendingConnection {
    fn remove(&self) {
        self.all.lock().pending.remove(&self.number);
    }
}
