"""Files that are damaged, made up or hostile: refused by name, or recognised and made anew; nothing in them runs."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import orchestrator
from lightning_modules.errors import ConfigError, DataError, UserError
from lightning_modules.models import SmallResNet
from orchestrator.__main__ import main
from orchestrator.load import load_pruned
from orchestrator.report.rows import FrontRow, TrialRow, read_csv
from orchestrator.search.confirmation.confirm import Candidate, confirm
from orchestrator.search.given import read_plans
from orchestrator.search.kernels import choose_threads
from orchestrator.search.latency_model import latency_model
from orchestrator.search.plans.finished import load_finished
from orchestrator.search.plans.trust import require_own, targets
from orchestrator.search.sensitivity import profile
from orchestrator.search.studies.study import open_study
from orchestrator.stored import DEEPEST, check_shapes, kept, read_json
from tests.search.problems import Bench, bench, problem_of, settings_of, silent
from tests.search.test_study import settings as made_up

QUICK = ["phases.finetune.unit_steps=2", "phases.finetune.recalibration_batches=1"]
STUDY = [
    "+experiment=digits_small",
    "model.width=8",
    "phases.train.epochs=1",
    "phases.finetune.unit_steps=2",
    "phases.confirm.units=1",
    "phases.confirm.max_models=2",
    "phases.confirm.baselines=[]",
    "search.chain.rungs=3",
    "threads=1",
    "study.n_trials=3",
    "stopping=never",
    "tracking=none",
]
DEEP = "[" * 100_000 + "]" * 100_000


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


def header(size: int, content: bytes = b"{}") -> bytes:
    return struct.pack("<Q", size) + content


def with_header(shapes: dict[str, list[int]], data: int = 0) -> bytes:
    """A file that claims these shapes."""
    claimed = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * int(np.prod(shape, dtype=object))]}
        for name, shape in shapes.items()
    }
    content = json.dumps(claimed).encode()
    return header(len(content), content) + b"\0" * data


def flip(path: Path) -> None:
    """Another last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change(path: Path, how: Callable[[Any], Any]) -> None:
    document = json.loads(path.read_text())
    found = how(document)
    path.write_text(json.dumps(document if found is None else found))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the dense baselines of this module stand."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def plan(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Path]:
    """A problem and the folder of its one finished plan, not to be touched."""
    here = bench(home, tmp_path_factory.mktemp("plan"), *QUICK)
    here.evaluator(here.propose(0.5), 0, silent)
    return here, here.evaluator.models / "0"


@pytest.fixture
def mine(plan: tuple[Bench, Path], tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(plan[1], tmp_path / "0"))


# --- checkpoints


@pytest.mark.parametrize("name", ["bomb.pt", "bomb.ckpt", "bomb.pkl"])
def test_a_pickle_that_runs_code_is_refused_unread(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": {"conv1.weight": Bomb(tmp_path / "marker")}}
    if name.endswith("pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, name)
    assert main([*STUDY, f"phases.train.checkpoint={name}"]) == 2
    said = capsys.readouterr().err
    assert name in said
    assert "Traceback" not in said
    assert not (tmp_path / "marker").exists()
    with pytest.raises(UserError):
        load_pruned(tmp_path)


def packed(path: Path) -> None:
    """A checkpoint whose entries are compressed: a thousandth of what it unpacks to."""
    torch.save({"conv1.weight": torch.zeros(1_000_000)}, path.with_suffix(".plain"))
    with (
        zipfile.ZipFile(path.with_suffix(".plain")) as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in plain.namelist():
            small.writestr(entry, plain.read(entry))


def large(path: Path) -> None:
    torch.save({**SmallResNet(10, width=8).state_dict(), "conv1.weight": torch.zeros(1).expand(2**20, 2**20)}, path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.safetensors", lambda p: p.write_bytes(b""), "whole safetensors file"),
        ("b.safetensors", lambda p: p.write_bytes(header(2**60)), r"its header has 1152921504606846976 bytes"),
        ("c.safetensors", lambda p: p.write_bytes(with_header({"conv1.weight": [2**40]})), "whole safetensors file"),
        ("d.safetensors", lambda p: p.write_bytes(with_header({"other": [2]}, 8)), r"only the model has bn1.bias"),
        ("e.safetensors", lambda p: save_file({"conv1.weight": torch.zeros(3)}, p), r"only the model has bn1.bias"),
        ("f.pt", packed, "has compressed entries"),
        ("g.pt", large, "size mismatch for conv1.weight"),
        ("h.pt", lambda p: torch.save([1, 2], p), "must hold a state dict"),
        ("i.pt", lambda p: p.mkdir(), "must be a file"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused(
    name: str, write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError, match=message) as refused:
        problem_of(tmp_path, f"phases.train.checkpoint={tmp_path / name}")
    assert name in str(refused.value)


# --- the dense baseline


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: flip(folder / "weights.safetensors"),
        lambda folder: (folder / "weights.safetensors").write_bytes(b"x"),
        lambda folder: (folder / "weights.safetensors").unlink(),
        lambda folder: (folder / "dense.json").write_text("{"),
        lambda folder: (folder / "dense.json").write_text(DEEP),
        lambda folder: change(folder / "dense.json", lambda d: {**d, "validation": {"accuracy": "high"}}),
        lambda folder: change(folder / "dense.json", lambda d: [1]),
        lambda folder: flip(folder / "rewind.safetensors"),
    ],
)
def test_a_damaged_baseline_is_named_and_trained_anew(
    harm: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = problem_of(tmp_path, "phases.train.epochs=1", "phases.train.rewind_epoch=0")
    (folder,) = (path for path in (tmp_path / "baselines").iterdir() if path.is_dir())
    before = (folder / "weights.safetensors").read_bytes()
    harm(folder)
    capsys.readouterr()
    again = problem_of(tmp_path, "phases.train.epochs=1", "phases.train.rewind_epoch=0")
    assert f"{folder} is damaged and is made anew" in capsys.readouterr().err
    assert (folder / "weights.safetensors").read_bytes() == before
    assert again.dense == first.dense


def test_a_baseline_of_an_older_version_has_no_digest_and_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem_of(tmp_path, "phases.train.epochs=1")
    (record,) = (tmp_path / "baselines").glob("*/dense.json")
    change(record, lambda d: {name: value for name, value in d.items() if name != "sha256"})
    capsys.readouterr()
    problem_of(tmp_path, "phases.train.epochs=1")
    assert "damaged" not in capsys.readouterr().err


# --- finished plans


def nested(document: dict[str, Any]) -> None:
    document["plan"]["deep"] = json.loads("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1))


PLANS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown group": (lambda d: d["keep"].update(nowhere=[[0, 1]]), "its groups are not the model's"),
    "missing group": (lambda d: d["keep"].pop("conv1") and None, "its groups are not the model's"),
    "units beyond": (lambda d: d["keep"].update(conv1=[[0, 4000]]), "units 0 to 4000 of group 'conv1' with 8"),
    "no units": (lambda d: d["keep"].update(conv1=[]), "every group keeps at least one unit"),
    "words for units": (lambda d: d["keep"].update(conv1="all"), r"keep.conv1: Input should be a valid list"),
    "path for a number": (lambda d: d.update(trial="../../etc"), "trial: Input should be a valid integer"),
    "another's number": (lambda d: d.update(trial=7), "must be the plan of trial 0; it is that of 7"),
    "path for a link": (
        lambda d: d["lineage"]["links"][0].update(trial="../../../etc/passwd"),
        "lineage.links.0.trial: Input should be a valid integer",
    ),
    "no digest": (lambda d: d["lineage"]["links"][0].update(weights="abc"), "lineage.links.0.weights: String should"),
    "a million parts": (lambda d: d["plan"]["timing"].update(accumulate=10**6), "plan.timing.accumulate: Input"),
    "no lineage": (lambda d: d.pop("lineage") and None, "a plan must carry the chain it came from"),
    "no links": (lambda d: d["lineage"].update(links=[]), "does not fit this model"),
    "a list": (lambda d: [d], "must be a plan that this program wrote"),
    "deep": (nested, f"nested deeper than {DEEPEST}"),
    "infinite": (lambda d: d["density"].update({"fc.weight": float("inf")}), "density.fc.weight: Input should"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(PLANS))
def test_a_plan_that_does_not_fit_is_refused_with_its_file(
    case: str, plan: tuple[Bench, Path], mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, (how, message) = plan[0], PLANS[case]
    change(mine / "plan.json", how)
    monkeypatch.setattr(here.evaluator, "models", mine.parent)
    with pytest.raises(DataError, match=message) as refused:
        here.evaluator.inherited(here.evaluator.read(mine))
    assert str(mine) in str(refused.value)


def test_json_without_end_is_refused(mine: Path, plan: tuple[Bench, Path]) -> None:
    for content in (DEEP, "{", '{"trial": 1e999999}', '{"trial": ' + "9" * 5000 + "}", "\x00\xff"):
        (mine / "plan.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(DataError, match=r"plan.json"):
            load_finished(mine, plan[0].problem.structure)


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
    "huge shape": (lambda p: p.write_bytes(with_header({"fc.weight": [2**30, 2**30]})), "whole safetensors file"),
    "huge and whole": (
        lambda p: save_file({**load_file(p), "fc.bias": torch.zeros(50_000)}, p),
        r"size mismatch for fc.bias: \[50000\] in the file, \[10\] in the model",
    ),
    "a unit more": (
        lambda p: save_file({**load_file(p), "conv1.weight": torch.zeros(8, 1, 3, 3)}, p),
        r"size mismatch for conv1.weight",
    ),
    "one tensor more": (lambda p: save_file({**load_file(p), "x": torch.zeros(1)}, p), "only the file has x"),
    "one tensor less": (
        lambda p: save_file({n: t for n, t in load_file(p).items() if n != "fc.bias"}, p),
        "only the model has fc.bias",
    ),
    "a pickle": (lambda p: torch.save({}, p), "its header has"),
    "gone": (lambda p: p.unlink(), "No such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(WEIGHTS))
def test_weights_that_are_not_those_of_the_plan_are_refused_by_whoever_reads_them(
    case: str, plan: tuple[Bench, Path], mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, (harm, message) = plan[0], WEIGHTS[case]
    harm(mine / "weights.safetensors")
    monkeypatch.setattr(here.evaluator, "models", mine.parent)
    with pytest.raises(DataError, match=message):
        here.evaluator.inherited(here.evaluator.read(mine))
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


def test_with_a_model_of_ones_own_nothing_that_the_file_names_is_called(mine: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    expected = load_pruned(mine)
    change(mine / "plan.json", lambda d: d.update(model={"_target_": "os.mkdir", "path": str(marker)}))
    skeleton = SmallResNet(10, width=8)
    before = {name: tensor.clone() for name, tensor in skeleton.state_dict().items()}
    found = load_pruned(mine, model=skeleton)
    assert not marker.exists()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(found(x), expected(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in skeleton.state_dict().items())
    with pytest.raises(DataError, match="do not fit the model"):
        load_pruned(mine, model=SmallResNet(10, width=4))


MODELS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no model": (lambda d: d.pop("model") and None, "must name what builds its model"),
    "no callable": (lambda d: d.update(model={"_target_": "no.such.thing"}), "no module holds 'no.such.thing'"),
    "no module": (lambda d: d.update(model={"_target_": "builtins.dict"}), "it built dict"),
    "no such block": (lambda d: d.update(dropped=["../stages"]), "dropped blocks must be modules"),
    "attention": (lambda d: d.update(attention="none"), "attention: Input should be 'head' or 'head_dim'"),
    "activation": (lambda d: d.update(activation={"kind": "topk"}), "activation.level: Field required"),
    "input": (lambda d: d.update(input_shape=[2**20, 2**20]), "must give the input_shape of its model"),
    "negative input": (lambda d: d.update(input_shape=[-1]), "input_shape.0: Input should be greater"),
}  # fmt: skip


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


def test_a_replay_builds_no_method_that_nobody_named(plan: tuple[Bench, Path], mine: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    bomb = {"_target_": "os.mkdir", "path": str(marker)}
    change(mine / "plan.json", lambda d: d["lineage"]["links"][0]["plan"]["stages"][0]["method"].update(criterion=bomb))
    with pytest.raises(DataError, match=r"trial 0 names os.mkdir: give the method it was made with"):
        orchestrator.replay(plan[0].problem.settings, mine)
    assert not marker.exists()
    change(mine / "plan.json", lambda d: d["lineage"]["links"][0]["plan"]["stages"][0].update(method={"name": 3}))
    with pytest.raises(DataError, match="the plan of trial 0 does not fit this model"):
        orchestrator.replay(plan[0].problem.settings, mine)


def test_a_path_through_our_modules_to_others_is_not_ours() -> None:
    tree = {"a": [{"_target_": "x.y", "b": {"_target_": "z"}}], "c": 1}
    assert targets(tree) == {"x.y", "z"}
    require_own(["lightning_modules.pruning.criteria.magnitude.Magnitude"], "it")
    for path in ("lightning_modules.pruning.discovery.limits.os.system", "lightning_modules.recipe.locate", "os.mkdir"):
        with pytest.raises(UserError, match=r"a plan may name|has no"):
            require_own([path], "it")


# --- caches


@pytest.mark.parametrize("content", ["", "{", "[]", '{"ratios": [0.5], "loss": [[1]]}', '{"a": 1}', DEEP, "null"])
def test_a_damaged_cache_is_named_and_made_anew(
    content: str, plan: tuple[Bench, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    problem = plan[0].problem
    method = next(iter(plan[0].methods.values()))
    first = profile(problem, method, lambda *_: None)
    (path,) = problem.settings.study.baselines.glob("sensitivity-*.json")
    path.write_text(content)
    capsys.readouterr()
    again = profile(problem, method, lambda *_: None)
    assert (again.loss == first.loss).all()
    assert f"{path} is damaged and is made anew" in capsys.readouterr().err
    profile(problem, method, lambda *_: None)
    assert capsys.readouterr().err == ""


def test_a_damaged_latency_model_is_fitted_anew(
    plan: tuple[Bench, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.search.latency_model.latency_ms", lambda model, example: 1.0)
    problem = plan[0].problem

    def made() -> Any:
        return latency_model(problem.model, problem.structure, torch.zeros(1, 1, 8, 8), tmp_path, "m", lambda *_: None)

    first = made()
    (path,) = tmp_path.glob("latency-*.json")
    change(path, lambda d: {**d, "coefficients_ms": [-1.0] * 10**4})
    assert np.allclose(made().coefficients, first.coefficients)
    assert "is damaged and is made anew" in capsys.readouterr().err


def test_a_file_does_not_ask_for_a_million_threads(
    plan: tuple[Bench, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = plan[0].problem
    settings = settings_of(tmp_path, "threads=auto")
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)

    def chosen() -> None:
        choose_threads(settings, problem.structure, problem.model, problem.data, torch.device("cpu"))

    chosen()
    (path,) = (tmp_path / "baselines").glob("threads-*.json")
    path.write_text('{"1000000": 0.1}')
    chosen()
    assert max(asked) < 10_000
    assert "is damaged and is made anew" in capsys.readouterr().err


def test_a_damaged_confirmation_is_confirmed_anew(
    plan: tuple[Bench, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = plan[0].problem
    candidate = Candidate("trial-0", problem.model, problem.structure.full(), "source")
    first, _ = confirm(problem, candidate, tmp_path, lambda text: None)
    assert confirm(problem, candidate, tmp_path, lambda text: None)[0] == first
    change(tmp_path / "trial-0.json", lambda d: d.update(best=17))
    assert confirm(problem, candidate, tmp_path, lambda text: None)[0].test == first.test
    assert "trial-0.json is damaged and is made anew" in capsys.readouterr().err


def test_what_is_not_there_is_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kept(tmp_path / "nothing.json", dict) is None
    assert capsys.readouterr().err == ""


# --- plans of the user, and names


@pytest.mark.parametrize("content", [DEEP, "[1]", '{"conv1": ' + DEEP + "}", '{"conv1": "0.5"}', "\x00"])
def test_a_users_plan_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(ConfigError, match=r"a plan is a JSON file .*/mine.json") as refused:
        read_plans(settings_of(tmp_path, f"search.plans=[{tmp_path / 'mine.json'}]"))
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "..", ".hidden", "", "a\\b", "a\n"])
def test_a_name_does_not_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, Exception), match=r"study.name|mismatched|token|extraneous"):
        settings_of(tmp_path, f"study.name={json.dumps(name)}")


def test_a_warm_start_from_outside_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*STUDY, "search.warm_start=../../etc"]) == 2
    assert "search.warm_start must name another study with finished plans" in capsys.readouterr().err


def test_shapes_are_seen_before_tensors_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    monkeypatch.setattr("orchestrator.stored.load", None)
    with pytest.raises(DataError, match=r"\[1000\] in the file, \[3\] in the model"):
        check_shapes(path, {"a": torch.zeros(3)}, "take another")


# --- a whole study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small study was run, not to be touched."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(STUDY) == 0
    return folder


@pytest.fixture
def again(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working folder; the study's own folder in it."""
    shutil.copytree(study, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy" / "runs" / "digits_small"


def test_a_damaged_plan_is_set_aside_and_its_trial_made_anew(
    again: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_csv(again / "trials.csv", TrialRow)
    flip(again / "trials" / "1" / "weights.safetensors")
    change(again / "trials" / "2" / "plan.json", lambda d: d.update(trial="../1"))
    capsys.readouterr()
    assert main([*STUDY, "study.n_trials=4"]) == 0
    said = capsys.readouterr().err
    assert "1/weights.safetensors was changed or damaged" in said
    assert "it is made anew as trial 3" in said
    assert "2/plan.json must be a plan that this program wrote: trial: " in said
    after = read_csv(again / "trials.csv", TrialRow)
    assert [row.state for row in after] == ["completed", "damaged", "damaged", "completed", "completed", "completed"]
    assert [after[3].flops, after[4].flops] == [before[1].flops, before[2].flops]
    assert [row.kind for row in after[3:5]] == [row.kind for row in before[1:]]
    assert not {row.parent for row in after[3:]} & {1, 2}
    assert json.loads((again / "summary.json").read_text())["trials"] == 4
    assert sorted(path.name for path in (again / "trials").iterdir()) == ["0", "3", "4", "5", "damaged-1", "damaged-2"]
    assert not {1, 2} & {row.trial for row in read_csv(again / "front.csv", FrontRow)}
    monkeypatch.setattr("orchestrator.jobs.search.prepare", None)
    assert main([*STUDY, "study.n_trials=4"]) == 0  # complete: nothing is done


def test_a_damaged_plan_of_another_study_is_left_out(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(again / "trials" / "1" / "weights.safetensors")
    second = ["study.name=second", "search.warm_start=digits_small"]
    assert main([*STUDY, *second, "study.n_trials=2"]) == 0
    assert "it came from another study and is left out" in capsys.readouterr().err
    rows = read_csv(again.parent / "second" / "trials.csv", TrialRow)
    assert {row.kind for row in rows[:3]} == {"warm"}
    assert [row.state for row in rows].count("damaged") == 1
    (again / "trials" / "1" / "plan.json").write_text("{")
    assert main([*STUDY, "study.name=third", "search.warm_start=digits_small"]) == 2
    assert "trials/1/plan.json must be a file of JSON" in capsys.readouterr().err


def test_a_journal_has_no_passwords(tmp_path: Path) -> None:
    data = {"_target_": "builtins.dict", "url": "https://me:hunter2@host/data", "token": "hunter2"}
    found = made_up(tmp_path, data=data)
    open_study(found, ["maximize", "minimize"])
    journal = (found.study.folder / "study.journal").read_text()
    assert "me:***@host" in journal
    assert "hunter2" not in journal


@pytest.mark.parametrize("name", ["summary.json", "front.csv", "trials.csv", "baselines.csv"])
def test_damaged_tables_are_written_anew(name: str, again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (again / name).write_bytes(b"\xff\x00,{")
    assert main(STUDY) == 0
    assert "is damaged and is made anew" in capsys.readouterr().err
    assert main(STUDY) == 0
    assert "is damaged" not in capsys.readouterr().err


def test_a_deleted_model_is_exported_anew(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = sorted((again / "models").iterdir())
    shutil.rmtree(models[0])
    assert main(STUDY) == 0
    assert sorted((again / "models").iterdir()) == models
    load_pruned(models[0])


@pytest.mark.parametrize("content", [b"noise\n" * 20, b'{"op_code": 0}\n', b"[1]\n", b"\xff\xfe\n"])
def test_a_damaged_journal_is_named(content: bytes, again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = again / "study.journal"
    journal.write_bytes(content + journal.read_bytes())
    assert main([*STUDY, "study.n_trials=4"]) == 2
    said = capsys.readouterr().err
    assert "study.journal cannot be read" in said
    assert "Traceback" not in said


def test_a_journal_cut_in_its_last_line_goes_on(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "orchestrator.search.studies.leases._started", lambda pid: "later"
    )  # than the run that was killed
    journal = again / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert main([*STUDY, "study.n_trials=4"]) == 0
    assert main([*STUDY, "study.n_trials=5"]) == 0
    assert len(read_csv(again / "trials.csv", TrialRow)) == 5


def test_a_database_that_is_none_is_named_without_its_password(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (again / "s.db").write_bytes(b"no database" * 100)
    for url in (f"sqlite:///{again / 's.db'}", "postgresql://me:hunter2@nowhere.invalid/db", "what://is:hunter2@this"):
        assert main([*STUDY, f"study.storage={url}", "study.name=other"]) == 2
        said = capsys.readouterr().err
        assert "study.storage must be a database that answers" in said or "study.storage needs a driver" in said
        assert "hunter2" not in said
        assert "Traceback" not in said
