//! Starts processes: from a `LaunchPlan` to an executed command.
