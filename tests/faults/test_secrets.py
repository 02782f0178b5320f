"""A password in an address of the configuration is in nothing that a run says or leaves behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from orchestrator.__main__ import main
from tests.faults.postgres import PASSWORD, Postgres, server
from tests.faults.tiny import check_whole, command, run, trials_in, wait_for

pytestmark = pytest.mark.slow

FORMS = [PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD), "hunter2", "hunter3"]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with server() as found:
        yield found


def said(folder: Path, code: int, *words: str) -> str:
    with run(folder, *words) as process:
        assert process.ends() == code, process.text
        return process.text


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """What is said before anything is paid for."""
    capfd.readouterr()
    assert main(command(*words)) == 2
    found = capfd.readouterr()
    return found.out + found.err


def told(text: str) -> list[str]:
    return [form for form in FORMS if form in text]


def leaks(folder: Path) -> list[tuple[str, str]]:
    """Files, databases among them, that hold the password in any form, or have it in their name."""
    found = []
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        found += [
            (str(path), form) for form in FORMS if form.encode() in content or form in path.name
        ]
    return found


def test_a_password_is_in_nothing_that_a_run_says_or_leaves_behind(
    postgres: Postgres,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    url = postgres.url("secret")
    storage = f"study.storage={url}"
    slow = ["made_up={seconds: 0.02}", "phases.finetune.round_steps=20"]  # not done when stopped
    words = [
        storage,
        *slow,
        "tracking=mlflow",
        "tracking.uri=sqlite:///mlflow.db",
        "workers=2",
        "study.storage_patience=1",
    ]

    with run(tmp_path, *words) as process:  # stopped: it repeats its command
        assert process.says("search: "), process.text
        wait_for(lambda: trials_in(tmp_path, url), "the first trial")
        process.kill(signal.SIGTERM)
        assert process.ends() == 143
        assert "give the same command again: python -m orchestrator" in process.text
        assert told(process.text) == []
    assert told(said(tmp_path, 0, *words, "workers=1")) == []
    check_whole(tmp_path, url)
    assert "complete: nothing to help with" in said(tmp_path, 0, storage, *slow, "job=work")

    other = url.replace(
        "hunter2", "hunter3"
    )  # a wrong password, a wrong host, another search, no address at all
    wrong = [
        other,
        other.replace("127.0.0.1", "nowhere.invalid"),
        other.replace(quote("@"), "@"),
        "hunter3",
    ]
    for address in wrong:
        text = refused(capfd, f"study.storage={address}", "study.name=wrong")
        assert "study.storage" in text
        assert told(text.replace("'hunter3'", "")) == []
    assert told(refused(capfd, storage, "method=l1")) == []
    assert (
        told(
            refused(
                capfd, storage, f"tracking.urii=http://me:{quote(PASSWORD, safe='')}@127.0.0.1:1"
            )
        )
        == []
    )

    tracked = ["tracking=mlflow", "study.name=untracked"]
    text = refused(
        capfd, *tracked, f"tracking.uri=http://me:{quote(PASSWORD, safe='')}@127.0.0.1:1"
    )
    assert "tracking.uri" in text
    assert told(text) == []
    text = said(
        tmp_path,
        2,
        *tracked,
        f"tracking.uri=postgresql+psycopg://me:{quote(PASSWORD, safe='')}@127.0.0.1:1/db",
    )
    assert told(text) == []
    assert leaks(tmp_path) == []
