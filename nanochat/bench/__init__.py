"""Measurements of this machine, of this project on it, and of a peer beside it: `nanochat bench`.

Whatever computes is a process of its own (`worker.py`), which does one step when it is told to (`pacing.py`). The
command starts one for each thing that is compared (`workers.py`), lets them take turns, and sums up what they say
(`figures.py`).
"""
