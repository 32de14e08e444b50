"""Whitening: a projection learned from descriptors, after which they are compared anew."""
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save
from torch.nn import functional as F

from dolg.errors import UserError
from dolg.files import write_atomically
from revisitop.settings import differing_settings

# What decides the descriptors alone: the same for the local features of any store
_NOT_OF_LOCAL = {"scales": [], "scale_pooling": "mean", "whitening": "none"}
# Rows that are worked on at a time
_BLOCK = 65536


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) @ projection, of unit length.

    Attributes:
        mean: (D,) float32.
        projection: (D,K) float32.
    """

    mean: torch.Tensor
    projection: torch.Tensor

    @property
    def dim(self) -> int:
        """K, the dimensions that come out."""
        return self.projection.shape[1]

    def __call__(self, descriptors: torch.Tensor) -> torch.Tensor:
        """Unit vectors (N,K) of descriptors (N,D), both float32; rows of NaN stay."""
        return F.normalize((descriptors - self.mean) @ self.projection, dim=1)

    def to(self, device: torch.device) -> "Whitening":
        return Whitening(self.mean.to(device), self.projection.to(device))

    def save(self, path: Path, made_by: Mapping | None = None) -> None:
        """To a file; `made_by` is what is known of how the descriptors were made that it was learned from."""
        write_atomically(path, save({"mean": self.mean.cpu().numpy(),
                                     "projection": self.projection.cpu().numpy()},
                                    {"made_by": json.dumps(made_by)} if made_by else None))

    @staticmethod
    def load(path: str | Path, dim: int) -> "Whitening":
        """From a file, for descriptors of `dim` dimensions. Raises UserError where it is none."""
        try:
            tensors = load_file(path)
            mean, projection = tensors["mean"], tensors["projection"]
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"{path} is no whitening that tools/whiten.py wrote: {error}") from None
        if mean.shape != (dim,) or projection.shape[0] != dim:
            raise UserError(f"{path} is for descriptors of {len(mean)} dimensions, these have {dim}")
        return Whitening(torch.from_numpy(mean), torch.from_numpy(projection))


def learned_from_others(path: str | Path, manifest: Mapping, local: bool = False) -> str:
    """In what the descriptors that the whitening in a file was learned from differ from a store's, or, if
    `local`, the local features; "" where in nothing that is known. Raises UserError for a damaged file."""
    try:
        with safe_open(path, "np") as file:
            made_by = json.loads((file.metadata() or {}).get("made_by", "{}"))
        if local:       # which have scales and a whitening of their own
            made_by, manifest = ({**side, **_NOT_OF_LOCAL} for side in (made_by, manifest))
        differing = differing_settings(made_by, manifest, local)
    except (OSError, SafetensorError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a whitening that tools/whiten.py wrote: {error}") from None
    return "; ".join(differing)


def pca_whitening(chunks: Iterable[np.ndarray], dim: int = 0, power: float = 0.5) -> Whitening:
    """Principal components of descriptors, streamed in chunks (n,D); rows with NaN are left out.

    Args:
        dim: components kept, those of largest variance; 0: all.
        power: each is divided by its variance to this power: 0.5 whitens (Jegou and Chum, ECCV
            2012), 0 only turns, as DELG's reduction to 128 dimensions does.
    """
    mean, covariance, count = _moments(chunks)
    if dim > len(mean):
        raise UserError(f"{dim} components were asked for, of descriptors of {len(mean)} dimensions")
    variances, axes = np.linalg.eigh(covariance)
    variances, axes = variances[::-1], axes[:, ::-1]
    kept = dim or len(mean)
    # Fewer images than dimensions leave directions without any variance
    rank = int((variances > variances[0] * 1e-10).sum())
    if power and kept > rank:
        raise UserError(f"{count} descriptors vary in {rank} directions alone: ask for at most "
                        f"{rank} components, or give more images")
    return _whitening(mean, axes[:, :kept] * (variances[:kept] ** -power if power else 1.0))


def learned_whitening(first: np.ndarray, second: np.ndarray, dim: int = 0) -> Whitening:
    """Whitening by pairs of matching images (Mikolajczyk and Matas, ICCV 2007; Radenovic et al.,
    TPAMI 2019): differences within pairs get equal variance, then the axes are those along which
    the images vary most.

    Args:
        first, second: descriptors (n,D) of the pairs.
        dim: dimensions kept; 0: all.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    mean = first.mean(axis=0)
    differences = first - second
    within = differences.T @ differences / len(differences)
    try:
        whitener = np.linalg.inv(np.linalg.cholesky(within))
    except np.linalg.LinAlgError:
        raise UserError(f"{len(first)} pairs do not differ in all {first.shape[1]} dimensions: give "
                        "more pairs, or reduce the dimensions by PCA first") from None
    projected = (first - mean) @ whitener.T
    variances, axes = np.linalg.eigh(projected.T @ projected)
    order = np.argsort(-variances)[:dim or None]
    return _whitening(mean, whitener.T @ axes[:, order])


def class_pairs(labels: np.ndarray, usable: np.ndarray, seed: int = 0) -> np.ndarray:
    """Pairs (n,2) of rows of one class: each row that is `usable` (bool) with the next of its class in
    a random ring."""
    rng, pairs = np.random.default_rng(seed), []
    rows = rng.permutation(np.flatnonzero(usable))
    for group in _groups(labels[rows]):
        members = rows[group]
        if len(members) > 1:
            ring = np.stack([members, np.roll(members, -1)], axis=1)
            pairs.append(ring[:1] if len(members) == 2 else ring)
    if not pairs:
        raise UserError("no class has two images whose descriptors are there")
    return np.concatenate(pairs)


def _groups(labels: np.ndarray) -> list[np.ndarray]:
    """Places of each label."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _moments(chunks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean (D,), covariance (D,D) and number of all rows without NaN, in float64."""
    total, squares, count, shift = 0.0, 0.0, 0, None
    for chunk in chunks:
        for start in range(0, len(chunk), _BLOCK):
            block = np.asarray(chunk[start:start + _BLOCK], np.float64)
            block = block[~np.isnan(block).any(axis=1)]
            if not len(block):
                continue
            # About the first mean, so that little is lost where the mean is long
            shift = block.mean(axis=0) if shift is None else shift
            block = block - shift
            total, squares = total + block.sum(axis=0), squares + block.T @ block
            count += len(block)
    if count < 2:
        raise UserError(f"{count} descriptors are too few to learn from")
    mean = total / count
    return mean + shift, squares / count - np.outer(mean, mean), count


def _whitening(mean: np.ndarray, projection: np.ndarray) -> Whitening:
    # The sign of an axis is anybody's choice: the largest entry is made positive
    largest = np.take_along_axis(projection, np.abs(projection).argmax(axis=0)[None], axis=0)
    projection = projection * np.where(largest < 0, -1.0, 1.0)
    return Whitening(torch.from_numpy(mean.astype(np.float32)),
                     torch.from_numpy(np.ascontiguousarray(projection, np.float32)))
