//! The coefficients of the model. Written by `train.py`.

pub(crate) const INTERCEPT: f64 = -8.5425;

/// In the order of `features`.
pub(crate) const WEIGHTS: [f64; 4] = [
    0.7176, // ln(1 + amount)
    1.564,  // abroad
    0.9188, // at night
    0.227,  // ln(1 + amount) if abroad
];
