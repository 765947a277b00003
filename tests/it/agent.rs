//! The node agent between a server and those who watch through it, on a Unix socket.

mod command;
mod faults;
mod log;
mod passes;
mod rig;
