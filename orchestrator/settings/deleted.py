"""Keys that earlier versions had: what to write instead."""

from __future__ import annotations

INSTEAD = {
    "search.screening": "it did not pay (docs/negative-results.md); leave it out",
    "search.chain.tilt": "it did not pay (docs/negative-results.md); leave it out",
    "search.chain.even": "all targets of the chain share a budget by equal time; leave it out",
    "search.chain.equal_loss": (
        "the chain is one; take space.equal_loss=[0.5, 0.5] for another allocation"
    ),
    "search.chain.rungs": "take search.chain.targets, the number of FLOPs ratios of the chain",
    "method.criterion.combine": "coupled layers always count by their mean; leave it out",
    "phases.finetune.units": (
        "take space.rounds=[least, most], the rounds of finetuning after each pruning step"
    ),
    "phases.finetune.unit_steps": "take phases.finetune.round_steps",
    "phases.confirm.units": "take phases.confirm.rounds",
    "phases.sparsify.units": "take phases.sparsify.rounds",
    "space.units": "take space.rounds",
    "objectives.reference_quality": (
        "take objectives.references={accuracy: 0.5}, by the name of the quality"
    ),
    "objectives.max_flops_ratio": "take objectives.bounds={flops_ratio: {most: 0.5}}",
    "objectives.max_params_ratio": "take objectives.bounds={params_ratio: {most: 0.5}}",
    "objectives.least_flops_ratio": "take objectives.bounds={flops_ratio: {least: 0.03}}",
    "stopping.octaves": "a band is half an octave of FLOPs to either side; leave it out",
    "stopping.min_peers": "a band needs 3 other trials, a rung of stopping=pareto 6; leave it out",
    "stopping.least_completed": "at least 15 % of the trials are completed; leave it out",
    "phases.profile.recalibration_batches": "take phases.profile.batches, which is for both",
    "sampler.n_startup_trials": "10 is Optuna's default; for more +sampler.n_startup_trials=20",
    "data.val_fraction": "the digits are split in one way, by data.seed; leave it out",
    "data.test_fraction": "the digits are split in one way, by data.seed; leave it out",
    "phases.finetune.distillation.feature_weight": "the weight of a map is 1; leave it out",
    "phases.confirm.max_baseline_models": "it is half of phases.confirm.max_models",
    "phases.finetune.carry_optimizer": "momenta and moments are always carried; leave it out",
    "phases.confirm.lr_factor": "it is a quarter; leave it out",
    "space.least_flops_ratio": "take space.flops_ratio=[least, most]",
    "space.most_flops_ratio": "take space.flops_ratio=[least, most]",
    "phases.profile.ratios": "each group is tried at half of its units; leave it out",
    "task.label_smoothing": "it is 0 unless you say so; for more +task.label_smoothing=0.1",
}


def instead(key: str) -> str | None:
    """What replaces a deleted or renamed key, or the section that it was in.

    None for a key that never was one.
    """
    parts = key.split(".")
    for count in range(len(parts), 0, -1):
        prefix = ".".join(parts[:count])
        if prefix in INSTEAD:
            return INSTEAD[prefix]
    return None
