"""Compiles the pipelines to the YAML that is committed and submitted: ``python -m pipelines.compile``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from kfp import compiler

from pipelines.enterprise import ENTERPRISE
from pipelines.gpt import DESCRIPTION, NAME, gpt_pipeline, gpt_stages
from pipelines.profile import make_pipeline
from pipelines.retrain import retrain_pipeline, retrain_pipeline_enterprise
from pipelines.sweep import sweep_pipeline, sweep_pipeline_enterprise

FOLDER = Path(__file__).parent / "compiled"
PIPELINES = {
    "gpt-pipeline": gpt_pipeline,
    "gpt-pipeline-enterprise": make_pipeline(gpt_stages, ENTERPRISE, name=NAME, description=DESCRIPTION),
    "gpt-retrain": retrain_pipeline,
    "gpt-retrain-enterprise": retrain_pipeline_enterprise,
    "gpt-sweep": sweep_pipeline,
    "gpt-sweep-enterprise": sweep_pipeline_enterprise,
}
COMPILED = FOLDER / "gpt-pipeline.yaml"


def compile_pipeline(pipeline: Any = gpt_pipeline) -> str:
    """A compiled pipeline, as YAML."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        return path.read_text(encoding="utf-8")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, pipeline in PIPELINES.items():
        (FOLDER / f"{name}.yaml").write_text(compile_pipeline(pipeline), encoding="utf-8")
