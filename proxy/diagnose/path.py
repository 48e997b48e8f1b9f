"""What the path of one uplink to the gateway does to MPTCP."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from proxy.convert.auth import CHALLENGE_LENGTH, WINDOW
from proxy.diagnose.echo import Echo
from proxy.diagnose.nat import NatTimeout
from proxy.diagnose.prober import Prober, Talk, Verdict
from proxy.diagnose.result import Level, Result, finding, fine, skipped
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.notes import Fallback
from proxy.net.uplinks import Uplink
from proxy.relay.trials import PATTERN, TrialPort
from proxy.wire.address import Address

_SYN_TRIES = 3  # a SYN may have been lost
_SYN_PATIENCE = 6.0  # seconds: one SYN with MP_CAPABLE, one more, and one without
_JOIN_PATIENCE = 8.0
_STALL = 10.0  # seconds without progress after which data counts as stuck
_MTU_BYTES, _MTU_SECONDS = 262144, 15.0
_ECHO_BYTES = 524288
_ADD_ADDR_ID = 250  # no uplink has it
_OTHER_PORT = "try another port, such as 443 (listen.port, gateway.port): boxes watch some ports"


class PathExam:
    """The checks of one uplink, in an order in which none disturbs those after it."""

    def __init__(self, prober: Prober, uplink: Uplink, nat: NatTimeout) -> None:
        self._prober = prober
        self._uplink = uplink
        self._nat = nat
        self._name = uplink.name
        self._early = True

    async def results(self) -> AsyncIterator[Result]:
        """One after the other, as they come; that of the NAT comes from ``NatTimeout``."""
        reached, syn_data = await self._reach()
        yield reached
        if syn_data is None:
            return
        yield syn_data
        yield await self._clock()
        trial = await self._ask(TrialPort.DISCARD, enabled=False)
        if trial.verdict is not Verdict.SERVED:
            trial.close()
            yield self._untested(trial)
            return
        self._nat.begin(self._prober, self._uplink, self._early)
        yield await self._mtu(trial)
        trial.close()
        capable = await self._capable()
        yield capable
        if capable.level is not Level.OK:
            yield await self._payload_alone()
            return
        dss, payload = await self._data()
        yield dss
        yield payload
        if dss.level is not Level.OK:
            for check in ("MP_JOIN", "ADD_ADDR"):
                yield skipped(self._name, check, "needs a path that lets DSS pass")
            return
        async for result in self._join_and_announce():
            yield result

    async def _ask(self, port: TrialPort | None, **settings: Any) -> Talk:
        return await self._prober.ask(self._uplink, port, early=self._early, **settings)

    # -- is it there ----------------------------------------------------------------------------

    async def _reach(self) -> tuple[Result, Result | None]:
        """Whether the gateway answers, and whether it does to a SYN with data."""
        eaten = 0
        for _ in range(_SYN_TRIES):
            talk = await self._prober.ask(self._uplink, None, enabled=False)
            talk.close()
            if talk.verdict is Verdict.SERVED and not talk.ate_syn_data:
                return self._reached(talk), fine(self._name, "SYN data", "arrives")
            if talk.verdict is Verdict.SERVED:
                eaten += 1
                continue
            late = await self._prober.ask(self._uplink, None, early=False, enabled=False)
            late.close()
            if late.verdict is not Verdict.SERVED:
                return self._unreached(late), None
            talk = late
        self._early = False
        how = "the data is dropped" if eaten else "SYNs that carry data are dropped"
        return self._reached(talk), finding(
            self._name,
            "SYN data",
            f"{how}: a connection takes a round trip longer",
            "the proxy adapts by itself; keep listen.late_convert = true at the gateway",
        )

    def _reached(self, talk: Talk) -> Result:
        after = f" after {talk.rtt * 1e3:.0f} ms" if talk.rtt else ""
        return fine(self._name, "gateway", f"{self._prober.gateway} answers{after}")

    def _unreached(self, talk: Talk) -> Result:
        gateway = self._prober.gateway
        if talk.verdict is Verdict.FORGED:
            text = f"what comes from {gateway} is no answer of our gateway"
            mend = ["log in, if this network has a portal; or a box on the way changes data"]
        elif talk.verdict is Verdict.REFUSED:
            text = f"{gateway} refuses connections (RST)"
            mend = ["is the gateway running (mptcp-proxy status there)? is gateway.port right?"]
        elif talk.verdict is Verdict.UNREACHABLE:
            text = f"there is no way to {gateway} (ICMP)"
            mend = [f"ip route get {str(gateway).rpartition(':')[0]} oif {self._uplink.dev}"]
        else:
            text = f"no answer from {gateway}"
            client = self._prober.config.gateway.client
            mend = [
                f"at the gateway: is it running, does its firewall let TCP port {gateway.port} in?",
                f'does it know client "{client}" with this secret, and the same service '
                "(nstat there: ConvertDrop-*)? strangers get silence",
            ]
        return finding(self._name, "gateway", text, *mend)

    async def _clock(self) -> Result:
        # An answer to a challenge that is none: the gateway makes a right one, with its time.
        bogus = self._prober.stack.rng.randbytes(CHALLENGE_LENGTH)
        talk = await self._ask(None, enabled=False, challenge=bogus)
        talk.close()
        if talk.reply is None or not talk.reply.challenge:
            return skipped(self._name, "clock", "the gateway did not tell its time")
        ahead = int.from_bytes(talk.reply.challenge[:4], "big") + 0.5 - time.time()
        if abs(ahead) <= WINDOW / 2:
            return fine(
                self._name,
                "clock",
                "differs from the gateway's by 2 s at most"
                if abs(ahead) <= 2
                else f"{abs(ahead):.0f} s off the gateway's",
            )
        way = "behind" if ahead > 0 else "ahead of"
        return finding(
            self._name,
            "clock",
            f"{abs(ahead):.0f} s {way} the gateway's: requests need a round trip more",
            "timedatectl set-ntp true (here and at the gateway)",
        )

    def _untested(self, talk: Talk) -> Result:
        if talk.unserved:
            return finding(
                self._name,
                "trials",
                "the gateway serves none, so that nothing further can be tested",
                "listen.trials = 32 at the gateway, and mptcp-proxy reload",
            )
        return finding(
            self._name,
            "trials",
            f"the gateway serves none now ({talk.verdict.value})",
            "try again; at the gateway: mptcp-proxy status",
        )

    # -- MTU ------------------------------------------------------------------------------------

    async def _mtu(self, talk: Talk) -> Result:
        stream, counters = talk.stream, self._prober.stack.counters
        black_holes = counters["TCPMTUBlackHole"]
        if not await self._upload(talk):
            return skipped(self._name, "MTU", f"data stops after {stream.tx.una} bytes")
        subflow = stream.subflows[0]
        size, wanted = subflow.path_mtu, min(self._interface_mtu(), subflow.path_mtu_goal)
        if size >= wanted:
            return fine(self._name, "MTU", f"packets of {size} bytes pass")
        if subflow.seeks_path_mtu(time.monotonic()):
            return skipped(self._name, "MTU", f"{size} bytes pass; time was too short to try more")
        if counters["TCPMTUBlackHole"] == black_holes:
            return fine(self._name, "MTU", f"packets of {size} bytes pass, and routers tell so")
        return finding(
            self._name,
            "MTU",
            f"packets of more than {size} bytes vanish, and no ICMP tells: connections stall until "
            "that is found out",
            f"ip link set {self._uplink.dev} mtu {size}",
            'or let ICMP "fragmentation needed" and ICMPv6 "packet too big" pass',
        )

    async def _upload(self, talk: Talk) -> bool:
        """Send until enough has arrived and no packet size is tried any more; False if it stops."""
        stream = talk.stream
        now = began = moved_at = time.monotonic()
        acked = pushed = 0
        while talk.ended is None and stream.subflows and now - moved_at < _STALL:
            if stream.tx.una > acked:
                acked, moved_at = stream.tx.una, now
            seeks = stream.subflows[0].seeks_path_mtu(now) and now - began < _MTU_SECONDS
            if acked >= _MTU_BYTES and not seeks:
                return True
            while pushed - acked < _MTU_BYTES and stream.send_room():
                talk.send(PATTERN)
                pushed += len(PATTERN)
            await talk.until(partial(_beyond, stream, acked), 0.2)
            now = time.monotonic()
        return False

    def _interface_mtu(self) -> int:
        return min(self._uplink.mtu, self._prober.config.tun.mtu)

    # -- MPTCP ----------------------------------------------------------------------------------

    async def _capable(self) -> Result:
        talk = await self._ask(TrialPort.SEEN, patience=_SYN_PATIENCE)
        try:
            if talk.verdict is not Verdict.SERVED:
                return finding(
                    self._name,
                    "MP_CAPABLE",
                    f"a connection that offers MPTCP fails ({talk.verdict.value})",
                    _OTHER_PORT,
                )
            conn = talk.stream
            if conn.remote_key:
                return fine(self._name, "MP_CAPABLE", "passes in SYN and SYN+ACK")
            return await self._incapable(talk)
        finally:
            talk.close()

    async def _incapable(self, talk: Talk) -> Result:
        heard = bytearray()

        def whole() -> bool:
            heard.extend(talk.receive())
            return heard.endswith(b"\n") or talk.ended is not None

        await talk.until(whole, _STALL)
        seen = json.loads(heard) if heard.endswith(b"\n") else {}
        if seen and not seen["enabled"]:
            return finding(
                self._name,
                "MP_CAPABLE",
                "the gateway has MPTCP switched off",
                "mptcp.enabled = true at the gateway",
            )
        if talk.stream.fallback_reason.startswith("SYNs"):
            text = "SYNs with it are dropped"
        elif seen.get("mptcp"):
            text = "is removed from the SYN+ACK"
        else:
            text = "is removed from the SYN"
        return finding(
            self._name,
            "MP_CAPABLE",
            f"{text}: this uplink carries plain TCP alone and cannot be bonded",
            _OTHER_PORT,
        )

    async def _payload_alone(self) -> Result:
        echo = Echo(await self._ask(TrialPort.ECHO, enabled=False))
        await echo.run(_ECHO_BYTES, _STALL)
        echo.close()
        return self._payload(echo)

    async def _data(self) -> tuple[Result, Result]:
        """With checksums, so that MPTCP itself notices what changes."""
        echo = Echo(await self._ask(TrialPort.ECHO, checksum_enabled=True))
        conn = echo.talk.stream
        await echo.run(_ECHO_BYTES, _STALL)
        fallback, reason = conn.fallback, conn.fallback_reason
        echo.close()
        payload = self._payload(echo)
        if echo.altered:
            return skipped(self._name, "DSS", "the change of the payload came first"), payload
        if fallback is not Fallback.NONE:
            return (
                finding(
                    self._name,
                    "DSS",
                    f"does not survive ({reason}): connections fall back to plain TCP, and their "
                    "additional subflows end",
                    _OTHER_PORT,
                ),
                payload,
            )
        if not echo.complete:
            return skipped(self._name, "DSS", "data stops"), payload
        return fine(self._name, "DSS", "passes both ways"), payload

    def _payload(self, echo: Echo) -> Result:
        if echo.altered:
            return finding(
                self._name,
                "payload",
                f"is changed on the way (after {echo.received} bytes)",
                "mptcp.checksum_enabled = true: then no changed byte reaches a client over MPTCP",
                _OTHER_PORT,
            )
        if not echo.complete:
            return finding(self._name, "payload", f"stops: {echo.trouble}", _OTHER_PORT)
        return fine(self._name, "payload", f"{echo.received} bytes came back unchanged")

    async def _join_and_announce(self) -> AsyncIterator[Result]:
        echo = Echo(await self._ask(TrialPort.ECHO))
        await echo.run(1, _STALL)
        try:
            yield await self._join(echo.talk)
            yield await self._announce(echo.talk)
        finally:
            echo.close()

    async def _join(self, talk: Talk) -> Result:
        conn, prober = talk.stream, self._prober
        began = time.monotonic()
        local = prober.stack.open_local_port(prober.local_ip(self._uplink), prober.gateway)
        subflow = conn.open_subflow(
            local, prober.gateway, began, local_id=_ADD_ADDR_ID - 1, uplink=self._name
        )
        if subflow is None:
            return skipped(self._name, "MP_JOIN", "the connection was lost")
        prober.runtime.turn()
        await talk.until(
            lambda: subflow.fully_established or subflow not in conn.subflows, _JOIN_PATIENCE
        )
        if subflow.fully_established:
            return fine(self._name, "MP_JOIN", "an additional subflow was taken")
        return finding(
            self._name,
            "MP_JOIN",
            "SYNs with it get no answer that fits: this uplink cannot join others, only begin",
            _OTHER_PORT,
        )

    async def _announce(self, talk: Talk) -> Result:
        conn, counters = talk.stream, self._prober.stack.counters
        before = counters["MPTcpExtEchoAdd"]
        address = Address(self._prober.local_ip(self._uplink), conn.local.port)
        conn.announce(address, _ADD_ADDR_ID, time.monotonic())
        self._prober.runtime.turn()
        await talk.until(lambda: not conn.announcing, _STALL)
        if counters["MPTcpExtEchoAdd"] > before:
            return fine(self._name, "ADD_ADDR", "was announced and echoed")
        return finding(
            self._name,
            "ADD_ADDR",
            "is not echoed: addresses that the gateway announces (listen.announce) do not arrive",
            "harmless with listen.announce = [] and one gateway; else " + _OTHER_PORT,
        )


def _beyond(stream: MptcpConnection, mark: int) -> bool:
    """Whether more than ``mark`` bytes are acknowledged."""
    return stream.tx.una > mark
