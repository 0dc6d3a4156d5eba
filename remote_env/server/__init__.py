"""The far end: a supervisor that never blocks, and a simulator process for each session.

`launch.py` starts either; `Backend` is what a task that is no Gymnasium environment implements.
"""
