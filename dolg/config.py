"""The configuration: one yacs tree, every key typed by its default and explained beside it.

Keys of the original DOLG and DELG files keep their names and meaning, so that those files
load unmodified. `get_cfg()` gives a fresh copy, `load_cfg(file, opts)` a checked, frozen one.
"""
import ast
import math
import warnings
from pathlib import Path

from yacs.config import CfgNode

from dolg.config_checks import check_cfg, get_key
from dolg.config_names import closest_key
from dolg.errors import UserError, closest
from dolg.plain_yaml import YamlError, read_yaml

_C = CfgNode()

# ---------------------------------------------------------------------------- model
_C.MODEL = CfgNode()
# Backbone family: resnet (RESNET.*, MODEL.DEPTH) or timm (TIMM.NAME)
_C.MODEL.TYPE = "resnet"
# Retrieval model on top of the backbone: dolg, delg, cgd, gem or superglobal; or a reranking transformer:
# rrt (of stored local features, without a backbone) or rrt_sop (of a backbone's last map)
_C.MODEL.ARCH = "dolg"
# Layers of the ResNet: 18, 34, 50, 101 or 152
_C.MODEL.DEPTH = 50
# Classes of the training set; the labels of the image lists are 0 .. NUM_CLASSES - 1
_C.MODEL.NUM_CLASSES = 81313
# DOLG: multi-atrous block before the spatial attention (the paper has it; the published
# code never switched it on)
_C.MODEL.WITH_MA = False

_C.MODEL.HEADS = CfgNode()
# Channels that the head expects of the backbone's last stage; 0: whatever the backbone has
_C.MODEL.HEADS.IN_FEAT = 0
# Dimensions of the descriptor; with gem, 0 leaves the pooled map as it is
_C.MODEL.HEADS.REDUCTION_DIM = 512
# Angular margin (radians) and scale of the margin softmax losses
_C.MODEL.HEADS.MARGIN = 0.15
_C.MODEL.HEADS.SCALE = 30.0

# MODEL.ARCH gem: the pooling of the last map: gem, average or maximum (dolg/models/poolings.py)
_C.MODEL.POOLING = "gem"
_C.MODEL.GEM = CfgNode()
# Generalised-mean pooling: starting exponent (learned), and the floor under the activations
_C.MODEL.GEM.P = 3.0
_C.MODEL.GEM.EPS = 1e-6

_C.MODEL.DELG = CfgNode()
# Channels of the local features
_C.MODEL.DELG.LOCAL_DIM = 512

_C.MODEL.CGD = CfgNode()
# Global descriptors in their order: S (average pooling), M (maximum), G (GeM with p = 3); the
# first one feeds the auxiliary classifier
_C.MODEL.CGD.CONFIG = "SG"
# Dimensions of the descriptor, split evenly among them
_C.MODEL.CGD.FEATURE_DIM = 1536

_C.MODEL.RRT = CfgNode()
# Reranking transformer: encoder layers, attention heads, token and hidden dimensions, dropout
_C.MODEL.RRT.LAYERS = 6
_C.MODEL.RRT.HEADS = 4
_C.MODEL.RRT.DIM = 128
_C.MODEL.RRT.FEEDFORWARD = 1024
_C.MODEL.RRT.DROPOUT = 0.0
# rrt: dimensions of the descriptors, most local features of an image (those of the highest attention;
# theirs are MODEL.RRT.DIM)
_C.MODEL.RRT.GLOBAL_DIM = 2048
_C.MODEL.RRT.LOCALS = 500
# rrt: the scales of the local features, in rising order, each with an embedding of its own, and how a
# feature's scale is looked up among them: nearest, or original (float32 scales compared with a float64
# table, so that of 0.5, 0.7071, 1, ... every second is taken for the one before: the published weights
# were trained so)
_C.MODEL.RRT.SCALES = [0.25, 0.3535, 0.5, 0.7071, 1.0, 1.4142, 2.0]
_C.MODEL.RRT.SCALE_INDEX = "nearest"
# rrt: how training starts: xavier (as the original: attention is even, and learns what is alike from a
# million images), or matching (tokens attend to what is alike, so that few images will do)
_C.MODEL.RRT.INIT = "xavier"
# rrt_sop: the backbone and the descriptor stay as they are in training
_C.MODEL.RRT.FREEZE_BACKBONE = False

_C.INPUT = CfgNode()
# Order of the colours that the network is fed: bgr (pycls, DOLG, DELG) or rgb (torchvision, CGD);
# empty: as the original of MODEL.ARCH has it; timm's networks always take rgb
_C.INPUT.COLOUR = ""
# Mean and standard deviation of pixels in 0..1, in that order; empty: ImageNet's, or timm's own
_C.INPUT.MEAN = []
_C.INPUT.SD = []
# Smooth when shrinking, as Pillow does (CGD); False: as OpenCV's bilinear does (DOLG, DELG)
_C.INPUT.ANTIALIAS = False

_C.TIMM = CfgNode()
# Name of a timm model, for MODEL.TYPE timm
_C.TIMM.NAME = ""

_C.RESNET = CfgNode()
# basic_transform (two 3x3) or bottleneck_transform (1x1, 3x3, 1x1); empty: as the depth has it
_C.RESNET.TRANS_FUN = ""
# Groups of the 3x3 convolution and channels per group (1, 64: ResNet; 32, 4: ResNeXt)
_C.RESNET.NUM_GROUPS = 1
_C.RESNET.WIDTH_PER_GROUP = 64
# Stride of a bottleneck on its 1x1 (True: MSRA) or on its 3x3 convolution (False: torchvision)
_C.RESNET.STRIDE_1X1 = False
# Stride of each stage; empty: as the original of MODEL.ARCH has it (cgd: 1, 2, 1, 2; the others:
# 1, 2, 2, 2)
_C.RESNET.STRIDES = []
# Channels after the stem; every stage's width follows from it (64 is the published network)
_C.RESNET.STEM_WIDTH = 64

_C.BN = CfgNode()
# Epsilon and momentum (PyTorch's sense) of batch normalisation
_C.BN.EPS = 1e-5
_C.BN.MOM = 0.1
# Start the last norm of each residual branch at zero
_C.BN.ZERO_INIT_FINAL_GAMMA = False
# Give the norms' weights and biases a weight decay of their own
_C.BN.USE_CUSTOM_WEIGHT_DECAY = False
_C.BN.CUSTOM_WEIGHT_DECAY = 0.0
# Train with the backbone's running statistics as they are, never updated
_C.BN.FREEZE = False
# Statistics over the batches of all GPUs (SyncBatchNorm); on GPUs only
_C.BN.SYNC = False
# Before a checkpoint or an evaluation at the end of an epoch, compute the running statistics anew
# from so many training images, with the weights as they are (Wu and Johnson, arXiv 2105.07576)
_C.BN.USE_PRECISE_STATS = False
_C.BN.NUM_SAMPLES_PRECISE = 8192

# ---------------------------------------------------------------------------- loss
_C.LOSS = CfgNode()
# One loss, or several joined by +: curricularface (which DOLG's and DELG's code call ArcFace),
# arcface, cosface, subcenter_arcface, adaptive_arcface, softmax, triplet, contrastive,
# multi_similarity, pml.NAME (any loss of pytorch-metric-learning), on the descriptor;
# local_softmax (DELG's attention), aux_softmax (CGD's auxiliary classifier); pair_bce, on the pairs of rrt
# and rrt_sop. Empty: what MODEL.ARCH
# was published with (dolg, gem: curricularface; delg: curricularface + local_softmax; cgd:
# triplet + aux_softmax)
_C.LOSS.NAME = ""
# Their weights in the sum, one each; empty: all 1
_C.LOSS.WEIGHTS = []
# Margin softmax: every process holds its part of the classes' weights; the result is the same, the
# memory per GPU falls
_C.LOSS.SHARD_CLASSES = False
# Margin softmax: share of the classes that a step compares with, drawn at random beside those of
# its images (Partial FC, An et al., ICCV workshops 2021); 1: all
_C.LOSS.SAMPLE_CLASSES = 1.0
# The softmax losses: label smoothing, and what their logits are divided by
_C.LOSS.SMOOTHING = 0.0
_C.LOSS.TEMPERATURE = 1.0
# subcenter_arcface: centres per class
_C.LOSS.SUBCENTERS = 3
_C.LOSS.ADAPTIVE = CfgNode()
# adaptive_arcface: margins by class frequency, from LOW (the most frequent class) to HIGH (the
# rarest), falling as frequency ** -POWER
_C.LOSS.ADAPTIVE.LOW = 0.05
_C.LOSS.ADAPTIVE.HIGH = 0.5
_C.LOSS.ADAPTIVE.POWER = 0.25
_C.LOSS.TRIPLET = CfgNode()
# triplet: margin, and which triplets count: hard (of each anchor the farthest positive and the
# nearest negative) or semihard (negatives farther than the positive, within the margin)
_C.LOSS.TRIPLET.MARGIN = 0.1
_C.LOSS.TRIPLET.MINING = "hard"
_C.LOSS.CONTRASTIVE = CfgNode()
# contrastive: distances up to which positives, and from which negatives, cost nothing
_C.LOSS.CONTRASTIVE.POSITIVE_MARGIN = 0.0
_C.LOSS.CONTRASTIVE.NEGATIVE_MARGIN = 0.5
_C.LOSS.MULTI_SIMILARITY = CfgNode()
# multi_similarity: weights of positive and negative pairs, their threshold, the mining margin
_C.LOSS.MULTI_SIMILARITY.ALPHA = 2.0
_C.LOSS.MULTI_SIMILARITY.BETA = 50.0
_C.LOSS.MULTI_SIMILARITY.BASE = 0.5
_C.LOSS.MULTI_SIMILARITY.EPSILON = 0.1
_C.LOSS.PML = CfgNode()
# pml.NAME: arguments of the loss; a miner of pytorch-metric-learning by name (empty: none) and
# its arguments. Any keys: they are passed on
_C.LOSS.PML.ARGS = CfgNode(new_allowed=True)
_C.LOSS.PML.MINER = ""
_C.LOSS.PML.MINER_ARGS = CfgNode(new_allowed=True)

# ---------------------------------------------------------------------------- optimizer
_C.OPTIM = CfgNode()
# sgd (as DOLG and DELG), adam (as CGD) or adamw
_C.OPTIM.NAME = "sgd"
# Learning rate before the schedule
_C.OPTIM.BASE_LR = 0.1
# Schedule: cos, steps or exp
_C.OPTIM.LR_POLICY = "cos"
# Learning rate computed once per epoch (as the originals do) or per step
_C.OPTIM.LR_UPDATE = "epoch"
# exp: factor per epoch
_C.OPTIM.GAMMA = 0.1
# steps: epochs at which the rate is multiplied by LR_MULT; the first is 0
_C.OPTIM.STEPS = []
_C.OPTIM.LR_MULT = 0.1
# Epochs to train
_C.OPTIM.MAX_EPOCH = 100
# SGD: momentum, its dampening, Nesterov's form
_C.OPTIM.MOMENTUM = 0.9
_C.OPTIM.DAMPENING = 0.0
_C.OPTIM.NESTEROV = True
# L2 regularisation of sgd and adam, decoupled weight decay of adamw
_C.OPTIM.WEIGHT_DECAY = 1e-4
# No weight decay on norms, biases and other vectors
_C.OPTIM.NO_DECAY_NORM_BIAS = False
# Factor on the learning rate of all but the backbone: the model's head and the loss
_C.OPTIM.HEAD_LR_MULT = 1.0
# Each layer of the backbone learns at this factor of the next one's rate; 1: all at the same
_C.OPTIM.LAYER_DECAY = 1.0
# Scale the gradient of all parameters down to this length (2-norm) where it is longer; 0: never
_C.OPTIM.CLIP_NORM = 0.0
# Linear warm-up from WARMUP_FACTOR * rate over the first WARMUP_EPOCHS epochs
_C.OPTIM.WARMUP_FACTOR = 0.1
_C.OPTIM.WARMUP_EPOCHS = 5

# ---------------------------------------------------------------------------- training
_C.TRAIN = CfgNode()
# Folder under DATA_DIR, and the image list in it: one "path label" per line
_C.TRAIN.DATASET = ""
_C.TRAIN.SPLIT = "train_list.txt"
# Images per step, all processes together
_C.TRAIN.BATCH_SIZE = 128
# Parts that a step's images go through the network in, for memory: one update per step
_C.TRAIN.ACCUMULATE = 1
# Side of the square training crop, in pixels
_C.TRAIN.IM_SIZE = 224
# Smallest share of the image's area that a random crop takes
_C.TRAIN.CROP_AREA = 0.08
# Or: resize the image to a square of this side, and take a random crop of IM_SIZE as it is (as
# CGD does); 0: random crops of any shape and scale
_C.TRAIN.RESIZE = 0
# Standard deviation of the PCA lighting noise of AlexNet; 0: none
_C.TRAIN.LIGHTING = 0.1
# Images of each class in a batch, BATCH_SIZE / IMAGES_PER_CLASS classes; 0: a plain shuffle
_C.TRAIN.IMAGES_PER_CLASS = 0
# Compute the backbone's activations anew in the backward pass instead of keeping them: about a
# third slower, far less memory
_C.TRAIN.ACT_CHECKPOINT = False
# Compile the model (torch.compile): minutes at the start, faster steps
_C.TRAIN.COMPILE = False
# Average the model's weights over the steps, old average * EMA + new * (1 - EMA); the average is
# what is evaluated and extracted with. 0: none
_C.TRAIN.EMA = 0.0
# TEST.METRIC on TEST.SPLIT every so many epochs, if TEST.DATASET is set
_C.TRAIN.EVAL_PERIOD = 1
# Write a checkpoint every so many epochs (and before each evaluation, and after the last)
_C.TRAIN.CHECKPOINT_PERIOD = 1
# Write one within an epoch as well, so many minutes after the last; 0: never
_C.TRAIN.CHECKPOINT_MINUTES = 30.0
# Checkpoints to keep, the newest, and beside them the best by the evaluation; 0: all
_C.TRAIN.KEEP_CHECKPOINTS = 5
# Go on from the newest checkpoint in OUT_DIR, if there is one
_C.TRAIN.AUTO_RESUME = True
# Weights to start from: of the whole model or of its backbone, ours or another code's
# (or torchvision://resnet50: ImageNet weights by name, downloaded)
_C.TRAIN.WEIGHTS = ""
# Load what fits of them, by name and shape, and list what does not
_C.TRAIN.WEIGHTS_PARTIAL = False

_C.TRAIN.PAIRS = CfgNode()
# Reranking transformers. rrt: the store of the training images' features (of TRAIN.DATASET's TRAIN.SPLIT,
# with INFER.LOCAL True); rrt_sop: the store that the neighbours were found in, of which it uses the names
_C.TRAIN.PAIRS.FEATURES = ""
# The images' neighbours, a folder that tools/search.py neighbours wrote
_C.TRAIN.PAIRS.NEIGHBOURS = ""
# Neighbours that are looked at, and how many images an anchor's positive is drawn from, at least
_C.TRAIN.PAIRS.DEPTH = 100
_C.TRAIN.PAIRS.MIN_POSITIVES = 5
# Where an anchor's positive is drawn: among its neighbours (landmarks) or in its class (products). Its
# negative is always a neighbour. TRAIN.BATCH_SIZE counts all three images
_C.TRAIN.PAIRS.POSITIVES = "neighbours"

# ---------------------------------------------------------------------------- testing
_C.TEST = CfgNode()
# Folder under DATA_DIR, and the image list of the evaluation during training; empty: none
_C.TEST.DATASET = ""
_C.TEST.SPLIT = "val_list.txt"
# error: the classification error, classes as in training; recall: Recall@RECALLS and MAP@R among
# the images of the list, whose classes may be others
_C.TEST.METRIC = "error"
_C.TEST.RECALLS = [1, 2, 4, 8]
# A set in the Revisited format (folder TEST.RETRIEVAL under DATA_DIR with jpg/ and gnd_*.pkl) whose
# mAP is measured as well, or instead; empty: none
_C.TEST.RETRIEVAL = ""
# Its scales, each relative to an image's original size (INFER.SCALES is for the final figure)
_C.TEST.SCALES = [0.7071]
# Images per step, all processes together
_C.TEST.BATCH_SIZE = 64
# Shorter side before the centre crop of TRAIN.IM_SIZE, in pixels
_C.TEST.IM_SIZE = 256
# Weights for extraction: a file, or torchvision://NETWORK[/VERSION]; best: the best checkpoint in OUT_DIR by
# the evaluation; empty: the newest
_C.TEST.WEIGHTS = ""

# ---------------------------------------------------------------------------- extraction
_C.INFER = CfgNode()
# A set in the Revisited format: folder INFER.DATA_DIR/DATASET with jpg/ and gnd_DATASET.pkl
_C.INFER.DATASET = ""
# Where INFER.DATASET lies; empty: DATA_DIR
_C.INFER.DATA_DIR = ""
# Or any images: a folder (searched recursively) or a text file with one path per line
_C.INFER.IMAGES = ""
# Where the feature stores go; empty: OUT_DIR/features
_C.INFER.OUT_DIR = ""
# Scales of the image, each relative to its original size
_C.INFER.SCALES = [0.3535, 0.5, 0.7071, 1.0, 1.4142]
# How the descriptors of the scales become one: mean, or max (SuperGlobal's scale GeM, whose exponent is
# infinite), each of unit length before
_C.INFER.SCALE_POOLING = "mean"
# Resize every image to a square of this side before that (224 for CGD); 0: its own size
_C.INFER.SIZE = 0
# Cut queries to their box, as the Revisited protocol asks
_C.INFER.CROP_QUERIES = True
# What results record of the images, where a data set has several variants (such as "faces blurred", as
# Oxford and Paris have been distributed since 2022); results of different variants are not compared.
# Empty: what the data set's manifest says, if tools/prepare_data.py made it
_C.INFER.IMAGE_VARIANT = ""
# Images per chunk of the store (what a killed run may have to repeat)
_C.INFER.CHUNK_SIZE = 256
# Images of equal size go through the network together, as many as have so many pixels at the largest
# scale; 0: what suits the device
_C.INFER.BATCH_PIXELS = 0
# As in the original: this run is number CUT_NUM, from 1, of TOTAL_NUM that share the work. Each does
# its part first, then what the others have left
_C.INFER.TOTAL_NUM = 1
_C.INFER.CUT_NUM = 1
# Seconds without a sign of a worker after which others take over its chunks (on one machine a dead
# process is known as such at once)
_C.INFER.LEASE = 300.0
# Local features as well (MODEL.ARCH delg or dolg), at these scales, at most so many an image
_C.INFER.LOCAL = False
_C.INFER.LOCAL_SCALES = [0.25, 0.3535, 0.5, 0.7071, 1.0, 1.4142, 2.0]
_C.INFER.LOCAL_TOPK = 1000
# Their attention is above this: where the original's threshold, halved from 260, comes to rest
_C.INFER.LOCAL_THRESHOLD = 260 / 2 ** 11
# Of two whose receptive fields overlap by more (intersection over union) one goes
_C.INFER.LOCAL_OVERLAP = 0.98
# How they are stored: float16 or int8
_C.INFER.LOCAL_DTYPE = "float16"
# Whitenings that tools/whiten.py learned, for the descriptors and for the local features; empty: none
_C.INFER.WHITENING = ""
_C.INFER.LOCAL_WHITENING = ""
# Stop at the first unreadable image instead of marking it in the store
_C.INFER.STRICT = False
# Refuse images whose header claims more pixels than this, or whose decoding takes more memory or work than
# images of so many pixels may (training and its evaluation as well)
_C.INFER.MAX_PIXELS = 100_000_000

# ---------------------------------------------------------------------------- the rest
# ---------------------------------------------------------------------------- reranking
_C.RERANK = CfgNode()
# Rerankers, applied one after another: rrt, spatial, asmk, superglobal, aqe, alpha, kreciprocal, diffusion;
# rrt@0.5: with a weight of its own
_C.RERANK.METHOD = ["spatial"]
# Images of each query's list that they reorder; several numbers give several results
_C.RERANK.TOP_K = [100]
# Share of the reranker's score in the new one, the rest being the score that the image came with; 1: its
# own alone
_C.RERANK.WEIGHT = 1.0
# Take the images that a protocol ignores out of each list before reranking, as DELG and RRT do
_C.RERANK.REMOVE_JUNK = True
# Stores of the queries, the database and distractors, and the ground truth; empty: those of INFER.DATASET
# in INFER.OUT_DIR, and its gnd_DATASET.pkl
_C.RERANK.QUERY = ""
_C.RERANK.DATABASE = ""
_C.RERANK.DISTRACTORS = []
_C.RERANK.GND = ""
# Rerank these lists, a .csv as tools/search.py query writes (query, place, image, score) or a ranking of
# tools/expand.py, in place of the search by descriptors
_C.RERANK.RANKING = ""
# Where the results go; empty: OUT_DIR/rerank
_C.RERANK.OUT_DIR = ""

_C.RERANK.RRT = CfgNode()
# The transformer's configuration is MODEL.RRT's. Its weights, ours or the original's; empty: the newest in
# OUT_DIR
_C.RERANK.RRT.WEIGHTS = ""
# Pairs that are scored at once; 0: what suits the device
_C.RERANK.RRT.BATCH = 0
# What logits are divided by before their sigmoid is mixed with another score
_C.RERANK.RRT.TEMPERATURE = 1.0
_C.RERANK.SPATIAL = CfgNode()
# Which local features are matched: distance (each one's nearest, if nearer than MAX_DISTANCE), ratio
# (nearer than RATIO times the second nearest) or mutual (each the other's nearest, and nearer than
# MAX_DISTANCE)
_C.RERANK.SPATIAL.MATCHING = "mutual"
_C.RERANK.SPATIAL.MAX_DISTANCE = 0.99
_C.RERANK.SPATIAL.RATIO = 0.95
# Most local features of an image, those of the highest attention
_C.RERANK.SPATIAL.LOCALS = 1000
# What matches must agree on: homography, affine or fundamental; found by magsac, degensac-like usac
# (accurate), ransac, or pydegensac, if that is installed
_C.RERANK.SPATIAL.MODEL = "homography"
_C.RERANK.SPATIAL.ESTIMATOR = "magsac"
# Pixels that a match may be off, most samples that are tried, and the confidence at which fewer will do
_C.RERANK.SPATIAL.THRESHOLD = 20.0
_C.RERANK.SPATIAL.ITERATIONS = 1000
_C.RERANK.SPATIAL.CONFIDENCE = 0.9999
# n inliers count as 1 - exp(-n / TEMPERATURE) where they are mixed with another score
_C.RERANK.SPATIAL.TEMPERATURE = 20.0
_C.RERANK.ASMK = CfgNode()
# Visual words, learned from the local features of so many database images, and kept in FOLDER (empty:
# RERANK.OUT_DIR/asmk)
_C.RERANK.ASMK.WORDS = 65536
_C.RERANK.ASMK.TRAIN_IMAGES = 5000
_C.RERANK.ASMK.FOLDER = ""
# Most local features of an image; words that each of a query's is assigned to; residuals as bits or as
# numbers; exponent and threshold of the selectivity function
_C.RERANK.ASMK.LOCALS = 1000
_C.RERANK.ASMK.ASSIGNMENTS = 5
_C.RERANK.ASMK.BINARY = True
_C.RERANK.ASMK.ALPHA = 3.0
_C.RERANK.ASMK.THRESHOLD = 0.0
_C.RERANK.SUPERGLOBAL = CfgNode()
# Neighbours among the candidates by which each descriptor is refined, and their weight
_C.RERANK.SUPERGLOBAL.K = 9
_C.RERANK.SUPERGLOBAL.BETA = 0.15
_C.RERANK.AQE = CfgNode()
# aqe, alpha: images that a query is averaged with; alpha: the power of the similarity that weighs them
_C.RERANK.AQE.N = 10
_C.RERANK.AQE.ALPHA = 3.0
_C.RERANK.KRECIPROCAL = CfgNode()
# As tools/expand.py's: sizes of the reciprocal sets and of the averaging, share of the original distance
_C.RERANK.KRECIPROCAL.K1 = 20
_C.RERANK.KRECIPROCAL.K2 = 6
_C.RERANK.KRECIPROCAL.LAMBDA = 0.3
_C.RERANK.DIFFUSION = CfgNode()
# As tools/expand.py's: mutual neighbours of each image, images that a query starts from, exponent of the
# similarity, share that goes on at each step
_C.RERANK.DIFFUSION.K_GRAPH = 50
_C.RERANK.DIFFUSION.K_QUERY = 10
_C.RERANK.DIFFUSION.GAMMA = 3.0
_C.RERANK.DIFFUSION.ALPHA = 0.99

_C.DATA_LOADER = CfgNode()
# Worker processes that decode images, per training or extraction process; -1: one for each of its
# share of the machine's cores
_C.DATA_LOADER.NUM_WORKERS = -1
# Page-locked host memory for faster copies to a GPU
_C.DATA_LOADER.PIN_MEMORY = True
# Training: decode a JPEG at a half, a quarter or an eighth of its size where the crop stays at least
# as large as TRAIN.IM_SIZE: faster, and smoother than bilinear shrinking from the full size
_C.DATA_LOADER.REDUCED_DECODE = True
# What of the workers' job the GPU does: nothing (empty), augment (crop, resize, colours) or decode
# (that, and the JPEGs by nvJPEG)
_C.DATA_LOADER.ON_DEVICE = ""
# JPEGs that are cut short, in training, its evaluation and extraction: lenient (read as OpenCV reads them,
# what is missing filled in, and counted) or strict (as unreadable as other damaged images)
_C.DATA_LOADER.TRUNCATED = "lenient"
# Images of a training list looked for at the start: sample (a thousand of them), all or none. Of as many,
# except with none, the contents must be the same when the run goes on
_C.DATA_LOADER.CHECK = "sample"
# Training, at an image that cannot be read: stop, with a checkpoint of the step before, or skip: another of
# its class takes its place, until more than 10 images and 1 % of the list were bad
_C.DATA_LOADER.ON_ERROR = "stop"

_C.CUDNN = CfgNode()
# Let cuDNN try its algorithms (training, where sizes are fixed)
_C.CUDNN.BENCHMARK = True

# Root of the data sets
_C.DATA_DIR = "datasets/data"
# Where checkpoints, logs and features go
_C.OUT_DIR = "./output"
# GPUs to train on, a process each; on a machine without any, one CPU process runs. Under torchrun its
# ranks decide
_C.NUM_GPUS = 1
# auto: the GPUs where there are some; cpu: NUM_GPUS processes on the CPU
_C.DEVICE = "auto"
# How often the processes are started again, from the newest whole checkpoint, after one has died;
# under torchrun its --max-restarts decides
_C.MAX_RESTARTS = 3
# Arithmetic of the network: fp32, bf16 or fp16 (margin softmax and pooling stay fp32)
_C.PRECISION = "fp32"
# Seed of the weights, the order of the images and their augmentation
_C.RNG_SEED = 1
# Write the meters every so many steps
_C.LOG_PERIOD = 10


# Sections that take any keys
_FREE = ("LOSS.PML.ARGS", "LOSS.PML.MINER_ARGS")


def get_cfg() -> CfgNode:
    """A fresh copy of the defaults."""
    return _C.clone()


def load_cfg(file: str | None = None, opts: list[str] | tuple[str, ...] = ()) -> CfgNode:
    """The defaults, then the YAML `file`, then KEY VALUE pairs: checked and frozen.

    Raises UserError for an unknown key, a value of another type than the default's, or
    values that cannot work together.
    """
    cfg = get_cfg()
    if file:
        given = set()
        for key, value in _flatten(_read_yaml(file)):
            if key in given:        # nested, and with dots
                raise UserError(f"{file}: {key} is given twice")
            given.add(key)
            _set(cfg, key, value, source=file)
    if len(opts) % 2:
        raise UserError(f"options come in pairs of KEY VALUE: '{opts[-1]}' has no value")
    for key, text in zip(opts[::2], opts[1::2]):
        _set(cfg, key, _parse(text), source="the command line", text=text)
    check_cfg(cfg)
    cfg.freeze()
    return cfg


def _read_yaml(file: str) -> dict:
    path = Path(file)
    if not path.is_file():
        near = closest(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise UserError(f"no configuration file {file}{near}")
    try:
        tree = read_yaml(path)
    except YamlError as error:
        raise UserError(f"{file} is not YAML that is read here: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{file} holds no configuration keys")
    return tree


def _flatten(tree: dict, prefix: str = "") -> list[tuple[str, object]]:
    """A nested mapping as ("A.B", value) pairs."""
    pairs = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        pairs += _flatten(value, name + ".") if isinstance(value, dict) else [(name, value)]
    return pairs


def _parse(text: str):
    """A command-line value as the Python literal or the number it spells, else as the string itself."""
    try:
        if text.strip(" +-").lower() in ("nan", "inf", "infinity"):
            return float(text)
        with warnings.catch_warnings(action="ignore"):      # of words that begin as numbers do
            return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return text


def _set(cfg: CfgNode, key: str, value, source: str, text: str | None = None) -> None:
    """Set one key, after checking that it exists and that the value has its type."""
    leaves = dict(_flatten(cfg))
    free, _, name = key.rpartition(".")
    if free in _FREE:
        _check_plain(value, key, source)
        get_key(cfg, free)[name] = value
        return
    if key not in leaves:
        sections = sorted({name.rsplit(".", 1)[0] for name in leaves if "." in name})
        if key in sections:
            raise UserError(f"{source}: {key} is a section; give one of its keys, such as "
                            f"{next(n for n in leaves if n.startswith(key + '.'))}")
        raise UserError(f"{source}: unknown configuration key {_short(key)}{closest_key(key, list(leaves))}")
    want = type(leaves[key])
    value = _coerce(value, want, text)
    _check_plain(value, key, source)
    if not isinstance(value, want) or (want is int and isinstance(value, bool)):
        raise UserError(f"{source}: {key} is {_short(repr(value))}, of type {type(value).__name__}; "
                        f"it takes {want.__name__}, such as {leaves[key]!r}")
    *sections, leaf = key.split(".")
    for part in sections:
        cfg = cfg[part]
    cfg[leaf] = value


def _check_plain(value, key: str, source: str, level: int = 0) -> None:
    """Raise UserError for numbers that are not finite, or that 64 bits do not hold, and for other than
    numbers, text and lists of them."""
    verb = "has" if level else "is"
    if isinstance(value, (list, tuple)) and level < 3:
        for part in value:
            _check_plain(part, key, source, level + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{source}: {key} {verb} {value}: give a finite number")
    elif isinstance(value, int) and abs(value) >= 2 ** 63:
        raise UserError(f"{source}: {key} {verb} a number of {value.bit_length()} bits: give one below 2 ** 63")
    elif not isinstance(value, (bool, int, float, str, type(None))):
        raise UserError(f"{source}: {key} {verb} of type {type(value).__name__}: "
                        "give a number, text or a list of them")


def _short(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."


def _coerce(value, want: type, text: str | None):
    """Lossless readings of a value: 30 or "1e-5" for a float, a bare word for a string."""
    if want is str and text is not None:
        return text.strip("'\"") if text[:1] in "'\"" else text
    if want is str and value is None:
        return ""
    if want is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2 ** 63 else value
    if want is float and isinstance(value, str):
        try:
            return float(value)         # YAML 1.1 reads 1e-5, without a dot, as a string
        except ValueError:
            return value
    if want is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"  # YAML's spelling, on the command line
    if want is list and isinstance(value, str):
        # [a, b] or a alone: words need no quotation marks
        return [_parse(word.strip()) for word in value.strip("[] ").split(",") if word.strip()]
    if want is list and isinstance(value, tuple):
        return list(value)
    return value
