"""What every command has in common: --cfg FILE [KEY VALUE ...], and one line per mistake."""
import argparse
import re
import sys
from collections.abc import Callable

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from dolg.config import load_cfg
from dolg.core.memory import keep_freed_memory
from dolg.data.decode import ImageError
from dolg.errors import UserError
from revisitop.printing import guard_output, one_line


def config_parser(description: str) -> argparse.ArgumentParser:
    """A parser of --cfg FILE [KEY VALUE ...], to which a command may add its own arguments; for
    `parse_with_keys`."""
    parser = argparse.ArgumentParser(
        description=description, epilog="All keys and their meaning: dolg/config.py")
    parser.add_argument("--cfg", metavar="FILE", required=True, help="a YAML file of configs/")
    return parser


def parse_with_keys(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What the command line asks for; KEY VALUE may stand anywhere, and are in `opts`."""
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE",
                        help="keys to change, such as OPTIM.BASE_LR 0.05; all are in dolg/config.py")
    # Where options stand between them, argparse leaves arguments without a name over
    args, left_over = parser.parse_known_args()
    strange = [word for word in left_over if re.match("--?[a-zA-Z]", word)]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    args.opts += left_over
    return args


def config_from_args(description: str):
    """The configuration that the command line asks for."""
    args = parse_with_keys(config_parser(description))
    return load_cfg(args.cfg, args.opts)


def run(main: Callable[[], None]) -> None:
    """Call `main` and leave with status 0; after a user's mistake, say it and leave with 1."""
    keep_freed_memory()
    guard_output()
    try:
        main()
    except (UserError, ImageError, OSError) as error:       # OSError: a full disk, no permission
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except ChildFailedError:
        sys.exit(1)     # the worker has said what happened
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
