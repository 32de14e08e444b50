"""Training: epochs over the steps of a task, with checkpoints from which a run goes on exactly."""
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from dolg.core.averaging import build_average
from dolg.core.batchnorm import precise_statistics
from dolg.core.checkpoint import load_weights
from dolg.core.distributed import (READ_ERRORS, StopRequest, agreed, any_process, device, from_main, gather,
                                   is_main, rank, world_size)
from dolg.core.download import weights_file
from dolg.core.logging import RunLog, say
from dolg.core.meters import NOTHING, Meter, add_sums, figures_of, pool_sums, summarise
from dolg.core.optimizer import (build_optimizer, clip_gradients, learning_rate,
                                 set_learning_rate)
from dolg.core.precision import autocast, grad_scaler
from dolg.core.provenance import BAD_IMAGES, check_same_data, note_bad_images, record_data
from dolg.core.resume import (check_epochs, check_same_run, load_optimizer_state, restore_rng, rng_states,
                              whole_loss_state, whole_optimizer_state)
from dolg.core.saving import (Position, Saver, checkpoint_path, newest_checkpoint, read_best,
                              write_best)
from dolg.core.tasks import build_task
from dolg.core.validation import EvaluationError
from dolg.core.weight_files import read_file
from dolg.data.decode import ImageError
from dolg.errors import UserError
from dolg.files import read_records, write_atomically
from dolg.losses.shards import sharded_parameters

_NAMED = 3
# With DATA_LOADER.ON_ERROR skip: as many bad images are replaced, or this fraction of the list, if it is more
_MOST_BAD, _MOST_BAD_FRACTION = 10, 0.01


def train(cfg) -> None:
    """Train as `cfg` says, from the newest whole checkpoint in OUT_DIR if there is one."""
    Trainer(cfg).run()


class Trainer:
    """The parts of a run, built in view, and the loop over them."""

    def __init__(self, cfg):
        self.cfg, self.device = cfg, device(cfg.DEVICE)
        _check_batch(cfg)
        torch.manual_seed(cfg.RNG_SEED)
        torch.backends.cudnn.benchmark = cfg.CUDNN.BENCHMARK
        self.task = build_task(cfg, self.device)
        self.train_loader, self.validation = self.task.loader, self.task.validation
        model = self.task.model
        if cfg.BN.SYNC and world_size() > 1:
            model = _synchronised(model, self.device)
        self.module = self.task.module(model, cfg.TRAIN.COMPILE)
        self.module.to(self.device, memory_format=torch.channels_last)
        self.sharded = {f"loss.{name}" for name in sharded_parameters(self.task.loss)}
        self.autocast = partial(autocast, cfg.PRECISION, self.device)
        self.optimizer = build_optimizer(cfg, self.module)
        self.scaler = grad_scaler(cfg.PRECISION, self.device, bool(self.sharded))
        self.average = build_average(model, cfg.TRAIN.EMA)
        self.saver = None       # the main process's
        self.bad: dict[int, str] = {}       # indexes of images that were replaced, and why
        from_main(self._open_folder)
        self.start, self.sums = self._resume_or_start()
        self.parallel = self._wrap()

    def run(self) -> None:
        """All epochs that are left; or as far as a stop is asked for, with a checkpoint of the step
        in which it came."""
        cfg, failure, unjudged = self.cfg, "", self._evaluation_is_missing()
        if self.start.epoch == cfg.OPTIM.MAX_EPOCH:
            say(f"{cfg.OUT_DIR} holds all {self.start.epoch} epochs: nothing left to train")
            if not unjudged:
                return
        else:
            say(f"training on {len(self.train_loader)} steps of {cfg.TRAIN.BATCH_SIZE} images per "
                f"epoch, {world_size()} process(es), {self.device.type}, {cfg.PRECISION}")
        log = RunLog(cfg.OUT_DIR)
        try:
            with StopRequest() as stop:
                if unjudged:
                    failure = self._evaluate(self.start.epoch, log)
                for epoch in range(self.start.epoch, cfg.OPTIM.MAX_EPOCH):
                    if not self._train_epoch(epoch, log, stop):
                        return stop.end()
                    failure = self._end_epoch(epoch + 1, log)
                if self.saver:
                    self.saver.finish()
        finally:
            log.close()
        if failure:
            raise UserError(f"training is done and saved, but its last evaluation failed: {failure}. Mend "
                            "that, and the same command evaluates the last checkpoint")

    def _train_epoch(self, epoch: int, log: RunLog, stop: StopRequest) -> bool:
        """The steps left of an epoch; False where a stop was asked for."""
        steps, meter = len(self.train_loader), Meter()
        first = self.start.step if epoch == self.start.epoch else 0
        self.parallel.train()
        bar = tqdm(self._batches(epoch, first, meter), initial=first, total=steps,
                   desc=f"epoch {epoch + 1}/{self.cfg.OPTIM.MAX_EPOCH}", unit="step", leave=False,
                   disable=None if is_main() else True)
        for step, (batch, wait) in enumerate(bar, first):
            set_learning_rate(self.optimizer, self._rate(epoch, step))
            meter.update(self.step(batch), batch.indexes, wait)
            position = Position(epoch, step + 1)
            logging = position.step % self.cfg.LOG_PERIOD == 0
            stopping, due, replaced = any_process(bool(stop.asked), self._checkpoint_is_due(),
                                                  any(i not in self.bad for i, _ in batch.replaced))
            if logging or stopping or due or position.step == steps:
                self._check_losses(meter, position)
            if replaced:
                self._note_replaced(batch.replaced, position, meter)
            if stopping or due:
                self._save(position, add_sums(self.sums, meter.sums()))
            if stopping:
                self._say_stopped(stop, position)
                return False
            if logging:
                bar.set_postfix(loss=f"{meter.losses()[-1]:.3f}")
                self._log(log, "train", position, meter.summary())
                self.sums = add_sums(self.sums, meter.sums())
                meter.reset()
        figures = summarise(add_sums(self.sums, meter.sums()))
        self.sums = NOTHING
        bad = {"bad_images": len(self.bad)} if self.bad else {}
        self._log(log, "train_epoch", Position(epoch, steps), {**figures, **bad})
        say(f"epoch {epoch + 1}/{self.cfg.OPTIM.MAX_EPOCH}: {in_words(figures)}, "
            f"{figures['images_per_s']:.0f} images/s, waiting for data "
            f"{figures['data_wait']:.0%}")
        if self.bad:
            from_main(lambda: self._write_bad(self.bad))
            say(f"  {len(self.bad)} image(s) cannot be read and were replaced by others of their classes: "
                f"see {self.cfg.OUT_DIR}/{BAD_IMAGES}")
        self._say_cut_images()
        return True

    def _batches(self, epoch: int, first: int, meter: Meter) -> Iterator[tuple]:
        """The batches of an epoch from step `first` on, each with the seconds that it was waited for.
        Where one cannot be read by some process, the run is saved, and UserError raised in all."""
        step, batches = first, agreed(_timed(self.train_loader.epoch(epoch, first)))
        try:
            for step, batch in enumerate(batches, first + 1):
                yield batch
        except READ_ERRORS as error:
            # Errors of the step itself are raised in the caller's loop, not here
            advice = ""
            if isinstance(error, ImageError) and not error.passing:
                from_main(lambda: self._write_bad({self.task.index_of(error.path): error.reason}))
                skipping = self.cfg.DATA_LOADER.ON_ERROR == "skip"
                advice = ". Mend it or remove its line from the list" + (
                    "" if skipping else ", or set DATA_LOADER.ON_ERROR skip")
            self._stop_saved(f"{error}{advice}", Position(epoch, step), meter)

    def _note_replaced(self, mine: Sequence[tuple[int, str]], position: Position, meter: Meter) -> None:
        """Remember, in all processes, what was replaced; end the run, saved, where it is too much."""
        first = not self.bad
        for part in gather(list(mine)):
            self.bad.update(part)
        if first:
            index, reason = next(iter(self.bad.items()))
            say(f"WARNING: cannot read image {self.task.name(index)}: {reason}. Another image of its class "
                "replaces it, and likewise for further ones")
        if len(self.bad) > max(_MOST_BAD, _MOST_BAD_FRACTION * len(self.task.images)):
            from_main(lambda: self._write_bad(self.bad))
            self._stop_saved(f"{len(self.bad)} images cannot be read, too many to go on without them: "
                             f"{self.cfg.OUT_DIR}/{BAD_IMAGES} names them", position, meter)

    def _write_bad(self, reasons: dict[int, str]) -> None:
        note_bad_images(self.cfg, self.task.images, reasons)

    def _stop_saved(self, message: str, position: Position, meter: Meter) -> None:
        """Save the run as it is at `position`, and raise UserError (each process must call this)."""
        self._check_losses(meter, position)
        self._save(position, add_sums(self.sums, meter.sums()))
        if self.saver:
            self.saver.finish()
        raise UserError(f"{message}; the run is saved ({position} done), and the same command goes on from "
                        "there")

    def _say_cut_images(self) -> None:
        """Name the images of the epoch that are cut short (each process must call this)."""
        cut = sorted(set().union(*gather(self.task.cut_images())))
        if cut:
            names = ", ".join(self.task.name(index) for index in cut[:_NAMED])
            say(f"  WARNING: {len(cut)} images are cut short, and what is missing of them is filled in "
                f"(DATA_LOADER.TRUNCATED): {names}{', ...' if len(cut) > _NAMED else ''}")

    def step(self, batch) -> dict[str, torch.Tensor]:
        """One update by a batch of the task's; its figures, on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.cfg.TRAIN.ACCUMULATE
        figures = []
        for number, (inputs, labels) in enumerate(self.task.parts(batch, parts), 1):
            with self._exchange(last=number == parts):
                with self.autocast():
                    outputs = self.parallel(inputs, labels)
                self.scaler.scale(outputs["total"] / parts).backward()
            figures.append(figures_of(outputs, labels))
        if self.cfg.OPTIM.CLIP_NORM or self.sharded:
            self.scaler.unscale_(self.optimizer)    # here processes agree on what is not finite
        if self.cfg.OPTIM.CLIP_NORM:
            clip_gradients(self.module, self.cfg.OPTIM.CLIP_NORM, self.sharded)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update_parameters(self.module.model)
        return {name: sum(part[name] for part in figures) / parts for name in figures[0]}

    def _end_epoch(self, done: int, log: RunLog) -> str:
        """A checkpoint after `done` epochs, and then an evaluation, where they are due; why that failed, if
        it did."""
        testing = self._evaluation_is_due(done)
        if testing or done == self.cfg.OPTIM.MAX_EPOCH or done % self.cfg.TRAIN.CHECKPOINT_PERIOD == 0:
            self._share_statistics()
            if self.cfg.BN.USE_PRECISE_STATS:
                precise_statistics(self._tested().train().model, self._images_for_statistics(done - 1),
                                   self.autocast)
            self._save(Position(done), NOTHING)
        return self._evaluate(done, log) if testing else ""

    def _tested(self) -> nn.Module:
        return self.task.module(self.average.module if self.average else self.module.model)

    def _evaluation_is_due(self, done: int) -> bool:
        return self.validation.wanted and (done == self.cfg.OPTIM.MAX_EPOCH
                                           or done % self.cfg.TRAIN.EVAL_PERIOD == 0)

    def _evaluation_is_missing(self) -> bool:
        """Whether the run goes on from a checkpoint whose evaluation was cut off, or failed."""
        start = self.start
        if not start.epoch or start.step or not self._evaluation_is_due(start.epoch):
            return False
        return from_main(lambda: all(record.get("epoch") != start.epoch for record in self._tests()))

    def _tests(self) -> list[dict]:
        """The evaluations in log.jsonl."""
        file = Path(self.cfg.OUT_DIR) / "log.jsonl"
        records, torn = read_records(file) if file.exists() else ([], [])
        if torn:
            say(f"WARNING: {file}: {len(torn)} damaged line(s) without a record are passed over, the first "
                f"line {torn[0]}")
        return [record for record in records if record.get("kind") == "test_epoch"]

    def _evaluate(self, done: int, log: RunLog) -> str:
        """Evaluate the checkpoint after `done` epochs; why that failed, or nothing.

        A failed evaluation is said and logged, and training goes on: its epoch is worth more.
        """
        if self.saver:
            self.saver.wait()   # no process forks its data workers while another thread writes
        position = Position(done - 1, len(self.train_loader))
        try:
            figures = self.validation.run(self._tested())
        except EvaluationError as error:
            self._log(log, "test_failed", position, {"error": str(error)})
            say(f"WARNING: the evaluation after epoch {done} failed: {error}. The epoch is saved, and "
                "best.json is unchanged")
            return str(error)
        best = self.validation.record(figures, self.saver.best) if self.saver else None
        if best:
            self.saver.mark_best(Position(done), best)
        # Logged last: a run that is killed in between evaluates again
        self._log(log, "test_epoch", position, figures)
        say(f"  evaluation: {in_words(figures)}")
        return ""

    def _share_statistics(self) -> None:
        """Give all processes the main one's running statistics, which are the ones saved."""
        models = [self.module.model, *([self.average.module] if self.average else [])]
        for buffer in [buffer for model in models for buffer in model.buffers()]:
            if world_size() > 1:
                dist.broadcast(buffer, src=0)

    def _images_for_statistics(self, epoch: int) -> Iterator[torch.Tensor]:
        batches = -(-self.cfg.BN.NUM_SAMPLES_PRECISE // self.cfg.TRAIN.BATCH_SIZE)
        return (batch.images for batch in islice(agreed(self.train_loader.epoch(epoch)), batches))

    def _check_losses(self, meter: Meter, position: Position) -> None:
        """Raise UserError where a loss since the meter's reset is not finite, in any process."""
        losses = meter.losses()
        failed = np.flatnonzero(~np.isfinite(losses))
        firsts = gather(int(failed[0]) if len(failed) else len(losses))
        first = min(firsts)
        if first == len(losses):
            return
        step, message = position.step - len(losses) + first + 1, ""
        if firsts[rank()] == first:
            names = [self.task.name(i) for i in meter.indexes[first].tolist()]
            file = Path(self.cfg.OUT_DIR) / f"failed_batch_rank{rank()}.txt"
            write_atomically(file, "\n".join(names) + "\n")
            message = (f"the loss is {losses[first]} at epoch {position.epoch + 1}, step {step}, "
                       f"rank {rank()}; the {len(names)} images of the batch are listed in {file} "
                       f"(first: {names[0]}). Lower OPTIM.BASE_LR, or go on from an earlier "
                       "checkpoint")
        raise UserError(next(text for text in gather(message) if text))

    def _log(self, log: RunLog, kind: str, position: Position, figures: dict[str, float]) -> None:
        steps = position.epoch * len(self.train_loader) + position.step
        rate = {"lr": self._rate(position.epoch, position.step - 1)} if "train" in kind else {}
        log.write(kind, steps, {"epoch": position.epoch + 1, **rate, **figures})

    def _say_stopped(self, stop: StopRequest, position: Position) -> None:
        if self.saver:
            self.saver.finish()
        say(f"{stop.asked or 'another process'} asked to stop: {position} done, and saved. The same "
            "command goes on from there")

    def _rate(self, epoch: int, step: int) -> float:
        share = step / len(self.train_loader) if self.cfg.OPTIM.LR_UPDATE == "step" else 0
        return learning_rate(self.cfg, epoch + share)

    def _checkpoint_is_due(self) -> bool:
        minutes = self.cfg.TRAIN.CHECKPOINT_MINUTES
        return is_main() and minutes > 0 and time.monotonic() - self.saved_at >= 60 * minutes

    def _exchange(self, last: bool):
        """Gradients go between the processes with the last part of a step only."""
        whole = last or self.parallel is self.module
        return nullcontext() if whole else self.parallel.no_sync()

    def _wrap(self) -> nn.Module:
        if world_size() == 1:
            return self.module
        # Every process has other rows of these, and their whole gradient
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.module,
                                                                            self.sharded)
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.module, device_ids=devices,
                                       gradient_as_bucket_view=True)

    def _open_folder(self) -> None:
        cfg = self.cfg
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        if restarts:
            say(f"a process died: all are started again (restart {restarts} of "
                f"{os.environ.get('TORCHELASTIC_MAX_RESTARTS', '?')})")
        self.saver = Saver(cfg.OUT_DIR, cfg.TRAIN.KEEP_CHECKPOINTS)
        self.saver.best = self._best_so_far()

    def _best_so_far(self) -> dict:
        """What best.json holds, or, if it is damaged, what log.jsonl makes of it."""
        out_dir, best = self.cfg.OUT_DIR, {}
        try:
            return read_best(out_dir)
        except UserError as error:
            problem = str(error)
        for record in self._tests():
            epoch = record.get("epoch")
            path = checkpoint_path(out_dir, Position(epoch if isinstance(epoch, int) else -1))
            better = self.validation.record(record, best) if path.exists() else None
            best = {"file": path.name, **better} if better else best
        say(f"WARNING: {problem}. " + (f"By log.jsonl, {best['file']} is the best checkpoint" if best else
                                       "log.jsonl has no evaluation of a checkpoint that is there"))
        write_best(out_dir, best)
        return best

    def _resume_or_start(self) -> tuple[Position, dict]:
        """Load the newest whole checkpoint, or start anew: how far it is, and the sums of the
        begun epoch."""
        cfg = self.cfg
        self.saved_at = time.monotonic()
        newest = from_main(lambda: newest_checkpoint(cfg.OUT_DIR))
        if newest and not cfg.TRAIN.AUTO_RESUME:
            raise UserError(f"{newest} exists, and TRAIN.AUTO_RESUME is False: give another "
                            "OUT_DIR, delete that one, or resume")
        if newest:
            from_main(lambda: check_same_data(cfg, self.task.images))
            return self._resume(newest)
        if cfg.TRAIN.WEIGHTS:
            say(load_weights(self.module.model, weights_file(cfg.TRAIN.WEIGHTS), start=True,
                             partial=cfg.TRAIN.WEIGHTS_PARTIAL))
            if self.average:
                self.average.module.load_state_dict(self.module.model.state_dict())
        from_main(lambda: write_atomically(Path(cfg.OUT_DIR) / "config.yaml", cfg.dump()))
        from_main(lambda: record_data(cfg, self.task.images))
        self._save(Position(0), NOTHING)
        # A folder that cannot be written to is better known at once
        from_main(lambda: self.saver.finish())
        return Position(0), NOTHING

    def _resume(self, path: Path) -> tuple[Position, dict]:
        state = read_file(path)
        check_same_run(self.cfg, state, path)
        position = Position(state["epoch"], state.get("step", 0))
        check_epochs(self.cfg, state["cfg"], position)
        self.module.model.load_state_dict(state["model"])
        self.module.loss.load_state_dict(state["loss"])
        load_optimizer_state(self.optimizer, self.module.loss, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.module.load_state_dict(state["average"])
        restore_rng(state["rng"])
        say(f"going on from {path}: {position} done")
        sums = state.get("sums", NOTHING)
        # Time passed for all of them; the figures are counted once
        others = {**NOTHING, "seconds": sums["seconds"], "wait": sums["wait"]}
        return position, sums if is_main() else others

    def _save(self, position: Position, sums: dict) -> None:
        """Hand the run's state to the saver (each process must call this). Raises UserError where
        weights are not finite, of which the next loss would tell."""
        length = nn.utils.get_total_norm(list(self.module.parameters()))
        if any_process(not bool(length.isfinite()))[0]:
            raise UserError(f"weights are not finite after {position}: they are not saved. Lower "
                            "OPTIM.BASE_LR, or set OPTIM.CLIP_NORM, and go on from the last checkpoint")
        state = {
            "model": self.module.model.state_dict(),
            "average": self.average.module.state_dict() if self.average else {},
            "loss": whole_loss_state(self.module.loss),
            "optimizer": whole_optimizer_state(self.optimizer, self.module.loss),
            "scaler": self.scaler.state_dict(),
            **position._asdict(),
            "sums": pool_sums(sums),
            "rng": rng_states(),
            "cfg": self.cfg.dump(),
        }
        if self.saver:
            self.saver.save(position, state)
        self.saved_at = time.monotonic()


def _check_batch(cfg) -> None:
    parts = world_size() * cfg.TRAIN.ACCUMULATE
    if cfg.TRAIN.BATCH_SIZE % parts:
        raise UserError(f"TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE} is the total of all processes, "
                        f"in TRAIN.ACCUMULATE parts each: give a multiple of {parts}")


def _synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    if device.type != "cuda":
        raise UserError("BN.SYNC True needs GPUs: PyTorch has no synchronised batch norm for the "
                        "CPU. Set it to False, or BN.FREEZE to True")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _timed(batches: Iterable) -> Iterator[tuple]:
    """Each batch with the seconds that it was waited for."""
    asked = time.perf_counter()
    for batch in batches:
        yield batch, time.perf_counter() - asked
        asked = time.perf_counter()


def in_words(figures: dict[str, float]) -> str:
    """The figures that people look for, in a line."""
    words = [f"loss {figures['loss']:.4f}"] if "loss" in figures else []
    words += [f"pair accuracy {figures['pair_acc']:.1f} %"] if "pair_acc" in figures else []
    words += [f"top-{k} error {figures[f'top{k}_err']:.1f} %" for k in (1, 5)
              if f"top{k}_err" in figures]
    words += [f"{name} {value:.2f} %" for name, value in figures.items()
              if name.startswith(("R@", "MAP@R", "mAP"))]
    return ", ".join(words)
