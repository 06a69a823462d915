"""The pipeline on a kind cluster on this machine: ``python -m pipelines.kind up``, or ``make local-pipeline``.

Nothing here knows how a stage works: it drives docker, kind, kubectl and kfp, each as a program of its own, and what is
installed stands in ``manifests/``.
"""
