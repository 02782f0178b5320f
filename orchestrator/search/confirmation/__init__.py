"""After the search: the front finetuned over seeds and tested, beside the baselines."""
