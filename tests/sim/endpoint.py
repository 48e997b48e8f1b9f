"""One application at one end of a flow: it acts on events alone and checks what it reads."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from proxy.tcp.events import Event
from proxy.tcp.states import State

if TYPE_CHECKING:
    from proxy.engine.stack import Application
    from tests.sim.scenario import EndPlan
    from tests.sim.world import World

TERMINAL = (Event.CLOSED, Event.RESET, Event.TIMED_OUT, Event.UNREACHABLE)
FAILURES = (Event.RESET, Event.TIMED_OUT, Event.UNREACHABLE)


class Failure(AssertionError):
    """A rule that the engine must keep was broken."""


class End:
    """``out`` is what it writes, ``peer.out`` what it must read: every byte once, in order.

    Nothing is polled: it reads on READABLE and EOF and writes on ESTABLISHED and WRITABLE (or
    when a pause of its own is over), so an event that the engine forgets shows as a stall.
    """

    def __init__(self, world: World, name: str, plan: EndPlan, out: bytes, opener: bool) -> None:
        self.world = world
        self.opener = opener
        self.name = name
        self.plan = plan
        self.out = out
        self.peer: End = self
        self.conn: Application | None = None
        self.established = False
        self.written = 0
        self.read = 0
        self.finished = False
        self.got_eof = False
        self.eof_events = 0
        self.terminal: Event | None = None
        self.aborted = False
        self.closed = False
        self.done_at: float | None = None
        self.progress_at = world.now
        self.room_at = world.now
        self._writes: deque[tuple[int, float]] = deque()
        self._writing = False
        self._reading_paused = False
        self._read_waiting = False
        self._write_waiting = False
        self._pause_left = plan.pause_at
        self._in_burst = 0
        self._finish_planned = False
        self._still_queued = 0

    # -- what it is told ------------------------------------------------------------------------

    def begin(self, conn: Application, taken: bytes = b"", given: int = 0) -> None:
        """It has a connection; ``taken`` came before the stream, ``given`` bytes went before it."""
        self.conn = conn
        self.written = given
        self.progress_at = self.world.now
        if taken:
            self._take(taken)
        if self.plan.abort == "time":
            self.world.after(self.plan.abort_at, self._abort)
        elif self.plan.abort == "close":
            self.world.after(self.plan.abort_at, self._close)

    def on_event(self, kind: Event) -> None:
        """An event of the connection."""
        if self.aborted:
            self._still_queued -= 1
            if self._still_queued < 0:
                raise Failure(f"{self.name}: {kind.name} after abort")
            return
        if kind in TERMINAL:
            if self.terminal is not None:
                raise Failure(f"{self.name}: {kind.name} after {self.terminal.name}")
            self._end(kind)
            return
        if kind is Event.ESTABLISHED:
            self._on_established()
        elif self.closed:
            return
        elif self.terminal is not None and kind in (Event.WRITABLE, Event.EOF):
            raise Failure(f"{self.name}: {kind.name} after {self.terminal.name}")
        elif kind is Event.READABLE:
            self._read_on()
        elif kind is Event.WRITABLE:
            self._write_on()
        elif kind is Event.EOF:
            self.eof_events += 1
            if self.eof_events > 1:
                raise Failure(f"{self.name}: EOF twice")
            self._read_on()

    def _on_established(self) -> None:
        if self.established:
            raise Failure(f"{self.name}: ESTABLISHED twice")
        self.established = True
        self.progress_at = self.room_at = self.world.now
        conn = self.conn
        assert conn is not None
        if self.opener and conn.syn_ack_payload:
            self._take(conn.syn_ack_payload)
        self._write_on()
        self._read_on()

    def _end(self, kind: Event) -> None:
        self.terminal = kind
        self.done_at = self.world.now
        if self.closed:
            return
        # What came in order before may still be read.
        self._reading_paused = False
        conn = self.conn
        assert conn is not None
        while conn.receivable:
            self._read_once(1 << 30)
        self._check_eof()

    def _abort(self) -> None:
        if self.terminal is not None or self.aborted:
            return
        conn = self.conn
        assert conn is not None
        self.aborted = True
        self._still_queued = self.world.queued_events(conn)
        self.done_at = self.world.now
        self.world.log(f"{self.name} aborts")
        conn.abort(self.world.now)

    def _close(self) -> None:
        """Finish what is written, and read no more."""
        if self.terminal is not None:
            return
        conn = self.conn
        assert conn is not None
        self.closed = self.finished = True
        self.world.log(f"{self.name} closes")
        conn.close(self.world.now)
        if conn.state is State.CLOSED:
            self.done_at = self.world.now

    # -- writing --------------------------------------------------------------------------------

    def _may_speak(self) -> bool:
        speak = self.plan.speak
        if speak == "eof":
            return self.got_eof
        return speak == "open" or self.read > 0

    def _write_on(self) -> None:
        conn = self.conn
        if conn is None or self._writing or self._write_waiting or self.finished:
            return
        if not self.established or self.terminal is not None or self.aborted:
            return
        if not self._may_speak():
            return
        self._writing = True
        try:
            self._write(conn)
        finally:
            self._writing = False

    def _write(self, conn: Application) -> None:
        plan = self.plan
        out = self.out
        while self.written < len(out):
            if plan.abort == "written" and self.written >= plan.abort_at:
                self._abort()
                return
            if self._in_burst >= plan.burst:
                self._in_burst = 0
                self._write_waiting = True
                self.world.after(plan.gap, self._resume_writing)
                return
            room = conn.send_room()
            if room <= 0:
                return
            count = min(room, plan.chunk, len(out) - self.written, plan.burst - self._in_burst)
            if self.peer.read == self.written:
                self.peer.progress_at = self.world.now  # it waits from now on
            conn.send(memoryview(out)[self.written : self.written + count])
            self.written += count
            self._writes.append((self.written, self.world.now))
            self._in_burst += count
        if plan.abort == "written":
            self._abort()
            return
        if plan.finish == "sent" or self.got_eof:
            self._plan_finish()

    def _resume_writing(self) -> None:
        self._write_waiting = False
        self.room_at = self.world.now
        self._write_on()

    def _plan_finish(self) -> None:
        if self._finish_planned:
            return
        self._finish_planned = True
        if self.plan.linger:
            self.world.after(self.plan.linger, self._finish)
        else:
            self._finish()

    def _finish(self) -> None:
        if self.terminal is not None or self.aborted or self.finished:
            return
        self.finished = True
        self.peer.progress_at = self.world.now
        self._writes.append((self.written + 1, self.world.now))
        assert self.conn is not None
        self.world.log(f"{self.name} shuts down after {self.written} bytes")
        self.conn.shutdown_write()

    # -- reading --------------------------------------------------------------------------------

    def _read_on(self) -> None:
        conn = self.conn
        if conn is None or self.aborted or self.closed:
            return
        plan = self.plan
        while conn.receivable and not self._reading_paused and not self._read_waiting:
            limit = plan.read_limit
            if self._pause_left >= 0:
                limit = min(limit, max(1, self._pause_left - self.read))
            self._read_once(limit)
            if self.aborted:
                return
            if 0 <= self._pause_left <= self.read:
                self._pause_left = -1
                self._reading_paused = True
                self.world.after(plan.pause, self._resume_reading)
            elif plan.read_gap:
                self._read_waiting = True
                self.world.after(plan.read_gap, self._continue_reading)
        self._check_eof()

    def _resume_reading(self) -> None:
        self._reading_paused = False
        self.progress_at = self.world.now
        self._read_on()

    def _continue_reading(self) -> None:
        self._read_waiting = False
        self._read_on()

    def _read_once(self, limit: int) -> None:
        conn = self.conn
        assert conn is not None
        promised = conn.receivable
        pieces = conn.receive(limit)
        count = sum(len(piece) for piece in pieces)
        if count != min(limit, promised):
            raise Failure(f"{self.name}: receive({limit}) of {promised} gave {count} bytes")
        for piece in pieces:
            self._take(piece)
        if self.plan.abort == "read" and self.read >= self.plan.abort_at:
            self._abort()

    def _take(self, piece: bytes | memoryview) -> None:
        if self.got_eof:
            raise Failure(f"{self.name}: {len(piece)} bytes after the end of the stream")
        start, end = self.read, self.read + len(piece)
        if end > self.peer.written:
            raise Failure(f"{self.name}: byte {end} was read, {self.peer.written} were written")
        if bytes(piece) != self.peer.out[start:end]:
            self.world.judge_changed_bytes(self, start, bytes(piece))
        self.read = end
        self.progress_at = self.peer.room_at = self.world.now
        if self.plan.speak == "data":
            self._write_on()

    def _check_eof(self) -> None:
        conn = self.conn
        if conn is None or self.got_eof or self.aborted or self.closed or not conn.eof:
            return
        peer = self.peer
        if not peer.finished or self.read != peer.written:
            raise Failure(
                f"{self.name}: end of stream after {self.read} bytes, {peer.written} were "
                f"written{'' if peer.finished else ' and more may follow'}"
            )
        self.got_eof = True
        self.progress_at = self.room_at = self.world.now
        self.world.log(f"{self.name} has read all {self.read} bytes")
        self._write_on()
        if self.plan.finish == "eof" and self.written >= len(self.out):
            self._plan_finish()

    def waited_for_since(self) -> float:
        """When the first byte (or end) that the peer has not read was written."""
        writes = self._writes
        while len(writes) > 1 and writes[0][0] <= self.peer.read:
            writes.popleft()
        return writes[0][1] if writes else self.world.now

    # -- what it waits for ------------------------------------------------------------------------

    def starved(self) -> bool:
        """It would read, and there is something to come."""
        if self.terminal is not None or self.aborted or self.closed or self.got_eof:
            return False
        if self.conn is None or not self.established:
            return False
        if self._reading_paused or self._read_waiting:
            return False
        peer = self.peer
        return self.read < peer.written or peer.finished

    def choked(self) -> bool:
        """It would write and is given no room, though all it wrote was read."""
        if self.conn is None or not self.established or self.finished:
            return False
        if self.terminal is not None or self.aborted or self._write_waiting:
            return False
        if not self._may_speak() or self.written >= len(self.out):
            return False
        return self.peer.read >= self.written

    def complete(self) -> bool:
        """It has read everything and written everything."""
        return self.got_eof and self.finished

    def describe(self) -> str:
        """For messages."""
        conn = self.conn
        state = conn.state.name if conn is not None else "none"
        ended = (
            "aborted"
            if self.aborted
            else "closed"
            if self.closed
            else self.terminal.name
            if self.terminal
            else "open"
        )
        return (
            f"{self.name}: {ended}, state {state}, wrote {self.written}/{len(self.out)}"
            f"{' fin' if self.finished else ''}, read {self.read}/{len(self.peer.out)}"
            f"{' eof' if self.got_eof else ''}"
        )


__all__ = ["FAILURES", "TERMINAL", "End", "Failure"]
