//! Dates and times as text.

use crate::decode::{Date, DateTime, Time};

/// `2026-11-21`
pub(crate) fn write_date(out: &mut Vec<u8>, date: Date) {
    let [y1, y2] = two_digits(u32::from(date.year) / 100);
    let [y3, y4] = two_digits(u32::from(date.year));
    let [m1, m2] = two_digits(u32::from(date.month));
    let [d1, d2] = two_digits(u32::from(date.day));
    out.extend_from_slice(&[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2]);
}

/// `04:05:06.789`; `fraction` is the number of its digits.
pub(crate) fn write_clock(out: &mut Vec<u8>, time: &DateTime, fraction: u8) {
    out.extend_from_slice(&two_digits(u32::from(time.hour)));
    write_minutes(out, time.minute, time.second);
    write_fraction(out, time.micros, fraction);
}

/// `-838:59:59.25`
pub(crate) fn write_time(out: &mut Vec<u8>, time: Time, fraction: u8) {
    if time.negative {
        out.push(b'-');
    }
    let hours = u32::from(time.hours);
    if hours > 99 {
        out.push(b'0' + (hours / 100 % 10) as u8);
    }
    out.extend_from_slice(&two_digits(hours));
    write_minutes(out, time.minutes, time.seconds);
    write_fraction(out, time.micros, fraction);
}

/// `:05:06`
fn write_minutes(out: &mut Vec<u8>, minutes: u8, seconds: u8) {
    let [m1, m2] = two_digits(u32::from(minutes));
    let [s1, s2] = two_digits(u32::from(seconds));
    out.extend_from_slice(&[b':', m1, m2, b':', s1, s2]);
}

fn write_fraction(out: &mut Vec<u8>, micros: u32, fraction: u8) {
    if fraction == 0 {
        return;
    }
    let start = out.len();
    let [a, b] = two_digits(micros / 10_000);
    let [c, d] = two_digits(micros / 100);
    let [e, f] = two_digits(micros);
    out.extend_from_slice(&[b'.', a, b, c, d, e, f]);
    out.truncate(start + 1 + usize::from(fraction.min(6)));
}

/// The last two digits of a number.
fn two_digits(number: u32) -> [u8; 2] {
    DIGITS[(number % 100) as usize]
}

/// `00` to `99`.
const DIGITS: [[u8; 2]; 100] = {
    let mut digits = [[b'0'; 2]; 100];
    let mut number = 0;
    while number < 100 {
        digits[number] = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
        number += 1;
    }
    digits
};
