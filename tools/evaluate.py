"""revisitop/evaluate.py on a GPU, and under torchrun by several processes or machines: see --help."""
from dolg.core.cli import run
from dolg.core.distributed import device, is_main, process_group
from dolg.errors import UserError
from dolg.search.counting import counting_options
from revisitop import GroundTruthError, StoreError, format_table
from revisitop.commands import UsageError, show
from revisitop.evaluate import build_parser, evaluate, files_of, open_stores
from revisitop.evaluation import warn_unrecorded


def main() -> None:
    parser = build_parser()
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto",
                        help="auto: a GPU where there is one")
    try:
        args = parser.parse_args()
        with process_group(args.device):
            result = evaluate(args, **counting_options(device(args.device)))
            if is_main():
                show(format_table(result), result, args.json, files_of(args))
                warn_unrecorded(open_stores(args))
    except (UsageError, GroundTruthError, StoreError) as error:
        raise UserError(str(error)) from None


if __name__ == "__main__":
    run(main)
