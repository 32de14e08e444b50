"""Reranking by a transformer that sees the last maps of two images: `RerankingTransformerOnMaps`.

What is measured is the original's Recall@k (github.com/uvavision/RerankingTransformer, RRT_SOP,
utils/metrics.py): every image searches all others, and the first of what it finds are scored, the query
first.
"""
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from dolg.data.loader import Batch
from dolg.errors import UserError
from dolg.features.extract import average_scales
from dolg.models.rrt_sop import RerankingTransformerOnMaps
from dolg.rerank.evaluation import Timed
from dolg.rerank.interface import PairReranker, Stage, rerank_list
from dolg.rerank.pairs import PairScores

_PAIRS = {"cuda": 1024, "cpu": 32}
_MAP_BYTES, _GLOBAL_BYTES = 2, 4        # float16, float32


class MapReranker(PairReranker):
    """Scores an image by the transformer's logit, in float32. Queries and database are the same images.

    Args:
        model: is moved to `device`, into evaluation mode.
        maps: (N,C,h,w) float16 on the CPU, the `local` maps of all images.
        dim: dimensions of a descriptor, for the bytes that are kept of an image.
        device: where pairs are scored.
        batch: pairs at once; 0: what suits the device.
        weights_digest: of the file that the model's weights are from, to be recorded.

    Raises UserError for maps of other channels than the model's, and when scoring, for logits that are
    not numbers.
    """

    name = "rrt_sop"

    def __init__(self, model: RerankingTransformerOnMaps, maps: torch.Tensor, dim: int,
                 device: str | torch.device = "cpu", batch: int = 0, weights_digest: str = ""):
        super().__init__()
        assert maps.ndim == 4 and maps.dtype == torch.float16 and maps.device.type == "cpu"
        if maps.shape[1] != model.local_dim:
            raise UserError(f"the maps have {maps.shape[1]} channels, the transformer takes "
                            f"{model.local_dim}: set MODEL.RRT.DIM")
        self.model, self.maps = model.to(device).eval(), maps
        self.device = torch.device(device)
        self.batch = batch or _PAIRS[self.device.type]
        self.settings = {"weights": weights_digest}
        self.bytes_per_image = _MAP_BYTES * maps[:1].numel() + _GLOBAL_BYTES * dim

    @torch.inference_mode()
    def score_pairs(self, query: int, candidates: np.ndarray) -> np.ndarray:
        scores = np.empty(len(candidates))
        own = self.maps[query:query + 1].to(self.device).float()
        for start in range(0, len(candidates), self.batch):
            rows = torch.from_numpy(candidates[start:start + self.batch])
            others = self.maps[rows].to(self.device).float()
            logits = self.model.match(own.expand(len(rows), -1, -1, -1), others)
            scores[start:start + self.batch] = logits.cpu().numpy()
        if not np.isfinite(scores).all():
            raise UserError(f"the reranking transformer's scores of image {query} are not all numbers: its "
                            "weights are damaged")
        return scores

    def unit(self, scores: np.ndarray, temperature: float) -> np.ndarray:
        """The probability that the logits, divided by the temperature, stand for."""
        return (1 + np.tanh(scores / temperature / 2)) / 2


@torch.inference_mode()
def describe_with_maps(
    model: RerankingTransformerOnMaps, batches: Iterable[Batch], count: int,
    autocast: Callable[[], AbstractContextManager],
) -> tuple[np.ndarray, torch.Tensor]:
    """Unit descriptors (count,D) float32 and maps (count,C,h,w) float16, on the CPU, of images whose
    `batches` have each of them once.

    Raises UserError where a descriptor or a map is not of finite numbers.
    """
    model.eval()
    descriptors, maps = np.full((count, model.dim), np.nan, np.float32), torch.empty(0)
    with tqdm(total=count, desc="describe", unit="image", disable=None) as bar:
        for batch in batches:
            with autocast():
                outputs = model(batch.images)
            local = outputs["local"].half().cpu()
            whole = average_scales([outputs["global"]]).cpu().numpy()
            if not (local.isfinite().all() and np.isfinite(whole).all()):
                raise UserError("the model's maps are not all numbers that float16 holds: its weights are "
                                "damaged, or too large for PRECISION")
            if not len(maps):
                maps = torch.empty((count, *local.shape[1:]), dtype=torch.float16)
            maps[batch.indexes], descriptors[batch.indexes.numpy()] = local, whole
            bar.update(len(local))
    assert not np.isnan(descriptors).any(), "an image is in no batch"
    return descriptors, maps


@dataclass(frozen=True)
class RerankedRecall:
    """What `reranked_recall` finds; all shares are in 0..1.

    before: k -> Recall@k of the lists as they are. after: images reranked -> k -> Recall@k.
    seconds: images reranked -> mean seconds that the reranker takes for a query's list.
    images: their number. unscored: images whose class has no other.
    """

    before: dict[int, float]
    after: dict[int, dict[int, float]]
    seconds: dict[int, float]
    images: int
    unscored: int


def reranked_recall(
    reranker: PairReranker, indexes: np.ndarray, scores: np.ndarray, labels: np.ndarray,
    ks: Sequence[int], top_ks: Sequence[int], weight: float = 1.0, temperature: float = 1.0,
) -> RerankedRecall:
    """Recall@k of lists of images found among themselves, and of those with their first images reranked.

    indexes: (N,n) int, image i's neighbours, best first, itself left out; -1 for none, at the end.
    scores: (N,n) float, those they were found with. labels: (N,) the classes. ks: each at most n.
    top_ks: how many images of each list are reranked, a result for each. weight, temperature: see
    `Stage`.

    Recall@k is the share of all N images with an image of their class among the first k, as
    `dolg.search.classes` and the original count it: images whose class has no other are misses. Each
    pair is scored once, and the reranker forgets it after its query, as all of a large set would fill
    the memory.
    """
    assert indexes.shape == scores.shape and max(ks) <= indexes.shape[1], (indexes.shape, scores.shape, ks)
    timed = Timed(reranker)
    stages = {top: Stage(timed, top, weight, temperature) for top in top_ks}
    first = {top: np.empty(len(indexes), np.int64) for top in (0, *stages)}
    for query in tqdm(range(len(indexes)), desc=f"rerank the first {max(top_ks)}", unit="image",
                      disable=None):
        reranker.known = PairScores()
        for top, places in first.items():
            chain = [stages[top]] if top else []
            found, _ = rerank_list(chain, query, indexes[query], scores[query])
            places[query] = _first_hit(found, labels, query)
    recall = {top: {k: float((places < k).mean()) for k in ks} for top, places in first.items()}
    per_pair, there = timed.seconds / max(1, timed.images), (indexes >= 0).sum(axis=1)
    seconds = {top: per_pair * float(np.minimum(there, top).mean()) for top in stages}
    _, counts = np.unique(labels, return_counts=True)
    return RerankedRecall(recall.pop(0), recall, seconds, len(indexes), int((counts == 1).sum()))


def _first_hit(found: np.ndarray, labels: np.ndarray, query: int) -> int:
    """Place in a list of the first image of the query's class; its length where there is none."""
    hits = (found >= 0) & (labels[found] == labels[query])
    return int(hits.argmax()) if hits.any() else len(hits)
