//! Dates and times as text.

use crate::decode::{Date, DateTime, Time};

/// `2026-11-21`
pub(crate) fn write_date(out: &mut Vec<u8>, date: Date) {
    digits(out, u32::from(date.year), 4);
    out.push(b'-');
    digits(out, u32::from(date.month), 2);
    out.push(b'-');
    digits(out, u32::from(date.day), 2);
}

/// `04:05:06.789`; `fraction` is the number of its digits.
pub(crate) fn write_clock(out: &mut Vec<u8>, time: &DateTime, fraction: u8) {
    digits(out, u32::from(time.hour), 2);
    out.push(b':');
    digits(out, u32::from(time.minute), 2);
    out.push(b':');
    digits(out, u32::from(time.second), 2);
    write_fraction(out, time.micros, fraction);
}

/// `-838:59:59.25`
pub(crate) fn write_time(out: &mut Vec<u8>, time: Time, fraction: u8) {
    if time.negative {
        out.push(b'-');
    }
    digits(out, u32::from(time.hours), if time.hours > 99 { 3 } else { 2 });
    out.push(b':');
    digits(out, u32::from(time.minutes), 2);
    out.push(b':');
    digits(out, u32::from(time.seconds), 2);
    write_fraction(out, time.micros, fraction);
}

fn write_fraction(out: &mut Vec<u8>, micros: u32, fraction: u8) {
    if fraction == 0 {
        return;
    }
    out.push(b'.');
    let at = out.len();
    digits(out, micros, 6);
    out.truncate(at + usize::from(fraction.min(6)));
}

/// The last `count` digits of a number, with leading zeros.
fn digits(out: &mut Vec<u8>, number: u32, count: usize) {
    let at = out.len();
    out.resize(at + count, b'0');
    let mut rest = number;
    for digit in out[at..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}
