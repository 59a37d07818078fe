//! Which of the server's bytes reach the client library: replies and some notifications, and only so many of them.
//!
//! Of what a server sends on its own, parameter changes and notices do not matter to a lock, and the library would keep
//! all of them, so they are filtered out. A notification makes a holder look for an eviction, so the first ones pass. A
//! reply must end: one that is longer than any legitimate reply
//! is an error before it fills the memory. Until the session is ready everything counts, because at that stage nothing
//! but the server decides when it ends. Pure.

use std::io;

/// The limit for a reply to the queries of `run` and `check`. The longest is a list of holders; thousands fit.
pub(super) const MAX_REPLY_BYTES: usize = 4 << 20;
/// The limit for a reply that lists every lock of a database.
pub(super) const MAX_LIST_REPLY_BYTES: usize = 16 << 20;

/// How many notifications are kept between two requests. One is enough.
const MAX_NOTIFICATIONS: usize = 64;

/// The type and the length of a message; the length includes its own four bytes.
pub(super) const MESSAGE_HEADER_BYTES: usize = 5;

/// A position in the stream of messages.
#[derive(Debug)]
pub(super) struct ReplyFilter {
    /// The most bytes to accept between two requests.
    max_reply_bytes: usize,
    received_bytes: usize,
    /// The session has been ready for a query once.
    was_ready: bool,
    /// How many notifications were kept since the last request.
    notifications: usize,
    /// How many bytes of the current message's header have been read.
    header_bytes: usize,
    message_type: u8,
    /// Whether the current message is kept.
    is_kept: bool,
    /// The length while the header is read, then the bytes of the body that are still to come.
    remaining_bytes: u32,
}

impl ReplyFilter {
    /// Creates a filter with this limit for each reply.
    pub(super) fn new(max_reply_bytes: usize) -> ReplyFilter {
        ReplyFilter {
            max_reply_bytes,
            received_bytes: 0,
            was_ready: false,
            notifications: 0,
            header_bytes: 0,
            message_type: 0,
            is_kept: false,
            remaining_bytes: 0,
        }
    }

    /// Starts to count again, because a request has been sent.
    pub(super) fn start_reply(&mut self) {
        self.received_bytes = 0;
        self.notifications = 0;
    }

    /// Moves the bytes to keep to the front, and returns their number.
    ///
    /// # Errors
    /// The reply is too long, or the bytes are not a message of the protocol.
    pub(super) fn filter(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let (mut at, mut kept) = (0, 0);
        while at < bytes.len() {
            let start = at;
            if self.header_bytes < MESSAGE_HEADER_BYTES {
                at += 1;
                self.read_header_byte(bytes[start], &bytes[at..])?;
            } else {
                at += self.skip_body(bytes.len() - at);
            }
            if self.is_kept {
                bytes.copy_within(start..at, kept);
                kept += at - start;
            }
            if self.is_kept || !self.was_ready {
                self.received_bytes += at - start;
            }
            if self.header_bytes == MESSAGE_HEADER_BYTES && self.remaining_bytes == 0 {
                self.was_ready |= self.message_type == b'Z';
                self.header_bytes = 0;
            }
        }
        if self.received_bytes > self.max_reply_bytes {
            Err(self.reply_too_long())
        } else {
            Ok(kept)
        }
    }

    /// Reads the next byte of a header, after which `rest` was received.
    ///
    /// # Errors
    /// The length is invalid, or exceeds the limit.
    fn read_header_byte(&mut self, byte: u8, rest: &[u8]) -> io::Result<()> {
        if self.header_bytes == 0 {
            (self.message_type, self.remaining_bytes) = (byte, 0);
            self.is_kept = self.keeps_message();
        } else {
            self.remaining_bytes = (self.remaining_bytes << 8) | u32::from(byte);
        }
        self.header_bytes += 1;
        if self.header_bytes == MESSAGE_HEADER_BYTES {
            if !self.was_ready && self.message_type == b'E' && self.remaining_bytes as usize > self.max_reply_bytes {
                return Err(bare_error(self.remaining_bytes, rest));
            }
            let body_bytes = self.remaining_bytes.checked_sub(MESSAGE_HEADER_BYTES as u32 - 1);
            self.remaining_bytes =
                body_bytes.ok_or_else(|| io::Error::other("the server sent a message with an invalid length"))?;
            if self.remaining_bytes as usize > self.max_reply_bytes {
                return Err(self.reply_too_long());
            }
        }
        Ok(())
    }

    /// Skips as much of the body as is available, and returns how much that is.
    fn skip_body(&mut self, available: usize) -> usize {
        let skipped = available.min(self.remaining_bytes as usize);
        self.remaining_bytes -= skipped as u32;
        skipped
    }

    /// Returns whether the message that begins is kept: whether it is part of a reply, and not a ParameterStatus (S) or
    /// NoticeResponse (N), which a server sends on its own, or one of the first NotificationResponses (A).
    fn keeps_message(&mut self) -> bool {
        match self.message_type {
            b'S' | b'N' => false,
            b'A' => {
                self.notifications += 1;
                self.was_ready && self.notifications <= MAX_NOTIFICATIONS
            }
            _ => true,
        }
    }

    fn reply_too_long(&self) -> io::Error {
        io::Error::other(format!(
            "the server sent more than {} MiB in reply to one query",
            self.max_reply_bytes >> 20
        ))
    }
}

/// Returns the error of a server that cannot start a backend. It sends a text without a length, of which these bytes
/// have been taken for one (`report_fork_failure_to_client` in postmaster.c).
fn bare_error(start: u32, rest: &[u8]) -> io::Error {
    const MAX_BARE_ERROR_BYTES: usize = 500;
    let start = start.to_be_bytes();
    let bytes = start.iter().chain(rest).take_while(|byte| **byte != 0);
    let bytes: Vec<u8> = bytes.take(MAX_BARE_ERROR_BYTES).copied().collect();
    let text = String::from_utf8_lossy(&bytes).replace(char::is_control, " ");
    io::Error::other(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[kind], &length[..], body].concat()
    }

    /// Returns the bytes that the filter keeps.
    ///
    /// # Errors
    /// As for [`ReplyFilter::filter`].
    fn filtered(reply_filter: &mut ReplyFilter, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut bytes = bytes.to_vec();
        let kept = reply_filter.filter(&mut bytes)?;
        bytes.truncate(kept);
        Ok(bytes)
    }

    #[test]
    fn a_reply_must_end() {
        let limit = 1000;
        let row = message(b'D', &[0; 93]);
        let mut reply_filter = ReplyFilter::new(limit);
        for _ in 0..100 {
            reply_filter.start_reply();
            assert!(filtered(&mut reply_filter, &row.repeat(10)).is_ok());
        }
        let error = filtered(&mut reply_filter, &row).expect_err("the reply is too long");
        assert!(error.to_string().contains("in reply to one query"));
        // A length that exceeds the limit is an error at once.
        let announced = [&b"D"[..], &0x7fff_ffffu32.to_be_bytes()].concat();
        assert!(filtered(&mut ReplyFilter::new(limit), &announced).is_err());
        assert!(filtered(&mut ReplyFilter::new(limit), b"N\0\0\0\x03").is_err());
    }

    #[test]
    fn an_error_without_a_length_is_reported_as_its_text() {
        let text = b"Ecould not fork new process for connection: \x1b[1mResource temporarily unavailable\n\0";
        let mut reply_filter = ReplyFilter::new(MAX_REPLY_BYTES);
        let error = filtered(&mut reply_filter, text).expect_err("it has no length");
        let expected = "could not fork new process for connection:  [1mResource temporarily unavailable";
        assert_eq!(error.to_string(), expected);
        let error = filtered(&mut ReplyFilter::new(MAX_REPLY_BYTES), &[b'E'; 9999]).expect_err("it has no length");
        assert_eq!(error.to_string(), "E".repeat(500));
        // Once the session is ready, it is a reply that is too long.
        let mut reply_filter = ReplyFilter::new(MAX_REPLY_BYTES);
        let late = [&message(b'Z', b"I"), &text[..]].concat();
        let error = filtered(&mut reply_filter, &late).expect_err("the reply is too long");
        assert!(error.to_string().contains("in reply to one query"));
    }

    #[test]
    fn unsolicited_messages_count_only_until_the_session_is_ready() {
        let notice = message(b'N', &[0; 95]);
        let mut reply_filter = ReplyFilter::new(1000);
        assert!(filtered(&mut reply_filter, &notice.repeat(10)).is_ok());
        assert!(filtered(&mut reply_filter, &notice).is_err());
        let mut reply_filter = ReplyFilter::new(1000);
        assert!(filtered(&mut reply_filter, &message(b'Z', b"I")).is_ok());
        assert!(filtered(&mut reply_filter, &notice.repeat(100)).is_ok_and(|kept| kept.is_empty()));
    }

    #[test]
    fn some_notifications_are_kept_once_the_session_is_ready() {
        let notification = message(b'A', b"\0\0\0\x07pglock_7\0\0");
        let mut reply_filter = ReplyFilter::new(10_000);
        let kept = |reply_filter: &mut ReplyFilter, count| {
            let kept = filtered(reply_filter, &notification.repeat(count)).expect("valid messages");
            kept.len() / notification.len()
        };
        assert_eq!(kept(&mut reply_filter, 1), 0);
        assert!(filtered(&mut reply_filter, &message(b'Z', b"I")).is_ok());
        reply_filter.start_reply();
        assert_eq!(kept(&mut reply_filter, 1), 1);
        assert_eq!(kept(&mut reply_filter, 1000), MAX_NOTIFICATIONS - 1);
        reply_filter.start_reply();
        assert_eq!(kept(&mut reply_filter, 1), 1);
    }

    /// A reply may arrive in any two parts: the first byte of the input says where it is cut.
    #[test]
    fn fuzz_reply_filter() {
        let examples = [
            [
                &[7],
                &message(b'S', b"a\0b\0")[..],
                &message(b'Z', b"I"),
                &message(b'D', &[0; 9]),
            ]
            .concat(),
            [
                &[40],
                &message(b'N', b"x")[..],
                &message(b'C', b"SELECT 1\0"),
                &message(b'A', &[]),
            ]
            .concat(),
            b"\x05D\0\0\0\x03Z\xff\xff\xff\xff".to_vec(),
        ];
        crate::fuzz::fuzz(&examples, |input| {
            let Some((cut, bytes)) = input.split_first() else {
                return;
            };
            let (first, second) = bytes.split_at(bytes.len().min((*cut).into()));
            let mut in_parts = ReplyFilter::new(100);
            let whole = filtered(&mut ReplyFilter::new(100), bytes);
            let parts =
                filtered(&mut in_parts, first).and_then(|kept| Ok([kept, filtered(&mut in_parts, second)?].concat()));
            assert_eq!(whole.ok(), parts.ok());
        });
    }

    proptest! {
        #[test]
        fn replies_are_kept_whole_however_they_are_split(
            messages in prop::collection::vec(
                (prop::sample::select(&b"RSTDNCAZKE"[..]), prop::collection::vec(any::<u8>(), 0..40)),
                0..20,
            ),
            cuts in prop::collection::vec(0usize..800, 0..20),
        ) {
            let whole: Vec<u8> = messages.iter().flat_map(|(kind, body)| message(*kind, body)).collect();
            let mut was_ready = false;
            let wanted = messages.iter().filter(|(kind, _)| {
                was_ready |= *kind == b'Z';
                !b"SN".contains(kind) && (*kind != b'A' || was_ready)
            });
            let wanted: Vec<u8> = wanted.flat_map(|(kind, body)| message(*kind, body)).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (whole.len() + 1)).collect();
            cuts.extend([0, whole.len()]);
            cuts.sort_unstable();
            let mut reply_filter = ReplyFilter::new(1 << 20);
            let mut kept = Vec::new();
            for part in cuts.windows(2) {
                kept.extend(filtered(&mut reply_filter, &whole[part[0]..part[1]]).expect("valid messages"));
            }
            prop_assert_eq!(kept, wanted);
        }

        #[test]
        fn no_input_makes_it_panic(
            bytes in prop::collection::vec(
                prop::sample::select(&b"\0\0\0\0\x01\x03\x04\x09\xffDNZ"[..]),
                0..300,
            ),
        ) {
            let _ = filtered(&mut ReplyFilter::new(100), &bytes);
        }
    }
}
