//! Packets: what client and server send each other, in frames with a head of their length and number. What is longer than one frame takes is sent in
//! several, of which only the last is not full.
//!
//! Reading can be given up at any await and taken up again: what has come is in the buffer, or was handed out.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::Failure;
use crate::decode::little;

/// Most that a frame holds. One that holds so much is followed by another, if need be by an empty one.
const FULL: usize = 0xff_ffff;
const HEAD: usize = 4;
/// Bytes that are read at once.
const BUFFER: usize = 256 << 10;

/// A connection as packets.
pub(super) struct Packets<L> {
    link: L,
    buffer: Vec<u8>,
    /// What of the buffer was handed out.
    at: usize,
    /// Bytes of the frame that were not handed out yet.
    left: usize,
    /// The packet goes on in another frame.
    continues: bool,
    /// The packet has begun, and its end was not told.
    open: bool,
    /// Of the next frame, whoever sends it.
    number: u8,
    /// Bytes that came, from the beginning.
    received: u64,
}

impl<L> Packets<L> {
    pub(super) fn new(link: L) -> Self {
        Self {
            link,
            buffer: Vec::with_capacity(BUFFER),
            at: 0,
            left: 0,
            continues: false,
            open: false,
            number: 0,
            received: 0,
        }
    }

    /// The connection below. Bytes that came and were not asked for are an error: before TLS begins anybody may have put them there.
    pub(super) fn into_link(self) -> Result<(L, u8), Failure> {
        if self.at < self.buffer.len() {
            return Err(Failure::broken("bytes came before TLS that nobody asked for"));
        }
        Ok((self.link, self.number))
    }

    /// Goes on above another connection (TLS).
    pub(super) fn go_on(link: L, number: u8) -> Self {
        Self { number, ..Self::new(link) }
    }

    /// Bytes that came so far: while their number grows, the server is there.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// The next packet is the first of a command.
    pub(super) fn begin(&mut self) {
        self.number = 0;
    }
}

impl<L: AsyncRead + Unpin> Packets<L> {
    /// Bytes of the packet that comes or goes on; `None` at its end.
    pub(super) async fn piece(&mut self) -> Result<Option<&[u8]>, Failure> {
        let (from, to) = loop {
            let there = self.buffer.len() - self.at;
            if self.left > 0 {
                if there > 0 {
                    let taken = there.min(self.left);
                    self.at += taken;
                    self.left -= taken;
                    break (self.at - taken, self.at);
                }
            } else if self.open && !self.continues {
                self.open = false;
                return Ok(None);
            } else if there >= HEAD {
                self.take_head()?;
                continue;
            }
            self.read_more().await?;
        };
        Ok(Some(&self.buffer[from..to]))
    }

    /// A whole packet that is not long.
    pub(super) async fn packet(&mut self) -> Result<Vec<u8>, Failure> {
        const MOST: usize = 1 << 20;
        let mut packet = Vec::new();
        while let Some(piece) = self.piece().await? {
            packet.extend_from_slice(piece);
            if packet.len() > MOST {
                return Err(Failure::broken("an answer of more than 1 MiB"));
            }
        }
        Ok(packet)
    }

    fn take_head(&mut self) -> Result<(), Failure> {
        let head = &self.buffer[self.at..self.at + HEAD];
        let (length, number) = (little(&head[..3]) as usize, head[3]);
        if number != self.number {
            let expected = self.number;
            return Err(Failure::Broken(format!("packet {number} came, {expected} was expected: bytes were lost")));
        }
        self.at += HEAD;
        self.number = self.number.wrapping_add(1);
        self.left = length;
        self.continues = length == FULL;
        self.open = true;
        Ok(())
    }

    /// Called when nothing is left but perhaps a part of a frame's head.
    async fn read_more(&mut self) -> Result<(), Failure> {
        self.buffer.drain(..self.at);
        self.at = 0;
        match self.link.read_buf(&mut self.buffer).await {
            Ok(0) => Err(Failure::broken("the server closed it")),
            Ok(count) => {
                self.received += count as u64;
                Ok(())
            }
            Err(error) => Err(Failure::Broken(error.to_string())),
        }
    }
}

impl<L: AsyncWrite + Unpin> Packets<L> {
    /// Sends a packet.
    pub(super) async fn send(&mut self, packet: &[u8]) -> Result<(), Failure> {
        let mut framed = Vec::with_capacity(packet.len() + HEAD);
        // One that ends with a full frame is ended by an empty one.
        for frame in 0..=packet.len() / FULL {
            let part = &packet[frame * FULL..packet.len().min((frame + 1) * FULL)];
            framed.extend_from_slice(&(part.len() as u32).to_le_bytes()[..3]);
            framed.push(self.number);
            framed.extend_from_slice(part);
            self.number = self.number.wrapping_add(1);
        }
        let sent = async {
            self.link.write_all(&framed).await?;
            self.link.flush().await
        };
        sent.await.map_err(|error| Failure::Broken(error.to_string()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use proptest::prelude::*;
    use tokio::io::ReadBuf;

    use super::*;

    /// A connection that gives bytes in portions, and after each nothing for once.
    pub(crate) struct Portions {
        bytes: Vec<u8>,
        at: usize,
        sizes: Vec<usize>,
        turn: usize,
        rested: bool,
    }

    impl Portions {
        pub(crate) fn new(bytes: Vec<u8>, sizes: Vec<usize>) -> Self {
            Self { bytes, at: 0, sizes, turn: 0, rested: false }
        }
    }

    impl AsyncRead for Portions {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            self.rested = !self.rested;
            if self.rested {
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

    /// As a server frames it, beginning with this number.
    pub(crate) fn framed(packets: &[&[u8]], first: u8) -> Vec<u8> {
        block_on(async {
            let mut sender = Packets::go_on(Vec::new(), first);
            for packet in packets {
                sender.send(packet).await.unwrap();
            }
            sender.link
        })
    }

    async fn all(link: impl AsyncRead + Unpin, first: u8) -> (Vec<Vec<u8>>, Failure) {
        let mut reader = Packets::go_on(link, first);
        let (mut packets, mut packet) = (Vec::new(), Vec::new());
        loop {
            match reader.piece().await {
                Ok(Some(piece)) => packet.extend_from_slice(piece),
                Ok(None) => packets.push(std::mem::take(&mut packet)),
                Err(failure) => return (packets, failure),
            }
        }
    }

    #[test]
    fn packets_of_many_frames_are_joined() {
        for length in [FULL - 1, FULL, FULL + 1, 2 * FULL] {
            let long: Vec<u8> = (0..length).map(|byte| (byte % 251) as u8).collect();
            let bytes = framed(&[b"before", &long, b"", b"after"], 254);
            let heads = 3 + 1 + length / FULL;
            assert_eq!(bytes.len(), 11 + length + heads * HEAD);
            let (packets, _) = block_on(all(Portions::new(bytes, vec![100_000, 7, 300_000]), 254));
            assert!(packets == [&b"before"[..], &long, b"", b"after"], "{length}");
        }
    }

    proptest! {
        #[test]
        fn packets_come_as_they_were_sent_however_they_are_cut(
            packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..10),
            sizes in proptest::collection::vec(1usize..40, 1..5), first in any::<u8>(), lost in 0usize..600,
        ) {
            let sent: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
            let bytes = framed(&sent, first);
            let (came, _) = block_on(all(Portions::new(bytes.clone(), sizes.clone()), first));
            prop_assert_eq!(&came, &packets);
            // Cut off, what came before is whole, and the end is told.
            let cut = &bytes[..bytes.len() - lost.min(bytes.len())];
            let (came, failure) = block_on(all(Portions::new(cut.to_vec(), sizes), first));
            prop_assert!(packets.starts_with(&came));
            prop_assert!(matches!(failure, Failure::Broken(_)), "{failure:?}");
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), number in any::<u8>()) {
            let (came, _) = block_on(all(bytes.as_slice(), number));
            prop_assert!(came.iter().map(Vec::len).sum::<usize>() <= bytes.len());
        }
    }

    #[test]
    fn a_frame_that_is_missing_is_told() {
        let mut bytes = framed(&[b"one", b"two", b"three"], 0);
        bytes.drain(7..14);
        let (came, failure) = block_on(all(bytes.as_slice(), 0));
        assert_eq!(came, [b"one"]);
        assert!(matches!(&failure, Failure::Broken(why) if why.contains("packet 2 came, 1")), "{failure:?}");
    }
}
