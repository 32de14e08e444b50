"""Which labels count as positive and which as junk, per protocol."""
from collections.abc import Mapping, Sequence

import numpy as np

from revisitop.groundtruth import GroundTruth

# Protocol -> labels that are positives, labels that are taken out of the ranking
# (Radenovic et al., CVPR 2018, section 3). "plain" is for the older ok/junk labels.
PROTOCOLS = {
    "easy": {"ok": ("easy",), "junk": ("junk", "hard")},
    "medium": {"ok": ("easy", "hard"), "junk": ("junk",)},
    "hard": {"ok": ("hard",), "junk": ("junk", "easy")},
    "plain": {"ok": ("ok",), "junk": ("junk",)},
}


def protocols_of(ground_truth: GroundTruth) -> tuple[str, ...]:
    """The protocols that a ground truth has labels for."""
    return ("plain",) if ground_truth.is_plain else ("easy", "medium", "hard")


def split(
    gnd: GroundTruth | Sequence[Mapping[str, Sequence[int]]], protocol: str
) -> list[dict[str, np.ndarray]]:
    """Per query {"ok": positives, "junk": images to leave out}, int64 database indexes.

    gnd: a ground truth, or per query a dict with `easy`, `hard` (`ok` for the protocol "plain") and
    perhaps `junk`. Raises ValueError for an unknown protocol or labels it does not fit.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    entries = gnd.labels if isinstance(gnd, GroundTruth) else gnd
    kinds = PROTOCOLS[protocol]
    lacking = sorted({kind for role in kinds.values() for kind in role} - {"junk"}
                     - set.intersection(*map(set, entries))) if len(entries) else []
    if lacking:
        raise ValueError(f"protocol {protocol!r} needs labels that this ground truth lacks: "
                         f"{', '.join(lacking)}")
    return [{role: np.concatenate([np.asarray(entry.get(kind, ()), np.int64) for kind in kinds[role]])
             for role in ("ok", "junk")} for entry in entries]


def remove_junk(ranking: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """One query's ranking (n,) without its junk images, order kept.

    What rerankers see: with junk among the first k they would rescore fewer images that count.
    """
    ranking = np.asarray(ranking)
    return ranking[~np.isin(ranking, junk)]
