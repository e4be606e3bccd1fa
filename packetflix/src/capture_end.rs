//! Why captures end, as the account, the metrics and the log have it.

/// Why a capture has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CaptureEnd {
    /// The client closed.
    Closed,
    /// The client left without a word, stalled, or answered no ping.
    ClientGone,
    /// The client did not speak WebSocket.
    ProtocolError,
    /// The service shuts down.
    Shutdown,
    /// The stream is as long as it may be.
    Limit,
    /// The namespace has ended.
    NamespaceGone,
    /// The target has ended, and its namespace may be there all the same.
    TargetGone,
    /// The node that captures for a gateway has ended it, as it had to.
    Node,
    /// An operator ended it.
    Operator,
    /// Whoever captured may do so no more.
    Revoked,
    /// It could not go on.
    Failed,
    /// It was cut off, when it did not end in time.
    CutOff,
}

impl CaptureEnd {
    /// All of them.
    pub(crate) const ALL: [Self; 12] = [
        Self::Closed,
        Self::ClientGone,
        Self::ProtocolError,
        Self::Shutdown,
        Self::Limit,
        Self::NamespaceGone,
        Self::TargetGone,
        Self::Node,
        Self::Operator,
        Self::Revoked,
        Self::Failed,
        Self::CutOff,
    ];

    /// Its name for programs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::ClientGone => "client_gone",
            Self::ProtocolError => "protocol_error",
            Self::Shutdown => "shutdown",
            Self::Limit => "limit",
            Self::NamespaceGone => "namespace_gone",
            Self::TargetGone => "target_gone",
            Self::Node => "node",
            Self::Operator => "operator",
            Self::Revoked => "revoked",
            Self::Failed => "failed",
            Self::CutOff => "cut_off",
        }
    }
}
