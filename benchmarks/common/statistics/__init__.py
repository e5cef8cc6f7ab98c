"""Statistics of the benchmarks: estimates, confidence distributions, tests and verdicts.

- `estimates.py`: means and medians with intervals, and which methods share the best value.
- `correctness.py`: per-example correctness, one bit per example.
- `confidence.py`: what is known about a mean over seeds and test examples, as a distribution.
- `questions.py`: superiority and equivalence, Holm's correction, and the verdicts.
- `curves.py`: the cost at which a curve reaches a level.
"""
