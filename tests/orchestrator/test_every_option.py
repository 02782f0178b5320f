"""No option that was never run: every choice of the configuration goes through a search of its
own.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

import orchestrator
from orchestrator.__main__ import main
from orchestrator.results.rows import ConfirmedRow, TrialRow, read_csv

pytestmark = pytest.mark.slow

CONF = Path(__file__).parents[2] / "conf"
TINY = [
    "study.n_trials=5",
    "search.chain.targets=2",
    "phases.train.epochs=2",
    "phases.finetune.round_steps=4",
    "phases.confirm.rounds=1",
    "phases.confirm.max_models=2",
    "stopping=never",
    "threads=1",
    "study.name=tiny",
]
ONE_LADDER = "phases.confirm.baselines=[uniform]"
NOT_OF_LADDERS = ("space", "sampler", "stopping", "search.", "study.", "tracking")
"""Choices about trials, which a ladder has none of: one of them shows as much as three."""
ALONG = {  # choices that are for some others only
    "space=hybrid": "method=hybrid",
    "space=patterns": "method=nm_2_4",
    "sampler=brute_force": "space.levels=2",
}
GROUPS = {
    group: sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    for group in ("method", "space", "sampler", "objectives")
}
GROUPS["sampler"].remove("hub")  # needs a package: tests/orchestrator/test_objectives_job.py
GROUPS["objectives"].remove("quality_effective_flops")  # chosen by the methods it is for
CHOICES = [
    *(f"{group}={name}" for group, names in GROUPS.items() for name in names),
    "stopping=band",
    "stopping=pareto",
    "objectives.costs=[flops,nonzero_params]",
    "objectives.costs=[params,estimated_latency_ms] objectives.metrics=[f1]",
    "objectives.costs=[size_mb] objectives.references={size_mb:0.9}",
    (
        "objectives=quality_size method=int8 method.int8=[false,true] "
        "objectives.bounds={size_mb:{most:0.5}}"
    ),
    "objectives.bounds={latency_ms:{most:1000},nonzero_params:{most:1e9},f1:{least:0.01}}",
    "space=uniform space.levels=4",
    "method=activation space.levels=3",
    "objectives=quality_latency objectives.engine=onnxruntime objectives.batch_size=2",
    "objectives.quality=f1",
    "objectives.quality=loss",
    "phases=deep",
    "phases=standard",
    "phases.finetune.distillation=null",
    "phases.finetune.distillation.mixed=2",
    "space.equal_loss=[0.5,0.5]",
    "search.lineage=false",
    "+task.label_smoothing=0.1",
    "tracking=none",
    "study.storage=sqlite:///study.db",
    "method.scope=global",
    "method.scope=isomorphic space=per_group",
    "method=obs method.scope=per_mac",
    "method.rule=mean space=per_group space.low=0.5 space.high=1.1",
    "method.round_to=8",
    "method=weight_l1 method.soft=true space.shapes=[cyclic] space.steps=[3,4]",
    "method=rigl space=per_group",
    "method=soft_filter space.shapes=[cyclic,recovering] space.steps=[2,4]",
    "method=search method.among=[weight_l1,rigl] objectives=quality_effective_flops",
    "method=activation_topk method.int8=[true]",
    "method=int8 method.int8=[false,true]",
    "method=depth model.blocks=2",
    "space.distillation=[0.2,0.8]",
    "space.start=[0.0,0.5] space.end=[0.6,1.0] space.steps=[2,3] space.shapes=[exponential,cosine]",
    "phases.sparsify={penalty:{_target_:lightning_modules.pruning.penalties.GroupLasso},rounds:1}",
    "phases.train.rewind_epoch=1 phases.finetune.begin=rewound",
    "phases.finetune.begin=fresh",
    "phases.finetune.lr=rewound",
    "phases.finetune.distillation.features=[stages.0,stages.1]",
    "phases.finetune.scheduler={_target_:torch.optim.lr_scheduler.OneCycleLR,max_lr:0.1}",
    "phases.finetune.guard={tolerance:0.3,action:stop} space.steps=[2,3]",
    "phases.finetune.guard={tolerance:0.3,action:step_back} space.steps=[2,3]",
    "phases.finetune.guard={tolerance:0.1,action:slow_down} space.steps=[2,3]",
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


TRAINED = ("phases", "method", "task", "space.distillation")
"""Choices that training itself has to show; the others are tried in a laboratory that trains
nothing.
"""
FAMILIES = {
    "method=taylor",
    "method=nm_2_4",
    "method=hybrid",
    "method=soft_filter",
    "method=rigl",
    "method=group_lasso",
    "method=depth model.blocks=2",
    "method=search method.among=[weight_l1,rigl] objectives=quality_effective_flops",
    "sampler=brute_force",
    "space=hierarchical",
    "stopping=pareto",
    "phases.train.rewind_epoch=1 phases.finetune.begin=rewound",
    "phases.finetune.guard={tolerance:0.3,action:step_back} space.steps=[2,3]",
}
"""Single weights, pruned activations and int8 have their family in test_methods_job.py."""


def test_each_family_is_a_choice() -> None:
    assert set(CHOICES) >= FAMILIES


@pytest.mark.parametrize(
    "choice",
    [pytest.param(c, marks=[pytest.mark.family] if c in FAMILIES else []) for c in CHOICES],
)
def test_a_choice_runs_end_to_end(choice: str) -> None:
    tracking = [] if "tracking" in choice else ["tracking=none"]
    tracking += [] if choice.lstrip("+").startswith(TRAINED) else ["made_up={}"]
    words = [*choice.split(), *([ALONG[choice]] if choice in ALONG else [])]
    # the choices of groups must come before the values laid over them
    values = [word for word in words if "." in word.partition("=")[0]]
    values += [ONE_LADDER] if choice.startswith(NOT_OF_LADDERS) else []
    assert (
        main(["+experiment=digits_small", *(set(words) - set(values)), *TINY, *tracking, *values])
        == 0
    )
    trials = read_csv("runs/tiny/trials.csv", TrialRow)
    assert sum(row.state == "completed" for row in trials) >= (1 if "guard" in choice else 2)
    front = read_csv("runs/tiny/front.csv", ConfirmedRow)
    assert front
    for row in front:
        assert orchestrator.load_pruned(row.path)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param("l2", marks=pytest.mark.family),
        *("head_dim", "depth", "weight_l1", "nm_2_4", "hybrid", "int8", "taylor"),
    ],
)
@pytest.mark.parametrize("model", ["vit_small", "lstm_rows"])
def test_methods_run_on_attention_and_recurrent_models(method: str, model: str) -> None:
    if (model, method) == ("lstm_rows", "depth"):
        pytest.skip("it has no residual blocks")
    assert (
        main(
            [
                "+experiment=digits_small",
                f"model={model}",
                "phases=deep",
                f"method={method}",
                *TINY,
                "tracking=none",
            ]
        )
        == 0
    )
    for row in read_csv("runs/tiny/front.csv", ConfirmedRow):
        assert orchestrator.load_pruned(row.path)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    "model",
    [
        ["model=torchvision", "model.name=mobilenet_v3_small"],
        ["model=timm", "model.name=test_resnet"],
    ],
)
def test_models_by_name_run_end_to_end(model: list[str]) -> None:
    assert (
        main(
            [
                "+experiment=digits_small",
                "data=digits_rgb",
                "phases=deep",
                *model,
                *TINY,
                "tracking=none",
            ]
        )
        == 0
    )
    for row in read_csv("runs/tiny/front.csv", ConfirmedRow):
        assert orchestrator.load_pruned(row.path)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.family
def test_the_imagenet_recipe_runs_on_a_tiny_image_folder(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "val"):
        for place, name in enumerate(("cat", "dog")):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(12):
                pixels = torch.randint(0, 120, (72, 80, 3), generator=generator) + 100 * place
                path = tmp_path / "images" / part / name / f"{i}.png"
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)
    small = [
        "data.size=64",
        "data.resize=68",
        "data.batch_size=4",
        "data.workers=0",
        "data.val_fraction=0.34",
    ]
    fresh = [
        "model.weights=null",
        "model.num_classes=2",
        "phases.profile.batches=1",
    ]
    fast = [
        "model.name=resnet18",
        "phases.confirm.baselines=[]",
        "study.n_trials=2",
        "space.rounds=[1,1]",
        "phases.finetune.recalibration_batches=1",
    ]
    command = [
        "+experiment=resnet50_imagenet",
        f"data.folder={tmp_path / 'images'}",
        *TINY,
        *small,
        *fresh,
        *fast,
    ]
    assert (
        main([*command, "tracking=none", "phases.train.epochs=1", "phases.finetune.round_steps=2"])
        == 0
    )
    assert read_csv("runs/tiny/front.csv", ConfirmedRow)


@pytest.mark.family
def test_a_multirun_makes_a_study_for_each_job() -> None:
    assert (
        main(
            [
                "-m",
                "+experiment=digits_small",
                *TINY[:-1],
                "made_up={}",
                ONE_LADDER,
                "tracking=none",
                "method=l1,random",
                "study.name=${method.name}",
            ]
        )
        == 0
    )
    for name in ("l1", "random"):
        assert read_csv(f"runs/{name}/front.csv", ConfirmedRow)


@pytest.mark.family
def test_the_wheel_works_in_an_empty_folder_with_the_user_s_own_configs(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(CONF.parent),
    ]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text(
        "# @package _global_\nstudy: {name: own, n_trials: 3}\n"
    )
    (tmp_path / "empty").mkdir()
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "orchestrator",
            f"hydra.searchpath=[file://{tmp_path / 'mine'}]",
            "+experiment=own",
            "study.name=own",
            *TINY[1:-1],
            "made_up={}",
            ONE_LADDER,
            "tracking=none",
        ],
        cwd=tmp_path / "empty",
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert len(read_csv(tmp_path / "empty" / "runs" / "own" / "trials.csv", TrialRow)) == 3
