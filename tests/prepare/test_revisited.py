"""Revisited Oxford, Paris and the distractors, from archives in their layouts."""
import shutil

import numpy as np
import pytest

from dolg.data.manifest import data_record
from dolg.errors import UserError
from dolg.features.sources import images_of, revisited_set
from dolg.prepare.catalogue import DATA_SETS, REVISITOP1M_LIST
from dolg.prepare.record import write_manifests
from dolg.prepare.revisited import BLURRED, ORIGINAL, prepare, prepare_distractors
from dolg.prepare.unpack import unpack
from dolg.prepare.work import Unit, Work
from tests.prepare.landmark_miniatures import (make_distractors, make_oxford, make_paris, write_tar,
                                               write_truth)


@pytest.fixture
def oxford(tmp_path):
    return tmp_path / "web", *make_oxford(tmp_path / "web", np.random.default_rng(0))


@pytest.fixture
def paris(tmp_path):
    return tmp_path / "web", *make_paris(tmp_path / "web", np.random.default_rng(0))


def _work(name, tmp_path, given, **options) -> Work:
    return Work(DATA_SETS[name], tmp_path / "data", given, unverified=True, **options)


def test_oxford(tmp_path, oxford):
    web, images, names = oxford
    prepared = prepare(_work("roxford5k", tmp_path, web), "")
    folder = tmp_path / "data" / "roxford5k"
    assert {file.name: file.read_bytes() for file in (folder / "jpg").iterdir()} == \
        {f"{name}.jpg": images[f"{name}.jpg"] for name in names[:5]}        # and not the sixth
    assert prepared.counts == {"queries": 2, "database images": 3} and prepared.variant == BLURRED
    sources = revisited_set(tmp_path / "data", "roxford5k", crop_queries=True)
    assert list(sources["query"].names) == names[3:5] and list(sources["database"].names) == names[:3]


def test_paris(tmp_path, paris):
    web, images, names = paris
    prepared = prepare(_work("rparis6k", tmp_path, web), "")
    folder = tmp_path / "data" / "rparis6k" / "jpg"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == images
    assert prepared.counts == {"queries": 2, "database images": 4}


def test_the_original_archive_is_recorded_as_such(tmp_path, oxford, capsys):
    web, _, _ = oxford
    (web / "oxbuild_images-v1.tgz").rename(web / "oxbuild_images.tgz")
    work = _work("roxford5k", tmp_path, web)
    prepared = prepare(work, "")
    assert prepared.variant == ORIGINAL and "image variant: original" in capsys.readouterr().out
    write_manifests(work, prepared, {})
    record = data_record(work.folder / "jpg")
    assert record["name"] == "roxford5k" and record["variant"] == ORIGINAL
    assert record["counts"] == {"queries": 2, "database images": 3}


def test_archives_of_two_variants_are_not_mixed(tmp_path, paris):
    web, _, _ = paris
    (web / "paris_1-v1.tgz").rename(web / "paris_1.tgz")
    with pytest.raises(UserError, match=r"different variants \(faces blurred .*, original\): delete"):
        prepare(_work("rparis6k", tmp_path, web), "")


def test_unpacked_images_are_linked_wherever_they_are(tmp_path, paris):
    web, images, _ = paris
    mine = tmp_path / "mine"
    for number, (name, content) in enumerate(images.items()):
        (mine / "paris" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        (mine / "paris" / str(number % 2) / name).write_bytes(content)
    write_truth(mine, "rparis6k", [name.removesuffix(".jpg") for name in list(images)[:4]],
           [name.removesuffix(".jpg") for name in list(images)[4:]])
    prepared = prepare(_work("rparis6k", tmp_path, mine), "my copy")
    folder = tmp_path / "data" / "rparis6k" / "jpg"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == images
    assert all(file.is_symlink() for file in folder.iterdir()) and prepared.variant == "my copy"
    again = prepare(Work(DATA_SETS["rparis6k"], tmp_path / "data"), "my copy")      # nothing is downloaded
    assert again == prepared
    (mine / "paris" / "twice").mkdir()
    (mine / "paris" / "twice" / next(iter(images))).write_bytes(b"another")
    with pytest.raises(UserError, match="has paris_defense_000000.jpg twice"):
        prepare(_work("rparis6k", tmp_path / "other", mine), "")


def test_a_missing_image_and_a_damaged_truth(tmp_path, oxford):
    web, images, names = oxford
    write_tar(web / "oxbuild_images-v1.tgz", {f"{name}.jpg": images[f"{name}.jpg"] for name in names[1:]})
    message = "of the 5 images of roxford5k, 1 are not in .*: all_souls_000000.jpg .give the"
    with pytest.raises(UserError, match=message):
        prepare(_work("roxford5k", tmp_path, web), "")
    (web / "roxford5k" / "gnd_roxford5k.pkl").write_bytes(b"cos\nsystem\n")
    with pytest.raises(UserError, match="gnd_roxford5k.pkl"):
        prepare(_work("roxford5k", tmp_path / "other", web), "")
    message = "gnd_roxford5k.pkl has the MD5 .* f2b67579f625a587b5b0828dbf2e8eb0 is pub"
    with pytest.raises(UserError, match=message):
        prepare(Work(DATA_SETS["roxford5k"], tmp_path / "third", web), "")


def test_published_ground_truths_have_the_digests_of_the_table(tmp_path, shared, oxford):
    """The real files, and archives without their images."""
    web, _, _ = oxford
    for name in ("roxford5k", "rparis6k"):
        file = f"gnd_{name}.pkl"
        (web / name).mkdir(exist_ok=True)
        (web / name / file).write_bytes((shared / "data" / file).read_bytes())
    with pytest.raises(UserError, match="of the 5063 images of roxford5k, 50[0-9][0-9] are not in"):
        prepare(Work(DATA_SETS["roxford5k"], tmp_path / "data", web), "")
    assert (tmp_path / "data" / "roxford5k" / "gnd_roxford5k.pkl").exists()


@pytest.mark.parametrize("prefix", ["", "jpg/", "./jpg/"])
def test_distractors(tmp_path, prefix):
    """Archives with or without their folder; the list names what is there."""
    web = tmp_path / "web"
    files = make_distractors(web, np.random.default_rng(0), prefix)
    work = Work(DATA_SETS["revisitop1m"], tmp_path / "data", web)
    prepared = prepare_distractors(work, 3)
    assert prepared.counts == {"distractors": 12} and prepared.lists == ["revisitop1m.txt"]
    source = images_of(work.folder / "revisitop1m.txt")
    found = {source.names[i].removeprefix("jpg/"): source.path(i).read_bytes() for i in range(len(source))}
    assert found == files
    assert list(source.names) == [f"jpg/{name}" for name in files]
    some = prepare_distractors(Work(DATA_SETS["revisitop1m"], tmp_path / "some", web), 1)
    assert some.counts == {"distractors": 4}
    with pytest.raises(UserError, match="has no jpg/revisitop1m.4.tar.gz, .* and 92 more"):
        prepare_distractors(Work(DATA_SETS["revisitop1m"], tmp_path / "all", web), None)


def test_a_table_that_was_mended_is_taken_again(tmp_path):
    web = tmp_path / "web"
    make_distractors(web, np.random.default_rng(0))
    lines = (web / "revisitop1m.txt").read_text().splitlines()
    root = tmp_path / "data"
    prepare_distractors(Work(DATA_SETS["revisitop1m"], root, web), 3)
    (web / "revisitop1m.txt").write_text("\n".join(lines[3:]) + "\n")
    again = prepare_distractors(Work(DATA_SETS["revisitop1m"], root, web), 3)
    assert again.counts == {"distractors": 9}
    assert prepare_distractors(Work(DATA_SETS["revisitop1m"], root), 3) == again        # and without --from


def test_a_folder_in_its_place_is_taken_as_it_is(tmp_path):
    web, root = tmp_path / "web", tmp_path / "data"
    images = make_distractors(web, np.random.default_rng(0))
    folder = root / "revisitop1m"
    for name, content in images.items():
        (folder / "jpg" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "jpg" / name).write_bytes(content)
    (folder / "revisitop1m.txt").write_bytes((web / "revisitop1m.txt").read_bytes())
    prepared = prepare_distractors(Work(DATA_SETS["revisitop1m"], root, folder), None)
    assert prepared.counts == {"distractors": 12} and not (folder / "jpg").is_symlink()


def test_images_in_their_place_are_left_alone(tmp_path, oxford):
    """--from may be the very folder, and what lies there is the user's."""
    web, images, names = oxford
    folder = tmp_path / "data" / "roxford5k"
    write_truth(tmp_path / "data", "roxford5k", names[:3], names[3:5])
    (folder / "jpg").mkdir()
    for name in names[:5]:
        (folder / "jpg" / f"{name}.jpg").write_bytes(images[f"{name}.jpg"])
    for given in (folder, tmp_path / "data"):
        prepared = prepare(_work("roxford5k", tmp_path, given), ORIGINAL)
        assert prepared.variant == ORIGINAL
        left = {file.name: file.read_bytes() for file in (folder / "jpg").iterdir()
                if not file.is_symlink()}
        assert left == {f"{name}.jpg": images[f"{name}.jpg"] for name in names[:5]}


def test_links_that_broke_are_made_again(tmp_path, oxford):
    web, images, names = oxford
    root, mine = tmp_path / "data", tmp_path / "mine"
    (mine / "deep").mkdir(parents=True)
    for name in names:
        (mine / "deep" / f"{name}.jpg").write_bytes(images[f"{name}.jpg"])
    (mine / "gnd_roxford5k.pkl").write_bytes((web / "roxford5k" / "gnd_roxford5k.pkl").read_bytes())
    assert prepare(_work("roxford5k", tmp_path, mine), ORIGINAL).variant == ORIGINAL
    # The variant stays known
    assert prepare(Work(DATA_SETS["roxford5k"], root, unverified=True), "").variant == ORIGINAL
    mine.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="of the 5 images of roxford5k, 5 are not in .*--from, or delete"):
        prepare(Work(DATA_SETS["roxford5k"], root, unverified=True), "")
    (root / "roxford5k" / "jpg" / f"{names[0]}.jpg").unlink()       # as a killed command leaves it
    prepared = prepare(_work("roxford5k", tmp_path, tmp_path / "moved"), "")
    assert prepared.variant == ORIGINAL
    assert (root / "roxford5k" / "jpg" / f"{names[0]}.jpg").read_bytes() == images[f"{names[0]}.jpg"]
    # --from may hold the data set's own folder: its links are no second copy
    assert prepare(_work("roxford5k", tmp_path, tmp_path), "") == prepared


def test_archives_after_links_leave_what_was_linked(tmp_path, oxford):
    web, images, names = oxford
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in names:
        (mine / f"{name}.jpg").write_bytes(b"my own edit of it")
    (mine / "gnd_roxford5k.pkl").write_bytes((web / "roxford5k" / "gnd_roxford5k.pkl").read_bytes())
    prepare(_work("roxford5k", tmp_path, mine), "")
    assert prepare(_work("roxford5k", tmp_path, web), "").variant == BLURRED
    assert all(file.read_bytes() == b"my own edit of it" for file in mine.glob("*.jpg"))
    link = tmp_path / "data" / "roxford5k" / "jpg" / f"{names[0]}.jpg"
    assert not link.is_symlink() and link.read_bytes() == images[f"{names[0]}.jpg"]


def test_a_variant_that_is_not_that_of_the_archives(tmp_path, oxford):
    web, _, _ = oxford
    with pytest.raises(UserError, match="--variant is original, and the archives are of the variant faces"):
        prepare(_work("roxford5k", tmp_path, web), ORIGINAL)
    assert prepare(_work("roxford5k", tmp_path, web), BLURRED).variant == BLURRED
    (web / "oxbuild_images-v1.tgz").rename(web / "oxbuild_images.tgz")
    with pytest.raises(UserError, match="has the images of oxbuild_images-v1.tgz, and --from oxbuild_im"):
        prepare(_work("roxford5k", tmp_path, web), "")


def test_a_disk_that_is_not_mounted_is_not_written_to(tmp_path):
    web, root = tmp_path / "web", tmp_path / "data"
    make_distractors(web, np.random.default_rng(0))
    disk = tmp_path / "disk"
    for number in (1, 2, 3):
        unpack(web / "jpg" / f"revisitop1m.{number}.tar.gz", disk)
    (disk / "revisitop1m.txt").write_bytes((web / "revisitop1m.txt").read_bytes())
    first = prepare_distractors(Work(DATA_SETS["revisitop1m"], root, disk), None)
    assert first.counts == {"distractors": 12}
    shutil.rmtree(root / "revisitop1m" / ".prepared")       # and what was known is forgotten
    disk.rename(tmp_path / "elsewhere")
    (web / "jpg").rename(web / "archives")
    for given in (None, web):
        with pytest.raises(UserError, match=r"jpg is a link to .*disk/jpg, where no .* is: mount that"):
            work = Work(DATA_SETS["revisitop1m"], root, given) if given else _with_table(root, web)
            prepare_distractors(work, 3)
    assert not disk.exists()
    again = prepare_distractors(Work(DATA_SETS["revisitop1m"], root, tmp_path / "elsewhere"), None)
    assert again.counts == {"distractors": 12}


def _with_table(root, web) -> Work:
    """A command without --from, to which the list is known already."""
    work = Work(DATA_SETS["revisitop1m"], root, web)
    work.obtain([Unit(REVISITOP1M_LIST, "published")])
    return Work(DATA_SETS["revisitop1m"], root)
