"""Revisited Oxford, Paris and the distractors, from archives in their layouts."""
import numpy as np
import pytest

from dolg.data.manifest import data_record
from dolg.errors import UserError
from dolg.features.sources import images_of, revisited_set
from dolg.prepare.catalogue import DATA_SETS
from dolg.prepare.record import write_manifests
from dolg.prepare.revisited import BLURRED, ORIGINAL, prepare, prepare_distractors
from dolg.prepare.work import Work
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
    message = "of the 5 images of roxford5k, 1 are not in .*: all_souls_000000.jpg .without the"
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
