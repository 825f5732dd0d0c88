//! Tests against the real kernel, in namespaces of their own. They need root; without it they say so and pass.

mod demo;
