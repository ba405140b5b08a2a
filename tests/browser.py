"""A Chromium without a window, driven over its DevTools socket: no package is needed that the lock does not have."""

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio",
    "--remote-debugging-port=0", "--remote-allow-origins=*", "--hide-scrollbars",
)  # fmt: skip


def find_browser() -> str | None:
    """The program to start: ``$RISF_BROWSER``, else a Chromium or Chrome of the search path; None without one."""
    if given := os.environ.get("RISF_BROWSER"):
        return given
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page of a browser that is started for it; a context manager.

    Args:
        folder: For the browser's profile and log; empty, and its own.
        width: Of the window, in pixels.
        height: Of the window.

    Attributes:
        complaints: What the page has written to its console as an error, and exceptions nobody caught.
    """

    def __init__(self, folder: Path, *, width: int = 1280, height: int = 900) -> None:
        self.folder, self.size = Path(folder), (width, height)
        self.complaints: list[str] = []
        self._number = 0

    def __enter__(self) -> "Page":
        self.folder.mkdir(parents=True, exist_ok=True)
        width, height = self.size
        words = [
            find_browser(),
            *SWITCHES,
            f"--user-data-dir={self.folder}",
            f"--window-size={width},{height}",
        ]
        self._log = (self.folder / "browser.log").open("wb")
        self._process = subprocess.Popen(
            [*words, "about:blank"], stdout=self._log, stderr=self._log, start_new_session=True
        )
        try:
            self._connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _connect(self) -> None:
        ports = self.folder / "DevToolsActivePort"
        wait_for(lambda: ports.exists() and len(ports.read_text().split()) == 2, what="the browser")
        port = ports.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            pages = [one for one in json.load(answer) if one["type"] == "page"]
        self._socket = websocket.create_connection(
            pages[0]["webSocketDebuggerUrl"], timeout=300, suppress_origin=True
        )
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.send(
            "Emulation.setFocusEmulationEnabled", enabled=True
        )  # a page that nobody looks at has no focus
        width, height = self.size
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def __exit__(self, *_) -> None:
        if hasattr(self, "_socket"):
            self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def send(self, method: str, **params) -> dict:
        """One command of the DevTools protocol and its result; events that arrive meanwhile are noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            self._note(message)

    def _note(self, event: dict) -> None:
        details = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(details["exceptionDetails"])[:500])
        elif event.get("method") == "Runtime.consoleAPICalled" and details["type"] == "error":
            self.complaints.append(" ".join(str(arg.get("value", "")) for arg in details["args"])[:500])
        elif event.get("method") == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.complaints.append(f"{details['entry']['text']} {details['entry'].get('url', '')}")

    def open(self, address: str) -> None:
        """Go to an address."""
        self.send("Page.navigate", url=address)

    def evaluate(self, code: str):
        """The value of a JavaScript expression, awaited; what it throws is a RuntimeError."""
        result = self.send("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"])[:800])
        return result["result"].get("value")

    def wait(self, code: str, *, seconds: float = 120.0) -> None:
        """Wait until a JavaScript expression is true."""
        wait_for(lambda: self.evaluate(f"Boolean({code})"), what=code, seconds=seconds)

    def click(self, selector: str) -> None:
        """Scroll to the first element of a CSS selector and click in its middle."""
        place = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{place}.scrollIntoView({{block: 'center'}})")
        x, y = self.evaluate(
            f"(r => [r.x + r.width / 2, r.y + r.height / 2])({place}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int, *, times: int = 1, modifiers: int = 0) -> None:
        """Press and release a key, such as "ArrowLeft" (37); modifiers: 2 is control, 8 is shift."""
        values = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        for _ in range(times):
            for kind in ("rawKeyDown", "keyUp"):
                self.send("Input.dispatchKeyEvent", type=kind, **values)

    def screenshot(self, selector: str | None = None) -> bytes:
        """PNG of the window, or of the first element of a CSS selector."""
        options = {}
        if selector is not None:
            place = f"document.querySelector({json.dumps(selector)})"
            x, y, width, height = self.evaluate(
                f"(r => [r.x, r.y, r.width, r.height])({place}.getBoundingClientRect())"
            )
            options["clip"] = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        return base64.b64decode(self.send("Page.captureScreenshot", format="png", **options)["data"])


def wait_for(ready, *, what: str, seconds: float = 120.0):
    """Ask again and again until ``ready()`` is true; returns what it says.

    Raises:
        TimeoutError: Naming what was waited for.
    """
    end = time.monotonic() + seconds
    while True:
        if answer := ready():
            return answer
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)
