"""The state of a training, saved after every epoch so that it can be taken up again; no pickle."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

STATE, PROGRESS = "state.safetensors", "progress.json"


@dataclass
class TrainingState:
    """Where a training stands.

    history: the held-out reconstruction error of every epoch.
    """

    folder: Path
    objective: torch.nn.Module
    optimiser: torch.optim.Optimizer
    recipe: dict[str, Any]
    epoch: int = 0
    elapsed_s: float = 0.0
    finished: bool = False
    history: list[float] = field(default_factory=list)

    @classmethod
    def open(
        cls,
        folder: Path,
        objective: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        recipe: dict[str, Any],
    ) -> TrainingState:
        """The state in the folder if it was made by the same recipe, else a fresh one."""
        state = cls(folder, objective, optimiser, json.loads(json.dumps(recipe)))
        try:
            saved = json.loads(folder.joinpath(PROGRESS).read_text())
        except (OSError, ValueError):
            return state
        if saved.pop("recipe") == state.recipe:
            state.restore(saved)
        return state

    def share(self, config: Any, of_epoch: float, since_epoch_s: float) -> float:
        """How much of the training is over, by epochs or by minutes, whichever is further; 1 = the
        end.
        """
        by_epochs = (self.epoch + of_epoch) / config.epochs
        if config.max_minutes is None:
            return float(by_epochs)
        return float(max(by_epochs, (self.elapsed_s + since_epoch_s) / (60.0 * config.max_minutes)))

    def finish_epoch(self, held_out: float, elapsed_s: float, config: Any) -> None:
        """Count the epoch, decide whether to stop early, and save."""
        self.epoch += 1
        self.elapsed_s += elapsed_s
        self.history.append(round(held_out, 5))
        best = min(range(len(self.history)), key=self.history.__getitem__)
        self.finished = self.epoch - 1 - best >= config.patience
        self.save()

    def save(self) -> None:
        """Tensors first, the progress that names them last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"objective.{k}": v.contiguous() for k, v in self.objective.state_dict().items()}
        for index, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{k}": torch.as_tensor(v) for k, v in values.items()}
        tensors["random"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        name = f"{time.time_ns()}.{STATE}"
        save_file(tensors, self.folder / name)
        progress = {
            "recipe": self.recipe,
            "epoch": self.epoch,
            "elapsed_s": self.elapsed_s,
            "finished": self.finished,
            "history": self.history,
            "tensors": name,
        }
        temporary = self.folder / f".{PROGRESS}"
        temporary.write_text(json.dumps(progress))
        temporary.replace(self.folder / PROGRESS)
        for old in self.folder.glob(f"*.{STATE}"):
            if old.name != name:
                old.unlink()

    def restore(self, saved: dict[str, Any]) -> None:
        """Take up where the saved progress stood."""
        tensors = load_file(self.folder / saved.pop("tensors"))
        self.objective.load_state_dict(
            {
                k.removeprefix("objective."): v
                for k, v in tensors.items()
                if k.startswith("objective.")
            }
        )
        state = self.optimiser.state_dict()
        for name, value in tensors.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".", 2)
                state["state"].setdefault(int(index), {})[key] = value
        self.optimiser.load_state_dict(state)
        torch.set_rng_state(tensors["random"])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"])
        for key, value in saved.items():
            setattr(self, key, value)
