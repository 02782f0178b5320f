"""Finished studies side by side: one page and one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_modules.errors import ConfigError
from orchestrator.files import write_atomic
from orchestrator.jobs.outputs import CONFIG, SUMMARY, stored_view
from orchestrator.report.comparison import Compared, cells, comparison_sections, header, scores
from orchestrator.report.page import html
from orchestrator.report.tables import plain_table, show
from orchestrator.results.variants import variants

COMPARISON = "comparison.html"
TITLE = "Studies side by side"
_FEWEST = 2


def compare(folders: Sequence[str | Path], page: str | Path | None = None) -> Compared:
    """Print how finished studies compare, and write a page; returns what is compared.

    `folders` are those of studies, `page` is the file, by default comparison.html beside them.
    Studies that differ in nothing but the seed count as repetitions of one.
    Errors: ConfigError for fewer than two studies, for one that is not finished, and for studies of
    different quality metrics.
    """
    compared = read_studies([Path(folder) for folder in folders])
    path = page_beside(folders) if page is None else Path(page)
    content = html(TITLE, comparison_sections(compared), compared.quality, compared.sign)
    write_atomic(path, content)
    rows = [cells(score) for score in scores(compared)]
    show(plain_table("Variants, the largest volume first", header(compared), rows))
    print(f"the page: {path}")
    return compared


def page_beside(folders: Sequence[str | Path]) -> Path:
    """The page of these studies where no other is named."""
    return Path(folders[0]).parent / COMPARISON


def studies_in(out: Path, names: Sequence[str]) -> list[Path]:
    """The folders of these studies below `out`; of all finished ones where none is named.

    A name may be a pattern: `seed_*`. Errors: ConfigError for a name without a study.
    """
    folders: list[Path] = []
    for name in names or ["*"]:
        named = sorted([path.parent for path in out.glob(f"{name}/{SUMMARY}")])
        if not named:
            raise ConfigError(
                f"job.studies must name finished studies in {out}; none is '{name}'; there are "
                f"{sorted([path.parent.name for path in out.glob(f'*/{SUMMARY}')])}"
            )
        folders += [folder for folder in named if folder not in folders]
    return folders


def read_studies(folders: Sequence[Path]) -> Compared:
    """What is compared. Errors: ConfigError; see `compare`."""
    if len(folders) < _FEWEST:
        raise ConfigError(
            f"a comparison needs at least {_FEWEST} finished studies; got "
            f"{[str(folder) for folder in folders]}: give job.studies=[a,b], or search first"
        )
    views = [stored_view(folder) for folder in folders]
    by_quality = {view.quality: view.name for view in views}
    if len(by_quality) > 1:
        raise ConfigError(
            "studies compare by one quality; these have "
            f"{', '.join([f'{quality} ({name})' for quality, name in by_quality.items()])}: name "
            "those of one task in job.studies"
        )
    configs = [_config(folder) for folder in folders]
    compared = Compared(views, variants(configs, [view.name for view in views]))
    if not compared.costs():
        raise ConfigError(
            "studies compare along a cost whose ratio all of them know; these have none in common "
            f"({', '.join([f'{view.name}: {view.rows.axis}' for view in views])}): name others in "
            "job.studies"
        )
    return compared


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    return yaml.safe_load(path.read_text()) if path.is_file() else {}
