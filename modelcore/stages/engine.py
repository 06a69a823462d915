"""Who does the work of a stage that prepares text: this process, or Spark."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, get_args

from modelcore.errors import InputError

Engine = Literal["local", "spark"]
ENGINES: tuple[str, ...] = get_args(Engine)


def check_engine(engine: str) -> None:
    """Makes sure that a stage's engine is one, and is there.

    Raises:
        InputError: If it is not.
    """
    if engine not in ENGINES:
        raise InputError(f"engine={engine!r} is unknown; it must be one of {', '.join(ENGINES)}")
    if engine == "spark" and find_spec("pyspark") is None:
        raise InputError("engine='spark' needs pyspark, which is not installed: pip install 'aic-ai-poc-gpt[spark]'")
