"""Training: recipes, the loop, optimizers, schedules, the loss, and exact checkpoints."""

from modelcore.training.checkpoints import CheckpointPlace
from modelcore.training.history import History
from modelcore.training.loop import train
from modelcore.training.recipe import DEFAULT_RECIPE, Recipe, TrainingSettings, load_recipe, recipe_names

__all__ = [
    "DEFAULT_RECIPE",
    "CheckpointPlace",
    "History",
    "Recipe",
    "TrainingSettings",
    "load_recipe",
    "recipe_names",
    "train",
]
