"""tools/rerank.py's work: from a configuration to reranked lists, their scores and their cost."""
import hashlib
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from dolg.core.distributed import device, gather, is_main, rank, world_size
from dolg.core.logging import say
from dolg.errors import UserError
from dolg.features.run import features_folder
from dolg.features.store import FeatureStore
from dolg.files import write_atomically
from dolg.rerank.builders import RERANKERS, build_reranker, build_stage, parse_method
from dolg.rerank.evaluation import Benchmark, evaluate_lists, open_benchmark
from dolg.rerank.images import StoredImages
from dolg.rerank.interface import PairReranker, Reranker, Stage, rerank_list
from dolg.rerank.lists import named, read_lists, search_lists
from dolg.rerank.pairs import PairScores
from dolg.rerank.table import format_table
from dolg.search.collection import Collection, store_digest
from dolg.search.counting import counting_options
from dolg.search.rankings import Ranking
from revisitop import load_ground_truth
from revisitop.commands import write_json
from revisitop.evaluation import check_made_alike, warn_unrecorded
from revisitop.record import notes


class Reranking:
    """The stores, the lists and the rerankers of a run, each opened or made once."""

    def __init__(self, cfg, chains: Sequence[Sequence[str]], across: bool = False):
        if not all(chains):
            raise UserError(f"RERANK.METHOD is empty: give one or more of {', '.join(sorted(RERANKERS))}")
        for method in chain.from_iterable(chains):
            parse_method(cfg, method)       # before the stores are searched
        self.cfg, self.chains, self.place = cfg, chains, device(cfg.DEVICE)
        self.folder = Path(cfg.RERANK.OUT_DIR or Path(cfg.OUT_DIR) / "rerank")
        query, database, distractors, self.truth = _places_of(cfg)
        self.query = FeatureStore(query, across)
        self.database = Collection([FeatureStore(path, across) for path in (database, *distractors)])
        check_made_alike([self.query, *self.database.stores])
        self.images = StoredImages([self.query]), StoredImages(self.database.stores)
        self._rerankers: dict[str, Reranker] = {}
        self.benchmark = self._open_benchmark()
        self.lists = self._open_lists()

    def stages(self, methods: Sequence[str], k: int) -> list[Stage]:
        """A chain of methods that rerank the first k."""
        parsed = [parse_method(self.cfg, method) for method in methods]
        return [build_stage(self.cfg, self._reranker(name), k, weight) for name, weight in parsed]

    def reranked(self, stages: Sequence[Stage]) -> Ranking:
        """The lists as a chain leaves them, junk and all: of what a search without labels would show. Each
        process does its share, the queries that it did when they were scored; all must call this."""
        indexes, scores = self.lists.indexes.copy(), self.lists.scores.copy()
        rows = self.benchmark.query_rows if self.benchmark else np.arange(len(indexes))
        mine = rows[rank()::world_size()].tolist()
        found = {row: rerank_list(stages, row, indexes[row], scores[row]) for row in mine}
        for part in gather(found):
            for row, (reranked, new) in part.items():
                indexes[row], scores[row] = reranked, new
        settings = {"lists": self.lists.settings, "methods": [stage.reranker.name for stage in stages]}
        return Ranking(indexes, scores, settings, self.lists.query, self.lists.database)

    def files(self, lists: Path | str) -> dict:
        """What a result is made of; `lists` is the file of what it ranks, if that is not what a search
        finds."""
        database, *distractors = (store.path for store in self.database.stores)
        files = {"ground_truth": self.truth, "query": self.query.path, "database": database,
                 "distractors": distractors}
        return {**files, "lists": lists} if lists else files

    def _open_benchmark(self) -> Benchmark | None:
        if self.truth is None:
            return None
        return open_benchmark(load_ground_truth(self.truth), self.query, self.database,
                              ranked=not self.cfg.RERANK.RANKING, **counting_options(self.place))

    def _open_lists(self) -> Ranking:
        if self.cfg.RERANK.RANKING:
            return read_lists(Path(self.cfg.RERANK.RANKING), self.query, self.database)
        k = max(self.cfg.RERANK.TOP_K)
        if self.benchmark:
            k += self.benchmark.most_junk
        return search_lists(self.query, self.database, k, self.place)

    def _reranker(self, name: str) -> Reranker:
        if name not in self._rerankers:
            reranker = build_reranker(self.cfg, name, *self.images, self.folder, self.place)
            if isinstance(reranker, PairReranker):
                reranker.known = PairScores(self.folder / "pairs" / f"{name}-{self._digest(reranker)}")
            self._rerankers[name] = reranker
        return self._rerankers[name]

    def _digest(self, reranker: Reranker) -> str:
        """Of all that a pair's score depends on."""
        parts = [reranker.name, reranker.settings, store_digest(self.query), self.database.digests]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def rerank(cfg, chains: Sequence[Sequence[str]] = (), across: bool = False) -> dict[str, dict]:
    """Rerank as `cfg` says, by RERANK.METHOD or by each of several `chains` of methods.

    Writes the reranked lists of each method and RERANK.TOP_K to RERANK.OUT_DIR as NAME.csv; with a ground
    truth, prints a table, and writes the results as NAME.json, in the form of
    `revisitop/evaluate.py --json`. Returns name -> result. `across` takes stores that were made with
    different settings. In a process group all do their share; each process must call this.
    """
    run = Reranking(cfg, chains or [cfg.RERANK.METHOD], across)
    results, before = {}, "lists" if cfg.RERANK.RANKING else "global"
    lists = {before: cfg.RERANK.RANKING}
    if run.benchmark:
        results[before] = evaluate_lists(run.benchmark, run.lists, [])
    for methods in run.chains:
        for k in cfg.RERANK.TOP_K:
            name, stages = f"{'+'.join(methods)}_top{k}", run.stages(methods, k)
            if run.benchmark:
                results[name] = evaluate_lists(run.benchmark, run.lists, stages, cfg.RERANK.REMOVE_JUNK)
            lists[name], ranking = run.folder / f"{name}.csv", run.reranked(stages)
            if is_main():
                _write_lists(run, lists[name], ranking)
    if is_main() and results:
        for name, result in results.items():
            write_json(run.folder / f"{name}.json", result, run.files(lists[name]))
        table = format_table(results)
        write_atomically(run.folder / "table.md", table + "\n")
        for line in [*table.splitlines(), *notes(results[before])]:
            say(line)
        say(f"results: {run.folder}/*.json; are the differences real? "
            f"python revisitop/compare.py {run.folder}/FIRST.json {run.folder}/SECOND.json")
    if is_main():
        warn_unrecorded([run.query, *run.database.stores])
    return results


def with_dataset(cfg, name: str):
    """The configuration with INFER.DATASET `name`."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INFER.DATASET = name
    return cfg


def _write_lists(run: Reranking, file: Path, ranking: Ranking) -> None:
    text = named(ranking, run.query, run.database).csv()
    write_atomically(file, text.encode(errors="surrogateescape"))
    if not run.benchmark:
        say(f"{file}: {run.query.count} queries")


def _places_of(cfg) -> tuple[Path, Path, list[Path], Path | None]:
    """Stores of the queries, the database and distractors, and the ground truth, None: there is none."""
    keys = cfg.RERANK
    name = cfg.INFER.DATASET
    if bool(keys.QUERY) != bool(keys.DATABASE):
        raise UserError("RERANK.QUERY and RERANK.DATABASE go together: give both stores, or neither and "
                        "INFER.DATASET")
    if not keys.QUERY and not name:
        raise UserError("nothing to rerank: give RERANK.QUERY and RERANK.DATABASE, or INFER.DATASET, whose "
                        "stores are in INFER.OUT_DIR")
    distractors = [Path(path) for path in keys.DISTRACTORS]
    if keys.QUERY:
        return Path(keys.QUERY), Path(keys.DATABASE), distractors, Path(keys.GND) if keys.GND else None
    features, truth = features_folder(cfg) / name, Path(cfg.INFER.DATA_DIR or cfg.DATA_DIR) / name
    return (features / "query", features / "database", distractors,
            Path(keys.GND or truth / f"gnd_{name}.pkl"))
