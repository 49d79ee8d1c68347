"""What a training job is asked for. Apart from the job, whose imports would make a server's start longer."""

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from limner_server.errors import InvalidInputError
from limner_server.training.config import TrainingConfig


class TrainingRequest(BaseModel):
    """`request.json`: what to train, from where, and where to."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    id: str
    cohort: str
    model: str
    config: TrainingConfig
    database_url: str
    data_dir: Path
    model_repository: Path
    weights_dir: Path | None = None
    """Where `config.pretrained` lies."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    """Of the CPU, shared by the processes that train on one machine; 0: one for each core."""

    def cores(self, processes: int) -> int:
        """Number of threads of each process, the default filled in."""
        return max(1, (self.threads or os.cpu_count() or 1) // processes)

    def pretrained_file(self) -> Path | None:
        """Return the weights to fine-tune from; None for a training from scratch.

        Raises
        ------
        InvalidInputError
            The server has no weights folder, or no such file in it.
        """
        name = self.config.pretrained
        if not name:
            return None
        if self.weights_dir is None:
            raise InvalidInputError("config.pretrained", name, "none: the server has no weights folder")
        file = self.weights_dir / name
        if not file.is_file():
            raise InvalidInputError("config.pretrained", name, "the name of a file in the server's weights folder")
        return file
