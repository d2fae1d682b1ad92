"""Benchmarks: ours beside PyTorch, JAX and NumPy; results are checked before the clock starts.

python -m bench                 what takes minutes together; --quick takes seconds of each
python -m bench --list          what there is
python -m bench training-step attention --json now.jsonl --plot now.png
python -m bench training-step --compare before.jsonl

"times the best peer" is the fastest peer's time over ours: above 1 is a win. "of the floor" is what the work would
take at the speed of a copy, a read or the best matrix product of this run, over what it took.
"""
