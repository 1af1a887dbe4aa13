"""Settings of the whole suite: its parallel workers share the machine, and nothing is drawn on a screen."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start
os.environ.setdefault("MUJOCO_GL", "egl")

import torch

torch.set_num_threads(1)
