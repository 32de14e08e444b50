"""ImageNet: from miniatures of its archives, or a user's folders, to lists with ImageFolder's labels."""
import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from dolg.data.image_list import read_image_list
from dolg.errors import UserError
from dolg.prepare import catalogue, imagenet
from dolg.prepare.unpack import unpack
from dolg.prepare.work import Work
from tests.prepare.miniatures import (changed, in_folders, make_imagenet, read_archive, unpack_by_hand,
                                      without)


@pytest.fixture(params=range(2))
def rng(request) -> np.random.Generator:
    return np.random.default_rng(request.param)


@pytest.fixture
def download(tmp_path):
    return tmp_path / "download"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def _prepare(root, given, partial=False, jobs=2):
    work = Work(catalogue.DATA_SETS["imagenet"], root, given, jobs=jobs, partial=partial, unverified=True)
    with work.locked():
        return imagenet.prepare(work)


def _expected(photos, part: str) -> str:
    """A list, with labels counted in the sorted training classes."""
    classes = sorted({photo.of_class for photo in photos if photo.part == "train"})
    return "".join(f"{photo.path} {classes.index(photo.of_class)}\n"
                   for photo in photos if photo.part == part)


def _check(folder, photos):
    for part in ("train", "val"):
        assert (folder / f"{part}_list.txt").read_text() == _expected(photos, part)
        images = read_image_list(folder / f"{part}_list.txt")
        assert [images.read(i) for i in range(len(images))] == [p.data for p in photos if p.part == part]


def _by_hand(folder, photos):
    """The layout that TorchVision's users have."""
    for photo in photos:
        (folder / photo.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / photo.path).write_bytes(photo.data)


def test_lists_from_the_archives(download, root, rng):
    photos = make_imagenet(download, rng)
    prepared = _prepare(root, download)
    folder = root / "imagenet"
    assert prepared.counts == {"training images": 20, "validation images": 15, "classes": 5}
    assert prepared.lists == ["train_list.txt", "val_list.txt"] and prepared.folders == {}
    _check(folder, photos)
    # The archives of the classes are gone, and programs were not unpacked
    assert sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")) == [
        "ILSVRC2012_devkit_t12", "train", "train_list.txt", "val", "val_list.txt"]
    assert {file.name for file in (folder / "ILSVRC2012_devkit_t12").rglob("*") if file.is_file()} == {
        "meta.mat", "ILSVRC2012_validation_ground_truth.txt"}


def test_labels_are_those_of_torchvision(download, root, rng):
    make_imagenet(download, rng)
    _prepare(root, download)
    folder = root / "imagenet"
    images = read_image_list(folder / "train_list.txt")
    assert [(images.name(i), int(images.labels[i])) for i in range(len(images))] \
        == sorted(ImageFolder(folder / "train").samples)


def test_a_second_run_needs_no_archives_and_gives_the_same_bytes(download, root, rng):
    make_imagenet(download, rng)
    _prepare(root, download)
    files = [root / "imagenet" / f"{part}_list.txt" for part in ("train", "val")]
    lists = [file.read_bytes() for file in files]
    _prepare(root, None)
    assert [file.read_bytes() for file in files] == lists


def test_goes_on_where_a_run_was_killed(download, root, rng, monkeypatch):
    photos = make_imagenet(download, rng)
    seen = []

    def seen_unpack(archive, target, **options):
        seen.append(archive.name)
        return unpack(archive, target, **options)

    def killed_at_the_third(archive, target, stop, **options):
        if len(seen) == 3:
            assert stop.wait(60)
        unpacked = seen_unpack(archive, target, stop=stop, **options)
        if len(seen) == 3:      # unpacked, and its archive is still there
            raise KeyboardInterrupt
        return unpacked

    monkeypatch.setattr(imagenet, "unpack", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        _prepare(root, download, jobs=1)
    left = sorted(file.name for file in (root / "imagenet" / "train_archives").iterdir())
    assert left == sorted({f"{photo.of_class}.tar" for photo in photos} - set(seen[:2]))
    assert not (root / "imagenet" / "train_list.txt").exists()
    for archive in download.iterdir():      # what was taken is not taken again
        archive.unlink()
    seen.clear()
    monkeypatch.setattr(imagenet, "unpack", seen_unpack)
    _prepare(root, download, jobs=1)
    assert seen == left
    _check(root / "imagenet", photos)


def test_a_damaged_archive_of_a_class(download, root, rng):
    photos = make_imagenet(download, rng)
    archive = download / catalogue.IMAGENET_TRAINING.path
    content = archive.read_bytes()
    place = content.index(b"n02119789_")        # a header in the class's archive
    archive.write_bytes(content[:place] + b"x" * 20 + content[place + 20:])
    with pytest.raises(UserError, match="n02119789.tar"):
        _prepare(root, download)
    names = {file.name for file in (root / "imagenet" / "train").rglob("*.JPEG")}
    assert names < {photo.path.split("/")[-1] for photo in photos if photo.of_class != "n02119789"}


@pytest.mark.parametrize("foldered", [False, True])
def test_adopts_unpacked_folders(foldered, download, root, tmp_path, rng):
    photos = make_imagenet(download, rng)
    if foldered:
        photos = sorted(in_folders(photos), key=lambda photo: photo.path)
    given = tmp_path / "own"
    _by_hand(given, photos)
    (given / "train" / ".ipynb_checkpoints").mkdir()
    if not foldered:        # whose labels are in the devkit alone
        with pytest.raises(UserError, match="--from .* has no ILSVRC2012_devkit_t12.tar.gz"):
            _prepare(root, given)
        unpack_by_hand(download / catalogue.IMAGENET_DEVKIT.path, given)
    _prepare(root, given)
    folder = root / "imagenet"
    assert (folder / "train").is_symlink() and (folder / "val").is_symlink()
    _check(folder, photos)
    lists = [(folder / f"{part}_list.txt").read_bytes() for part in ("train", "val")]
    _prepare(root, None)
    assert [(folder / f"{part}_list.txt").read_bytes() for part in ("train", "val")] == lists


def test_own_training_images_and_validation_from_the_archive(download, root, rng):
    photos = make_imagenet(download, rng)
    (download / catalogue.IMAGENET_TRAINING.path).unlink()
    _by_hand(download, [photo for photo in photos if photo.part == "train"])
    _prepare(root, download)
    assert (root / "imagenet" / "train").is_symlink() and not (root / "imagenet" / "val").is_symlink()
    _check(root / "imagenet", photos)


def test_missing_validation_images_do_not_move_the_labels_of_others(download, root, rng):
    photos = make_imagenet(download, rng)
    lost = [photo for photo in photos if photo.part == "val"][4]
    _prepare(root, download)
    (root / "imagenet" / lost.path).write_bytes(b"")
    with pytest.raises(UserError, match="of the 15 validation images, 1 are not in .*val_00000005.JPEG"):
        _prepare(root, download)
    assert _prepare(root, download, partial=True).counts["validation images"] == 14
    _check(root / "imagenet", [photo for photo in photos if photo is not lost])


def test_classes_without_training_images(download, root, rng, tmp_path):
    photos = make_imagenet(download, rng)
    photos = sorted(in_folders(photos), key=lambda photo: photo.path)
    left = [photo for photo in photos if photo.part == "val" or photo.of_class != "n02119789"]
    _by_hand(tmp_path / "own", left)
    with pytest.raises(UserError, match="1 classes have validation images and no training .*is n02119789 "):
        _prepare(root, tmp_path / "own")
    counts = _prepare(root, tmp_path / "own", partial=True).counts
    assert counts == {"training images": 16, "validation images": 12, "classes": 4}
    _check(root / "imagenet", [photo for photo in left if photo.of_class != "n02119789"])


def test_one_part_alone(download, root, tmp_path, rng):
    photos = make_imagenet(download, rng)
    for part, other in (("train", "val"), ("val", "train")):
        own, kept = tmp_path / f"own {part}", [photo for photo in in_folders(photos) if photo.part == part]
        _by_hand(own, kept)
        with pytest.raises(UserError, match="--from .* has no ILSVRC2012_"):
            _prepare(root / part, own)
        prepared = _prepare(root / part, own, partial=True)
        assert prepared.lists == [f"{part}_list.txt"] and prepared.counts["classes"] == 5
        images = read_image_list(root / part / "imagenet" / f"{part}_list.txt")
        classes = sorted({photo.of_class for photo in photos})
        assert {(images.name(i).split("/")[-2], label) for i, label in enumerate(images.labels.tolist())} \
            == {(wnid, label) for label, wnid in enumerate(classes)}
        assert not (root / part / "imagenet" / f"{other}_list.txt").exists()


def test_a_part_that_is_gone_leaves_no_list(download, root, rng):
    photos = make_imagenet(download, rng)
    _prepare(root, download)
    for photo in photos:
        if photo.part == "train":
            (root / "imagenet" / photo.path).unlink()
    with pytest.raises(UserError, match="no training images are in"):
        _prepare(root, download)
    assert _prepare(root, download, partial=True).lists == ["val_list.txt"]
    assert not (root / "imagenet" / "train_list.txt").exists()


def test_nothing_at_all(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="--from .* has no ILSVRC2012_"):
        _prepare(root, tmp_path / "empty")
    with pytest.raises(UserError, match="neither training nor validation images are in"):
        _prepare(root, tmp_path / "empty", partial=True)


@pytest.mark.parametrize("table, change, message", [
    ("truth.txt", lambda text: "9" + text, "ground_truth.txt, line 1: .*meta.mat has no class 9"),
    ("truth.txt", lambda text: "6\n" + text, "line 1: .*meta.mat has no class 6 without sub-classes"),
    ("truth.txt", lambda text: text + "n1\n", "line 16: 'n1' is not 'ILSVRC2012_ID'"),
    ("truth.txt", lambda text: text + "1\n", "of the 16 validation images, 1 are not in .*_00000016.JPEG"),
])
def test_damaged_devkit(table, change, message, download, root):
    make_imagenet(download, np.random.default_rng(0))
    changed(download / catalogue.IMAGENET_DEVKIT.path, table, change)
    with pytest.raises(UserError, match=message):
        _prepare(root, download)


def test_devkit_without_its_table(download, root, rng):
    make_imagenet(download, rng)
    devkit = download / catalogue.IMAGENET_DEVKIT.path
    assert any(name.endswith("meta.mat") for name in read_archive(devkit))
    without(devkit, "meta.mat")
    with pytest.raises(UserError, match="meta.mat is not there"):
        _prepare(root, download)
