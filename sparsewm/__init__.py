"""sparsewm: model-predictive control from pixels in a sparse DINO world model.

>>> import envs, planners, sparsewm
>>> env = envs.make("pusht")
>>> model = sparsewm.load_pretrained("pusht")
>>> observation, info = env.reset(seed=0)
>>> goal = env.render_state(env.sample_goal())
>>> problem = model.planning_problem(observation, goal, drop=0.5)
>>> plan = planners.CEM(samples=100, elites=10, iterations=10).plan(problem)
"""

from importlib.metadata import PackageNotFoundError, version

from sparsewm.encoders import load_encoder
from sparsewm.errors import UserError
from sparsewm.memory import keep_freed_memory
from sparsewm.model import WorldModel, load, load_pretrained, save

try:
    __version__ = version("sparsewm")
except PackageNotFoundError:  # imported from a folder that was never installed
    __version__ = "0+unknown"

__all__ = [
    "UserError",
    "WorldModel",
    "__version__",
    "keep_freed_memory",
    "load",
    "load_encoder",
    "load_pretrained",
    "save",
]
