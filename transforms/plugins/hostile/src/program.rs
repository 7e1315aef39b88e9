//! Runs the programs.

use trunkline_plugin::__private::bindings::trunkline::transform::state::{self, NewEntry};
use trunkline_plugin::__private::bindings::trunkline::transform::timers::{self, NewTimer};
use trunkline_plugin::__private::bindings::trunkline::transform::{host, inputs};
use trunkline_plugin::__private::{Guest, InitError, InitReply, Offer, bindings, realloc};

struct Hostile;

/// The interfaces as the host sees them, so that pointers and lengths can be wrong.
mod raw {
    #[link(wasm_import_module = "trunkline:transform/state@1.1.0")]
    unsafe extern "C" {
        #[link_name = "get"]
        pub(super) fn state_get(keys: u32, count: u32, values: u32);
        #[link_name = "put"]
        pub(super) fn state_put(entries: u32, count: u32);
        #[link_name = "get-packed"]
        pub(super) fn state_get_packed(keys: u32, len: u32, lengths: u32, count: u32, values: u32);
        #[link_name = "put-packed"]
        pub(super) fn state_put_packed(entries: u32, len: u32, lengths: u32, count: u32, has_ttl: u32, ttl_ms: u64);
        #[link_name = "range"]
        pub(super) fn state_range(start: u32, len: u32, has_end: u32, end: u32, end_len: u32, limit: u32, found: u32);
    }

    #[link(wasm_import_module = "trunkline:transform/timers@1.1.0")]
    unsafe extern "C" {
        #[link_name = "set"]
        pub(super) fn timers_set(timers: u32, count: u32);
        #[link_name = "get"]
        pub(super) fn timers_get(keys: u32, count: u32, times: u32);
    }
}

/// Bytes of a program. After the end, all are 0.
struct Program<'a>(std::slice::Iter<'a, u8>);

impl Program<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// A key of few values, and seldom one that is long or reserved.
    fn key(&mut self) -> Vec<u8> {
        match self.byte() {
            255 => vec![0xff; 9],
            254 => vec![7; 600 << 10],
            // Programs of timers: their own key.
            length @ 200.. => (200..length).map(|_| self.byte()).collect(),
            byte => vec![byte % 8],
        }
    }

    fn value(&mut self) -> Vec<u8> {
        match self.byte() {
            255 => vec![1; 513 << 10],
            254 => vec![1; 20 << 10],
            length => vec![length; usize::from(length)],
        }
    }

    /// The lengths of packed items, which may exceed their bytes.
    fn lengths(&mut self) -> Vec<u32> {
        (0..self.byte() % 4).map(|_| u32::from(self.byte() % 9)).collect()
    }

    fn time(&mut self) -> i64 {
        match self.byte() {
            255 => i64::MAX,
            254 => i64::MIN,
            byte => i64::from(byte) - 50,
        }
    }

    /// An address: often one of the program's memory, sometimes beyond it.
    fn address(&mut self) -> u32 {
        match self.byte() % 4 {
            0 => 0,
            1 => self.word(),
            2 => 1 << 16,
            _ => u32::from(self.byte()) << 12,
        }
    }
}

/// Changes of the verdicts.
#[derive(Default)]
struct Changes {
    edits: Vec<(usize, u8)>,
    cut: Option<usize>,
    appended: Vec<u8>,
    fails: bool,
}

fn run(program: &[u8], changes: &mut Changes) {
    let mut program = Program(program.iter());
    loop {
        match program.byte() % 22 {
            0 => return,
            1 | 2 => state::put(&[NewEntry {
                key: program.key(),
                value: program.value(),
                ttl_ms: (program.byte() % 2 == 0).then(|| u64::from(program.byte()) % 40),
            }]),
            3 => state::delete(&[program.key(), program.key()]),
            4 => drop(state::get(&[program.key(), program.key()])),
            5 => {
                let end = (program.byte() % 2 == 0).then(|| program.key());
                drop(state::range(&program.key(), end.as_deref(), u32::from(program.byte())));
            }
            6..=8 => timers::set(&[NewTimer { key: program.key(), time: program.time() }]),
            9 => timers::delete(&[program.key()]),
            10 => drop(timers::get(&[program.key()])),
            11 => raw_call(&mut program),
            12 => changes.edits.push((program.word() as usize, program.byte())),
            13 => changes.cut = Some(program.byte().into()),
            14 => changes.appended = program.value(),
            15 => changes.fails = program.byte() % 4 == 0,
            16 => (0..200).for_each(|_| host::log(host::Level::Info, "flood")),
            17 => host::counter_add(&String::from_utf8_lossy(&program.value()), u64::MAX),
            18 if program.byte() % 8 == 0 => inputs::declare(true, true, true),
            19 if program.byte() % 8 == 0 => panic!("requested"),
            20 => drop(state::get_packed(&program.key(), &program.lengths())),
            21 => state::put_packed(&program.value(), &program.lengths(), None),
            _ => {}
        }
    }
}

fn raw_call(program: &mut Program<'_>) {
    let (a, b, c) = (program.address(), program.address(), program.address() & !7);
    // SAFETY: none; the host must survive every argument, and what it writes into this memory may
    // crash the plugin.
    unsafe {
        match program.byte() % 7 {
            0 => raw::state_get(a, b, c),
            1 => raw::state_put(a, b),
            2 => raw::state_range(a, b, program.byte().into(), c, a, b, c),
            3 => raw::timers_set(a, b),
            4 => raw::state_get_packed(a, b, b, a, c),
            5 => raw::state_put_packed(a, b, b, a, 0, 0),
            _ => raw::timers_get(a, b, c),
        }
    }
}

impl Guest for Hostile {
    fn init(_: String, _: Offer) -> Result<InitReply, InitError> {
        Ok(InitReply { format: 1, ports: vec!["side".to_owned()], keeps_schema: false })
    }

    fn process(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
        let (count, table, are_timers) = (word(8), word(12), word(24) == 1);
        let mut changes = Changes::default();
        let mut verdicts = [b"TLV1\x01\0\0\0", (count as u32).to_le_bytes().as_slice(), &[0; 4]].concat();
        for entry in (0..count).map(|index| table + 48 * index) {
            let part = entry + if are_timers { 24 } else { 32 };
            let program = &bytes[word(part)..word(part) + word(part + 4)];
            run(program, &mut changes);
            verdicts.extend_from_slice(&valid_verdict(program, are_timers));
        }
        for (at, byte) in changes.edits {
            let length = verdicts.len();
            verdicts[at % length] = byte;
        }
        verdicts.truncate(changes.cut.unwrap_or(usize::MAX));
        verdicts.extend_from_slice(&changes.appended);
        if changes.fails { Err("requested".to_owned()) } else { Ok(verdicts) }
    }

    fn flush() -> Result<Vec<u8>, String> {
        Ok(b"TLV1\x01\0\0\0\0\0\0\0\0\0\0\0".to_vec())
    }
}

/// The last byte of a program selects a verdict.
fn valid_verdict(program: &[u8], are_timers: bool) -> Vec<u8> {
    match program.last().map_or(0, |byte| byte % 5) {
        0 if !are_timers => vec![0, 0, 1, 0],
        1 if !are_timers => [&[2, 0, 0, 0, 3, 0, 0, 0], b"new".as_slice()].concat(),
        2 => [&[4, 0, 0, 0, 2, 0, 0, 0, 3, 2, 0, 0, 2, 0, 0, 0], b"ab".as_slice(), &[3, 0, 1, 0]].concat(),
        3 => [&[5, 0, 0, 0, 1, 0, 0, 0], b"c".as_slice(), &[2, 0, 0, 0], b"mm"].concat(),
        _ => vec![1, 0, 0, 0],
    }
}

bindings::__export_guest_types!(Hostile with_types_in trunkline_plugin::__private::bindings);

#[unsafe(no_mangle)]
unsafe extern "C" fn cabi_realloc(old: *mut u8, old_len: usize, align: usize, new_len: usize) -> *mut u8 {
    // SAFETY: the canonical ABI passes a block that this function returned, or no block.
    unsafe { realloc(old, old_len, align, new_len) }
}
