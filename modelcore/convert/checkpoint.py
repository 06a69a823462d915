"""The model in a checkpoint of a training run, whole or sharded, read by one process."""

from __future__ import annotations

import logging
from pathlib import Path

from modelcore.errors import InputError
from modelcore.files import read_json
from modelcore.gptx import GPT, GPTConfig
from modelcore.models.weights import check_tensors, empty_model, fill_model, tensor_shapes
from modelcore.training.checkpoint_files import STATE, find_fault
from modelcore.training.checkpoint_list import checkpoint_names, find_complete, warn_of_damage
from modelcore.training.state import part_tensors

logger = logging.getLogger(__name__)


def read_checkpoint(path: Path) -> GPT:
    """The model that a run would have saved if it had ended here: its average of the weights where it keeps one.

    The pieces are put together one after the other, so that memory holds one model, and of the files what the system
    likes to keep.

    Args:
        path: The checkpoint's folder, ``step-…``; or the one that holds a run's checkpoints, of which the newest
            complete one is taken.

    Raises:
        InputError: If the checkpoint is damaged, or of something else than a model's pretraining.
    """
    if checkpoint_names(path):
        path = _newest(path)
    elif (fault := find_fault(path)) is not None:
        raise InputError(f"checkpoint {path} is damaged: {fault}")
    fields = read_json(path / STATE).get("identity", {}).get("model")
    if not isinstance(fields, dict):
        raise InputError(f"checkpoint {path} is not of pretraining: it does not say which model it is of")
    tensors = part_tensors(path, "average")
    logger.info("checkpoint=%s weights=%s", path, "average" if tensors else "last")
    tensors = tensors or part_tensors(path, "model")
    model = empty_model(GPTConfig.from_dict(fields))
    check_tensors(path, tensors, tensor_shapes(model))
    return fill_model(model, tensors)


def _newest(folder: Path) -> Path:
    path, faults = find_complete(folder)
    for name, fault in faults.items():
        warn_of_damage(folder, name, fault)
    if path is None:
        raise InputError(f"no checkpoint in {folder} is complete; {', '.join(faults)} cannot be used")
    logger.info("%s holds the checkpoints of a run: the newest complete one is %s", folder, path.name)
    return path
