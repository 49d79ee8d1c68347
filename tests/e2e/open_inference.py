"""What the tests of the Open Inference front ask with: three images, as tritonclient and as the protocol have them."""

from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

SIZE = 32
IMAGES = np.random.default_rng(0).gamma(2.0, 100.0, (3, SIZE, SIZE)).astype(np.float32)
NAN = np.full_like(IMAGES, np.nan).tobytes()


def tensor(images: NDArray[np.float32] = IMAGES) -> Any:
    given_input = triton.InferInput("images", images.shape, "FP32")
    given_input.set_data_from_numpy(images)
    return given_input


def raw_request(model: str, images: NDArray[np.float32] = IMAGES, **fields: Any) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[images.tobytes()], **fields)
    request.inputs.add(name="images", datatype="FP32", shape=images.shape)
    return request


def parameter(**value: Any) -> service_pb2.InferParameter:
    return service_pb2.InferParameter(**value)
