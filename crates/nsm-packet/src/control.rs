//! stub
pub struct Client; pub struct RunOptions; pub fn run(_: RunOptions) {}
