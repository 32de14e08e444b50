"""Revisited Oxford and Paris (Radenovic et al., CVPR 2018), and their million distractors."""
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath

from dolg.core.logging import say
from dolg.errors import UserError
from dolg.prepare.catalogue import (GROUND_TRUTHS, OLDER_IMAGES, REVISITED_IMAGES, REVISITOP1M_IMAGES,
                                    REVISITOP1M_LIST)
from dolg.prepare.lists import Prepared, present, write_list
from dolg.prepare.work import Unit, Work
from revisitop.groundtruth import GroundTruthError, load_ground_truth

BLURRED, ORIGINAL = "faces blurred (2022)", "original"
_LIST = "revisitop1m.txt"
_LINKED = "images"


def prepare(work: Work, variant: str) -> Prepared:
    """Revisited Oxford or Paris: jpg/ with the images that the ground truth names, and nothing else.

    The archives that are published today have their faces blurred; most published figures were measured on
    the original ones, which --from takes under their own names. `variant` says which the images of an
    unpacked folder are, where nothing else tells.
    """
    name = work.dataset.name
    work.obtain([Unit(GROUND_TRUTHS[name])])
    try:
        truth = load_ground_truth(work.folder / f"gnd_{name}.pkl")
    except GroundTruthError as error:
        raise UserError(str(error)) from None
    files = [f"{image}.jpg" for image in (*truth.images, *truth.queries)]
    found = variant
    if not _link_images(work, files):
        found = variant or _unpack_images(work, set(files))
    present(work.folder / "jpg", files, f"images of {name}", partial=None)
    say(f"image variant: {found or 'not known (--variant TEXT records it)'}"
        + ("; published figures are mostly of the original images" if found == BLURRED else ""))
    return Prepared({"queries": len(truth.queries), "database images": len(truth.images)}, variant=found)


def prepare_distractors(work: Work, archives: int | None) -> Prepared:
    """The distractors: jpg/ with all images, and the list of their paths; of the first `archives` alone,
    or of all with None."""
    work.partial = work.partial or archives is not None
    work.obtain([Unit(REVISITOP1M_LIST, "downloads")])
    text = (work.folder / "downloads" / _LIST).read_text(encoding="utf-8")
    names = [line.strip().removeprefix("jpg/") for line in text.splitlines() if line.strip()]
    if not names:
        raise UserError(f"{work.folder / 'downloads' / _LIST} is empty: delete it")
    if not work.adopt("jpg", names[0]):
        work.obtain([Unit(item, "jpg", _below("jpg")) for item in REVISITOP1M_IMAGES[:archives]])
    paths = [f"jpg/{name}" for name in names]
    there = present(work.folder, paths, "distractors", work.partial)
    write_list(work.folder / _LIST, [path for path, is_there in zip(paths, there) if is_there])
    return Prepared({"distractors": int(there.sum())}, [_LIST])


def _unpack_images(work: Work, files: set[str]) -> str:
    """Unpack the archives' images into jpg/; their variant."""
    items = REVISITED_IMAGES[work.dataset.name]
    place = partial(_by_name, files)
    marks = work.obtain([Unit(item, "jpg", place, also={OLDER_IMAGES[item.name]: ORIGINAL})
                         for item in items])
    variants = {mark.get("variant", BLURRED) for mark in marks.values()}
    if len(variants) > 1:
        raise UserError(f"the archives are of different variants ({', '.join(sorted(variants))}): delete "
                        f"{work.folder} and give those of one")
    return "".join(variants)


def _by_name(wanted: set[str], member: str) -> str | None:
    """A wanted image's own name, from whatever folder of the archive."""
    name = PurePosixPath(member).name
    return name if name in wanted else None


def _below(folder: str) -> Callable[[str], str]:
    """Members as they are, without the folder that they may be in."""
    return lambda member: member.removeprefix("./").removeprefix(f"{folder}/")


def _link_images(work: Work, files: list[str]) -> bool:
    """Whether jpg/ has links to images unpacked by hand, which it gets where all are below --from."""
    if work.given is None or work.mark(_LINKED) is not None:
        return work.mark(_LINKED) is not None
    found, wanted = {}, set(files)
    for path in sorted(work.given.rglob("*.jpg")):
        if path.name in wanted and found.setdefault(path.name, path) is not path:
            raise UserError(f"--from {work.given} has {path.name} twice, {found[path.name]} and {path}: "
                            "give a folder with one copy")
    if len(found) < len(files):
        return False
    target = work.folder / "jpg"
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        (target / file).unlink(missing_ok=True)
        (target / file).symlink_to(found[file].absolute())
    work.finish(_LINKED, {"linked": str(work.given.absolute())})
    say(f"{target} has links to {len(files)} images below {work.given}")
    return True
