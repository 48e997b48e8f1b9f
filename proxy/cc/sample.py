"""What one ACK says about the path, for controls that keep a model of it."""

from __future__ import annotations


class Sample:
    """One object per control, filled anew for each ACK. Bytes, seconds, bytes per second.

    ``acked``          newly delivered, cumulatively or by SACK; 0: only losses to tell
    ``lost``           newly found lost since the last call
    ``rtt``            of the newest segment sent once, 0: no sample
    ``in_flight``      still in flight, after this ACK
    ``delivered``      everything delivered so far
    ``recovering``     fast recovery or a retransmission time-out is not over
    ``limited``        the congestion window was what held back the sender

    Of the newest record that this ACK delivers (draft-cheng-iccrg-delivery-rate-estimation):

    ``prior``          ``delivered`` when it was sent; -1: this ACK delivers no record
    ``rate``           delivery rate over its flight, 0: too short to tell
    ``app_limited``    there was too little to send when it was
    ``tx_in_flight``   in flight just after it was sent
    ``tx_lost``        found lost since then
    """

    __slots__ = (
        "acked", "app_limited", "delivered", "in_flight", "limited", "lost", "prior", "rate",
        "recovering", "rtt", "tx_in_flight", "tx_lost",
    )  # fmt: skip

    def __init__(self) -> None:
        self.acked = 0
        self.lost = 0
        self.rtt = 0.0
        self.in_flight = 0
        self.delivered = 0
        self.recovering = False
        self.limited = False
        self.prior = -1
        self.rate = 0.0
        self.app_limited = False
        self.tx_in_flight = 0
        self.tx_lost = 0
