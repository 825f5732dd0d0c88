//! Unanswered connections on their way to a record.

use std::time::Instant;

use super::Pipeline;
use super::connections::{self, Flows};
use super::identity::confirm;
use super::pending::NAMING_TIME;
use crate::kernel::tc::TcView;
use crate::pipeline::filter::EndpointPair;
use crate::record::Body;
use crate::sink::SinkError;

/// An unanswered connection that waits for the name of an endpoint.
pub(super) struct PendingConnection {
    finding: connections::UnansweredConnection,
    deadline: Instant,
    /// A look-up of the endpoints without a name was requested.
    looked_up: bool,
}

impl Pipeline {
    /// Writes unanswered connections whose endpoints are known or out of time. `all` waits no longer.
    pub fn unanswered(&mut self, all: bool) -> Result<(), SinkError> {
        let now = Instant::now();
        let found = self.flows.as_mut().map(|flows| flows.unanswered(now)).unwrap_or_default();
        let deadline = now + NAMING_TIME;
        let new = found.into_iter().map(|finding| PendingConnection { finding, deadline, looked_up: false });
        self.pending_connections.extend(new);
        if self.pending_connections.is_empty() {
            return Ok(());
        }
        let cluster = self.cluster.clone();
        let index = cluster.read();
        for mut pending in std::mem::take(&mut self.pending_connections) {
            let may_wait = !all && pending.deadline > now;
            let finding = &pending.finding;
            let time = self.clock.wall(finding.opened);
            let (client, server) = (finding.tuple.client.0, finding.tuple.server.0);
            let names_of = |flows: &Flows<TcView>| flows.names_of(client, server, now);
            let names = self.flows.as_ref().map(names_of).unwrap_or_default();
            let moment = index.at(time, &[client, server]);
            let mut flow = connections::flow(finding, &moment);
            let look_up = !std::mem::replace(&mut pending.looked_up, true);
            confirm(self.lookups.as_ref(), &mut flow, &index, time, look_up);
            if may_wait && flow.may_be_named_later() {
                self.pending_connections.push_back(pending);
                continue;
            }
            let stale = self.cluster.stale();
            let mut body = connections::body(finding, &flow, &index, &self.options, names, time, &stale);
            if let Body::Unanswered(unanswered) = &body
                && !self
                    .configured
                    .settings
                    .admits(None, &EndpointPair::of_record(&unanswered.source, &unanswered.destination))
            {
                if let Some(flows) = &mut self.flows {
                    flows.leave_out(finding);
                }
                continue;
            }
            self.configured.settings.redact(&mut body);
            let fingerprint = self.fingerprints.unanswered(finding, time);
            self.output.write(body, Some(fingerprint), time, 0)?;
        }
        Ok(())
    }
}
