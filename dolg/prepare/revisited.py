"""Revisited Oxford and Paris (Radenovic et al., CVPR 2018), and their million distractors."""
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

from dolg.core.logging import say
from dolg.errors import UserError
from dolg.prepare.catalogue import (GROUND_TRUTHS, OLDER_IMAGES, REVISITED_IMAGES, REVISITOP1M_IMAGES,
                                    REVISITOP1M_LIST)
from dolg.prepare.lists import UNPACK_AGAIN, Prepared, present, write_list
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
    if _link_images(work, files):
        found = variant or (work.mark(_LINKED) or {}).get("variant", "")
    else:
        found = _unpack_images(work, set(files))
        if variant not in ("", found):
            raise UserError(f"--variant is {variant}, and the archives are of the variant {found}: "
                            "leave it out")
    present(work.folder / "jpg", files, f"images of {name}", False,
            "give the folder with all of them with --from, or delete jpg and .prepared to begin anew")
    work.finish(_LINKED, {"variant": found})
    say(f"image variant: {found or 'not known (--variant TEXT records it)'}"
        + ("; published figures are mostly of the original images" if found == BLURRED else ""))
    return Prepared({"queries": len(truth.queries), "database images": len(truth.images)}, variant=found)


def prepare_distractors(work: Work, archives: int | None) -> Prepared:
    """The distractors: jpg/ with all images, and the list of their paths; of the first `archives` alone,
    or of all with None."""
    work.partial = work.partial or archives is not None
    work.obtain([Unit(REVISITOP1M_LIST, "published")])
    table = work.folder / "published" / _LIST
    text = table.read_text(encoding="utf-8", errors="replace")
    names = [line.strip().removeprefix("jpg/") for line in text.splitlines() if line.strip()]
    if not names:
        raise UserError(f"{table} is empty: delete it")
    if not work.adopt("jpg", names[0]):
        work.obtain([Unit(item, "jpg", _below("jpg")) for item in REVISITOP1M_IMAGES[:archives]])
    paths = [f"jpg/{name}" for name in names]
    there = present(work.folder, paths, "distractors", work.partial, UNPACK_AGAIN)
    write_list(work.folder / _LIST, [path for path, is_there in zip(paths, there) if is_there])
    return Prepared({"distractors": int(there.sum())}, [_LIST])


def _unpack_images(work: Work, files: set[str]) -> str:
    """Unpack the archives' images into jpg/; their variant."""
    for file in files:      # links of an earlier command, which nothing is to be written through
        if (work.folder / "jpg" / file).is_symlink():
            (work.folder / "jpg" / file).unlink()
    place = partial(_by_name, files)
    marks = work.obtain([Unit(item, "jpg", place, also={OLDER_IMAGES[item.name]: ORIGINAL})
                         for item in REVISITED_IMAGES[work.dataset.name]])
    _check_given(work, marks)
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


def _check_given(work: Work, marks: dict[str, dict]) -> None:
    """Raise UserError where --from has archives of another variant than were unpacked."""
    for path, mark in marks.items():
        others = [name for name in (path, OLDER_IMAGES[path]) if name != mark["file"]]
        for name in others if work.given else ():
            if (work.given / name).is_file() and not (work.given / mark["file"]).is_file():
                raise UserError(f"{work.folder} has the images of {mark['file']}, and --from {name}: "
                                "delete jpg and .prepared there to take these")


def _link_images(work: Work, files: list[str]) -> bool:
    """Whether jpg/ has images unpacked by hand: links, which it gets where all are below --from, or the
    images themselves, which stay."""
    target = work.folder / "jpg"
    if work.given is None:
        return any((target / file).is_symlink() for file in files)
    found = _images_below(work.given, set(files), target)
    if len(found) < len(files):
        return False
    target.mkdir(parents=True, exist_ok=True)
    links = [file for file in files if found[file].parent.resolve() != target.resolve()]
    for file in links:
        if (target / file).is_symlink() or not (target / file).exists():
            (target / file).unlink(missing_ok=True)
            (target / file).symlink_to(found[file].absolute())
    if links:
        say(f"{target} has links to {len(links)} images below {work.given}")
    return True


def _images_below(given: Path, wanted: set[str], target: Path) -> dict[str, Path]:
    """Where each image is, links in `target` left aside. Raises UserError where one is in two places."""
    found = {}
    for folder, _, names in os.walk(given):
        for name in wanted.intersection(names):
            path = Path(folder, name)
            if path.is_symlink() and path.parent.resolve() == target.resolve():
                continue
            if found.setdefault(name, path) is not path:
                raise UserError(f"--from {given} has {name} twice, {found[name]} and {path}: give a folder "
                                "with one copy")
    return found
