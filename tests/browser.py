"""Chromium without a window, driven by its DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = "chromium-headless-shell"
_ANSWERS_WITHIN = 60.0  # it takes long to start on a machine that has much else to do
# It reads descriptor 3 and writes descriptor 4.
_LAUNCH = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); " + (
    "os.execvp(sys.argv[3], sys.argv[3:])"
)
_OPTIONS = (
    "--remote-debugging-pipe",
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
)


class BrowserError(Exception):
    """It does not answer, or says no."""


class Tab:
    """A page; ``complaints`` has errors of scripts, of the console and of loading."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """The result of a command."""
        return self._browser.call(method, self._session, **parameters)

    def open(self, url: str, width: int, height: int, dark: bool) -> None:
        """Load ``url`` in a window of that many CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise BrowserError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def wait(self, expression: str, within: float = _ANSWERS_WITHIN) -> None:
        """Until it is true."""
        end = time.monotonic() + within
        while not self.value(expression):
            if time.monotonic() > end:
                shown = self.value("document.body && document.body.innerText")
                raise BrowserError(f"never: {expression}\n{shown}\n{self.complaints}")
            time.sleep(0.05)

    def picture(self, file: Path) -> None:
        """A PNG of what is shown."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))

    def hear(self, event: dict[str, Any]) -> None:
        """Something happened on this page."""
        method, parameters = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(str(parameters["entry"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.complaints.append(str(parameters["args"]))


class Browser:
    """A running Chromium."""

    def __init__(self, commands: int, events: int) -> None:
        self._commands = commands
        self._events = events
        self._unread = b""
        self._number = 0
        self._tabs: dict[str, Tab] = {}

    def tab(self) -> Tab:
        """A new page."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        answer = self.call("Target.attachToTarget", targetId=target, flatten=True)
        session = str(answer["sessionId"])
        self._tabs[session] = tab = Tab(self, session)
        return tab

    def call(self, method: str, session: str = "", **parameters: object) -> dict[str, Any]:
        """The result of a command, to the browser or to one page."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            tab = self._tabs.get(answer.get("sessionId", ""))
            if tab is not None and "method" in answer:
                tab.hear(answer)

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + _ANSWERS_WITHIN
        while b"\0" not in self._unread:
            if not select.select([self._events], [], [], max(0.0, end - time.monotonic()))[0]:
                raise BrowserError("it does not answer")
            chunk = os.read(self._events, 1 << 20)
            if not chunk:
                raise BrowserError("it has ended")
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\0")
        return dict(json.loads(line))


@contextmanager
def browser(prefix: Sequence[str] = ()) -> Iterator[Browser]:
    """Chromium, until the end of the block; ``prefix``: what its command line begins with."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # Not 3 or 4, which would be overwritten before they are copied.
    inherited = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs_in, theirs_out)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", _LAUNCH, *map(str, inherited), PROGRAM, *_OPTIONS,
             f"--user-data-dir={home}"],
            pass_fds=inherited,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (theirs_in, theirs_out, *inherited):
            os.close(fd)
        try:
            yield Browser(ours_out, ours_in)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(ours_out)
            os.close(ours_in)
