"""Benchmarks: ours beside the peers, in one process, result checked before the clock starts.

python -m bench                 all but the long one; --quick leaves out what is large
python -m bench --list          what there is
"""
