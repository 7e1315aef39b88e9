//! Packets of the client/server protocol: frames with a header of length and sequence number. A
//! packet larger than a frame takes several frames, all full except the last.
//!
//! Reads are cancel-safe: the buffer keeps received bytes.

use std::ops::Range;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{MAX_PACKET, ProtocolError};
use crate::decode::little;

/// The maximum length of a frame. Another frame, possibly empty, follows a full one.
const FULL: usize = 0xff_ffff;
const HEADER: usize = 4;
/// Bytes per read.
const BUFFER: usize = 256 << 10;
/// After this number of bytes a reader of whole packets lets other tasks run. An aborted task ends
/// there. While the server is faster, a read never waits, and the rows of this many bytes keep a
/// thread busy for about ten milliseconds.
const YIELD_BYTES: u64 = 1 << 20;
/// The buffer may keep this capacity after a larger packet.
const MAX_KEPT: usize = 4 << 20;

/// A stream of packets.
pub(crate) struct Packets<S> {
    stream: S,
    buffer: Vec<u8>,
    /// The last packet of several frames.
    joined: Vec<u8>,
    /// The number of consumed bytes of the buffer.
    at: usize,
    /// Bytes of the frame that are not consumed.
    left: usize,
    /// The packet continues in another frame.
    continues: bool,
    /// The packet has started, and its end is not reported.
    open: bool,
    /// The sequence number of the next frame in either direction.
    sequence: u8,
    /// The number of received bytes.
    received: u64,
    /// This number when whole packets were last interrupted for other tasks.
    yielded_at: u64,
}

impl<S> Packets<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::with_capacity(BUFFER),
            joined: Vec::new(),
            at: 0,
            left: 0,
            continues: false,
            open: false,
            sequence: 0,
            received: 0,
            yielded_at: 0,
        }
    }

    /// The stream below, and the next sequence number. Unrequested bytes are an error: before TLS,
    /// an attacker could inject them.
    pub(crate) fn into_stream(self) -> Result<(S, u8), ProtocolError> {
        if self.at < self.buffer.len() {
            return Err(ProtocolError::broken("the server sent unexpected bytes before TLS"));
        }
        Ok((self.stream, self.sequence))
    }

    /// Continues over another stream (TLS).
    pub(crate) fn resume(stream: S, sequence: u8) -> Self {
        Self { sequence, ..Self::new(stream) }
    }

    /// The number of received bytes: while it grows, the server is alive.
    pub(crate) fn received_bytes(&self) -> u64 {
        self.received
    }

    /// Starts a command: its first packet has the sequence number 0.
    pub(crate) fn start_command(&mut self) {
        self.sequence = 0;
    }
}

impl<S: AsyncRead + Unpin> Packets<S> {
    /// The next bytes of the packet; `None` at its end.
    pub(crate) async fn fragment(&mut self) -> Result<Option<&[u8]>, ProtocolError> {
        let (from, to) = loop {
            let available = self.buffer.len() - self.at;
            if self.left > 0 {
                if available > 0 {
                    let taken = available.min(self.left);
                    self.at += taken;
                    self.left -= taken;
                    break (self.at - taken, self.at);
                }
            } else if self.open && !self.continues {
                self.open = false;
                return Ok(None);
            } else if available >= HEADER {
                self.read_header()?;
                continue;
            }
            self.read_more().await?;
        };
        Ok(Some(&self.buffer[from..to]))
    }

    /// A whole packet of limited length.
    pub(crate) async fn packet(&mut self) -> Result<Vec<u8>, ProtocolError> {
        const MAX: usize = 1 << 20;
        let mut packet = Vec::new();
        while let Some(fragment) = self.fragment().await? {
            packet.extend_from_slice(fragment);
            if packet.len() > MAX {
                return Err(ProtocolError::broken("the server sent an answer of more than 1 MiB"));
            }
        }
        Ok(packet)
    }

    /// A whole packet of any length, in the buffer if it has one frame.
    pub(crate) async fn whole(&mut self) -> Result<&[u8], ProtocolError> {
        let frame = loop {
            if let Some(frame) = self.buffered_frame()? {
                break frame;
            }
            self.fit_buffer();
            self.read_more().await?;
            if self.received - self.yielded_at >= YIELD_BYTES {
                self.yielded_at = self.received;
                tokio::task::yield_now().await;
            }
        };
        if !self.continues {
            self.open = false;
            return Ok(&self.buffer[frame]);
        }
        let mut joined = self.buffer[frame].to_vec();
        while let Some(fragment) = self.fragment().await? {
            joined.extend_from_slice(fragment);
            if joined.len() > MAX_PACKET as usize {
                return Err(ProtocolError::broken("the server sent a packet of more than 1 GiB"));
            }
        }
        self.joined = joined;
        Ok(&self.joined)
    }

    /// The length of the next frame, if the buffer has its header.
    fn next_length(&self) -> Option<usize> {
        let header = self.buffer.get(self.at..)?.first_chunk::<HEADER>()?;
        Some(u32::from_le_bytes([header[0], header[1], header[2], 0]) as usize)
    }

    /// Consumes the next frame, if the buffer has all of it.
    #[inline]
    fn buffered_frame(&mut self) -> Result<Option<Range<usize>>, ProtocolError> {
        let Some(length) = self.next_length().filter(|length| self.buffer.len() - self.at >= HEADER + length) else {
            return Ok(None);
        };
        self.read_header()?;
        self.at += length;
        self.left = 0;
        Ok(Some(self.at - length..self.at))
    }

    /// Makes room for the next frame, so that a large one is read with one allocation. Returns the
    /// memory of large ones that were consumed.
    fn fit_buffer(&mut self) {
        self.joined = Vec::new();
        self.buffer.drain(..self.at);
        self.at = 0;
        let needed = self.next_length().map_or(0, |length| HEADER + length).max(BUFFER);
        if needed > self.buffer.capacity() {
            self.buffer.reserve(needed - self.buffer.len());
        } else if self.buffer.capacity() > MAX_KEPT.max(needed) {
            self.buffer.shrink_to(needed);
        }
    }

    fn read_header(&mut self) -> Result<(), ProtocolError> {
        let header = &self.buffer[self.at..self.at + HEADER];
        let (length, sequence) = (little(&header[..3]) as usize, header[3]);
        if sequence != self.sequence {
            let expected = self.sequence;
            return Err(ProtocolError::Broken(format!(
                "packet {sequence} arrived instead of packet {expected}: bytes were lost"
            )));
        }
        self.at += HEADER;
        self.sequence = self.sequence.wrapping_add(1);
        self.left = length;
        self.continues = length == FULL;
        self.open = true;
        Ok(())
    }

    /// Reads more bytes. The buffer holds at most a part of a frame's header.
    async fn read_more(&mut self) -> Result<(), ProtocolError> {
        self.buffer.drain(..self.at);
        self.at = 0;
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err(ProtocolError::broken("the server closed it")),
            Ok(count) => {
                self.received += count as u64;
                Ok(())
            }
            Err(error) => Err(ProtocolError::Broken(error.to_string())),
        }
    }
}

impl<S: AsyncWrite + Unpin> Packets<S> {
    /// Sends a packet.
    pub(crate) async fn send(&mut self, packet: &[u8]) -> Result<(), ProtocolError> {
        let mut framed = Vec::with_capacity(packet.len() + HEADER);
        // An empty frame follows a full one at the end.
        for frame in 0..=packet.len() / FULL {
            let part = &packet[frame * FULL..packet.len().min((frame + 1) * FULL)];
            framed.extend_from_slice(&(part.len() as u32).to_le_bytes()[..3]);
            framed.push(self.sequence);
            framed.extend_from_slice(part);
            self.sequence = self.sequence.wrapping_add(1);
        }
        let sent = async {
            self.stream.write_all(&framed).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error| ProtocolError::Broken(error.to_string()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use proptest::prelude::*;
    use tokio::io::ReadBuf;

    use super::*;

    /// A stream that yields bytes in portions, and is pending after each.
    pub(crate) struct Portions {
        bytes: Vec<u8>,
        at: usize,
        sizes: Vec<usize>,
        turn: usize,
        was_pending: bool,
    }

    impl Portions {
        pub(crate) fn new(bytes: Vec<u8>, sizes: Vec<usize>) -> Self {
            Self { bytes, at: 0, sizes, turn: 0, was_pending: false }
        }
    }

    impl AsyncRead for Portions {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            self.was_pending = !self.was_pending;
            if self.was_pending {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let size = self.sizes[self.turn % self.sizes.len()].min(out.remaining()).min(self.bytes.len() - self.at);
            self.turn += 1;
            out.put_slice(&self.bytes[self.at..self.at + size]);
            self.at += size;
            Poll::Ready(Ok(()))
        }
    }

    pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    /// Frames packets as a server does, starting with this sequence number.
    pub(crate) fn framed(packets: &[&[u8]], first: u8) -> Vec<u8> {
        block_on(async {
            let mut sender = Packets::resume(Vec::new(), first);
            for packet in packets {
                sender.send(packet).await.unwrap();
            }
            sender.stream
        })
    }

    async fn all(stream: impl AsyncRead + Unpin, first: u8) -> (Vec<Vec<u8>>, ProtocolError) {
        let mut reader = Packets::resume(stream, first);
        let (mut packets, mut packet) = (Vec::new(), Vec::new());
        loop {
            match reader.fragment().await {
                Ok(Some(fragment)) => packet.extend_from_slice(fragment),
                Ok(None) => packets.push(std::mem::take(&mut packet)),
                Err(failure) => return (packets, failure),
            }
        }
    }

    /// Reads whole packets until an error.
    async fn all_whole(stream: impl AsyncRead + Unpin, first: u8) -> (Vec<Vec<u8>>, ProtocolError) {
        let mut reader = Packets::resume(stream, first);
        let mut packets = Vec::new();
        loop {
            match reader.whole().await {
                Ok(packet) => packets.push(packet.to_vec()),
                Err(failure) => return (packets, failure),
            }
        }
    }

    #[test]
    fn frames_of_a_packet_are_joined() {
        for length in [FULL - 1, FULL, FULL + 1, 2 * FULL] {
            let long: Vec<u8> = (0..length).map(|byte| (byte % 251) as u8).collect();
            let bytes = framed(&[b"before", &long, b"", b"after"], 254);
            let headers = 3 + 1 + length / FULL;
            assert_eq!(bytes.len(), 11 + length + headers * HEADER);
            let sizes = vec![100_000, 7, 300_000];
            let (packets, _) = block_on(all(Portions::new(bytes.clone(), sizes.clone()), 254));
            assert!(packets == [&b"before"[..], &long, b"", b"after"], "{length}");
            let (packets, _) = block_on(all_whole(Portions::new(bytes, sizes), 254));
            assert!(packets == [&b"before"[..], &long, b"", b"after"], "{length}");
        }
    }

    proptest! {
        #[test]
        fn packets_arrive_as_sent_however_the_stream_is_split(
            packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..10),
            sizes in proptest::collection::vec(1usize..40, 1..5), first in any::<u8>(), lost in 0usize..600,
        ) {
            let sent: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
            let bytes = framed(&sent, first);
            let (arrived, _) = block_on(all(Portions::new(bytes.clone(), sizes.clone()), first));
            prop_assert_eq!(&arrived, &packets);
            // After a cut, the packets before it are whole and the cut is reported.
            let cut = &bytes[..bytes.len() - lost.min(bytes.len())];
            let (arrived, failure) = block_on(all(Portions::new(cut.to_vec(), sizes.clone()), first));
            prop_assert!(packets.starts_with(&arrived));
            prop_assert!(matches!(failure, ProtocolError::Broken(_)), "{failure:?}");
            let (arrived, failure) = block_on(all_whole(Portions::new(cut.to_vec(), sizes), first));
            prop_assert!(packets.starts_with(&arrived));
            prop_assert!(matches!(failure, ProtocolError::Broken(_)), "{failure:?}");
        }

        #[test]
        fn invalid_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), number in any::<u8>()) {
            let (arrived, _) = block_on(all(bytes.as_slice(), number));
            prop_assert!(arrived.iter().map(Vec::len).sum::<usize>() <= bytes.len());
            let (whole, _) = block_on(all_whole(bytes.as_slice(), number));
            prop_assert!(arrived.starts_with(&whole) || whole.starts_with(&arrived));
        }
    }

    #[test]
    fn a_missing_frame_is_reported() {
        let mut bytes = framed(&[b"one", b"two", b"three"], 0);
        bytes.drain(7..14);
        let (arrived, failure) = block_on(all(bytes.as_slice(), 0));
        assert_eq!(arrived, [b"one"]);
        assert!(
            matches!(&failure, ProtocolError::Broken(why) if why.contains("packet 2 arrived instead of packet 1")),
            "{failure:?}"
        );
    }
}
