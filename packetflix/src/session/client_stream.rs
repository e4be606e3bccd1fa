//! What is sent to a client, whatever it is made of.

use bytes::Bytes;

use super::{Ended, MergedMessage, MergedSession, Message, Session, Totals};
use crate::{capture_end::CaptureEnd, captures::RunningCapture};

/// A stream that a client takes piece by piece.
pub(crate) trait ClientStream: Send {
    /// A piece, to be sent as one message: whole blocks.
    type Message: AsRef<Bytes> + Send;

    /// What is sent next, to be given back when it is [sent](Self::sent); `None` at the end. May be dropped while it waits.
    fn next(&mut self) -> impl Future<Output = Option<Self::Message>> + Send;

    /// Takes a message back that was handed to the client's socket.
    fn sent(&mut self, message: Self::Message);

    /// Takes account of what was lost up to now, which the stream has no place for any more: its client has left.
    fn settle_account(&mut self) -> impl Future<Output = ()> + Send;

    /// Why it ended, and what it amounted to.
    fn end(&mut self) -> (Ended, Totals);

    /// It is over, for this reason.
    fn conclude(self, end: CaptureEnd, reason: &str);
}

/// The stream of one capture.
pub(crate) struct SingleStream {
    pub(crate) session: Session,
    pub(crate) running: RunningCapture,
}

impl ClientStream for SingleStream {
    type Message = Message;

    async fn next(&mut self) -> Option<Message> {
        self.session.next().await
    }

    fn sent(&mut self, message: Message) {
        self.session.sent(message);
    }

    async fn settle_account(&mut self) {
        self.session.settle_account().await;
    }

    fn end(&mut self) -> (Ended, Totals) {
        self.session.end()
    }

    fn conclude(self, end: CaptureEnd, reason: &str) {
        self.running.end(end, reason);
    }
}

impl ClientStream for MergedSession {
    type Message = MergedMessage;

    async fn next(&mut self) -> Option<MergedMessage> {
        Self::next(self).await
    }

    fn sent(&mut self, message: MergedMessage) {
        Self::sent(self, message);
    }

    async fn settle_account(&mut self) {
        Self::settle_account(self).await;
    }

    fn end(&mut self) -> (Ended, Totals) {
        Self::end(self)
    }

    fn conclude(self, end: CaptureEnd, reason: &str) {
        Self::conclude(self, end, reason);
    }
}
