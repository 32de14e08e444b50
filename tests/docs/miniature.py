"""How the commands of the documentation are made small enough for a test: the one table.

Every command is executed as the page writes it, with all its options; what is here comes on top. Later keys
and options win over earlier ones, so that sizes shrink and nothing else changes. `test_mentions.py` fails
where an entry here is not needed any more.
"""
import re
from collections.abc import Callable
from pathlib import Path

# Networks keep their kind and the dimensions of their descriptors, and are shallow and narrow
NETWORK = ["MODEL.DEPTH", "18", "RESNET.TRANS_FUN", "", "RESNET.NUM_GROUPS", "1",
           "RESNET.WIDTH_PER_GROUP", "64", "RESNET.STEM_WIDTH", "8", "MODEL.HEADS.IN_FEAT", "0",
           "MODEL.RRT.LAYERS", "1",
           "MODEL.RRT.FEEDFORWARD", "64", "MODEL.RRT.LOCALS", "32"]
SMALL_AS_THEY_ARE = ("configs/quickstart.yaml", "configs/delg/synthetic.yaml", "configs/rrt/synthetic.yaml")
RUN = ["DATA_LOADER.NUM_WORKERS", "0", "NUM_GPUS", "1"]
TRAINING = ["OPTIM.MAX_EPOCH", "1", "TRAIN.BATCH_SIZE", "12", "TRAIN.IM_SIZE", "32", "TEST.BATCH_SIZE",
            "12", "TEST.IM_SIZE", "36", "MODEL.NUM_CLASSES", "8", "LOG_PERIOD", "1"]
LANDMARKS = ["--train-landmarks", "4", "--train-photos", "7", "--val-photos", "1", "--test-landmarks", "2",
             "--queries", "1", "--easy", "3", "--hard", "3", "--junk", "1", "--distractors", "12",
             "--train-size", "64", "--size", "64", "--workers", "1"]

# What is put behind the arguments of a command
ADDED = {
    "tools/train.py": [*RUN, *TRAINING],
    "tools/infer.py": [*RUN, "INFER.SIZE", "0"],
    "tools/rerank.py": RUN,
    "tools/rerank_classes.py": [*RUN, "INFER.SIZE", "32", "MODEL.NUM_CLASSES", "8"],
    "tools/make_landmarks.py": LANDMARKS,
    "benchmarks.fuzz": ["--count", "20"],
}

# What is changed in all arguments and in Python code, and in arguments of a command: pattern (there: of the
# whole argument), replacement
LAST_EPOCH, ONLY_EPOCH = r"model_epoch_0*[1-9]\d*\.pyth", "model_epoch_0001.pyth"
CHANGED = {
    "tools/search.py": [("pq", "PQ4x2"), ("ivfpq", "IVF2,PQ4x2")],      # others want 256 images
    "tools/whiten.py": [("256", "3")],      # few images vary in few directions
}

# The same for torchrun: one machine, few processes, a free port
TORCHRUN = {"--nnodes": "1", "--nproc-per-node": "2", "--rdzv-endpoint": "localhost:0"}
NODES = 2       # Slurm's

# Weights that the pages name and nobody has here, by the layout of the code that they are from: random
# ones of the command's network
WEIGHTS = {
    "R-50.pyth": "pycls",
    "dolg_r50.pyth": "DOLG",
    "dolg_r101.pyth": "DOLG",
    "delg_r50.pyth": "DELG",
    "delg_of_2048.pyth": "DELG",
    "CVPR2022_CVNet_R50.pyth": "CVNet",
    "cgd_r50_cars.pth": "CGD",
    "rrt_r50.pt": "RRT",
    "rrt_r50_gldv2.pt": "RRT",
    "rrt_sop.pt": "RRT_SOP",
    "tf_efficientnet_lite0.pth": "timm",
}

# Sections of the configuration that take any keys, options of other programs that pages name, and files
# that a reader is told to write
FREE_SECTIONS = ("LOSS.PML.ARGS", "LOSS.PML.MINER_ARGS")
OTHER_OPTIONS = {"--max-restarts", "--signals-to-handle"}
TO_BE_WRITTEN = {"dolg/models/rmac.py"}

# Executed once for all pages, in a sandbox of their own: where they write
ONCE = {"scripts/quickstart.sh": "output/quickstart", "scripts/reranking.sh": "output/reranking"}

# Not executed, and why
EXEMPT = {
    "pip install": "it would change the environment that runs the tests",
    "scripts/test.sh": "it is what runs this test",
}

# Pages whose Python code another test runs, which also looks at what comes out
PYTHON_ELSEWHERE = {"docs/python.md": "tests/python/test_page.py"}

# What a page takes for granted: commands that ran before it, variables that its reader has set, names that
# its Python code has
EXTRACT = """
    for WHAT in "INFER.DATASET roxford5k" "INFER.IMAGES datasets/data/revisitop1m/revisitop1m.txt"; do
        python tools/infer.py --cfg configs/dolg/r50_gldv2_8gpu.yaml TEST.WEIGHTS dolg_r50.pyth $WHAT \\
            INFER.OUT_DIR output/r50
    done
    """
DELG_OF_2048 = """
    for WHAT in "INFER.DATASET roxford5k" "INFER.IMAGES datasets/data/revisitop1m/revisitop1m.txt"; do
        python tools/infer.py --cfg configs/delg/r50_gldv2_8gpu.yaml $WHAT TEST.WEIGHTS delg_of_2048.pyth \\
            MODEL.HEADS.REDUCTION_DIM 2048 MODEL.DELG.LOCAL_DIM 128 INFER.LOCAL True \\
            INFER.OUT_DIR output/delg
    done
    """
BEFORE = {
    "README.md": """
        python -c 'from tests.docs import data; data.make_revisited("made/data", "minilandmarks", \\
            "README.md")'
        python tools/prepare_data.py roxford5k --root before
        """ + DELG_OF_2048.replace("roxford5k", "roxford5k INFER.DATA_DIR before") + """
        python revisitop/evaluate.py --gnd before/roxford5k/gnd_roxford5k.pkl \\
            --query output/delg/roxford5k/query --database output/delg/roxford5k/database \\
            --distractors output/delg/revisitop1m --json output/r101/roxford5k.json
        cp before/roxford5k/jpg/all_souls_000000.jpg photo.jpg
        cp photo.jpg query.jpg
        """,
    "docs/looking-inside.md": """
        python -c 'from tests.docs import data; data.make_revisited("made/data", "minilandmarks", \
            "docs/looking-inside.md")'
        """,
    "docs/getting-started.md": "mkdir -p .venv/bin; touch .venv/bin/activate",
    "docs/reproducing.md": "python -c 'from tests.docs import data; data.make_inshop_download()'",
    "docs/EVALUATION.md": EXTRACT,
    "docs/EXTRACTION.md": EXTRACT + EXTRACT.replace("roxford5k", "rparis6k") + """
        python -c 'from tests.docs import data; data.make_delg_files("r50_gldv2/roxford5k")'
        python tools/store.py export output/r50/roxford5k/database features/roxford5k_fea.pickle
        python tools/store.py export output/r50/roxford5k/database features.mat
        printf "a\\nb\\nc\\n" > names.txt
        LIST=datasets/data/revisitop1m/revisitop1m.txt
        head -n 5 $LIST > 1.txt; tail -n +6 $LIST > 2.txt; head -n 7 $LIST > some.txt
        python tools/store.py subset output/r50/revisitop1m 1.txt output/part1
        python tools/store.py subset output/r50/revisitop1m 2.txt output/part2
        """,
    "docs/RERANKING.md": DELG_OF_2048,
    "docs/TRAINING.md": """
        python tools/infer.py --cfg configs/delg/r50_gldv2_8gpu.yaml TEST.WEIGHTS delg_r50.pyth \\
            INFER.LOCAL True INFER.IMAGES datasets/data/landmark/val_list.txt INFER.OUT_DIR output/delg
        python tools/whiten.py output/delg/val_list local128.safetensors --local --turn --dim 128
        """,
    "revisitop/README.md": EXTRACT + """
        mkdir r50
        mv output/r50/roxford5k/* output/r50/revisitop1m r50
        cp datasets/data/roxford5k/gnd_roxford5k.pkl .
        python revisitop/evaluate.py --gnd gnd_roxford5k.pkl --query r50/query --database r50/database \\
            --distractors r50/revisitop1m --json r101.json
        cp r101.json r152.json
        python -c 'from tests.docs import data; data.make_original_files("r50", "r50.pickle", "1M.mat")'
        """,
    "datasets/README.md": """
        python -c 'from tests.docs import data; data.make_own_images("datasets/README.md")'
        """,
}
VARIABLES = {
    page: {"DATA": "made/data", "WEIGHTS": "made/tf_efficientnet_lite0.pth"}
    for page in ("README.md", "docs/looking-inside.md")
}
PREAMBLES = {
    "docs/RERANKING.md": "import numpy as np; database = np.eye(5, 8, dtype='f4'); queries = database[:2]; "
                         "rows, scores = np.arange(5), database @ queries[0]; ",
    "revisitop/README.md": "import numpy as np; ranks = np.tile(np.arange(3), (2, 1)); ",
}


def shrunk(arguments: list[str]) -> list[str]:
    """A Python command's script, or -m and a module, and arguments with what makes it small."""
    start = 1 + (arguments[0] == "-m")
    script, rest = arguments[:start], arguments[start:]
    name = "/".join(Path(script[-1]).parts[-2:])
    for pattern, replacement in [(LAST_EPOCH, ONLY_EPOCH),
                                 *((f"^{old}$", new) for old, new in CHANGED.get(name, []))]:
        rest = [re.sub(pattern, replacement, argument) for argument in rest]
    config = rest[rest.index("--cfg") + 1] if "--cfg" in rest[:-1] else ""
    return [*script, *rest, *(_network(config) if config else []), *ADDED.get(name, [])]


def shrunk_load(load: Callable) -> Callable:
    """dolg.load, for the same networks."""
    def small(cfg: str, weights: str = "", opts: list | tuple = ()):
        return load(cfg, weights, [*opts, *_network(cfg)])

    return small


def shrunk_torchrun(arguments: list[str]) -> list[str]:
    """The same for torchrun's."""
    arguments = list(arguments)
    for place, argument in enumerate(arguments[:-1]):
        if argument in TORCHRUN:
            arguments[place + 1] = TORCHRUN[argument]
    return arguments


def _network(config: str) -> list[str]:
    return [] if config in SMALL_AS_THEY_ARE else NETWORK
