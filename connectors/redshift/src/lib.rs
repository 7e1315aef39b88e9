//! Sink connector `redshift`.
