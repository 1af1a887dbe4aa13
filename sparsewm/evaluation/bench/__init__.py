"""What `sparsewm bench` times: plans, encoding and training, each beside plain torch in the same run."""

from sparsewm.evaluation.bench.encode import bench_encoder, measure_encoding, real_frames
from sparsewm.evaluation.bench.models import bench_model, random_model
from sparsewm.evaluation.bench.plan import measure_planning, measure_plans
from sparsewm.evaluation.bench.recipe import PlainPredictor, PlainTraining, RecipeConfig
from sparsewm.evaluation.bench.train import measure_training

__all__ = [
    "PlainPredictor",
    "PlainTraining",
    "RecipeConfig",
    "bench_encoder",
    "bench_model",
    "measure_encoding",
    "measure_planning",
    "measure_plans",
    "measure_training",
    "random_model",
    "real_frames",
]
