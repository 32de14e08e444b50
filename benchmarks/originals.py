"""Training and extraction done the way of the original codes, in float32: what train.py and extract.py
compare with.

github.com/feymanpriv/DOLG (core/trainer.py, core/model/dolg_model.py, evaler/infer.py),
github.com/feymanpriv/DELG (tools/extractor.py, extraction/delg_utils.py) and github.com/leftthomas/CGD
(train.py, utils.py), told again: the same operations on the same tensors, in the same order. The
backbones are ours, whose layers are theirs.
"""
import math

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dolg.models import build_model


class DOLGWithHead(nn.Module):
    """Images and labels to the logits: the projections of all positions, then their mean."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_model(cfg).backbone
        c3, c4 = self.backbone.channels["stage3"], self.backbone.channels["stage4"]
        self.fc_t, self.fc = nn.Linear(c4, c3), nn.Linear(2 * c3, cfg.MODEL.HEADS.REDUCTION_DIM)
        self.conv1, self.bn = nn.Conv2d(c3, c3, 1), nn.BatchNorm2d(c3)
        self.conv2 = nn.Conv2d(c3, 1, 1)
        self.head = MarginHead(cfg)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.head(self.describe(images), labels)

    def describe(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.backbone(images)
        local = self._attend(maps["stage3"])
        pooled = F.adaptive_avg_pool2d(maps["stage4"].clamp(min=1e-6).pow(3.0), 1).pow(1 / 3)
        global_ = self.fc_t(pooled.flatten(1))
        dots = torch.bmm(global_[:, None], local.flatten(2))
        along = torch.bmm(global_[:, :, None], dots).view_as(local)
        square = torch.norm(global_, dim=1) ** 2
        rest = local - along / square[:, None, None, None]
        fused = torch.cat([global_, F.adaptive_avg_pool2d(rest, 1).flatten(1)], dim=1)
        return self.fc(fused)

    def _attend(self, maps: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv1(maps))
        unit = F.normalize(x, dim=1)
        score = F.softplus(self.conv2(F.relu(x)))
        return score.expand_as(unit) * unit


class MarginHead(nn.Module):
    """CurricularFace, its hard classes picked out by a mask and put back."""

    def __init__(self, cfg):
        super().__init__()
        self.margin, self.scale = cfg.MODEL.HEADS.MARGIN, cfg.MODEL.HEADS.SCALE
        self.weight = nn.Parameter(
            torch.randn(cfg.MODEL.NUM_CLASSES, cfg.MODEL.HEADS.REDUCTION_DIM) * 0.01)
        self.register_buffer("t", torch.zeros(1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        cosine = F.linear(F.normalize(x), F.normalize(self.weight)).clamp(-1, 1)
        target = cosine[torch.arange(len(x)), labels].view(-1, 1)
        sine = torch.sqrt(1.0 - torch.pow(target, 2))
        moved = target * math.cos(self.margin) - sine * math.sin(self.margin)
        mask = cosine > moved
        final = torch.where(target > math.cos(math.pi - self.margin), moved,
                            target - math.sin(self.margin) * self.margin)
        hard = cosine[mask]
        with torch.no_grad():
            self.t = target.mean() * 0.01 + 0.99 * self.t
        cosine[mask] = hard * (self.t + hard)
        cosine.scatter_(1, labels.view(-1, 1), final)
        return cosine * self.scale


class CGDWithClassifier(nn.Module):
    """Images to the descriptors of length 1 and the auxiliary classifier's logits."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_model(cfg).backbone
        channels, dim = self.backbone.channels["stage4"], cfg.MODEL.CGD.FEATURE_DIM
        self.reduce = nn.ModuleList(nn.Linear(channels, dim // 2, bias=False) for _ in range(2))
        self.auxiliary = nn.Sequential(nn.BatchNorm1d(channels),
                                       nn.Linear(channels, cfg.MODEL.NUM_CLASSES))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.backbone(images)["stage4"]
        average = maps.mean(dim=[-1, -2])
        gem = maps.pow(3).mean(dim=[-1, -2]).clamp(min=0.0) ** (1.0 / 3)
        parts = [F.normalize(reduce(x), dim=-1) for reduce, x in zip(self.reduce, (average, gem))]
        return F.normalize(torch.cat(parts, dim=-1), dim=-1), self.auxiliary(average)


def triplet_loss(x: torch.Tensor, labels: torch.Tensor, margin: float) -> torch.Tensor:
    """Hardest positive and negative of each anchor, from the full matrix of distances."""
    products = x @ x.t()
    squares = torch.diag(products)
    distances = F.relu(squares[None] - 2 * products + squares[:, None]).clamp(min=1e-16).sqrt()
    same = (labels[None] == labels[:, None]).float()
    positives = same * (1 - torch.eye(len(x)).to(x.device))
    farthest = (positives * distances).max(1, True)[0]
    nearest = (distances + distances.max(1, True)[0] * same).min(1, True)[0]
    return F.relu(farthest - nearest + margin).sum()


def smoothed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing: float,
                           temperature: float) -> torch.Tensor:
    """Label smoothing written out over all log-probabilities."""
    log_probabilities = F.log_softmax(logits / temperature, dim=-1)
    own = -log_probabilities.gather(-1, labels[:, None]).squeeze(-1)
    return ((1 - smoothing) * own - smoothing * log_probabilities.mean(-1)).mean()


def dolg_loop(cfg, images: torch.Tensor, labels: torch.Tensor):
    """One step of DOLG's training, as a function without arguments."""
    model = DOLGWithHead(cfg).to(images.device).train()
    loss_function = nn.CrossEntropyLoss()
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    others = [p for p in model.parameters() if not any(p is norm for norm in norms)]
    optim = cfg.OPTIM
    optimizer = torch.optim.SGD([{"params": norms}, {"params": others}], lr=optim.BASE_LR,
                                momentum=optim.MOMENTUM, weight_decay=optim.WEIGHT_DECAY,
                                nesterov=optim.NESTEROV)

    def step() -> None:
        logits = model(images, labels)
        loss = loss_function(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        best = torch.topk(logits, 5, dim=1)[1].t()
        correct = best.eq(labels.view(1, -1).expand_as(best))
        errors = [(1 - correct[:k].reshape(-1).float().sum() / len(labels)) * 100 for k in (1, 5)]
        for figure in (loss, *errors):
            figure.item()

    return step


def cgd_loop(cfg, images: torch.Tensor, labels: torch.Tensor):
    """One step of CGD's training, as a function without arguments."""
    model = CGDWithClassifier(cfg).to(images.device).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.OPTIM.BASE_LR)

    def step() -> None:
        x, logits = model(images)
        class_loss = smoothed_cross_entropy(logits, labels, cfg.LOSS.SMOOTHING,
                                            cfg.LOSS.TEMPERATURE)
        loss = class_loss + triplet_loss(x, labels, cfg.LOSS.TRIPLET.MARGIN)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        predicted = torch.argmax(logits, dim=-1)
        loss.item()
        torch.sum(predicted == labels).item()

    return step


LOOPS = {"dolg": dolg_loop, "cgd": cgd_loop}


# ------------------------------------------------------------------ extraction

def read_scaled(image: np.ndarray, scale: float) -> torch.Tensor:
    """OpenCV's float image (H,W,3), BGR, resized and normalised, (1,3,h,w)."""
    height, width = image.shape[:2]
    size = (int(round(width * scale)), int(round(height * scale)))
    scaled = cv2.resize(image.copy(), size, interpolation=cv2.INTER_LINEAR).astype(np.float32)
    scaled = scaled.transpose([2, 0, 1]) / 255.0
    for channel, (mean, sd) in enumerate(zip((0.406, 0.456, 0.485), (0.225, 0.224, 0.229))):
        scaled[channel] = (scaled[channel] - mean) / sd
    return torch.from_numpy(np.asarray([scaled], dtype=np.float32))


@torch.no_grad()
def extract_dolg(model: DOLGWithHead, path: str, scales: list[float]) -> np.ndarray:
    """The descriptor (1,D) of one image, scale after scale."""
    image = cv2.imread(path).astype(np.float32, copy=False)
    device = model.fc.weight.device
    total = 0
    for scale in scales:
        raw = model.describe(read_scaled(image, scale).to(device))
        total = total + F.normalize(raw, p=2, dim=1).cpu().numpy()
    mean = total / len(scales)
    return mean / np.linalg.norm(mean)


class DELGWithHead(nn.Module):
    """Images to the global descriptor, the local features and their scores."""

    def __init__(self, cfg):
        super().__init__()
        model = build_model(cfg)
        self.backbone, self.pool, self.fc = model.backbone, model.pool, model.fc
        self.attention = model.attention

    def forward(self, images: torch.Tensor):
        maps = self.backbone(images)
        local, scores = self.attention(maps["stage3"])
        return self.fc(self.pool(maps["stage4"])), local, scores


@torch.no_grad()
def extract_delg(model: DELGWithHead, path: str, scales: list[float], topk: int = 1000):
    """Locations, descriptors and scores of one image's local features; the network runs twice per
    scale, as it does there."""
    image = cv2.imread(path).astype(np.float32, copy=False)
    device = model.fc.weight.device
    boxes, features, scores = [], [], []
    for scale in scales:
        inputs = read_scaled(image, scale).to(device)
        model(inputs)
        _, local, attention = model(inputs)
        height, width = local.shape[2:]
        rows = torch.floor(torch.arange(0, float(width * height)) / width)
        columns = torch.arange(0, float(width)).repeat(height)
        corners = 16.0 * torch.stack([rows, columns, rows, columns], dim=1)
        fields = ((corners + torch.tensor([-145.0, -145.0, 145.0, 145.0])) / scale).to(device)
        local = F.normalize(local, p=2, dim=1).view(local.size(1), -1).t()
        attention, threshold, places = attention.view(-1), 260.0, None
        while places is None or len(places) < topk:
            places = torch.gt(attention, threshold).nonzero().view(-1)
            threshold *= 0.5
            if threshold < 0.1:
                break
        boxes.append(fields[places])
        features.append(local[places])
        scores.append(attention[places])
    boxes, features, scores = torch.cat(boxes), torch.cat(features), torch.cat(scores)
    kept = _suppress(boxes, scores, 0.98, topk)
    centres = (boxes[kept, :2] + boxes[kept, 2:]) / 2
    return centres.cpu().numpy(), features[kept].cpu().numpy(), scores[kept].cpu().numpy()


def _suppress(boxes: torch.Tensor, scores: torch.Tensor, overlap: float, topk: int) -> list[int]:
    """Non-maximum suppression, one box at a time."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left, kept = scores.sort(0)[1][-topk:], []
    while len(left):
        best, left = int(left[-1]), left[:-1]
        kept.append(best)
        low = torch.maximum(boxes[left, :2], boxes[best, :2])
        high = torch.minimum(boxes[left, 2:], boxes[best, 2:])
        sides = (high - low).clamp(min=0.0)
        shared = sides[:, 0] * sides[:, 1]
        left = left[shared / (areas[left] - shared + areas[best]) <= overlap]
    return kept
