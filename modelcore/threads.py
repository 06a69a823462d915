"""How threads of a parallel loop wait for each other: settings that OpenMP reads when torch is first imported."""

SHARED_CORES = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Environment variables for a machine that runs other programs too.

By default an idle thread spins. Where another program has taken its core, all the others then wait for a thread that is
not running: on two cores shared with other work a training step took 30 times as long. Passive threads sleep.
"""
