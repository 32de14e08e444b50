"""Training: epochs over an image list, with checkpoints from which a run goes on exactly."""
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from dolg.core.checkpoint import (checkpoint_path, load_weights, newest_checkpoint, read_file,
                                  save_checkpoint)
from dolg.core.download import weights_file
from dolg.core.distributed import barrier, device, is_main, rank, world_size
from dolg.core.evaluation import class_retrieval, classification_error
from dolg.core.logging import RunLog, say
from dolg.core.meters import Meter, figures_of
from dolg.core.optimizer import build_optimizer, learning_rate, set_learning_rate
from dolg.core.resume import check_same_run, restore_rng, rng_states
from dolg.data.image_list import ImageList, read_image_list
from dolg.data.loader import (BalancedStepSampler, Batch, CentredImages, StepLoader, StepSampler,
                              TrainingImages)
from dolg.errors import UserError
from dolg.files import write_atomically
from dolg.losses import build_loss
from dolg.models import build_model

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingModule(nn.Module):
    """Model and loss as one module, so that distributed training wraps them once.

    With `freeze_norms` the model's batch norms keep their running statistics as they are.
    """

    def __init__(self, model: nn.Module, loss: nn.Module, freeze_norms: bool):
        super().__init__()
        self.model, self.loss, self.freeze_norms = model, loss, freeze_norms

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.loss(self.model(images), labels)

    def train(self, mode: bool = True) -> "TrainingModule":
        super().train(mode)
        if self.freeze_norms:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    module.eval()
        return self


def train(cfg) -> None:
    """Train as `cfg` says, from the newest checkpoint in OUT_DIR if there is one."""
    Trainer(cfg).run()


class Trainer:
    """The parts of a run, built in view, and the loop over them."""

    def __init__(self, cfg):
        self.cfg, self.device = cfg, device()
        if cfg.TRAIN.BATCH_SIZE % world_size():
            raise UserError(f"TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE} is the total of all "
                            f"processes: give a multiple of {world_size()}")
        torch.manual_seed(cfg.RNG_SEED)
        torch.backends.cudnn.benchmark = cfg.CUDNN.BENCHMARK
        model = build_model(cfg)
        self.train_images = self._images(cfg.TRAIN.DATASET, cfg.TRAIN.SPLIT, "TRAIN.DATASET",
                                         cfg.MODEL.NUM_CLASSES)
        class_counts = np.bincount(self.train_images.labels, minlength=cfg.MODEL.NUM_CLASSES)
        loss = build_loss(cfg, model.dims, class_counts)
        self.module = TrainingModule(model, loss, cfg.BN.FREEZE)
        self.train_loader = self._train_loader(model.input_spec)
        self.test_loader = self._test_loader(model.input_spec)
        self.module.to(self.device, memory_format=torch.channels_last)
        self.optimizer = build_optimizer(cfg, self.module)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=cfg.PRECISION == "fp16")
        self.first_epoch = self._resume_or_start()
        self.parallel = self.module if world_size() == 1 else DistributedDataParallel(self.module)

    def run(self) -> None:
        """All epochs that are left, each ending in a checkpoint as often as asked."""
        cfg = self.cfg
        if self.first_epoch >= cfg.OPTIM.MAX_EPOCH:
            say(f"{cfg.OUT_DIR} holds all {self.first_epoch} epochs: nothing left to train")
            return
        say(f"training on {len(self.train_loader.sampler)} steps of {cfg.TRAIN.BATCH_SIZE} images "
            f"per epoch, {world_size()} process(es), {self.device.type}, {cfg.PRECISION}")
        log = RunLog(cfg.OUT_DIR)
        try:
            for epoch in range(self.first_epoch, cfg.OPTIM.MAX_EPOCH):
                self._train_epoch(epoch, log)
                done, last = epoch + 1, epoch + 1 == cfg.OPTIM.MAX_EPOCH
                if self.test_loader and (last or done % cfg.TRAIN.EVAL_PERIOD == 0):
                    self._test_epoch(epoch, log)
                if last or done % cfg.TRAIN.CHECKPOINT_PERIOD == 0:
                    self._save(done)
        finally:
            log.close()

    def _train_epoch(self, epoch: int, log: RunLog) -> None:
        cfg, steps, period, whole = self.cfg, len(self.train_loader), Meter(), Meter()
        self.parallel.train()
        bar = tqdm(self.train_loader.epoch(epoch), total=steps, unit="step", leave=False,
                   desc=f"epoch {epoch + 1}/{cfg.OPTIM.MAX_EPOCH}",
                   disable=None if is_main() else True)
        asked = time.perf_counter()
        for step, batch in enumerate(bar):
            wait = time.perf_counter() - asked
            rate = learning_rate(cfg, epoch + (step / steps if cfg.OPTIM.LR_UPDATE == "step" else 0))
            set_learning_rate(self.optimizer, rate)
            figures = self._step(batch, epoch, step)
            for meter in (period, whole):
                meter.update(figures, len(batch.labels), wait)
            if (step + 1) % cfg.LOG_PERIOD == 0:
                figures = period.summary()
                period.reset()
                bar.set_postfix(loss=f"{figures['loss']:.3f}")
                log.write("train", epoch * steps + step + 1,
                          {"epoch": epoch + 1, "lr": rate, **figures})
            asked = time.perf_counter()
        figures = whole.summary()
        log.write("train_epoch", (epoch + 1) * steps, {"epoch": epoch + 1, "lr": rate, **figures})
        say(f"epoch {epoch + 1}/{cfg.OPTIM.MAX_EPOCH}: {_in_words(figures)}, "
            f"{figures['images_per_s']:.0f} images/s")

    def _step(self, batch: Batch, epoch: int, step: int) -> dict[str, float]:
        """Forward, backward, update; what there is to count."""
        images = batch.images.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        with self._autocast():
            outputs = self.parallel(images, labels)
        loss = outputs["total"].item()
        if not loss - loss == 0:
            raise UserError(self._describe_failure(loss, batch, epoch, step))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(outputs["total"]).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return figures_of(outputs, labels)

    def _describe_failure(self, loss: float, batch: Batch, epoch: int, step: int) -> str:
        """What went wrong, for the user; the paths of the batch are written to a file."""
        paths = [str(self.train_images.paths[i]) for i in batch.indexes.tolist()]
        file = Path(self.cfg.OUT_DIR) / f"failed_batch_rank{rank()}.txt"
        write_atomically(file, "\n".join(paths) + "\n")
        return (f"the loss is {loss} at epoch {epoch + 1}, step {step + 1}, rank {rank()}; the "
                f"{len(paths)} images of the batch are listed in {file} (first: {paths[0]}). "
                "Lower OPTIM.BASE_LR, or go on from an earlier checkpoint")

    def _test_epoch(self, epoch: int, log: RunLog) -> None:
        cfg = self.cfg
        if cfg.TEST.METRIC == "recall":
            figures = class_retrieval(self.module.model, self.test_loader, self.test_images.labels,
                                      cfg.TEST.RECALLS, self.device, self._autocast)
        else:
            figures = classification_error(self.module, self.test_loader, self.device,
                                           self._autocast)
        log.write("test_epoch", (epoch + 1) * len(self.train_loader),
                  {"epoch": epoch + 1, **figures})
        say(f"  on {cfg.TEST.DATASET}/{cfg.TEST.SPLIT}: {_in_words(figures)}")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=PRECISIONS[self.cfg.PRECISION],
                              enabled=self.cfg.PRECISION != "fp32")

    def _train_loader(self, input_spec) -> StepLoader:
        cfg, images = self.cfg, self.train_images
        if len(images) < cfg.TRAIN.BATCH_SIZE:
            raise UserError(f"TRAIN.SPLIT has {len(images)} images, fewer than "
                            f"TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE}")
        dataset = TrainingImages(images, cfg.TRAIN.IM_SIZE, cfg.TRAIN.CROP_AREA, cfg.RNG_SEED,
                                 cfg.TRAIN.LIGHTING, cfg.TRAIN.RESIZE)
        if cfg.TRAIN.IMAGES_PER_CLASS:
            sampler = BalancedStepSampler(images.labels, cfg.TRAIN.BATCH_SIZE,
                                          cfg.TRAIN.IMAGES_PER_CLASS, rank(), world_size(),
                                          cfg.RNG_SEED)
        else:
            sampler = StepSampler(len(images), cfg.TRAIN.BATCH_SIZE, rank(), world_size(),
                                  cfg.RNG_SEED, shuffle=True)
        return self._loader(dataset, sampler, input_spec)

    def _test_loader(self, input_spec) -> StepLoader | None:
        cfg = self.cfg
        if not cfg.TEST.DATASET:
            return None
        classes = cfg.MODEL.NUM_CLASSES if cfg.TEST.METRIC == "error" else None
        self.test_images = self._images(cfg.TEST.DATASET, cfg.TEST.SPLIT, "TEST.DATASET", classes)
        dataset = CentredImages(self.test_images, cfg.TEST.IM_SIZE, cfg.TRAIN.IM_SIZE,
                                square=cfg.TRAIN.RESIZE > 0)
        sampler = StepSampler(len(self.test_images), cfg.TEST.BATCH_SIZE, rank(), world_size(),
                              cfg.RNG_SEED, shuffle=False)
        return self._loader(dataset, sampler, input_spec)

    def _images(self, dataset: str, split: str, key: str, num_classes: int | None) -> ImageList:
        if not dataset:
            raise UserError(f"{key} is empty: name a folder under DATA_DIR {self.cfg.DATA_DIR}")
        return read_image_list(Path(self.cfg.DATA_DIR) / dataset / split, num_classes)

    def _loader(self, dataset, sampler: StepSampler, spec) -> StepLoader:
        cfg = self.cfg
        pin = cfg.DATA_LOADER.PIN_MEMORY and self.device.type == "cuda"
        return StepLoader(dataset, sampler, spec, cfg.DATA_LOADER.NUM_WORKERS, pin)

    def _resume_or_start(self) -> int:
        """Load the newest checkpoint, or start anew; the number of epochs already done."""
        cfg = self.cfg
        newest = newest_checkpoint(cfg.OUT_DIR)
        barrier()       # no process may write the first checkpoint before all have looked
        if newest and not cfg.TRAIN.AUTO_RESUME:
            raise UserError(f"{newest} exists, and TRAIN.AUTO_RESUME is False: give another "
                            "OUT_DIR, delete that one, or resume")
        if newest:
            return self._resume(newest)
        if cfg.TRAIN.WEIGHTS:
            say(load_weights(self.module.model, weights_file(cfg.TRAIN.WEIGHTS), start=True,
                             partial=cfg.TRAIN.WEIGHTS_PARTIAL))
        if is_main():
            write_atomically(Path(cfg.OUT_DIR) / "config.yaml", cfg.dump())
        self._save(0)
        return 0

    def _resume(self, path: Path) -> int:
        state = read_file(path)
        check_same_run(self.cfg, state, path)
        self.module.model.load_state_dict(state["model"])
        self.module.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        restore_rng(state["rng"])
        say(f"going on from {path}")
        return state["epoch"]

    def _save(self, epoch: int) -> None:
        rng = rng_states()
        if is_main():
            save_checkpoint(checkpoint_path(self.cfg.OUT_DIR, epoch), {
                "model": self.module.model.state_dict(),
                "loss": self.module.loss.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "epoch": epoch,
                "rng": rng,
                "cfg": self.cfg.dump(),
            })
        barrier()


def _in_words(figures: dict[str, float]) -> str:
    """The figures that people look for, in a line."""
    words = [f"loss {figures['loss']:.4f}"] if "loss" in figures else []
    words += [f"top-{k} error {figures[f'top{k}_err']:.1f} %" for k in (1, 5)
              if f"top{k}_err" in figures]
    words += [f"{name} {value:.2f} %" for name, value in figures.items()
              if name.startswith(("R@", "MAP@R"))]
    return ", ".join(words)
