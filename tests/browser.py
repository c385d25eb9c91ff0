# Copyright (c) the Mask-in-Mask bundle contributors. Licensed under the Apache License, Version 2.0.
"""A headless Chromium, driven through its DevTools protocol over two pipes: no driver and no port."""

from __future__ import annotations

import base64
import io
import json
import os
import select
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from fetch_browser import find_browser
from PIL import Image

_FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--no-first-run", "--disable-extensions",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--mute-audio",
    "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip
_WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")  # without a GPU
_NO_WEBGL = ("--disable-3d-apis",)
_ELEMENT = "document.querySelector('%s')"
_DEADLINE = 120  # seconds until an answer, or a condition, is given up


class Browser:
    """One tab of a browser of its own.

    Attributes:
        requests: addresses of all that the page asked for.
        complaints: what the console has shown above the level of a remark, and errors of scripts.
    """

    def __init__(self, *, width: int = 1280, height: int = 900, webgl: bool = True) -> None:
        program = find_browser()
        if program is None:
            raise RuntimeError("no Chromium: python scripts/fetch_browser.py")
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        # the browser reads commands from file 3 and writes answers to file 4
        line = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        arguments = [
            *_FLAGS,
            *(_WEBGL if webgl else _NO_WEBGL),
            f"--user-data-dir={self._profile.name}",
            f"--window-size={width},{height}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            ["bash", "-c", line, "browser", program, *arguments], pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._rest, self._number, self._session = b"", 0, ""
        (tab,) = [one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self._session = self.call("Target.attachToTarget", targetId=tab["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol, and gives its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self._note(answer)

    def open(self, path: Path) -> None:
        """Opens a file."""
        self.call("Page.navigate", url=path.absolute().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript; a promise is awaited."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(str(done["exceptionDetails"]))
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        """Waits until an expression of JavaScript is true."""
        end = time.monotonic() + _DEADLINE
        while not self.run(condition):
            assert time.monotonic() < end, f"never true: {condition}; {self.complaints}"
            time.sleep(0.05)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """An event of the mouse, such as "mouseWheel", at a place of the window."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def screenshot(self, selector: str = "html") -> np.ndarray:
        """The pixels of an element, as far as the window shows it: uint8 [height, width, 3]."""
        box = f"(({{x, y, width, height}}) => ({{x, y, width, height}}))({_ELEMENT % selector}.getBoundingClientRect())"
        clip = {**self.run(box), "scale": 1}
        # x and y are the page's
        clip["x"], clip["y"] = clip["x"] + self.run("scrollX"), clip["y"] + self.run("scrollY")
        taken = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=False)["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(taken))).convert("RGB"))

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + _DEADLINE
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], max(0, end - time.monotonic()))[0]:
                raise RuntimeError("the browser does not answer")
            if not (more := os.read(self._read, 1 << 20)):
                raise RuntimeError(f"the browser has ended with {self._process.wait()}")
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        method, about = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(about["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(one.get("value", one)) for one in about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(about["entry"]["text"])
