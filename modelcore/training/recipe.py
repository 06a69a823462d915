"""A recipe: which model to train and how, read from YAML and checked before anything is loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from modelcore.checks import check_choice, check_flag, check_number, check_whole
from modelcore.errors import InputError
from modelcore.gptx import GPTConfig
from modelcore.models import get_config
from modelcore.training.precision import Precision
from modelcore.training.schedule import Schedule

OptimizerKind = Literal["adamw", "muon"]
Recompute = Literal["nothing", "cheap", "blocks"]
Parallel = Literal["ddp", "fsdp"]

DEFAULT_RECIPE = "llama-nano"
RECIPES = Path(__file__).parent / "recipes"

_NUMBERS = (
    "learning_rate",
    "muon_learning_rate",
    "weight_decay",
    "final_fraction",
    "decay_fraction",
    "clip_norm",
    "ema_decay",
    "spike_deviations",
)


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained.

    Attributes:
        steps: Optimizer steps of the whole run.
        batch_size: Sequences an optimizer step.
        sequence_length: Tokens a sequence; also the context length of the model that comes out.
        learning_rate: Peak learning rate of AdamW.
        micro_batch_size: Sequences that go through the model at once; the gradients of a batch's pieces are
            added up. 0: the whole batch.
        optimizer: ``adamw`` for everything, or ``muon`` for the hidden matrices and AdamW for the rest.
        muon_learning_rate: Peak learning rate of Muon; unused with ``adamw``.
        muon_iterations: Newton-Schulz iterations a step; 3 are cheaper and, for small models, as good as 5.
        weight_decay: Decoupled weight decay of matrices, multiplied by their learning rate; vectors do not decay.
        betas: AdamW's decay rates of its two moments.
        warmup_steps: Steps over which the learning rate rises.
        schedule: How it falls afterwards: ``cosine``, ``linear``, ``wsd`` or ``constant``.
        final_fraction: What is left of the peak learning rate at the last step.
        decay_fraction: For ``wsd``: the part of all steps that decay.
        clip_norm: Largest norm of the whole gradient; longer ones are scaled down to it. 0: no clipping.
        eval_every: Steps between evaluations on held-out text; 0: only one, at the end.
        eval_tokens: Held-out tokens each of them reads at most.
        checkpoint_every: Steps between checkpoints; 0: only one, at the end.
        keep_checkpoints: Newest checkpoints that are kept.
        log_every: Steps between two points of the curves.
        seed: Decides the initial weights, the order of samples, and dropout.
        precision: ``fp32``, ``bf16`` (autocast: weights and optimizer stay fp32), or ``auto``: ``bf16`` on a GPU
            that has it and on a CPU with AVX512_BF16; else fp32, by the fastest products that a CPU has
            (:mod:`modelcore.training.precision`).
        compile: Whether ``torch.compile`` is used on a GPU; never on a CPU, where compiling costs more than a
            small run wins.
        pad_vocab_to_multiple: The rows of embedding and head are rounded up to a multiple of this while training,
            which makes a GPU's products faster and changes nothing else. 1: no padding.
        separate_documents: Whether attention stays inside each document of a window, positions begin anew in each, and
            no document's first token is a target of the one before.
        recompute: What the backward pass computes again instead of keeping it; gradients are the same. ``nothing``;
            ``cheap``: in compiled blocks, whatever one pass over memory makes again
            (:mod:`modelcore.training.recomputation`); ``blocks``: everything but the input of each block (Chen et al.
            2016), for one more forward pass and far less memory.
        ema_decay: Decay of the exponential moving average of the weights, which is then what is evaluated and saved at
            the end (:mod:`modelcore.training.averaging`); 0: the last weights are.
        spike_deviations: A step whose loss or gradient norm is so many standard deviations above the mean of those
            before it is left out (:mod:`modelcore.training.spikes`); 0: none is.
        parallel: How several processes train together: ``ddp``, each with the whole model; ``fsdp``, each with a shard
            of every matrix (:mod:`modelcore.training.sharding`). Like the next two it changes nothing but rounding.
        shard_size: For ``fsdp``: ranks that a matrix is cut up between; with fewer than there are, each group of so
            many has a whole model among itself. 0: all.
        tensor_parallel: Ranks that share each of the blocks' matrices and the work on them
            (:mod:`modelcore.training.tensor_parallel`); they read the same rows of a batch. 1: none do.

    Raises:
        InputError: If a field is out of range or of the wrong type.
    """

    steps: int
    batch_size: int
    sequence_length: int
    learning_rate: float
    micro_batch_size: int = 0
    optimizer: OptimizerKind = "adamw"
    muon_learning_rate: float = 0.02
    muon_iterations: int = 5
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 0
    schedule: Schedule = "cosine"
    final_fraction: float = 0.1
    decay_fraction: float = 0.2
    clip_norm: float = 1.0
    eval_every: int = 0
    eval_tokens: int = 65_536
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    log_every: int = 10
    seed: int = 0
    precision: Precision = "auto"
    compile: bool = True
    pad_vocab_to_multiple: int = 1
    separate_documents: bool = False
    recompute: Recompute = "nothing"
    ema_decay: float = 0.0
    spike_deviations: float = 0.0
    parallel: Parallel = "ddp"
    shard_size: int = 0
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "sequence_length",
            "eval_tokens",
            "keep_checkpoints",
            "log_every",
            "muon_iterations",
            "pad_vocab_to_multiple",
            "tensor_parallel",
        ):
            check_whole(name, getattr(self, name))
        for name in ("micro_batch_size", "warmup_steps", "eval_every", "checkpoint_every", "seed", "shard_size"):
            check_whole(name, getattr(self, name), 0)
        if self.seed >= 1 << 63:
            raise InputError(f"seed is {self.seed}; it must be below 2**63, which is what generators take")
        for name in _NUMBERS:
            check_number(name, getattr(self, name))
        for name in ("learning_rate", "muon_learning_rate"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("weight_decay", "clip_norm", "spike_deviations"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("final_fraction", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise InputError(f"betas is {self.betas!r}; it must be a pair of numbers such as [0.9, 0.95]")
        object.__setattr__(self, "betas", tuple(self.betas))
        for beta in self.betas:
            check_number("betas", beta)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas is {list(self.betas)}; both must be at least 0 and below 1")
        for name, kind in (
            ("optimizer", OptimizerKind),
            ("schedule", Schedule),
            ("precision", Precision),
            ("recompute", Recompute),
            ("parallel", Parallel),
        ):
            check_choice(name, getattr(self, name), get_args(kind))
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay is {self.ema_decay}; it must be at least 0 and below 1")
        for name in ("compile", "separate_documents"):
            check_flag(name, getattr(self, name))
        if self.shard_size == 1 or (self.shard_size and self.parallel != "fsdp"):
            raise InputError(
                f"shard_size is {self.shard_size} with parallel {self.parallel}; "
                "it is for parallel fsdp, where it is at least 2, or 0 for all"
            )
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise InputError(
                f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}; "
                "a batch is cut into equal pieces"
            )


@dataclass(frozen=True)
class Recipe:
    """A named model configuration, changes to it, and how it is trained.

    Attributes:
        name: The recipe's name.
        model: Name of a configuration in :mod:`modelcore.models`.
        training: How it is trained.
        overrides: Fields of the model configuration that differ from the named one. ``vocab_size`` and
            ``context_length`` are not among them: the tokenizer and ``sequence_length`` decide these.

    Raises:
        InputError: If an override may not or cannot be made.
    """

    name: str
    model: str
    training: TrainingSettings
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, source in (("vocab_size", "the tokenizer"), ("context_length", "training.sequence_length")):
            if name in self.overrides:
                raise InputError(f"recipe {self.name} overrides {name}, which {source} decides; remove it")
        self.config(vocab_size=256)

    def config(self, vocab_size: int) -> GPTConfig:
        """The configuration of the model to train, for a tokenizer of ``vocab_size`` ids."""
        fields = get_config(self.model).to_dict() | self.overrides
        sizes = {"vocab_size": vocab_size, "context_length": self.training.sequence_length}
        return GPTConfig.from_dict(fields | sizes)

    def with_training(self, **settings: Any) -> Recipe:
        """The same recipe with other training settings."""
        return dataclasses.replace(self, training=dataclasses.replace(self.training, **settings))

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        fields = dataclasses.asdict(self)
        fields["training"]["betas"] = list(self.training.betas)
        return fields

    @classmethod
    def from_dict(cls, fields: Any, name: str) -> Recipe:
        """The recipe that a YAML or JSON object describes; unknown or missing keys are an error."""
        _check_keys(fields, ("model", "training"), ("model", "overrides", "training", "name"), f"recipe {name}")
        known = {field.name: field for field in dataclasses.fields(TrainingSettings)}
        required = [key for key, field in known.items() if field.default is dataclasses.MISSING]
        _check_keys(fields["training"], required, known, f"recipe {name}, training")
        overrides = fields.get("overrides") or {}
        if not isinstance(overrides, dict):
            raise InputError(f"recipe {name}: overrides is {overrides!r}; it must hold model fields")
        try:
            return cls(name, fields["model"], TrainingSettings(**fields["training"]), overrides)
        except InputError as error:
            raise InputError(f"recipe {name}: {error}") from None


def recipe_names() -> list[str]:
    """Names of the recipes that come with the library."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Reads a recipe that comes with the library, or a YAML file of one's own.

    Args:
        name_or_path: A name that :func:`recipe_names` lists, or a path that ends in ``.yaml`` or ``.yml``.

    Raises:
        InputError: If there is no such recipe, or it is not valid.
    """
    import yaml

    path = RECIPES / f"{name_or_path}.yaml"
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise InputError(f"no recipe file at {path}")
    elif name_or_path not in recipe_names():
        raise InputError(
            f"unknown recipe {name_or_path!r}; known: {', '.join(recipe_names())}; or give the path of a .yaml file"
        )
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} is no valid YAML: {' '.join(str(error).split())}") from None
    return Recipe.from_dict(fields, path.stem)


def _check_keys(fields: Any, required: Any, known: Any, where: str) -> None:
    if not isinstance(fields, dict):
        raise InputError(f"{where}: found {fields!r} where an object with the keys {', '.join(known)} belongs")
    if unknown := sorted(str(key) for key in fields if key not in known):
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(known)}")
    if missing := [key for key in required if key not in fields]:
        raise InputError(f"{where}: key {missing[0]!r} is missing")
