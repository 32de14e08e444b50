"""Reranking by a transformer that sees the features of two images at once (Tan et al., ICCV 2021)."""
import numpy as np
import torch

from dolg.data.sides import side_of
from dolg.errors import UserError
from dolg.models.rrt import RerankingTransformer, Side
from dolg.models.scoring import PairScorer
from dolg.rerank.images import Images, check_local
from dolg.rerank.interface import PairReranker

# Candidates whose features are in memory at once
_RUN = 256
# What a database keeps: float16 local features, a byte for the scale of each, a float32 descriptor
_LOCAL_BYTES, _SCALE_BYTES, _GLOBAL_BYTES = 2, 1, 4


class RRTReranker(PairReranker):
    """Scores an image by the transformer's logit; NaN where it or the query failed. An image without
    local features is judged by its descriptor.

    Args:
        model: is moved to `device`, into evaluation mode.
        query, database: the images, with local features.
        locals_per_image: most local features of an image, those of the highest attention: the first.
        batch, precision: see `PairScorer`.
        device: where pairs are scored.
        weights_digest: of the file that the model's weights are from, to be recorded.

    Raises UserError for settings that cannot be, for local features that are not there, and for features
    of other dimensions than the model's; and when scoring, for scales that are not the model's.
    """

    name = "rrt"

    def __init__(self, model: RerankingTransformer, query: Images, database: Images,
                 locals_per_image: int = 500, batch: int = 0, device: str | torch.device = "cpu",
                 precision: torch.dtype = torch.float32, weights_digest: str = ""):
        super().__init__()
        check_local(query, database, self.name)
        for images, what in ((query, "queries"), (database, "database images")):
            model.check_dimensions(images.dim, images.local_dim, f"the {what}' ")
        if locals_per_image < 1:
            raise UserError(f"MODEL.RRT.LOCALS is {locals_per_image}: give 1 or more")
        self.query, self.database, self.locals_per_image = query, database, locals_per_image
        self.model, self.device = model.to(device).eval(), torch.device(device)
        self.scorer = PairScorer(self.model, precision, batch)
        self.settings = {**model.settings, "locals_per_image": locals_per_image,
                         "precision": str(precision).removeprefix("torch."), "weights": weights_digest}
        self._locals: dict[int, int] = {}       # how many, of each database image that was read

    @property
    def bytes_per_image(self) -> float:
        if not self._locals:
            return 0.0
        each = _LOCAL_BYTES * self.model.dim + _SCALE_BYTES
        mean = sum(self._locals.values()) / len(self._locals)
        return each * mean + _GLOBAL_BYTES * self.model.global_dim

    def score_pairs(self, query: int, candidates: np.ndarray) -> np.ndarray:
        scores = np.full(len(candidates), np.nan)
        own = self.query.descriptors(np.array([query]))
        if not np.isfinite(own).all():
            return scores
        descriptors = self.database.descriptors(candidates)
        fine = np.flatnonzero(np.isfinite(descriptors).all(axis=1))
        side = self._side(self.query, np.array([query]), own)
        for start in range(0, len(fine), _RUN):
            part = fine[start:start + _RUN]
            others = self._side(self.database, candidates[part], descriptors[part])
            self._locals.update(zip(candidates[part].tolist(), (~others["mask"]).sum(1).tolist()))
            scores[part] = self.scorer.score(side, others).cpu().numpy()
        if not np.isfinite(scores[fine]).all():
            raise UserError(f"the reranking transformer's scores of query {query} are not all numbers: its "
                            f"weights are damaged, or too large for {self.settings['precision']}; try "
                            "PRECISION fp32")
        return scores

    def unit(self, scores: np.ndarray, temperature: float) -> np.ndarray:
        """The probability that the logits, divided by the temperature, stand for."""
        return (1 + np.tanh(scores / temperature / 2)) / 2

    def _side(self, images: Images, rows: np.ndarray, descriptors: np.ndarray) -> Side:
        tables = [images.local(row) for row in rows.tolist()]
        side = side_of(descriptors, tables, self.locals_per_image, self.model.scale_indexes)
        return {name: tensor.to(self.device) for name, tensor in side.items()}
