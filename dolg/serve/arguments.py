"""What the commands that ask a database have in common on their command line."""
from collections.abc import Sequence
from pathlib import Path

from dolg.config import get_cfg


def without_keys(*lists: Sequence[str]) -> tuple[list[list[Path]], list[str]]:
    """Lists of paths, such as `--index A B` gives, without the KEY VALUE that stood behind the last of
    them, and these. A word is a key where it begins as one and is no file."""
    sections, paths, keys = set(get_cfg()), [], []
    for given in lists:
        first = next((number for number, word in enumerate(given)
                      if word.partition(".")[0] in sections and not Path(word).exists()), len(given))
        paths.append([Path(word) for word in given[:first]])
        keys += given[first:]
    return paths, keys
