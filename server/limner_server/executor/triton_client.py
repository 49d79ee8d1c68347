"""One version of a model as a Triton serves it: is it there, is it this artifact, what does it answer.

Speaks Triton's gRPC protocol with the stubs of `tritonclient`; knows nothing of health, threads or explaining.
"""

import math

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from limner_server.errors import LimnerError, UnavailableError, WrongStateError
from limner_server.networks.card import DISTANCE, ModelCard
from limner_server.networks.triton import INPUT, digest_parameter, model_config

_CHECK_TIMEOUT_S = 5.0
"""Longest wait for what a busy Triton says at once too: its own state, and a model's configuration."""

_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A Triton that comes back is found within a second; by default gRPC comes to wait for two minutes.
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A connection to a machine that is gone ends. A sound one is never silent for so long: its engine asks each second.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]
_Tensor = tuple[str, tuple[int, ...]]
"""Data type and dimensions, without that of the batch."""

_BATCH_AT_FAULT = (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT)


class TritonClient:
    """A connection to a Triton, for one version. Safe to share between threads; nothing is sent before the first call.

    Parameters
    ----------
    url
        "host:port" of Triton's gRPC service.
    timeout_s
        Longest wait for the answer to a batch, in seconds, over 0.
    name, version
        The model, as in the repository that Triton serves.
    card
        What it has to be.
    """

    def __init__(self, url: str, timeout_s: float, name: str, version: int, card: ModelCard) -> None:
        self.description = f"version {version} of model {name!r} in the Triton at {url}"
        self._timeout_s = timeout_s
        self._check_timeout_s = min(timeout_s, _CHECK_TIMEOUT_S)
        self._name, self._version = name, str(version)
        self._digest_parameter, self._digest = digest_parameter(version), card.digest
        self._tensors = _tensors(model_config(name, {version: card}, "python"))
        self._outputs = dict(card.outputs)
        self._max_batch_size = 1  # until Triton says more
        self._tells_distance = False
        self._channel = grpc.insecure_channel(url, _CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def alive(self) -> bool:
        """Whether Triton answers at all, whatever it serves."""
        try:
            reply = self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=self._check_timeout_s)
        except grpc.RpcError:
            return False
        return bool(reply.live)

    def check(self) -> None:
        """Ask Triton what it serves.

        Raises
        ------
        UnavailableError
            It does not say, or not in time, or is still loading this version.
        WrongStateError
            It does not serve this version, or serves another artifact under its number.
        """
        request = service_pb2.ModelConfigRequest(name=self._name, version=self._version)
        try:
            config = self._stub.ModelConfig(request, timeout=self._check_timeout_s).config
        except grpc.RpcError as error:
            raise self._error(error, "its configuration", self._check_timeout_s) from error
        self._check_config(config)
        self._max_batch_size = config.max_batch_size
        self._tells_distance = DISTANCE in _tensors(config)

    def infer(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Have Triton run images `(n, s, s)`, in batches no larger than it takes.

        Returns
        -------
        dict of str to ndarray
            The outputs of the card, `(n, width)` each. Where Triton does not tell the distance, it is NaN.

        Raises
        ------
        UnavailableError
            It does not answer, or not in time.
        WrongStateError
            It does not serve this version, or answers with other shapes.
        RuntimeError
            It failed on these images.
        """
        size = self._max_batch_size
        parts = [self._infer_batch(images[first : first + size]) for first in range(0, len(images), size)]
        return {output: np.concatenate([part[output] for part in parts]) for output in self._outputs}

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def _infer_batch(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        request = service_pb2.ModelInferRequest(model_name=self._name, model_version=self._version)
        request.inputs.add(name=INPUT, datatype="FP32", shape=images.shape)
        request.raw_input_contents.append(images.tobytes())
        for output in self._outputs:
            if output != DISTANCE or self._tells_distance:
                request.outputs.add(name=output)
        try:
            reply = self._stub.ModelInfer(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            if error.code() in _BATCH_AT_FAULT:
                raise RuntimeError(f"{self.description} failed on a batch: {error.details()}") from error
            raise self._error(error, f"the answer to {len(images)} images", self._timeout_s) from error
        return self._read(reply, len(images))

    def _read(self, reply: service_pb2.ModelInferResponse, count: int) -> dict[str, NDArray[np.float32]]:
        contents = {
            tensor.name: (tensor.datatype, tuple(tensor.shape), content)
            for tensor, content in zip(reply.outputs, reply.raw_output_contents, strict=True)
        }
        arrays = {}
        for output in self._outputs:
            if output == DISTANCE and output not in contents:
                arrays[output] = np.full((count, 1), np.nan, np.float32)
                continue
            datatype, shape, content = contents.get(output, ("nothing", (), b""))
            expected = (count, *self._tensors[output][1])
            if (datatype, shape, len(content)) != ("FP32", expected, 4 * math.prod(expected)):
                raise WrongStateError(
                    f"{self.description} answered with {output} of {datatype} {shape} in {len(content)} bytes;"
                    f" expected FP32 {expected}"
                )
            arrays[output] = np.frombuffer(content, np.float32).reshape(expected)
        return arrays

    def _check_config(self, config: model_config_pb2.ModelConfig) -> None:
        found = config.parameters[self._digest_parameter].string_value or "unknown"
        if found != self._digest:
            raise WrongStateError(f"{self.description} has digest {found}; here it has {self._digest}")
        if config.max_batch_size < 1:
            raise WrongStateError(f"{self.description} has max_batch_size {config.max_batch_size}; expected 1 or more")
        tensors = _tensors(config)
        for name, expected in self._tensors.items():
            if name == DISTANCE and name not in tensors:
                continue  # beside an older version of the model, which knows none: one configuration stands for all
            found_tensor = tensors.get(name, ("nothing", ()))
            if not _fits(found_tensor, expected):
                raise WrongStateError(
                    f"{self.description} has {name} of {_shown(found_tensor)}; expected {_shown(expected)}"
                )

    def _error(self, error: grpc.RpcError, awaited: str, timeout_s: float) -> LimnerError:
        code, details = error.code(), error.details()
        if code is grpc.StatusCode.NOT_FOUND:
            return WrongStateError(f"there is no {self.description}: {details}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return UnavailableError(f"{self.description} did not give {awaited} within {timeout_s:g} s")
        return UnavailableError(f"{self.description} did not give {awaited}: {code.name}, {details}")


def _tensors(config: model_config_pb2.ModelConfig) -> dict[str, _Tensor]:
    """Inputs and outputs of a configuration, by name."""
    data_type = model_config_pb2.DataType.Name
    return {
        tensor.name: (data_type(tensor.data_type), tuple(tensor.dims)) for tensor in (*config.input, *config.output)
    }


def _fits(tensor: _Tensor, expected: _Tensor) -> bool:
    """Whether a tensor of Triton's configuration, where -1 stands for any size, can be the expected one."""
    return (
        tensor[0] == expected[0]
        and len(tensor[1]) == len(expected[1])
        and all(size in (-1, wanted) for size, wanted in zip(tensor[1], expected[1], strict=True))
    )


def _shown(tensor: _Tensor) -> str:
    return f"{tensor[0]} {list(tensor[1])}"
