"""Evaluation on Revisited Oxford and Paris (Radenovic et al., CVPR 2018); needs NumPy only."""
from revisitop.comparison import Comparison, compare_aps
from revisitop.counting import count_ranks
from revisitop.evaluation import evaluate_stores, format_table
from revisitop.groundtruth import GroundTruth, GroundTruthError, load_ground_truth
from revisitop.metrics import MapResult, average_precision, compute_map
from revisitop.protocol import PROTOCOLS, remove_junk, split
from revisitop.record import ResultError, differences, load_result
from revisitop.stores import Store, StoreError

__all__ = [
    "PROTOCOLS", "Comparison", "GroundTruth", "GroundTruthError", "MapResult", "ResultError",
    "Store", "StoreError", "average_precision", "compare_aps", "compute_map", "count_ranks",
    "differences", "evaluate_stores", "format_table", "load_ground_truth", "load_result",
    "remove_junk", "split",
]
