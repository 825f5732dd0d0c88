//! The connections of a listener whose client has not sent a request yet.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::lock::IgnorePoison;

use axum::Router;
use axum::extract::Request;
use axum::middleware;
use tokio::task::AbortHandle;

/// The connections without a request, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct IdleConnections(Arc<Mutex<IdleList>>);

#[derive(Debug, Default)]
struct IdleList {
    last: u64,
    idle: BTreeMap<u64, AbortHandle>,
}

impl IdleConnections {
    fn lock(&self) -> MutexGuard<'_, IdleList> {
        self.0.lock().ignore_poison()
    }

    /// Serves a connection in a task of its own. It is idle until the router gets its request, or until it ends.
    pub fn spawn<F>(&self, router: Router, serve: impl FnOnce(Router) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // The lock is held until the task is in the map, because its request may come at once.
        let mut connections = self.lock();
        connections.last += 1;
        let connection = Arc::new(IdleConnection { all: self.clone(), number: connections.last });
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
        connections.idle.insert(number, task.abort_handle());
    }

    /// Ends the connection that has been idle longest; `false` when none is idle.
    pub fn close_oldest(&self) -> bool {
        let oldest = self.lock().idle.pop_first();
        oldest.inspect(|(_, task)| task.abort()).is_some()
    }
}

/// One connection in the list.
struct IdleConnection {
    all: IdleConnections,
    number: u64,
}

impl IdleConnection {
    fn remove(&self) {
        self.all.lock().idle.remove(&self.number);
    }
}
