"""The report page in a real browser, opened from disk: drawn in time, silent, and alive."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.report.page import page
from orchestrator.results.choose import Front, max_quality
from tests.orchestrator.test_report_page import view

CHROMIUM = shutil.which("chromium")
MOST_MS = 2000
CHARTS = 8
PROBE = """
<script>
// what a person does, and what came of it, as attributes that the dump of the page has
addEventListener("securitypolicyviolation", (event) => {
  document.body.setAttribute("data-refused", event.blockedURI);
});
new MutationObserver((records, observer) => {
  if (!document.body.dataset.drawn) return;
  observer.disconnect();
  document.body.setAttribute("data-ms", performance.now());
  const choose = (name, value, kind) => {
    const input = document.querySelector(`[name="${name}"]`);
    input.value = value;
    input.dispatchEvent(new Event(kind, { bubbles: true }));
  };
  choose("budget", "85", "input");
  setTimeout(() => {
    const said = document.getElementById("choice").textContent;
    document.body.setAttribute("data-said", said);
    choose("cost", "params", "change");
    setTimeout(() => {
      document.body.setAttribute("data-then", document.getElementById("choice").textContent);
      document.querySelector('tr[data-trial="3"]').dispatchEvent(new MouseEvent("mouseenter"));
      document.body.setAttribute("data-lit", document.querySelector("tr.lit").dataset.trial);
      document.body.setAttribute("data-charts", document.querySelectorAll("svg.marks").length);
    }, 300);
  }, 300);
}).observe(document.documentElement, { attributes: true, subtree: true });
</script>
"""


def opened(path: Path, profile: Path) -> tuple[dict[str, str], str]:
    """What the page says of itself in its body's attributes, and what the browser logs."""
    assert CHROMIUM is not None
    words = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--enable-logging=stderr",
        "--timeout=20000",
        "--virtual-time-budget=20000",
        f"--user-data-dir={profile}",
        "--dump-dom",
        f"file://{path}",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    body = re.search(r"<body[^>]*>", done.stdout)
    assert body is not None
    return dict(re.findall(r'data-(\w+)="([^"]*)"', body[0])), done.stderr


@pytest.mark.slow
@pytest.mark.family
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_a_large_study_in_time_and_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    shown = view(trials=300, groups=60, models=20)
    content = page(shown)
    assert shown.rows.dense is not None
    front = Front(shown.rows.front, shown.rows.dense, shown.quality, shown.sign)
    by_flops = max_quality(front, max_flops_ratio=0.85).trial
    by_params = max_quality(front, max_params_ratio=0.85).trial
    path.write_text(content.replace("<main>", f"{PROBE}<main>", 1), encoding="utf-8")
    times = []
    for number in range(3):  # a busy machine is given another chance
        seen, log = opened(path, tmp_path / f"profile{number}")
        assert "CONSOLE" not in log
        assert "refused" not in seen
        assert seen["charts"] == str(CHARTS)
        assert f"within 85 % of the dense model's FLOPs is trial {by_flops}:" in seen["said"]
        assert "select.max_flops_ratio=0.85" in seen["said"]
        assert f"within 85 % of the dense model's params is trial {by_params}:" in seen["then"]
        assert "select.max_params_ratio=0.85" in seen["then"]
        assert seen["lit"] == "3"
        times.append(float(seen["ms"]))
        if times[-1] < MOST_MS:
            break
    assert min(times) < MOST_MS
