"""The server's configuration: every setting once, as flag, environment variable and line of `--help`."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from limner.hosts import is_loopback

_URL = re.compile(r"https?://[^/\s]+:[0-9]+")
_ADDRESS = re.compile(r"[^/\s]+:[0-9]+")


class Settings(BaseSettings):
    """Serve MRI outcome models over gRPC. Research software, not for diagnostic use.

    Every setting is a flag (--max-batch-size 32) or an environment variable (LIMNER_MAX_BATCH_SIZE=32); the flag wins.
    `limner-server audit --help` and `limner-server sign --help` tell of two other commands.
    """

    model_config = SettingsConfigDict(
        env_prefix="LIMNER_",
        frozen=True,
        cli_prog_name="limner-server",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        extra="forbid",
    )

    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="TCP port; 0 takes a free one and prints it.")] = 8500
    workers: Annotated[
        int, Field(ge=1, le=256, description="Serving processes that share the port and behave as one service.")
    ] = 1
    data_dir: Annotated[Path, Field(description="Folder of cohorts, jobs and the SQLite database.")] = Path(
        "limner-data"
    )
    model_repository: Annotated[Path, Field(description="Folder of models in Triton's layout.")] = Path(
        "model_repository"
    )
    weights_dir: Annotated[Path | None, Field(description="Folder of torchvision weights to fine-tune from.")] = None
    database_url: Annotated[
        str,
        Field(
            description="postgresql://USER@HOST/NAME, the password in PGPASSWORD or PGPASSFILE; empty: SQLite in the"
            " data folder."
        ),
    ] = ""
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="Where networks run; auto: cuda if there.")] = (
        "auto"
    )
    engine: Annotated[
        Literal["torchscript", "triton"],
        Field(description="What predicts: this process, or a Triton that serves the same model repository."),
    ] = "torchscript"
    triton_url: Annotated[
        str, Field(validate_default=True, description="HOST:PORT of that Triton's gRPC service, for --engine triton.")
    ] = ""
    triton_timeout_s: Annotated[
        float, Field(gt=0, description="Longest wait for Triton's answer to a batch, in seconds.")
    ] = 10.0
    threads: Annotated[
        int, Field(ge=0, description="Cores for predictions on the CPU, and for each job; 0: all, shared by workers.")
    ] = 0
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(description="Of predictions on CUDA; auto: the shortest within 0.01 of float32's probabilities."),
    ] = "auto"
    max_batch_size: Annotated[int, Field(ge=1, le=4096, description="Images in one forward pass, at most.")] = 16
    max_queue_delay_ms: Annotated[
        float, Field(ge=0, le=10_000, description="Longest wait for a batch to fill, in ms; never for a lone caller.")
    ] = 20.0
    max_queue_images: Annotated[
        int, Field(ge=1, description="Images that may wait for one model in one worker before it refuses.")
    ] = 1024
    max_queue_ms: Annotated[
        float,
        Field(gt=0, description="Longest expected wait, in ms, that a call is admitted to; over it, it is refused."),
    ] = 1000.0
    load: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="NAME or NAME:VERSION, comma-separated: models that are loaded and warm before it is ready."),
    ] = ()
    decode_threads: Annotated[int, Field(ge=1, le=256, description="Threads that decode images, in each worker.")] = 2
    max_message_mb: Annotated[int, Field(ge=1, le=2047, description="Largest gRPC message, in MiB.")] = 256
    max_jobs: Annotated[int, Field(ge=1, description="Trainings and simulations at a time, in all workers.")] = 1
    training_processes: Annotated[
        int, Field(ge=1, le=64, description="Processes of one training, by torchrun; on CUDA one for each device.")
    ] = 1
    drain_s: Annotated[float, Field(ge=0, description="Grace for calls in flight at SIGTERM, in seconds.")] = 20.0
    metrics_port: Annotated[
        int | None,
        Field(ge=0, le=65535, description="TCP port of the metrics, /metrics over HTTP; 0: a free one. None: off."),
    ] = None
    metrics_host: Annotated[str, Field(description="Address of the metrics; whoever reaches it reads them.")] = (
        "127.0.0.1"
    )
    trace_endpoint: Annotated[
        str,
        Field(description="http://HOST:PORT (or https://) of an OTLP collector for traces, over gRPC. Empty: none."),
    ] = ""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="Least level logged.")] = (
        "info"
    )

    tls_certificate: Annotated[
        Path | None, Field(description="PEM certificate of the server: TLS. Read again when its file changes.")
    ] = None
    tls_key: Annotated[Path | None, Field(validate_default=True, description="Its PEM key, not encrypted.")] = None
    tls_client_ca: Annotated[
        Path | None,
        Field(description="PEM authorities of callers' certificates; with it nobody connects without one (mTLS)."),
    ] = None
    access: Annotated[
        Path | None,
        Field(description="YAML file of who may call what (docs/security.md). Without it nobody is asked."),
    ] = None
    model_signing_key: Annotated[
        Path | None, Field(description="PEM Ed25519 public key: serve only models that its owner has signed.")
    ] = None
    health_port: Annotated[
        int | None,
        Field(
            ge=0,
            le=65535,
            description="Another port, in the clear, for grpc.health.v1 only: probes speak no TLS. Default: none.",
        ),
    ] = None
    insecure_network: Annotated[
        bool,
        Field(
            validate_default=True,
            description="Serve plainly, and without asking who calls, on an address that others can reach.",
        ),
    ] = False

    @field_validator("load", mode="before")
    @classmethod
    def _split_names(cls, names: object) -> object:
        return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names

    @field_validator("triton_url")
    @classmethod
    def _check_triton_url(cls, url: str, info: ValidationInfo) -> str:
        if (url or info.data.get("engine") == "triton") and not _ADDRESS.fullmatch(url):
            raise PydanticCustomError("address", "--engine triton needs HOST:PORT of Triton's gRPC service")
        return url

    @field_validator("tls_key")
    @classmethod
    def _check_tls_pair(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        certificate = info.data.get("tls_certificate")
        if (key is None) != (certificate is None) and "tls_certificate" in info.data:
            raise PydanticCustomError("tls", "expected --tls-certificate and --tls-key, both or neither")
        if key and certificate:
            from limner_server.access.tls import check_pair  # what checks files is imported where there are any

            _told(check_pair, certificate, key)
        return key

    @field_validator("tls_client_ca")
    @classmethod
    def _check_tls_client_ca(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        if file and info.data.get("tls_certificate", file) is None:
            raise PydanticCustomError("tls", "expected only with --tls-certificate and --tls-key")
        if file:
            from limner_server.access.tls import check_authorities

            _told(check_authorities, file)
        return file

    @field_validator("access")
    @classmethod
    def _check_access(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        if file:
            from limner_server.access.access import check_access

            _told(check_access, file, info.data.get("tls_client_ca") is not None)
        return file

    @field_validator("model_signing_key")
    @classmethod
    def _check_model_signing_key(cls, file: Path | None) -> Path | None:
        if file:
            from limner_server.access.signature import load_public_key

            _told(load_public_key, file)
        return file

    @field_validator("insecure_network")
    @classmethod
    def _check_network(cls, allowed: bool, info: ValidationInfo) -> bool:
        host = info.data.get("host", "")
        guards = [
            info.data.get(name, "wrong, and told of already") for name in ("tls_certificate", "tls_key", "access")
        ]
        if not (allowed or is_loopback(host) or any(guards)):
            raise PydanticCustomError(
                "network",
                "--host {host} can be reached by others, and neither encryption nor callers' identity protects it;"
                " expected --tls-certificate and --tls-key, or --access, or --insecure-network if that is meant",
                {"host": host},
            )
        return allowed

    @field_validator("trace_endpoint")
    @classmethod
    def _check_trace_endpoint(cls, url: str) -> str:
        if url and not _URL.fullmatch(url):
            raise PydanticCustomError("url", "expected http://HOST:PORT or https://HOST:PORT of an OTLP collector")
        return url

    @property
    def engine_threads(self) -> int:
        """Cores that the predictions of one worker use; 0: all."""
        return self.threads if self.threads or self.workers == 1 else max(1, (os.cpu_count() or 1) // self.workers)

    @property
    def resolved_database_url(self) -> str:
        """URL of the database, the default filled in."""
        return self.database_url or f"sqlite:///{(self.data_dir / 'limner.sqlite').absolute()}"


def _told(check: Callable[..., object], *arguments: object) -> None:
    """Check files, and say what is wrong with one in its own words."""
    try:
        check(*arguments)
    except OSError as error:
        raise PydanticCustomError(
            "file", "{file}: {reason}", {"file": str(error.filename), "reason": error.strerror}
        ) from error
    except ValueError as error:
        raise PydanticCustomError("file", "{reason}", {"reason": str(error)}) from error
