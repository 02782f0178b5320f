"""A headless Chromium that tests speak to over a pipe, with all its frames."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

PATIENCE = 120.0
"""Seconds for a page to be drawn on a machine that is busy with other things."""


class Chromium:
    """One page of a browser. `events` has what every frame has said so far: requests, messages.

    A frame in a sandbox is a page of its own to the browser: it is held until its events are
    listened to, so that none is missed.
    """

    def __init__(self, program: str, profile: Path, width: int = 1400, height: int = 1000) -> None:
        told, self._tell = os.pipe()
        self._hear, said = os.pipe()
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        words += ["--disable-background-networking", "--disable-quic", "--hide-scrollbars"]
        words += [f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        # Chromium reads from descriptor 3 and writes to 4
        shell = f'exec "$@" --remote-debugging-pipe 3<&{told} 4>&{said}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", program, *words],
            pass_fds=(told, said),
            stderr=subprocess.DEVNULL,
        )
        os.close(told)
        os.close(said)
        self._rest = b""
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.frames: dict[str, str] = {}
        target = self._call("", "Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("", "Target.attachToTarget", targetId=target, flatten=True)
        self._page = str(attached["sessionId"])
        self._listen(self._page)

    def open(self, url: str) -> None:
        self._call(self._page, "Page.navigate", url=url)

    def value(self, expression: str, session: str = "") -> Any:
        """What an expression is in the page, or in the frame of a session."""
        answer = self._call(
            session or self._page, "Runtime.evaluate", expression=expression, returnByValue=True
        )
        return answer["result"].get("value")

    def waits_for(self, expression: str) -> str:
        """The session of the first frame, or the page, in which an expression is true."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            for session in [self._page, *self.frames]:
                if self.value(expression, session) is True:
                    return session
            time.sleep(0.5)
        raise AssertionError(f"{expression} is not true after {PATIENCE:g} s")

    def said(self, method: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [event["params"] for event in self.events if event["method"] == method]

    def complaints(self, session: str) -> list[dict[str, Any]]:
        """Errors on the console of a page or frame, and what was thrown there."""
        found = []
        for event in self.events:
            if event.get("sessionId") != session:
                continue
            said = event["params"]
            level = said.get("entry", {}).get("level") or said.get("type")
            if event["method"] == "Runtime.exceptionThrown" or level in ("error", "assert"):
                found.append(said)
        return found

    def picture(self) -> bytes:
        """What is seen, as a PNG."""
        shot = self._call(self._page, "Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _listen(self, session: str) -> None:
        for domain in ("Runtime", "Log", "Network", "Page"):
            self._call(session, f"{domain}.enable")
        self._call(
            session,
            "Target.setAutoAttach",
            autoAttach=True,
            waitForDebuggerOnStart=True,
            flatten=True,
        )

    def _call(self, session: str, method: str, **params: object) -> dict[str, Any]:
        """The answer to one command; frames that appear meanwhile are listened to."""
        self._number += 1
        number = self._number
        message: dict[str, object] = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._tell, json.dumps(message).encode() + b"\0")
        while number not in self._answers:
            heard = self._next()
            if "id" in heard:
                self._answers[heard["id"]] = heard.get("result", {"result": {}})
            else:
                self._heard(heard)  # this may call, too, and hear the answer to this one
        return self._answers.pop(number)

    def _heard(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["method"] == "Target.attachedToTarget":
            session = str(event["params"]["sessionId"])
            self.frames[session] = str(event["params"]["targetInfo"]["url"])
            self._listen(session)
            self._call(session, "Runtime.runIfWaitingForDebugger")
        if event["method"] == "Target.detachedFromTarget":
            self.frames.pop(str(event["params"]["sessionId"]), None)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._hear, 1 << 20)
            assert more, "Chromium has ended"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))
