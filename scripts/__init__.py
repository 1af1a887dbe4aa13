"""What reproduces shipped weights and tables, and experiments: `python -m scripts.NAME` in the repository."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before LeRobot is imported: nothing is downloaded
