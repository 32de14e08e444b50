"""Miniatures of the landmark data sets, in the layout of what one downloads; see also miniatures.py."""
import hashlib
import io
import pickle
import tarfile
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np


def jpeg(rng: np.random.Generator) -> bytes:
    """A small photograph of noise."""
    height, width = rng.integers(8, 24, 2)
    return cv2.imencode(".jpg", rng.integers(0, 255, (height, width, 3), np.uint8))[1].tobytes()


def write_tar(file: Path, contents: dict[str, bytes], mode: str = "w:gz") -> None:
    """An archive of files by name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_truth(folder: Path, name: str, database: list[str], queries: list[str]) -> None:
    """A ground truth: the first database image is easy, the second hard, for every query."""
    gnd = [{"bbx": [1.5, 2.0, 7.0, 6.0], "easy": [0], "hard": [1], "junk": []} for _ in queries]
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / f"gnd_{name}.pkl").write_bytes(
        pickle.dumps({"imlist": database, "qimlist": queries, "gnd": gnd}, protocol=2))


def make_oxford(folder: Path, rng: np.random.Generator) -> tuple[dict[str, bytes], list[str]]:
    """Revisited Oxford of 3 images and 2 queries, in a flat archive with one image more; all images, and
    the names in that order."""
    names = [f"all_souls_{i:06d}" for i in range(6)]
    images = {f"{name}.jpg": jpeg(rng) for name in names}
    write_truth(folder, "roxford5k", names[:3], names[3:5])
    write_tar(folder / "oxbuild_images-v1.tgz", images)
    return images, names


def make_paris(folder: Path, rng: np.random.Generator) -> tuple[dict[str, bytes], list[str]]:
    """Revisited Paris of 4 images and 2 queries, in two archives with folders in folders, each with an
    unreadable image that the ground truth does not name."""
    names = [f"paris_{kind}_{i:06d}" for i in range(3) for kind in ("defense", "eiffel")]
    images = {f"{name}.jpg": jpeg(rng) for name in names}
    write_truth(folder, "rparis6k", names[:4], names[4:])
    for number, kind in ((1, "defense"), (2, "eiffel")):
        inside = {f"paris/{kind}/{file}": content for file, content in images.items() if kind in file}
        inside[f"paris/{kind}/paris_{kind}_000136.jpg"] = b"broken"
        write_tar(folder / f"paris_{number}-v1.tgz", inside)
    return images, names


def make_distractors(folder: Path, rng: np.random.Generator, prefix: str = "jpg/") -> dict[str, bytes]:
    """The first three archives of the distractors, with `prefix` before each image's name; the images."""
    images = {f"{i:x}/{i:x}{i * 7:x}.jpg": jpeg(rng) for i in range(1, 13)}
    for number in range(1, 4):
        write_tar(folder / "jpg" / f"revisitop1m.{number}.tar.gz",
                  {prefix + name: content for name, content in list(images.items())[number - 1::3]})
    (folder / "revisitop1m.txt").write_text("".join(f"{name}\n" for name in images))
    return images


def gldv2_path(part: str, name: str) -> str:
    """Where an image of Google Landmarks v2 lies."""
    return f"{part}/{name[0]}/{name[1]}/{name[2]}/{name}.jpg"


class MakeGLDv2:
    """Google Landmarks v2 as it is published, with a few images in the first two tars of each part.

    Attributes:
        images: files by id, of each part.
        landmarks: of the training ids.
        clean: the ids of train_clean.csv.
    """

    def __init__(self, folder, rng):
        self.folder, self.images, self.landmarks = folder, {}, {}
        for part, count in {"train": 60, "index": 12, "test": 5}.items():
            names = [rng.bytes(8).hex() for _ in range(count)]
            self.images[part] = {name: jpeg(rng) for name in names}
            for number in range(2):
                self._tar(part, number, names[number::2])
        train = list(self.images["train"])
        self.landmarks = {name: int(rng.choice([3, 17, 203094, 40])) for name in train[:-1]}
        self.landmarks[train[-1]] = 99          # a class of one image
        self.clean = train[10:]
        self._tables(rng)

    def _tar(self, part: str, number: int, names: list[str]) -> None:
        file = self.folder / part / f"images_{number:03d}.tar"
        write_tar(file, {gldv2_path(part, name).removeprefix(f"{part}/"): self.images[part][name]
                         for name in names}, "w")
        sums = self.folder / "md5sum" / part / f"md5.images_{number:03d}.txt"
        sums.parent.mkdir(parents=True, exist_ok=True)
        sums.write_text(f"{hashlib.md5(file.read_bytes()).hexdigest()}  images_{number:03d}.tar\n")

    def _tables(self, rng) -> None:
        tables = self.folder / "metadata"
        tables.mkdir()
        by_landmark = defaultdict(list)
        for name in self.clean:
            by_landmark[self.landmarks[name]].append(name)
        lines = [f"{landmark},{' '.join(names)}" for landmark, names in by_landmark.items()]
        lines = ["landmark_id,images", *rng.permutation(lines)]
        (tables / "train_clean.csv").write_text("\n".join(lines) + "\n")
        lines = [f'{name},"http://x/a,b.jpg",{landmark}' for name, landmark in self.landmarks.items()]
        (tables / "train.csv").write_text("\n".join(["id,url,landmark_id", *lines]) + "\n")
        for part in ("index", "test"):
            (tables / f"{part}.csv").write_text("\n".join(["id", *self.images[part]]) + "\n")
        (self.folder / "ground_truth").mkdir()
        for name in ("retrieval", "recognition"):
            (self.folder / "ground_truth" / f"{name}_solution_v2.1.csv").write_text("id,images,Usage\n")
