"""The world model, its planning problem, its checkpoints."""

from sparsewm.model.checkpoint import load, load_pretrained, save
from sparsewm.model.drop import kept_patches
from sparsewm.model.latent import Latent
from sparsewm.model.predictor import PredictorConfig
from sparsewm.model.problem import LatentProblem
from sparsewm.model.world_model import WorldModel

__all__ = [
    "Latent",
    "LatentProblem",
    "PredictorConfig",
    "WorldModel",
    "kept_patches",
    "load",
    "load_pretrained",
    "save",
]
