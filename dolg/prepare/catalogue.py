"""Where the data sets come from: the one table of addresses, digests, licences and published counts.

An address that has died is mended here. MD5 sums are those that the makers published, or that TorchVision
and PyTorch Metric Learning check (named beside them); where there is none, the preparers record their own.
"""
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from dolg.prepare.fetch import RemoteFile


@dataclass(frozen=True)
class Item:
    """A file that a data set is made of.

    Attributes:
        path: under each of `bases`; in a folder given by hand this, or its last part.
        bases: addresses of folders that have it, the best first; none: it asks for a form or a login.
        md5: as published; or
        md5_path: where, under `bases`, a text file with it is.
    """

    path: str
    bases: tuple[str, ...] = ()
    md5: str = ""
    md5_path: str = ""

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    def remote(self, mirror: str = "") -> RemoteFile:
        """Where to fetch it: from its own addresses, or from a mirror that has `path`."""
        bases = [base.rstrip("/") for base in ((mirror,) if mirror else self.bases)]
        return RemoteFile(self.name, tuple(f"{base}/{self.path}" for base in bases), md5=self.md5,
                          md5_url=f"{bases[0]}/{self.md5_path}" if bases and self.md5_path else "")


@dataclass(frozen=True)
class DataSet:
    """What is published of a data set.

    Attributes:
        name: of the command, and of the folder that it makes.
        title: in words.
        page: where one reads about it and gets it by hand.
        licence: its terms, as published.
        counts: published counts by what is counted; what is found is held against them.
    """

    name: str
    title: str
    page: str
    licence: str
    counts: Mapping[str, int] = field(default_factory=dict)


_VGG_TERMS = "photographs from Flickr, under Flickr's terms of use and VGG's terms of access"
_RESEARCH = "non-commercial research and education only"
_UNSTATED = "none comes with the files: read its page before you use it"
_STANFORD_CARS = ("http://ai.stanford.edu/~jkrause/car196", "http://imagenet.stanford.edu/internal/car196")
_IMAGENET = ("https://image-net.org/data/ILSVRC/2012",)
_OXFORD = ("https://thor.robots.ox.ac.uk/oxbuildings", "https://www.robots.ox.ac.uk/~vgg/data/oxbuildings")
_PARIS = ("https://thor.robots.ox.ac.uk/parisbuildings",
          "https://www.robots.ox.ac.uk/~vgg/data/parisbuildings")
_REVISITED = ("http://cmp.felk.cvut.cz/revisitop/data/datasets",
              "http://ptak.felk.cvut.cz/revisitop/data/datasets")
_REVISITED_1M = ("http://ptak.felk.cvut.cz/revisitop/revisitop1m",
                 "http://cmp.felk.cvut.cz/revisitop/revisitop1m")
_GLDV2 = ("https://s3.amazonaws.com/google-landmark",)

DATA_SETS = {dataset.name: dataset for dataset in (
    DataSet("roxford5k", "Revisited Oxford", "https://www.robots.ox.ac.uk/~vgg/data/oxbuildings/",
            _VGG_TERMS, {"queries": 70, "database images": 4_993}),
    DataSet("rparis6k", "Revisited Paris", "https://www.robots.ox.ac.uk/~vgg/data/parisbuildings/",
            _VGG_TERMS, {"queries": 70, "database images": 6_322}),
    DataSet("revisitop1m", "the distractors of Revisited Oxford and Paris",
            "https://github.com/filipradenovic/revisitop",
            "none published with the files; photographs from Flickr, each under its owner's terms",
            {"distractors": 1_001_001}),
    DataSet("gldv2", "Google Landmarks v2", "https://github.com/cvdfoundation/google-landmark",
            "annotations CC BY 4.0, training images CC BY; index and test images each under its own",
            {"clean images": 1_580_470, "classes": 81_313}),
    DataSet("sop", "Stanford Online Products", "https://cvgl.stanford.edu/projects/lifted_struct/",
            "none published with the files; photographs from eBay",
            {"training images": 59_551, "test images": 60_502}),
    DataSet("cub", "CUB-200-2011", "https://www.vision.caltech.edu/datasets/cub_200_2011/",
            _UNSTATED, {"training images": 5_864, "test images": 5_924}),
    DataSet("cars196", "Stanford Cars", "http://ai.stanford.edu/~jkrause/cars/car_dataset.html",
            _UNSTATED, {"training images": 8_054, "test images": 8_131}),
    DataSet("inshop", "In-shop Clothes Retrieval (DeepFashion)",
            "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
            _RESEARCH, {"training images": 25_882, "queries": 14_218, "gallery images": 12_612}),
    DataSet("imagenet", "ImageNet ILSVRC 2012", "https://image-net.org/download.php", _RESEARCH,
            {"training images": 1_281_167, "validation images": 50_000, "classes": 1_000}),
)}

# Faces have been blurred in the archives whose names end in -v1; --from takes the older ones
REVISITED_IMAGES = {
    "roxford5k": (Item("oxbuild_images-v1.tgz", _OXFORD),),
    "rparis6k": (Item("paris_1-v1.tgz", _PARIS), Item("paris_2-v1.tgz", _PARIS))}
OLDER_IMAGES = {"oxbuild_images-v1.tgz": "oxbuild_images.tgz", "paris_1-v1.tgz": "paris_1.tgz",
                "paris_2-v1.tgz": "paris_2.tgz"}
# MD5 sums computed from the files as published in 2018
GROUND_TRUTHS = {
    "roxford5k": Item("roxford5k/gnd_roxford5k.pkl", _REVISITED, md5="f2b67579f625a587b5b0828dbf2e8eb0"),
    "rparis6k": Item("rparis6k/gnd_rparis6k.pkl", _REVISITED, md5="2feae0a8257a5c6ca1b31b8eb73c8571")}

REVISITOP1M_LIST = Item("revisitop1m.txt", _REVISITED_1M)
REVISITOP1M_IMAGES = tuple(Item(f"jpg/revisitop1m.{n}.tar.gz", _REVISITED_1M) for n in range(1, 101))

GLDV2_PARTS = {part: tuple(Item(f"{part}/images_{n:03d}.tar", _GLDV2,
                                md5_path=f"md5sum/{part}/md5.images_{n:03d}.txt") for n in range(count))
               for part, count in {"train": 500, "index": 100, "test": 20}.items()}
GLDV2_TABLES = {name: Item(f"{folder}/{name}.csv", _GLDV2) for folder, name in (
    ("metadata", "train"), ("metadata", "train_clean"), ("metadata", "index"), ("metadata", "test"),
    ("ground_truth", "retrieval_solution_v2.1"), ("ground_truth", "recognition_solution_v2.1"))}

# MD5 as in PyTorch Metric Learning's StanfordOnlineProducts
SOP = Item("Stanford_Online_Products.zip", ("http://ftp.cs.stanford.edu/cs/cvgl",),
           md5="7f73d41a2f44250d4779881525aea32e")
# MD5 as published at https://data.caltech.edu/records/65de6-vp158
CUB = Item("CUB_200_2011.tgz", ("https://data.caltech.edu/records/65de6-vp158/files",),
           md5="97eceeb196236b17998738112f37df78")
# MD5 sums as in PyTorch Metric Learning's Cars196
CARS_IMAGES = Item("car_ims.tgz", _STANFORD_CARS, md5="d5c8f0aa497503f355e17dc7886c3f14")
CARS_TABLE = Item("cars_annos.mat", _STANFORD_CARS, md5="b407c6086d669747186bd1d764ff9dbc")
INSHOP_IMAGES = Item("Img/img.zip")
INSHOP_SPLIT = Item("Eval/list_eval_partition.txt")
INSHOP_BOXES = Item("Anno/list_bbox_inshop.txt")
# MD5 sums as in TorchVision's ImageNet
IMAGENET_TRAINING = Item("ILSVRC2012_img_train.tar", _IMAGENET, md5="1d675b47d978889d74fa0da5fadfb00e")
IMAGENET_VALIDATION = Item("ILSVRC2012_img_val.tar", _IMAGENET, md5="29b22e2961454d5413ddabcf34fc5622")
IMAGENET_DEVKIT = Item("ILSVRC2012_devkit_t12.tar.gz", _IMAGENET, md5="fa75699e90414af021442c21a62c3abf")
