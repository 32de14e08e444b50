"""From configuration keys to a reranker: the table of methods."""
from pathlib import Path

import torch

from dolg.core.checkpoint import load_weights
from dolg.core.distributed import from_main
from dolg.core.logging import say
from dolg.core.precision import PRECISIONS
from dolg.core.saving import newest_checkpoint
from dolg.errors import UserError, choose
from dolg.files import file_digest
from dolg.models import build_model
from dolg.rerank.asmk import ASMKReranker, open_codebook
from dolg.rerank.asmk_kernel import MatchKernel
from dolg.rerank.images import StoredImages, check_local
from dolg.rerank.interface import Reranker, Stage
from dolg.rerank.neighbours import DiffusionReranker, ExpansionReranker, KReciprocalReranker
from dolg.rerank.rrt import RRTReranker
from dolg.rerank.spatial import SpatialReranker
from dolg.rerank.superglobal import SuperGlobalReranker


def _rrt(cfg, query: StoredImages, database: StoredImages, folder: Path, place: torch.device) -> Reranker:
    check_local(query, database, "rrt")
    weights = Path(cfg.RERANK.RRT.WEIGHTS) if cfg.RERANK.RRT.WEIGHTS else newest_checkpoint(cfg.OUT_DIR)
    if weights is None:
        raise UserError(f"RERANK.RRT.WEIGHTS is empty, and {cfg.OUT_DIR}/checkpoints holds no checkpoint: "
                        "give the transformer's weights, or train it (configs/rrt)")
    model = build_model(_as_rrt(cfg))
    say(load_weights(model, weights))
    return RRTReranker(model.to(place), query, database, locals_per_image=cfg.MODEL.RRT.LOCALS,
                       batch=cfg.RERANK.RRT.BATCH, device=place, precision=PRECISIONS[cfg.PRECISION],
                       weights_digest=file_digest(weights))


def _as_rrt(cfg):
    """The configuration may be that of the network whose features are reranked."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ARCH = "rrt"
    return cfg


def _spatial(cfg, query: StoredImages, database: StoredImages, folder: Path,
             place: torch.device) -> Reranker:
    check_local(query, database, "spatial")
    keys = cfg.RERANK.SPATIAL
    return SpatialReranker(query, database, keys.MATCHING, keys.MAX_DISTANCE, keys.RATIO, keys.LOCALS,
                           keys.MODEL, keys.ESTIMATOR, keys.THRESHOLD, keys.ITERATIONS, keys.CONFIDENCE,
                           place)


def _asmk(cfg, query: StoredImages, database: StoredImages, folder: Path, place: torch.device) -> Reranker:
    check_local(query, database, "asmk")
    keys = cfg.RERANK.ASMK
    folder = Path(keys.FOLDER or folder / "asmk")
    # The main process first: it leaves the words to the others
    from_main(lambda: open_codebook(database, folder, keys.WORDS, keys.TRAIN_IMAGES, keys.LOCALS, place))
    centres = open_codebook(database, folder, keys.WORDS, keys.TRAIN_IMAGES, keys.LOCALS, place)
    kernel = MatchKernel(centres, keys.BINARY, keys.ALPHA, keys.THRESHOLD, place)
    return ASMKReranker(query, database, kernel, keys.LOCALS, keys.ASSIGNMENTS)


def _superglobal(cfg, query: StoredImages, database: StoredImages, folder: Path,
                 place: torch.device) -> Reranker:
    return SuperGlobalReranker(query, database, cfg.RERANK.SUPERGLOBAL.K, cfg.RERANK.SUPERGLOBAL.BETA)


def _aqe(cfg, query: StoredImages, database: StoredImages, folder: Path, place: torch.device) -> Reranker:
    return ExpansionReranker(query, database, n=cfg.RERANK.AQE.N, alpha=0.0)


def _alpha(cfg, query: StoredImages, database: StoredImages, folder: Path, place: torch.device) -> Reranker:
    return ExpansionReranker(query, database, n=cfg.RERANK.AQE.N, alpha=cfg.RERANK.AQE.ALPHA)


def _kreciprocal(cfg, query: StoredImages, database: StoredImages, folder: Path,
                 place: torch.device) -> Reranker:
    keys = cfg.RERANK.KRECIPROCAL
    return KReciprocalReranker(query, database, keys.K1, keys.K2, keys.LAMBDA)


def _diffusion(cfg, query: StoredImages, database: StoredImages, folder: Path,
               place: torch.device) -> Reranker:
    keys = cfg.RERANK.DIFFUSION
    return DiffusionReranker(query, database, keys.K_GRAPH, keys.K_QUERY, keys.GAMMA, keys.ALPHA)


RERANKERS = {"rrt": _rrt, "spatial": _spatial, "asmk": _asmk, "superglobal": _superglobal, "aqe": _aqe,
             "alpha": _alpha, "kreciprocal": _kreciprocal, "diffusion": _diffusion}


def parse_method(cfg, text: str) -> tuple[str, float]:
    """Name and weight of a method such as "spatial" or "rrt@0.5". Raises UserError for one that is none,
    and for a weight that is no share."""
    name, at, number = text.partition("@")
    choose(RERANKERS, name, "RERANK.METHOD")
    if not at:
        return name, cfg.RERANK.WEIGHT
    try:
        weight = float(number)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= 1:
        raise UserError(f"RERANK.METHOD {text}: the weight behind @ is a share from 0 to 1, such as "
                        f"{name}@0.5")
    return name, weight


def build_reranker(cfg, name: str, query: StoredImages, database: StoredImages, folder: Path,
                   place: torch.device) -> Reranker:
    """The method `name` for these queries and this database; in `folder` it may keep what it learned of
    them."""
    return RERANKERS[name](cfg, query, database, folder, place)


def build_stage(cfg, reranker: Reranker, k: int, weight: float) -> Stage:
    """The reranker in a chain, for the first k."""
    temperatures = {"rrt": cfg.RERANK.RRT.TEMPERATURE, "spatial": cfg.RERANK.SPATIAL.TEMPERATURE}
    return Stage(reranker, k, weight, temperatures.get(reranker.name, 1.0))
