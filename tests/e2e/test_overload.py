"""More than the queue may hold: what is refused is refused at once, as a whole, with the time to come back."""

import shutil
import threading
from pathlib import Path

import grpc
import numpy as np
import tritonclient.grpc as triton

from limner import Client, FeatureOptions
from limner.types import ImportanceMethod
from limner.v1 import common_pb2, inference_pb2
from limner.v1.inference_pb2_grpc import InferenceServiceStub
from tests.live import LiveServer
from tests.reading import study

CALLERS, IMAGES = 6, 40


def test_a_full_queue_refuses_calls_with_pushback_and_answers_the_rest(
    server: LiveServer, model: str, tmp_path: Path
) -> None:
    shutil.copytree(server.model_repository / model, tmp_path / "model_repository" / model)
    data = np.zeros((32, 32), np.float32).tobytes()
    array = common_pb2.GridArray(data=data, data_type=common_pb2.DATA_TYPE_FLOAT32, size=32)
    images = [common_pb2.Image(id=str(number), grid=array) for number in range(IMAGES)]
    request = inference_pb2.PredictRequest(model=common_pb2.ModelSpec(name=model), images=images)
    answered: list[int] = []
    refused: list[grpc.RpcError] = []

    def call(stub: InferenceServiceStub) -> None:
        try:
            answered.append(sum(result.HasField("prediction") for result in stub.Predict(request).results))
        except grpc.RpcError as error:
            refused.append(error)

    with (
        LiveServer(tmp_path, max_batch_size=2, max_queue_images=2) as small,
        grpc.insecure_channel(small.address) as channel,
    ):
        stub = InferenceServiceStub(channel)
        alone = inference_pb2.PredictRequest(model=request.model, images=images[:1])
        assert stub.Predict(alone).results[0].HasField("prediction")
        callers = [threading.Thread(target=call, args=(stub,)) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert stub.Predict(alone).results[0].HasField("prediction"), "it goes on as before"
    assert len(answered) + len(refused) == CALLERS
    assert set(answered) <= {IMAGES}
    assert refused
    for error in refused:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailer = dict(error.trailing_metadata())
        assert int(trailer["grpc-retry-pushback-ms"]) > 0
        assert trailer["limner-request-id"]


def test_a_call_that_was_let_in_has_places_for_all_that_it_runs(tmp_path: Path) -> None:
    """Where an image is run twice, and where a reading's images are judged: of a queue of one, none is refused."""
    small = study.start(tmp_path, max_batch_size=1, max_queue_images=1)
    try:
        with Client(small.address) as client:
            options = FeatureOptions(layers=("layer4",), method=ImportanceMethod.MEAN_ABLATION)
            images = [np.full((study.SIZE, study.SIZE), number, np.float32) for number in range(6)]
            results = client.extract_features(study.MODEL, images, options).results
            assert [result.error for result in results] == [None] * 6
            total = study.create(client, simulations=[]).reading.total
        with triton.InferenceServerClient(small.address) as front:
            (counted,) = front.get_inference_statistics(study.MODEL).model_stats
        assert counted.inference_stats.success.count == 6 + total
    finally:
        small.stop()
