//! stub
/// stub
#[derive(Clone, Debug)]
pub struct RequestId(pub Box<str>);
