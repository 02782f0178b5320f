"""One trial: from a proposal to a pruned, finetuned, measured and saved model."""
