"""Drives Chromium through its debugging pipe: opens pages with cookies, waits for them, and takes pictures."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_WAIT_SECONDS = 120.0
_POLL_SECONDS = 0.2
# Two pictures that are this far apart show any animation.
_STILL_SECONDS = 1.0


class Browser:
    """One page of a Chromium without a window.

    Attributes:
        requested: The addresses that the opened pages have asked for, by the id of the request, without the requests
            that the policy of the page forbids.
    """

    def __init__(self, commands: int, answers: BinaryIO) -> None:
        self.requested: dict[str, str] = {}
        self._commands = commands
        self._answers = answers
        self._count = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Network.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Run a command of the DevTools protocol and return its result."""
        self._count += 1
        command: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note_request(answer.get("method"), answer.get("params", {}))

    def _note_request(self, event: str | None, about: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requested[about["requestId"]] = about["request"]["url"]
        elif event == "Network.loadingFailed" and about.get("blockedReason") == "csp":
            self.requested.pop(about["requestId"], None)

    def _read(self) -> bytes:
        message = bytearray()
        while (byte := self._answers.read(1)) not in {b"\0", b""}:
            message += byte
        assert message, "Chromium has ended"
        return bytes(message)

    def set_cookies(self, url: str, cookies: dict[str, str]) -> None:
        """Set the cookies of a site."""
        self.call(
            "Network.setCookies",
            cookies=[{"name": name, "value": value, "url": url} for name, value in cookies.items()],
        )

    def open(self, url: str, *, width: int, height: int, dark: bool = False) -> None:
        """Open a page in a window of a size, with a light or a dark colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return result["result"].get("value")

    def wait_until(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + _WAIT_SECONDS
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"the page never reached: {condition}"
            time.sleep(_POLL_SECONDS)

    def take_picture(self, path: Path, *, width: int, height: int) -> None:
        """Write a picture of the upper part of the window as PNG, as soon as nothing moves in it."""
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        before, shot = "", self.call("Page.captureScreenshot", format="png", clip=clip)["data"]
        while shot != before:
            time.sleep(_STILL_SECONDS)
            before, shot = shot, self.call("Page.captureScreenshot", format="png", clip=clip)["data"]
        path.write_bytes(base64.b64decode(shot))


def find_chromium() -> str | None:
    """Return the program of Chromium on this machine, if there is one."""
    return shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def opened_browser(chromium: str) -> Iterator[Browser]:
    """Start Chromium with a profile of its own, and end it afterwards."""
    # Chromium reads commands from descriptor 3 and writes answers to descriptor 4.
    for_chromium, commands = os.pipe()
    answers, from_chromium = os.pipe()
    options = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--remote-debugging-pipe"]
    # The sandbox of Chromium does not work for root.
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        shell = f'exec "$0" "$@" 3<&{for_chromium} 4>&{from_chromium}'
        process = subprocess.Popen(
            ["bash", "-c", shell, chromium, *options, f"--user-data-dir={profile}"],
            pass_fds=[for_chromium, from_chromium],
            stderr=subprocess.DEVNULL,
        )
        os.close(for_chromium)
        os.close(from_chromium)
        with os.fdopen(answers, "rb") as read_answers:
            try:
                yield Browser(commands, read_answers)
            finally:
                os.close(commands)
                process.terminate()
                process.wait()
