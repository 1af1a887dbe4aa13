"""Meshes drawn no finer than a picture shows: most of a robot's triangles are smaller than a pixel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def coarse_meshes(model: Any, detail: float) -> Iterator[None]:
    """A `mujoco.MjModel` whose triangles have corners at least about `detail` metres apart, for the moment.

    What draws copies meshes once, when it is made: make it in here. Afterwards the model is what it was, so
    physics knows nothing of it. Corners in one cell of a grid become the one nearest to their middle
    (Rossignac and Borrel, 1993); normals and textures are those of the triangles that are left.
    """
    columns = model.mesh_face, model.mesh_facenormal, model.mesh_facetexcoord
    kept = [array.copy() for array in (model.mesh_facenum, *columns)]
    try:
        for mesh in range(model.nmesh):
            faces = _rows(model.mesh_faceadr[mesh], model.mesh_facenum[mesh])
            corners = _rows(model.mesh_vertadr[mesh], model.mesh_vertnum[mesh])
            merged = merged_corners(model.mesh_vert[corners], detail)[model.mesh_face[faces]]
            left = _triangles(merged)
            normals, textures = (array[faces][left] for array in columns[1:])
            for array, values in zip(columns, (merged[left], normals, textures), strict=True):
                array[faces.start : faces.start + len(left)] = values
            model.mesh_facenum[mesh] = len(left)
        yield
    finally:
        for array, before in zip((model.mesh_facenum, *columns), kept, strict=True):
            array[:] = before


def merged_corners(points: np.ndarray, detail: float) -> np.ndarray:
    """For each of the points (N, 3) the number (N,) of the one that stands for its cell of side `detail`."""
    cells = np.floor((points - points.min(0)) / detail)
    _, cell = np.unique(cells, axis=0, return_inverse=True)
    cell = cell.reshape(-1)  # NumPy 2.0 gives it another shape
    counts = np.bincount(cell)
    middles = np.stack([np.bincount(cell, axis) / counts for axis in points.T], axis=1)
    order = np.lexsort((np.square(points - middles[cell]).sum(1), cell))
    return order[np.searchsorted(cell[order], np.arange(len(counts)))][cell]


def _triangles(faces: np.ndarray) -> np.ndarray:
    """Numbers, ascending, of the faces (F, 3) that still have three corners, each of them once."""
    a, b, c = faces.T
    whole = np.flatnonzero((a != b) & (b != c) & (c != a))
    _, first = np.unique(np.sort(faces[whole], axis=1), axis=0, return_index=True)
    return whole[np.sort(first)]


def _rows(first: Any, count: Any) -> slice:
    return slice(int(first), int(first) + int(count))
