"""Benchmarks: this project beside what one would use instead, on the same machine in the same run.

``python -m bench --help`` runs them; docs/performance.md explains what they measure and what came out.
"""
