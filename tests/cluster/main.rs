//! Tests against a real API server with real enforcers. They need root and the programs that `cargo xtask setup` builds
//! with Go; without them they say so and pass.

mod control_plane;
mod enforcers;
mod tail;
mod truth;
