"""Settings of the whole suite: its parallel workers share the machine, and nothing is drawn on a screen."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
os.environ.setdefault("HF_HOME", os.path.join(tempfile.gettempdir(), "sparsewm-tests"))  # nor kept at home

import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # a GPU's kernels run anywhere; read by its first import
