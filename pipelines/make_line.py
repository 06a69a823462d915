"""The command that starts a run on this machine: ``make pipeline NAME=…``, whole, to be copied into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

# What the Makefile has a variable for, of the same name in capitals.
VARIABLES = (
    "runner",
    "corpus",
    "heldout",
    "instructions",
    "vocab_size",
    "preset",
    "steps",
    "seed",
    "lora_rank",
    "lora_steps",
    "task_items",
    "model_name",
)


def make_line(
    name: str,
    runs: str | None,
    parameters: Mapping[str, Any],
    defaults: Mapping[str, Any],
    target: str = "pipeline",
) -> str:
    """The command that starts a run with these parameters, quoted for a shell.

    Args:
        name: The run's name.
        runs: Folder of all runs; None if it is the default.
        parameters: Every parameter of the run, and what its stages run in.
        defaults: The pipeline's; what does not differ from them is left out.
        target: What make is asked for.
    """
    defaults = dict(defaults)
    if parameters.get("corpus") != defaults.get("corpus"):
        defaults["heldout"] = ""  # as the Makefile has it: the sample's evaluation text is for the sample
    given = {key: value for key, value in parameters.items() if value != defaults[key]}
    line = ["make", target, f"NAME={name}"]
    if runs is not None:
        line.append(f"RUNS={shlex.quote(runs)}")
    line += [f"{key.upper()}={shlex.quote(str(given.pop(key)))}" for key in VARIABLES if key in given]
    if given:
        plain = {key: "; ".join(value) if isinstance(value, list) else value for key, value in given.items()}
        words = shlex.join(f"--{key.replace('_', '-')}={value}" for key, value in plain.items())
        line.append(f'ARGS="{words}"' if not set(words) & set("'\"\\$`!") else f"ARGS={shlex.quote(words)}")
    return " ".join(line)
