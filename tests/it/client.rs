//! The client library, over sockets, against the real server; and against one that answers by a
//! script, where the real one would not fail as it has to.

pub(crate) mod balance;
mod calls;
mod example;
mod scripted;
mod tokens;
