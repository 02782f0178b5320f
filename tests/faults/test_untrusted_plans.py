"""Plans that are damaged, made up or hostile: refused by name; nothing that they name is called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import orchestrator
from lightning_modules.errors import ConfigError, DataError, UserError
from lightning_modules.models import SmallResNet
from orchestrator.export.formats import EXPORT_FORMATS
from orchestrator.load import load_pruned
from orchestrator.search.plans.finished import load_finished
from orchestrator.search.plans.given import read_plans
from orchestrator.search.plans.store import PlanStore
from orchestrator.search.plans.trust import require_own, targets
from orchestrator.stored import DEEPEST, read_json
from tests.faults.harm import DEEP, change, flip, header, with_header
from tests.search.problems import Bench, settings_of

# --- finished plans


INT8 = EXPORT_FORMATS["int8"].file


def nested(document: dict[str, Any]) -> None:
    document["plan"]["deep"] = json.loads("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1))


PLANS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown group": (
        lambda d: d["keep"].update(nowhere=[[0, 1]]),
        "its groups are not the model's",
    ),
    "missing group": (lambda d: d["keep"].pop("conv1") and None, "its groups are not the model's"),
    "units beyond": (
        lambda d: d["keep"].update(conv1=[[0, 4000]]),
        "units 0 to 4000 of group 'conv1' with 8",
    ),
    "no units": (lambda d: d["keep"].update(conv1=[]), "every group keeps at least one unit"),
    "words for units": (
        lambda d: d["keep"].update(conv1="all"),
        r"keep.conv1: Input should be a valid list",
    ),
    "path for a number": (
        lambda d: d.update(trial="../../etc"),
        "trial: Input should be a valid integer",
    ),
    "another's number": (
        lambda d: d.update(trial=7),
        "must be the plan of trial 0; it is that of 7",
    ),
    "path for a link": (
        lambda d: d["lineage"]["links"][0].update(trial="../../../etc/passwd"),
        "lineage.links.0.trial: Input should be a valid integer",
    ),
    "no digest": (
        lambda d: d["lineage"]["links"][0].update(weights="abc"),
        "lineage.links.0.weights: String should",
    ),
    "a million parts": (
        lambda d: d["plan"]["timing"].update(accumulate=10**6),
        "plan.timing.accumulate: Input",
    ),
    "no lineage": (lambda d: d.pop("lineage") and None, "a plan must carry the chain it came from"),
    "no links": (lambda d: d["lineage"].update(links=[]), "does not fit this model"),
    "a list": (lambda d: [d], "must be a plan that this program wrote"),
    "deep": (nested, f"nested deeper than {DEEPEST}"),
    "infinite": (
        lambda d: d["density"].update({"fc.weight": float("inf")}),
        "density.fc.weight: Input should",
    ),
}


@pytest.mark.parametrize("case", sorted(PLANS))
def test_a_plan_that_does_not_fit_is_refused_with_its_file(
    case: str, plan: tuple[Bench, Path], mine: Path
) -> None:
    here, (how, message) = plan[0], PLANS[case]
    change(mine / "plan.json", how)
    store = PlanStore(mine.parent, here.facts)
    with pytest.raises(DataError, match=message) as refused:
        store.weights(store.read(mine))
    assert str(mine) in str(refused.value)


def test_json_without_end_is_refused(mine: Path, plan: tuple[Bench, Path]) -> None:
    for content in (DEEP, "{", '{"trial": 1e999999}', '{"trial": ' + "9" * 5000 + "}", "\x00\xff"):
        (mine / "plan.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(DataError, match=r"plan.json"):
            load_finished(mine, plan[0].facts.structure)


def test_json_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as stream:
        stream.truncate(2**40)  # a hole: nothing on the disk
    with pytest.raises(DataError, match=r"it has 1099511627776 bytes, more than"):
        read_json(path, "take another")


WEIGHTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped": (flip, r"was changed or damaged: its sha256 is \w{12}..., not"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-100]), "whole safetensors file"),
    "huge header": (lambda p: p.write_bytes(header(2**50)), "its header has"),
    "huge shape": (
        lambda p: p.write_bytes(with_header({"fc.weight": [2**30, 2**30]})),
        "whole safetensors file",
    ),
    "huge and whole": (
        lambda p: save_file({**load_file(p), "fc.bias": torch.zeros(50_000)}, p),
        r"size mismatch for fc.bias: \[50000\] in the file, \[10\] in the model",
    ),
    "a unit more": (
        lambda p: save_file({**load_file(p), "conv1.weight": torch.zeros(8, 1, 3, 3)}, p),
        r"size mismatch for conv1.weight",
    ),
    "one tensor more": (
        lambda p: save_file({**load_file(p), "x": torch.zeros(1)}, p),
        "only the file has x",
    ),
    "one tensor less": (
        lambda p: save_file({n: t for n, t in load_file(p).items() if n != "fc.bias"}, p),
        "only the model has fc.bias",
    ),
    "a pickle": (lambda p: torch.save({}, p), "its header has"),
    "gone": (lambda p: p.unlink(), "No such file"),
}


@pytest.mark.parametrize("case", sorted(WEIGHTS))
def test_weights_that_are_not_those_of_the_plan_are_refused_by_whoever_reads_them(
    case: str, plan: tuple[Bench, Path], mine: Path
) -> None:
    here, (harm, message) = plan[0], WEIGHTS[case]
    harm(mine / "weights.safetensors")
    store = PlanStore(mine.parent, here.facts)
    with pytest.raises(DataError, match=message):
        store.weights(store.read(mine))
    with pytest.raises(DataError, match="sha256 is" if case == "a unit more" else message):
        load_pruned(mine)


def test_other_types_than_the_models_are_refused(plan: tuple[Bench, Path], mine: Path) -> None:
    path = mine / "weights.safetensors"
    doubled = {n: t.double() if t.is_floating_point() else t for n, t in load_file(path).items()}
    save_file(doubled, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    change(mine / "plan.json", lambda d: d["lineage"]["links"][-1].update(weights=digest))
    with pytest.raises(DataError, match=r"must hold torch.float32 for .*; it has torch.float64"):
        load_pruned(mine)


# --- exported models


def test_with_a_model_of_ones_own_nothing_that_the_file_names_is_called(
    mine: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    expected = load_pruned(mine)
    change(
        mine / "plan.json", lambda d: d.update(model={"_target_": "os.mkdir", "path": str(marker)})
    )
    skeleton = SmallResNet(10, width=8)
    before = {name: tensor.clone() for name, tensor in skeleton.state_dict().items()}
    found = load_pruned(mine, model=skeleton)
    assert not marker.exists()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(found(x), expected(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in skeleton.state_dict().items())
    with pytest.raises(DataError, match="do not fit the model"):
        load_pruned(mine, model=SmallResNet(10, width=4))


def shaped(shape: list[int], dtype: str = "float32") -> dict[str, Any]:
    """The description of one positional tensor."""
    return {"args": [{"shape": shape, "dtype": dtype}], "kwargs": {"mapping": {}}}


MODELS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no model": (lambda d: d.pop("model") and None, "must name what builds its model"),
    "no callable": (
        lambda d: d.update(model={"_target_": "no.such.thing"}),
        "no module holds 'no.such.thing'",
    ),
    "no module": (lambda d: d.update(model={"_target_": "builtins.dict"}), "it built dict"),
    "no such block": (lambda d: d.update(dropped=["../stages"]), "dropped blocks must be modules"),
    "attention": (
        lambda d: d.update(attention="none"),
        "attention: Input should be 'head' or 'head_dim'",
    ),
    "activation": (
        lambda d: d.update(activation={"kind": "topk"}),
        "activation.level: Field required",
    ),
    "input": (
        lambda d: d.update(inputs=shaped([2**20, 2**20])),
        "must describe the inputs of its model",
    ),
    "negative input": (
        lambda d: d.update(inputs=shaped([-1])),
        "must describe the inputs of its model",
    ),
    "no input": (lambda d: d.pop("inputs") and None, "must describe the inputs of its model"),
    "type of input": (
        lambda d: d.update(inputs=shaped([1], "Tensor")),
        "must describe the inputs of its model",
    ),
}


def test_a_quantised_model_that_was_changed_is_refused_before_the_runtime_reads_it(
    mine: Path,
) -> None:
    (mine / INT8).write_bytes(b"model")
    change(
        mine / "plan.json", lambda d: d.update(exports={INT8: hashlib.sha256(b"model").hexdigest()})
    )
    flip(mine / INT8)
    with pytest.raises(DataError, match=rf"{INT8} was changed or damaged"):
        orchestrator.load_int8(mine)


@pytest.mark.parametrize("case", sorted(MODELS))
def test_an_export_that_does_not_fit_is_refused(case: str, mine: Path) -> None:
    how, message = MODELS[case]
    change(mine / "plan.json", how)
    with pytest.raises(UserError, match=message):
        load_pruned(mine)


def test_shapes_that_each_could_be_and_do_not_fit_one_another_are_refused(mine: Path) -> None:
    path = mine / "weights.safetensors"
    weights = load_file(path)
    save_file({**weights, "conv1.weight": weights["conv1.weight"][:1].clone()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    change(mine / "plan.json", lambda d: d["lineage"]["links"][-1].update(weights=digest))
    with pytest.raises(DataError, match="do not fit one another"):
        load_pruned(mine)


# --- replay


def only_method(document: dict[str, Any]) -> dict[str, Any]:
    (method,) = document["lineage"]["methods"].values()
    return method  # type: ignore[no-any-return]


def test_a_replay_builds_no_method_that_nobody_named(
    plan: tuple[Bench, Path], mine: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    bomb = {"_target_": "os.mkdir", "path": str(marker)}
    change(
        mine / "plan.json",
        lambda d: only_method(d).update(criterion=bomb),
    )
    with pytest.raises(
        DataError, match=r"trial 0 names os.mkdir: give the method it was made with"
    ):
        orchestrator.replay(plan[0].settings, mine)
    assert not marker.exists()
    change(
        mine / "plan.json",
        lambda d: only_method(d).update(name=3),
    )
    with pytest.raises(DataError, match="the plan of trial 0 does not fit this model"):
        orchestrator.replay(plan[0].settings, mine)


def test_a_path_through_our_modules_to_others_is_not_ours() -> None:
    tree = {"a": [{"_target_": "x.y", "b": {"_target_": "z"}}], "c": 1}
    assert targets(tree) == {"x.y", "z"}
    require_own(["lightning_modules.pruning.criteria.magnitude.Magnitude"], "it")
    for path in (
        "lightning_modules.pruning.discovery.limits.os.system",
        "lightning_modules.recipe.locate",
        "os.mkdir",
    ):
        with pytest.raises(UserError, match=r"a plan may name|has no"):
            require_own([path], "it")


# --- plans of the user, and names


@pytest.mark.parametrize(
    "content", [DEEP, "[1]", '{"conv1": ' + DEEP + "}", '{"conv1": "0.5"}', "\x00"]
)
def test_a_users_plan_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(ConfigError, match=r"a plan is a JSON file .*/mine.json") as refused:
        read_plans(settings_of(tmp_path, f"search.plans=[{tmp_path / 'mine.json'}]"))
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "..", ".hidden", "", "a\\b", "a\n"])
def test_a_name_does_not_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, Exception), match=r"study.name|mismatched|token|extraneous"):
        settings_of(tmp_path, f"study.name={json.dumps(name)}")
