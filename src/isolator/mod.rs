//! The aspects of a container, in order.
