"""Compiles the pipeline to the YAML that is committed and submitted: ``python -m pipelines.compile``."""

from __future__ import annotations

import tempfile
from pathlib import Path

from kfp import compiler

from pipelines.gpt import gpt_pipeline

COMPILED = Path(__file__).parent / "compiled" / "gpt-pipeline.yaml"


def compile_pipeline() -> str:
    """The compiled pipeline, as YAML."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(gpt_pipeline, str(path))
        return path.read_text(encoding="utf-8")


if __name__ == "__main__":
    COMPILED.parent.mkdir(exist_ok=True)
    COMPILED.write_text(compile_pipeline(), encoding="utf-8")
