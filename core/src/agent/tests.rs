//! The agent around its parts.
