//! Listener
