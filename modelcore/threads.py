"""How long threads of a parallel loop wait for each other awake: what OpenMP reads when torch is first imported."""

SHARED_CORES = {"GOMP_SPINCOUNT": "2000"}
"""Environment variables for a machine that runs other programs too.

An idle thread of GNU's OpenMP looks some 300,000 times whether there is work before it sleeps. Where another program
has taken a core, all threads then wait for one that is not running. A few thousand looks cost nothing on quiet cores,
which sleeping at once does: docs/experiments.md has the figures.
"""
