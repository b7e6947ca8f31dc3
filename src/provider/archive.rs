//! Image archives and layouts on this machine.
