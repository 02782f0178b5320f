"""Pictures of a study in MLflow, for people to look at: `python benchmarks/mlflow_screens.py`.

In a folder with an `mlflow.db` it begins `mlflow ui` on this machine alone, opens the pages of the
last finished study in a headless Chromium, and writes one PNG of each to `--out`. Chromium is
spoken to over a pipe, in real time: a page in a sandbox is not drawn in virtual time.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

DRAWN_SECONDS = 4.0
"""A page whose text has been the same for so long is drawn."""
LEAST_TEXT = 250
"""Characters of a page that has more than its frame."""
BOOT_SECONDS = 120.0
NO_ASSISTANT = """
for (const name of ["fab.autoOpenedOnFirstLoad", "panelOpen"])
  for (const form of ["_v1", "-v1", ""])
    localStorage.setItem("mlflow.assistant." + name + form, String(name != "panelOpen"));
"""


class Browser:
    """A headless Chromium that is told what to do in JSON, over two pipes."""

    def __init__(self, profile: str, width: int, height: int) -> None:
        told, self._tell = os.pipe()
        self._hear, said = os.pipe()
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        words += ["--disable-background-networking", "--disable-quic", "--hide-scrollbars"]
        words += [f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        chromium = shutil.which("chromium") or "chromium"
        # Chromium reads from descriptor 3 and writes to 4
        shell = f'exec "$@" --remote-debugging-pipe 3<&{told} 4>&{said}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", chromium, *words],
            pass_fds=(told, said),
            stderr=subprocess.DEVNULL,
        )
        os.close(told)
        os.close(said)
        self._rest = b""
        self._number = 0
        self._session = ""
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self("Emulation.setDeviceMetricsOverride", width=width, height=height,
             deviceScaleFactor=1, mobile=False)  # fmt: skip

    def __call__(self, method: str, **params: object) -> dict[str, Any]:
        """The answer to one command."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._tell, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._hear, 1 << 20)
            assert more, "Chromium has ended"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def picture(self, url: str, path: Path, script: str = "") -> None:
        """Open a page, do what the script does, and write what is seen."""
        self("Page.navigate", url="about:blank")
        self("Page.navigate", url=url)
        self._settle()
        if script:
            self("Runtime.evaluate", expression=script)
            time.sleep(1.0)
        shot = self("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))
        print(f"{path}: {path.stat().st_size // 1000} kB", flush=True)

    def _settle(self) -> None:
        """Wait until the text of the page has been the same for a while."""
        before = ""
        since = begun = time.monotonic()
        while time.monotonic() - since < DRAWN_SECONDS or len(before) < LEAST_TEXT:
            time.sleep(0.5)
            answer = self("Runtime.evaluate", expression="document.body.innerText")
            text = str(answer["result"].get("value", ""))
            if text != before:
                before, since = text, time.monotonic()
            if time.monotonic() - begun > BOOT_SECONDS:
                return

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextmanager
def server(uri: str) -> Iterator[str]:
    """The address of an `mlflow ui` on this machine alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = ["ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words, "--workers", "1"],
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + BOOT_SECONDS
        while not healthy(address):
            assert time.monotonic() < until
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait()


def healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def pages(uri: str, experiment: str) -> dict[str, str]:
    """The pages of the last finished study, by the names of their pictures."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None, f"no experiment {experiment}"
    (study,) = client.search_runs([found.experiment_id], "tags.kind = 'study'", max_results=1)
    below = f"tags.`mlflow.parentRunId` = '{study.info.run_id}' and tags.on_front = 'true'"
    model = client.search_runs([found.experiment_id], below)[-1]
    note = study.data.tags["mlflow.note.content"]
    links: Mapping[str, str] = dict(re.findall(r"\[([^\]]*)\]\(([^)]*)\)", note))
    base = f"#/experiments/{found.experiment_id}/runs"
    side = "workflowType=machine_learning"
    return {
        "table": links["All models in one table"],
        "compare": links["the front side by side"],
        "report": links["the report"],
        "picture": links["the picture"],
        "study": f"{base}/{study.info.run_id}?{side}",
        "front": f"{base}/{study.info.run_id}/artifacts/front.json?{side}",
        "model": f"{base}/{model.info.run_id}?{side}",
        "curves": f"{base}/{model.info.run_id}/model-metrics?{side}",
        "studies": f"{base}?{side}&viewStateShareKey={study.data.tags['quality']}",
        "experiments": f"#/experiments?{side}",
        "registry": f"#/models?{side}",
        **{
            f"registered-{entry.name}": f"#/models/{entry.name}?{side}"
            for entry in client.search_registered_models()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uri", default="sqlite:///mlflow.db")
    parser.add_argument("--experiment", default="pruning")
    parser.add_argument("--out", type=Path, default=Path("screens"))
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with server(given.uri) as address, tempfile.TemporaryDirectory() as profile:
        browser = Browser(profile, 1600, 1000)
        more = "[...document.querySelectorAll('*')].find(e => e.innerText == 'Show more')?.click()"
        try:
            browser("Page.navigate", url=address)
            time.sleep(DRAWN_SECONDS)
            browser("Runtime.evaluate", expression=NO_ASSISTANT)
            for name, page in pages(given.uri, given.experiment).items():
                if not given.only or name in given.only:
                    browser.picture(f"{address}/{page}", given.out / f"{name}.png", more)
        finally:
            browser.close()


if __name__ == "__main__":
    main()
