//! The Docker provider: which source a name means, and its plan.
