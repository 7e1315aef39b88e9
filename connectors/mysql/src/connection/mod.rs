//! Connections to the server, and what is asked over them first.

pub(crate) mod address;
pub(crate) mod connect;
pub(crate) mod server_info;
pub(crate) mod tls;
