"""What is known of a prepared data set: the manifest.json that `tools/prepare_data.py` leaves in it."""
import json
from pathlib import Path

from dolg.errors import UserError
from dolg.files import file_digest

FILE = "manifest.json"
FORMAT = "dolg data set"

# Folder under DATA_DIR -> the command that makes it
COMMANDS = {
    **{name: f"python tools/prepare_data.py {name}" for name in
       ("roxford5k", "rparis6k", "revisitop1m", "gldv2", "sop", "cub", "cars196", "inshop", "imagenet")},
    **{f"{name}_cropped": f"python tools/prepare_data.py {name}" for name in ("cub", "cars196", "inshop")},
    "landmark": "python tools/prepare_data.py gldv2",       # as the files of the DOLG code call it
    "synthetic": "python tools/make_landmarks.py", "synthetic_train": "python tools/make_landmarks.py"}


def how_to_get(folder: Path) -> str:
    """What to type for a data set's folder that is missing."""
    name = folder.name
    own = f"python tools/prepare_data.py folder (or csv) --name {name} --from YOUR_IMAGES"
    return f"{COMMANDS.get(name, own)} --root {folder.parent} makes it"


def read_manifest(folder: Path) -> dict | None:
    """The manifest of the data set in a folder; None where no command of ours made it.

    Raises UserError where it is damaged.
    """
    try:
        text = (folder / FILE).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        content = json.loads(text)
    except ValueError as error:
        if FORMAT not in text:      # somebody else's file of that name
            return None
        raise UserError(f"{folder / FILE} is damaged ({error}): prepare the data set again") from None
    return content if _is_ours(content) else None


def _is_ours(content: object) -> bool:
    if not isinstance(content, dict) or not isinstance(content.get("counts"), dict):
        return False
    # The synthetic landmarks' manifest has a format of its own: their parameters are all there is to know
    return content.get("format") == FORMAT or (content.get("format") == 1 and "parameters" in content)


def data_record(folder: Path) -> dict | None:
    """What a result says of the data set that it was made from, as plain data: {"name", "variant",
    "counts", "manifest_sha256"}; None where no command of ours made it. Of a folder inside one it is the
    set's."""
    folder = folder.absolute()
    for place in (folder, *folder.parents[:2]):
        if manifest := read_manifest(place):
            counts = {what: found["found"] if isinstance(found, dict) else found
                      for what, found in manifest["counts"].items()}
            return {"name": manifest.get("name", place.name), "variant": manifest.get("variant", ""),
                    "counts": counts, "manifest_sha256": file_digest(place / FILE)}
    return None
