"""What Triton's Python backend runs: a copy of this file lies in each version's folder as `model.py`.

It stands alone, in Triton's own interpreter: torch and Triton's utilities, nothing of Limner. What is particular to it:

- `model.pt` is loaded only if its sha256 is the one in `card.json` and in the configuration's `digest.<version>`.
- All requests of one `execute` are one forward pass of a frozen, channels_last module; a single request is not copied.
- Where that fails, each request runs by itself, so that only those that are to blame answer with an error.

The device is Triton's choice (`instance_group`). The configuration's parameter `INTRA_OP_THREAD_COUNT`, named as in the
LibTorch backend, sets the threads of a forward pass on the CPU; else it is torch's choice (`OMP_NUM_THREADS`).
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from torch import Tensor
from torch.utils.dlpack import from_dlpack

_INPUT = "images"
_OUTPUTS = ("logits", "probabilities", "embedding", "distance")


class TritonPythonModel:
    """One instance of one version. Triton calls each method from one thread."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the artifact onto the instance's device.

        Raises
        ------
        TritonModelException
            The artifact is not the one of the card and of the configuration; Triton does not serve the model then.
        """
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = json.loads(args["model_config"])["parameters"]
        card = json.loads((folder / "card.json").read_bytes())
        on_gpu = args["model_instance_kind"] == "GPU"
        self._device = torch.device(f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu")
        if (threads := parameters.get("INTRA_OP_THREAD_COUNT")) is not None:
            torch.set_num_threads(int(threads["string_value"]))
        configured = parameters.get(f"digest.{args['model_version']}", {"string_value": "missing"})["string_value"]
        data = _read_verified(folder / "model.pt", {"card.json": card["digest"], "the configuration": configured})
        module = torch.jit.load(io.BytesIO(data), map_location=self._device).to(memory_format=torch.channels_last)
        self._forward = torch.jit.freeze(module)
        self._size = card["grid"]["size"]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request, in order, with the outputs that it asks for or with an error of its own."""
        try:
            return self._answer(requests)
        except Exception as error:
            if len(requests) == 1:
                error_type = pb_utils.TritonError
                code = error_type.INVALID_ARG if isinstance(error, ValueError) else error_type.INTERNAL
                return [pb_utils.InferenceResponse(error=error_type(str(error), code))]
            return [response for request in requests for response in self.execute([request])]

    @torch.inference_mode()
    def _answer(self, requests: Sequence[Any]) -> list[Any]:
        inputs = [pb_utils.get_input_tensor_by_name(request, _INPUT) for request in requests]
        images = [from_dlpack(tensor.to_dlpack()) for tensor in inputs]
        for tensor in images:
            if tensor.shape[1:] != (self._size, self._size):
                raise ValueError(f"{_INPUT} has shape {tuple(tensor.shape)}; expected (n, {self._size}, {self._size})")
        batch = images[0] if len(images) == 1 else torch.cat(images)
        outputs = [tensor.cpu() for tensor in self._forward(batch.to(self._device))]
        parts = zip(*(tensor.split([len(each) for each in images]) for tensor in outputs), strict=True)
        return [_response(request, part) for request, part in zip(requests, parts, strict=True)]


def _read_verified(path: Path, digests: Mapping[str, str]) -> bytes:
    """Content of a file whose sha256 is every one of `digests`, by where each is from."""
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    for source, digest in digests.items():
        if found != digest:
            raise pb_utils.TritonModelException(f"{path.name} has sha256 {found}; {source} says {digest}: not loaded")
    return data


def _response(request: Any, tensors: Sequence[Tensor]) -> Any:
    asked = request.requested_output_names()
    named = [(name, tensor) for name, tensor in zip(_OUTPUTS, tensors, strict=False) if name in asked]
    return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack(name, tensor) for name, tensor in named])
