"""Compare the results of methods on a benchmark, query by query; see --help.

    python revisitop/compare.py FIRST.json SECOND.json [THIRD.json ...] [--protocol medium] \\
        [--samples 10000] [--seed 0] [--json OUT] [--across]
"""
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__" and not __package__:
    # Run as a file, the search path begins with this folder in place of the one around it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from revisitop.commands import Parser, UsageError, run, show  # noqa: E402
from revisitop.comparison import LEVEL, Comparison, compare_aps, points  # noqa: E402
from revisitop.names import find_names  # noqa: E402
from revisitop.printing import one_line  # noqa: E402
from revisitop.record import (  # noqa: E402
    ResultError, check_comparable, differences, load_result, map_heading, title,
)

# Largest wins and losses that are listed
_LISTED = 5


class Pair(NamedTuple):
    """A result against the first. What both have is compared, in the first's order: `indexes` are
    those that queries have in the first result, `queries` their names there."""

    first: str
    second: str
    indexes: list[int]
    queries: list[str]
    comparison: Comparison


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description="A table of results, and for each after the first whether it "
                                "differs from the first by more than chance.")
    add = parser.add_argument
    add("results", nargs="+", metavar="RESULT.json",
        help="what revisitop/evaluate.py --json wrote; the others are compared with the first")
    add("--protocol", default="medium", metavar="NAME",
        help="whose AP is compared: easy, medium, hard or plain (default: medium)")
    add("--samples", type=int, default=10_000, metavar="N",
        help="random samples of interval and p value (default: 10000)")
    add("--seed", type=int, default=0, help="of the samples (default: 0)")
    add("--json", type=Path, metavar="OUT", help="file for the comparisons")
    add("--across", action="store_true",
        help="compare results of different protocols as well, and say what differs")
    return parser


def load_results(args: argparse.Namespace) -> dict[str, dict]:
    """The results by file, those of one protocol unless `--across`."""
    if len(set(args.results)) < 2 or len(set(args.results)) < len(args.results):
        raise UsageError("give two results or more, each once")
    results = {path: load_result(path) for path in args.results}
    for path, result in results.items():
        if args.protocol not in result["protocols"]:
            raise UsageError(f"{path} has no protocol {args.protocol!r}: choose by --protocol one "
                             f"of {', '.join(result['protocols'])}")
    if not args.across:
        check_comparable(results)
    return results


def compare_with_first(results: dict[str, dict], protocol: str, samples: int,
                       seed: int) -> list[Pair]:
    """Each later result against the first. Raises ResultError where they share no queries."""
    (first, result), *others = results.items()
    pairs = []
    for second, other in others:
        try:
            indexes, queries, *aps = _paired_aps(result, other, protocol)
            pairs.append(Pair(first, second, indexes, queries, compare_aps(*aps, samples, seed)))
        except ValueError as error:
            raise ResultError(f"{first} and {second} cannot be compared: {error}") from None
    return pairs


def _paired_aps(first: dict, second: dict,
                protocol: str) -> tuple[list[int], list[str], list, list]:
    """Of the queries that both results have, the index in the first, the name, and the AP in both.

    By name where both give names, else by place. Raises ValueError where they have no query in
    common or, without names, different numbers of queries.
    """
    before, after = (result["protocols"][protocol]["ap"] for result in (first, second))
    names, others = (result.get("query_names") for result in (first, second))
    if names is None or others is None:
        if len(before) != len(after):
            raise ValueError(f"they have {len(before)} and {len(after)} queries")
        indexes = list(range(len(before)))
        return indexes, names or others or [f"query {q}" for q in indexes], before, after
    found = find_names(names, others).tolist()
    common = [q for q, other in enumerate(found) if other >= 0]
    return (common, [names[q] for q in common], [before[q] for q in common],
            [after[found[q]] for q in common])


def format_table(results: dict[str, dict]) -> str:
    """mAP and mP@10 of all results, in percent, a row each."""
    first = next(iter(results.values()))
    protocols = list(first["protocols"])
    headings = {"mAP": map_heading(results.values()), "mP@10": "mP@10"}
    width = {metric: max(9, (len(heading) + 2 + len(protocols)) // len(protocols))
             for metric, heading in headings.items()}
    wide = max(map(len, results)) + 2
    lines = [title(first), "", " " * wide + "".join(
        f"{heading:>{width[metric] * len(protocols)}}" for metric, heading in headings.items())]
    lines.append(" " * wide + "".join(f"{protocol.capitalize():>{width[metric]}}"
                                      for metric in headings for protocol in protocols))
    for name, result in results.items():
        lines.append(f"{name:{wide}}" + "".join(
            f"{_cell(result['protocols'].get(protocol, {}).get(metric)):>{width[metric]}}"
            for metric in headings for protocol in protocols))
    return "\n".join(lines)


def _cell(figure: float | None) -> str:
    return "-" if figure is None else f"{100 * figure:.2f}"


def format_pair(pair: Pair, protocol: str) -> str:
    """A comparison in words."""
    comparison = pair.comparison
    return "\n".join([
        f"{pair.second} against {pair.first}",
        f"  {comparison.sentence(f'mAP {protocol.capitalize()}')}",
        f"  {comparison.wins} wins, {comparison.losses} losses, {comparison.ties} ties",
        *(f"  largest {kind}: " + ", ".join(
            f"{points(change)} {one_line(pair.queries[query])} ({pair.indexes[query]})"
            for query, change in found)
          for kind, sign in (("wins", 1), ("losses", -1))
          if (found := comparison.largest(_LISTED, sign)))])


def format_differences(results: dict[str, dict]) -> Sequence[str]:
    """A line for each result whose protocol is not the first's."""
    (first, result), *others = results.items()
    return [f"not of one protocol: {first} and {second} differ in {'; '.join(found)}"
            for second, other in others if (found := differences(result, other))]


def as_json(results: dict[str, dict], pairs: Sequence[Pair], args: argparse.Namespace) -> dict:
    """What --json writes; shares in 0..1, `query` the index in the first result."""
    return {"metric": "mAP", "protocol": args.protocol, "samples": args.samples, "seed": args.seed,
            "level": LEVEL, "results": {name: _without_queries(result)
                                        for name, result in results.items()},
            "comparisons": [_pair_as_json(results, pair) for pair in pairs]}


def _without_queries(result: dict) -> dict:
    """A result's protocol and means."""
    means = {protocol: {metric: figure for metric, figure in figures.items() if metric != "ap"}
             for protocol, figures in result["protocols"].items()}
    return {"dataset": result.get("dataset"), "protocols": means,
            "protocol": result.get("protocol")}


def _pair_as_json(results: dict[str, dict], pair: Pair) -> dict:
    comparison = pair.comparison
    low, high = comparison.interval
    changes = [{"query": pair.indexes[query], "name": pair.queries[query], "change": change}
               for query, change in zip(comparison.queries.tolist(), comparison.changes.tolist())]
    return {"first": pair.first, "second": pair.second,
            "differences": differences(results[pair.first], results[pair.second]),
            "change": comparison.mean, "interval": [low, high], "p": comparison.p_value,
            "distinguishable": comparison.is_distinguishable, "wins": comparison.wins,
            "losses": comparison.losses, "ties": comparison.ties, "queries": changes}


def main() -> None:
    args = build_parser().parse_args()
    if args.samples < 1 or args.seed < 0:
        raise UsageError("give --samples from 1 and --seed from 0")
    results = load_results(args)
    pairs = compare_with_first(results, args.protocol, args.samples, args.seed)
    lines = [*format_differences(results), format_table(results)]
    lines += [f"\n{format_pair(pair, args.protocol)}" for pair in pairs]
    if len(pairs) > 1:
        lines.append(f"\np values are not corrected for {len(pairs)} comparisons")
    show("\n".join(lines), as_json(results, pairs, args), args.json)


if __name__ == "__main__":
    run(main, ResultError)
