"""Weights by name, fetched where there is a network."""
import re
from pathlib import Path
from urllib.error import URLError

import torch

from dolg.core.distributed import barrier, is_main
from dolg.errors import UserError, closest

TORCHVISION = "torchvision://"


def weights_file(name: str) -> Path:
    """The file that `name` means: a path, or torchvision://NETWORK[/VERSION], fetched if need be.

    VERSION is one of torchvision's, such as IMAGENET1K_V2; the default is its first.
    """
    if not name.startswith(TORCHVISION):
        return Path(name)
    url = torchvision_url(name.removeprefix(TORCHVISION))
    return fetch(url, Path(torch.hub.get_dir()) / "checkpoints")


def torchvision_url(name: str) -> str:
    """Where torchvision keeps the weights NETWORK[/VERSION]. Raises UserError for others."""
    from torchvision.models import get_model_weights, list_models

    network, _, version = name.partition("/")
    if network not in list_models():
        raise UserError(f"torchvision has no network '{network}'"
                        f"{closest(network, list_models())}")
    versions = {weights.name: weights.url for weights in get_model_weights(network)}
    version = version or min(versions)
    if version not in versions:
        raise UserError(f"torchvision has no weights '{version}' of {network}: choose one of "
                        f"{', '.join(versions)}")
    return versions[version]


def fetch(url: str, folder: Path) -> Path:
    """The file at `url`, in `folder`, whole; one that is there already is taken as it is.

    A name that ends in -HASH.pth, as torchvision's do, is checked against the file's SHA-256.
    The main process fetches, the others wait. Raises UserError without a network, and where
    the hash differs.
    """
    file = folder / url.rpartition("/")[2]
    failure = None
    if is_main() and not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        digest = re.search(r"-([0-9a-f]{8,64})$", file.stem)
        try:
            torch.hub.download_url_to_file(url, str(file), hash_prefix=digest and digest[1])
        except (URLError, OSError, RuntimeError) as error:
            failure = UserError(f"cannot fetch {url}: {' '.join(str(error).split())}; fetch it "
                                f"yourself and give its path, or put it into {folder}")
    barrier()
    if failure:
        raise failure
    return file
