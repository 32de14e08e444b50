"""Evaluation on Revisited Oxford and Paris (Radenovic et al., CVPR 2018); needs NumPy only."""
from revisitop.counting import count_ranks
from revisitop.evaluation import evaluate_stores, format_table
from revisitop.groundtruth import GroundTruth, GroundTruthError, load_ground_truth
from revisitop.metrics import MapResult, average_precision, compute_map
from revisitop.protocol import PROTOCOLS, remove_junk, split
from revisitop.stores import Store, StoreError

__all__ = [
    "PROTOCOLS", "GroundTruth", "GroundTruthError", "MapResult", "Store", "StoreError",
    "average_precision", "compute_map", "count_ranks", "evaluate_stores", "format_table",
    "load_ground_truth", "remove_junk", "split",
]
