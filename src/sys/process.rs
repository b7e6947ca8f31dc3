//! Processes, namespaces, credentials, capabilities.
