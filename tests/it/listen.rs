//! What a listener does to peers that are slow, greedy, broken or late. Peers here speak raw bytes
//! or raw HTTP/2, because well-behaved clients cannot misbehave.

mod floods;
mod life;
mod slow;
mod support;
mod tls;
