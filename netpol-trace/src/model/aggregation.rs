//! Why packets of several flows are in one record.

use super::closed_set::closed_set;

closed_set! {
    /// Why packets of several flows are in one record.
    pub enum AggregationReason {
        /// There were more records per second than `--max-records-per-second` allows.
        RecordBudget = "record_budget",
        /// There were more flows at once than the kernel programs have room for. They count packets without the source's port, and without
        /// both ports if there is no room for that either.
        FlowMapFull = "flow_map_full",
    }
}
