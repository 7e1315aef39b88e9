//! What every sink must hold.
