"""Every key of conf/ changes something that can be seen: a key that does nothing is a lie.

Searches with a made-up laboratory, whose noise follows from all that a real training would depend
on, so that each takes a second or two. What such a search cannot show is named with the tests that
do.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator
from lightning_modules.errors import UserError

BASE: dict[str, Any] = {
    "experiment": "digits_small",
    "made_up": {"noise": 0.02},
    "tracking": "none",
    "threads": 1,
    "model": {"width": 8},
    "study": {"name": "keys", "n_trials": 7},
    "search": {"chain": {"targets": 3}},
    "phases": {"confirm": {"max_models": 2, "baselines": ["uniform"]}},
    "space": {"rounds": [2, 3]},
}
CHANGED: dict[str, Any] = {
    "method.among": None,
    "method.criterion._target_": "lightning_modules.pruning.criteria.Fpgm",
    "method.rule": "mean",
    "method.granularity": "weight",
    "method.shape": [2, 2],
    "method.scope": "global",
    "method.attention": "head_dim",
    "method.depth": True,
    "method.soft": True,
    "method.then": {
        "name": "second",
        "granularity": "weight",
        "criterion": {"_target_": "nowhere"},
    },
    "method.activation": {"kind": "topk", "levels": [0.3, 0.9]},
    "method.regrowth": {"_target_": "lightning_modules.pruning.regrowth.RigL"},
    "method.int8": [True, False],
    "method.name": "another",
    "method.round_to": 4,
    "method.keep": ["stages.0"],
    "phases.train.scheduler": {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1},
    "phases.finetune.scheduler": {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1},
    "phases.train.rewind_epoch": 1,
    "phases.train.clip_norm": 1.0,
    "phases.finetune.clip_norm": 1.0,
    "phases.train.checkpoint": "nowhere.pt",
    "phases.train.optimizer._target_": "torch.optim.RMSprop",
    "phases.finetune.optimizer._target_": "torch.optim.RMSprop",
    "phases.finetune.begin": "fresh",
    "phases.finetune.lr": "rewound",
    "phases.finetune.guard": {"tolerance": 0.001, "action": "stop"},
    "phases.finetune.distillation.mixed": 0,
    "phases.finetune.distillation.features": ["stages.0"],
    "phases.sparsify": {
        "penalty": {"_target_": "lightning_modules.pruning.penalties.GroupLasso"},
        "rounds": 1,
    },
    "phases.confirm.seeds": [3, 4],
    "phases.confirm.baselines": ["random"],
    "phases.confirm.tolerance": 0.2,
    "model._target_": "lightning_modules.models.SmallVGG",
    "data._target_": "lightning_modules.data.fashion_mnist",
    "task._target_": "lightning_modules.models.SmallVGG",
    "space._target_": "orchestrator.search.space.Hierarchical",
    "space.flops_ratio": [0.1, 0.6],
    "space.equal_loss": [0.5, 1.0],
    "space.steps": [2, 2],
    "space.shapes": ["exponential"],
    "space.rounds": [1, 1],
    "space.start": [0.5, 0.5],
    "space.end": [0.5, 0.5],
    "space.distillation": [0.3, 0.9],
    "space.levels": 3,
    "sampler._target_": "optuna.samplers.RandomSampler",
    "stopping._target_": "orchestrator.search.stopping.Pareto",
    "stopping.keep": 0.01,
    "stopping.max_drop": 0.001,
    "objectives.quality": "f1",
    "objectives.engine": "onnxruntime",
    "objectives.direction": "minimize",
    "objectives.costs": ["params"],
    "objectives.metrics": ["f1"],
    "objectives.bounds": {"flops_ratio": {"most": 0.3}},
    "objectives.references": {"accuracy": 0.1},
    "job._target_": "orchestrator.jobs.checked.inspect",
    "device": "quantum",
    "threads": 2,
    "made_up": {"noise": 0.5},
    "study.name": "another",
    "study.out": "elsewhere",
    "study.baselines": "elsewhere",
    "study.budget": "2epochs",
    "search.allocations": 8,
    "search.chain.most_epochs": 2,
    "search.plans": ["nowhere.json"],
    "search.warm_start": "nowhere",
}
"""Another value, where a doubled or negated one would be none."""
WITH: dict[str, dict[str, Any]] = {
    "search.chain.depth": {"method.depth": True, "model.blocks": 2},
    "search.chain.most_epochs": {"study.budget": "40epochs"},
    "search.allocations": {"method.compensate": True},
    "method.normalize": {"method.scope": "global"},
    "method.rule": {
        "space": {"_target_": "orchestrator.search.space.Uniform", "rounds": [2, 3]},
    },
    "method.attention": {
        "model": {"_target_": "lightning_modules.models.SmallViT", "num_classes": 10},
    },
    "stopping._target_": {"study.n_trials": 40},
    "objectives.engine": {"objectives.costs": ["latency_ms"]},
    "stopping.keep": {"study.n_trials": 40},
    "sampler._target_": {"study.n_trials": 16},
    "sampler.multivariate": {"study.n_trials": 16},
    "made_up": {},
}
"""What else has to be as it is for a key to mean anything."""
ELSEWHERE = {
    "study.lease": "tests/search/test_leases.py",
    "study.storage": "tests/search/test_storage.py",
    "study.storage_patience": "tests/search/test_storage.py",
    "study.results": "tests/faults/test_two_disks.py",
    "study.trial_timeout": "tests/faults/test_trial_failures.py",
    "study.max_failures": "tests/faults/test_trial_failures.py",
    "study.on_out_of_memory": "tests/faults/test_trial_failures.py",
    "select._target_": "tests/orchestrator/test_choose.py",
    "select.max_drop": "tests/orchestrator/test_choose.py",
    "tracking._target_": "tests/orchestrator/test_tracking.py",
    "tracking.uri": "tests/orchestrator/test_tracking.py",
    "tracking.experiment": "tests/orchestrator/test_tracking.py",
    "tracking.register": "tests/orchestrator/test_registry.py",
    "quiet": "tests/orchestrator/test_progress.py",
    "workers": "tests/orchestrator/test_workers_job.py",
    "objectives.batch_size": "tests/orchestrator/test_latency.py",
    "objectives.engine_threads": "tests/orchestrator/test_latency.py",
    "trainer.precision": "tests/phases/test_trainer_options.py",
    "trainer.accumulate_grad_batches": "tests/phases/test_trainer_options.py",
    "memory_format": "tests/search/test_kernels.py",
    "method.prune_frozen": "tests/pruning/test_left_whole.py",
    "method.calibration_batches": "tests/search/test_run_plan.py",
}
"""Keys whose effect is on failures, on other machines, or on what a training reads; and who shows
it.
"""


@functools.cache
def defaults() -> dict[str, Any]:
    """Every leaf of the composed default configuration by its dotted name."""
    return dict(leaves(orchestrator.load_settings({}).plain()))


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def another(key: str, value: Any) -> Any:
    if key in CHANGED:
        return CHANGED[key]
    if isinstance(value, bool):
        return not value
    assert isinstance(value, int | float), f"{key}={value!r} needs another value in CHANGED"
    return value + 1 if isinstance(value, int) else value / 2 if value else 0.25


def laid_over(words: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(json.dumps(BASE))
    for key, value in words.items():
        *path, last = key.split(".")
        place = tree
        for name in path:
            below = place.setdefault(name, {})
            if not isinstance(below, dict):  # a group by name
                below = place[name] = {}
            place = below
        place[last] = value
    return tree


def seen(folder: Path, words: Mapping[str, Any]) -> Any:
    """What a search with these values shows, without times; or what it says instead."""
    tree = laid_over(words)
    study = tree["study"]
    study.setdefault("out", str(folder / "runs"))
    study.setdefault("baselines", str(folder / "baselines"))
    try:
        settings = orchestrator.load_settings(tree)
        result = settings.job.build(settings)
    except UserError as error:
        return str(error)
    finally:
        torch.set_num_threads(1)
    if not hasattr(result, "trials"):
        return type(result).__name__
    trials = [
        (r.state, r.kind, r.method, r.quality, r.loss, sorted(r.costs.items()), r.reason)
        for r in result.trials
    ]
    confirmed = [
        (
            row.origin,
            row.test_mean,
            row.test_std,
            row.seeds,
            [v for k, v in row.costs.items() if k != "latency_ms"],
        )
        for row in [*result.front, *result.baselines, result.dense]
    ]
    recipe = [
        settings.study.folder.name,
        settings.threads,
        settings.study.out,
        settings.study.baselines,
    ]
    return trials, confirmed, result.summary["hypervolume"], result.summary["reference"], recipe


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was shown for each set of circumstances."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(set(defaults()) - set(ELSEWHERE)))
def test_a_key_changes_what_a_search_shows(
    key: str, shown: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    circumstances = WITH.get(key, {})
    name = json.dumps(circumstances, sort_keys=True)
    if name not in shown:
        shown[name] = seen(tmp_path / "before", circumstances)
    value = another(
        key, dict(leaves(orchestrator.load_settings(laid_over(circumstances)).plain())).get(key)
    )
    after = seen(tmp_path / "after", {**circumstances, key: value})
    before = shown[name]
    if (
        isinstance(before, tuple)
        and isinstance(after, tuple)
        and key not in ("study.out", "study.baselines")
    ):
        before, after = (*before[:-1], before[-1][:2]), (*after[:-1], after[-1][:2])
    assert after != before, f"{key}={value!r} changes nothing"


def test_keys_that_are_shown_elsewhere_are_keys_and_their_tests_are_there() -> None:
    assert set(ELSEWHERE) <= {
        *defaults(),
        "tracking.uri",
        "tracking.experiment",
        "tracking.register",
    }
    root = Path(__file__).parents[2]
    assert all((root / name).exists() for name in ELSEWHERE.values())
