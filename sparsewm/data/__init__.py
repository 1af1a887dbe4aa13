"""Offline data: recording, files, encoded tokens, training windows."""

from sparsewm.data.collect import collect
from sparsewm.data.dataset import Dataset
from sparsewm.data.formats import FORMATS
from sparsewm.data.opening import open_dataset
from sparsewm.data.statistics import token_statistics
from sparsewm.data.tokens import TokenCache, fast_copy, token_bytes
from sparsewm.data.windows import Windows, count_windows
from sparsewm.data.writer import DatasetWriter

__all__ = [
    "FORMATS",
    "Dataset",
    "DatasetWriter",
    "TokenCache",
    "Windows",
    "collect",
    "count_windows",
    "fast_copy",
    "open_dataset",
    "token_bytes",
    "token_statistics",
]
