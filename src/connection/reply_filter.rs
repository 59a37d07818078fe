//! What of the server's bytes goes on to the client library: what was asked for, and not without end.
//!
//! What a server tells unasked (settings, notices, notifications) is of no interest to a lock, and the library keeps
//! all of it; so it is sifted out. What is an answer must end: one that is longer than any that we ask for is an error,
//! before it has filled the memory. Until the session is ready everything counts, since nothing ends it there but the
//! server's own word. Pure.

use std::io;

/// The longest answer to what `run` and `check` ask: a list of holders is the longest, and thousands have room in it.
pub const LONGEST_ANSWER: usize = 4 << 20;
/// The longest answer where every lock of a database is asked for.
pub const LONGEST_LIST: usize = 16 << 20;

/// Where in the stream of messages we are.
#[derive(Debug)]
pub struct ReplyFilter {
    /// The most bytes between two of our messages.
    limit: usize,
    received: usize,
    /// The session has been ready once.
    is_ready: bool,
    /// How much of the head of a message, its type and its length, has been seen.
    head: usize,
    kind: u8,
    /// Its length, and then how much of its body is to come.
    left: u32,
}

/// A type and four bytes of length, which count themselves.
const MESSAGE_HEADER_LEN: usize = 5;

impl ReplyFilter {
    /// With answers of so many bytes at the most.
    pub fn new(limit: usize) -> ReplyFilter {
        ReplyFilter {
            limit,
            received: 0,
            is_ready: false,
            head: 0,
            kind: 0,
            left: 0,
        }
    }

    /// We have sent something, and an answer begins.
    pub fn asked(&mut self) {
        self.received = 0;
    }

    /// Moves what goes on to the front, and says how much that is.
    ///
    /// # Errors
    /// The server sends without end, or no messages at all.
    pub fn sift(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let (mut at, mut kept) = (0, 0);
        while at < bytes.len() {
            let from = at;
            at += match self.head < MESSAGE_HEADER_LEN {
                true => self.read_head(bytes[at])?,
                false => self.skip(bytes.len() - at),
            };
            if self.is_wanted() {
                bytes.copy_within(from..at, kept);
                kept += at - from;
            }
            if self.is_wanted() || !self.is_ready {
                self.received += at - from;
            }
            if self.head == MESSAGE_HEADER_LEN && self.left == 0 {
                self.is_ready |= self.kind == b'Z';
                self.head = 0;
            }
        }
        match self.received > self.limit {
            true => Err(self.endless()),
            false => Ok(kept),
        }
    }

    /// Takes a byte of a head.
    fn read_head(&mut self, byte: u8) -> io::Result<usize> {
        match self.head {
            0 => (self.kind, self.left) = (byte, 0),
            _ => self.left = (self.left << 8) | u32::from(byte),
        }
        self.head += 1;
        if self.head == MESSAGE_HEADER_LEN {
            let body = self.left.checked_sub(MESSAGE_HEADER_LEN as u32 - 1);
            self.left = body.ok_or_else(|| io::Error::other("the server sends a message of an impossible length"))?;
            if self.left as usize > self.limit {
                return Err(self.endless());
            }
        }
        Ok(1)
    }

    /// Takes as much of a body as there is.
    fn skip(&mut self, there: usize) -> usize {
        let body = there.min(self.left as usize);
        self.left -= body as u32;
        body
    }

    /// Not the settings (S), notices (N) and notifications (A), which a server sends by itself.
    fn is_wanted(&self) -> bool {
        !matches!(self.kind, b'S' | b'N' | b'A')
    }

    fn endless(&self) -> io::Error {
        io::Error::other(format!(
            "the server sends more than {} MiB for one answer",
            self.limit >> 20
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[kind], &length[..], body].concat()
    }

    fn sifted(reply_filter: &mut ReplyFilter, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut bytes = bytes.to_vec();
        let kept = reply_filter.sift(&mut bytes)?;
        bytes.truncate(kept);
        Ok(bytes)
    }

    #[test]
    fn an_answer_ends() {
        let limit = 1000;
        let row = message(b'D', &[0; 93]);
        let mut reply_filter = ReplyFilter::new(limit);
        for _ in 0..100 {
            reply_filter.asked();
            assert!(sifted(&mut reply_filter, &row.repeat(10)).is_ok());
        }
        let error = sifted(&mut reply_filter, &row).expect_err("too long");
        assert!(error.to_string().contains("for one answer"));
        // A length that is too long is not waited for.
        let announced = [&b"D"[..], &0x7fff_ffffu32.to_be_bytes()].concat();
        assert!(sifted(&mut ReplyFilter::new(limit), &announced).is_err());
        assert!(sifted(&mut ReplyFilter::new(limit), b"N\0\0\0\x03").is_err());
    }

    #[test]
    fn what_nobody_asked_for_counts_only_until_the_session_is_ready() {
        let notice = message(b'N', &[0; 95]);
        let mut reply_filter = ReplyFilter::new(1000);
        assert!(sifted(&mut reply_filter, &notice.repeat(10)).is_ok());
        assert!(sifted(&mut reply_filter, &notice).is_err());
        let mut reply_filter = ReplyFilter::new(1000);
        assert!(sifted(&mut reply_filter, &message(b'Z', b"I")).is_ok());
        assert!(sifted(&mut reply_filter, &notice.repeat(100)).is_ok_and(|kept| kept.is_empty()));
    }

    proptest! {
        #[test]
        fn what_is_wanted_goes_on_whole_however_it_comes(
            messages in prop::collection::vec((prop::sample::select(&b"RSTDNCAZKE"[..]), prop::collection::vec(any::<u8>(), 0..40)), 0..20),
            cuts in prop::collection::vec(0usize..800, 0..20),
        ) {
            let whole: Vec<u8> = messages.iter().flat_map(|(kind, body)| message(*kind, body)).collect();
            let wanted = messages.iter().filter(|(kind, _)| !b"SNA".contains(kind));
            let wanted: Vec<u8> = wanted.flat_map(|(kind, body)| message(*kind, body)).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (whole.len() + 1)).collect();
            cuts.extend([0, whole.len()]);
            cuts.sort_unstable();
            let mut reply_filter = ReplyFilter::new(1 << 20);
            let mut kept = Vec::new();
            for part in cuts.windows(2) {
                kept.extend(sifted(&mut reply_filter, &whole[part[0]..part[1]]).expect("good messages"));
            }
            prop_assert_eq!(kept, wanted);
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(prop::sample::select(&b"\0\0\0\0\x01\x03\x04\x09\xffDNZ"[..]), 0..300)) {
            let _ = sifted(&mut ReplyFilter::new(100), &bytes);
        }
    }
}
