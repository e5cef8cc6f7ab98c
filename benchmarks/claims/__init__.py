"""Tests published claims about flat minima on real data.

- `registry.py` lists the claims; `accuracy.py` and `flatness.py` say what each of them predicts.
- `verdict.py` has the rule for a verdict, and `effects.py` the quantities that it is based on.
- `experiments.py` makes or reads the runs.
"""
