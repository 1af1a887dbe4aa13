"""Offline data: recording, files, encoded tokens, training windows."""

from sparsewm.data.collect import collect
from sparsewm.data.dataset import Dataset
from sparsewm.data.encoding import fast_copy
from sparsewm.data.formats import FORMATS
from sparsewm.data.opening import open_dataset
from sparsewm.data.statistics import token_statistics
from sparsewm.data.tokens import EncodedAsRead, TokenCache, Tokens, token_bytes, tokens_of
from sparsewm.data.windows import WindowRows, Windows, count_windows, loaded_ahead
from sparsewm.data.writer import DatasetWriter

__all__ = [
    "FORMATS",
    "Dataset",
    "DatasetWriter",
    "EncodedAsRead",
    "TokenCache",
    "Tokens",
    "WindowRows",
    "Windows",
    "collect",
    "count_windows",
    "fast_copy",
    "loaded_ahead",
    "open_dataset",
    "token_bytes",
    "token_statistics",
    "tokens_of",
]
