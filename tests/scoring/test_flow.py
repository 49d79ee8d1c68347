"""To the server and back, where servers are lost, full, slow or wrong: each image is answered once in the end."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2

from limner import Image, errors, types
from limner.scoring.calls import kind_of
from limner.scoring.fleet import Fleet
from limner.scoring.flow import Answer, Flow
from limner.scoring.sources import Item, given
from limner.servers import Servers
from limner.types import ScoreOptions
from limner.v1 import common_pb2, inference_pb2
from limner.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server as add_inference
from tests.sdk.servers import IDENTITY, Inference, refuse, serving

MODEL = types.ModelIdentity(name=IDENTITY.name, version=IDENTITY.version, digest=IDENTITY.digest)
BAD = np.zeros((2, 3), np.uint8)  # not square


def arrays(count: int) -> Iterator[Item]:
    return given([np.full((4, 4), position % 256, np.uint8) for position in range(count)])


def answers_of(
    address: str, items: Iterator[Item], timeout: float = 20.0, in_flight: int = 64, patience_s: float = 20.0
) -> list[Answer]:
    with (
        Fleet(Servers(address, None), kind_of(ScoreOptions()), timeout, in_flight) as fleet,
        ThreadPoolExecutor(1) as reader,
    ):
        flow = Flow(MODEL, fleet, reader, ahead=4, patience_s=patience_s)
        return [answer for some in flow.answers(items) for answer in some]


def assert_each_once(answers: list[Answer], count: int) -> None:
    assert sorted(item.position for item, _ in answers) == list(range(count))


class Troubled(Inference):
    """Fails a call, for as long as `trouble` says so, and remembers how many images were under way at once."""

    def __init__(self, trouble: Callable[[int, Any, Any], None]) -> None:
        super().__init__()
        self._trouble = trouble
        self._calls = 0
        self._lock = threading.Lock()
        self.now = self.most = 0

    def Predict(self, request: inference_pb2.PredictRequest, context: Any) -> inference_pb2.PredictResponse:
        with self._lock:
            self._calls += 1
            number = self._calls
            self.now += len(request.images)
            self.most = max(self.most, self.now)
        try:
            self._trouble(number, request, context)
            return super().Predict(request, context)
        finally:
            with self._lock:
                self.now -= len(request.images)


def none(number: int, request: Any, context: Any) -> None: ...


def test_every_image_is_answered_with_its_own_answer() -> None:
    with serving(add_inference, Inference()) as address:
        answers = answers_of(address, arrays(300))
    assert_each_once(answers, 300)
    for item, result in answers:
        assert result.prediction is not None
        assert result.prediction.probabilities[1] == pytest.approx(item.position % 256 / 255, abs=1e-6)


def test_images_travel_together_and_few_at_a_time() -> None:
    inference = Troubled(lambda *_: time.sleep(0.01))
    with serving(add_inference, inference) as address:
        assert_each_once(answers_of(address, arrays(400), in_flight=48), 400)
    assert inference.most <= 48
    assert len(inference.seen) / inference._calls > 10


def test_large_images_travel_by_fewer() -> None:
    inference = Inference()
    items = given([np.zeros((1200, 1200), np.uint8)] * 9)
    with serving(add_inference, inference) as address:
        assert_each_once(answers_of(address, items), 9)


def test_what_cannot_be_read_fails_alone_and_with_a_reason() -> None:
    items = given([Image(BAD, id="bad", subject="s"), *[np.zeros((4, 4), np.uint8)] * 20, Image("/none.dcm")])
    with serving(add_inference, Inference()) as address:
        answers = answers_of(address, items)
    assert_each_once(answers, 22)
    failed = {result.id: result.error for _, result in answers if result.error is not None}
    assert failed["bad"].field == "grid.shape"
    assert failed["bad"].value == "(2, 3)"
    assert failed["bad"].expected == "(size, size), the model's grid"
    assert failed["/none.dcm"].field == "content"
    assert failed["/none.dcm"].value == "/none.dcm"
    assert len(failed) == 2


@pytest.mark.parametrize("code", [code_pb2.UNAVAILABLE, code_pb2.RESOURCE_EXHAUSTED])
def test_what_passes_is_waited_for(code: int) -> None:
    def trouble(number: int, request: Any, context: Any) -> None:
        if number <= 8:
            refuse(context, code, "not now")

    with serving(add_inference, Troubled(trouble)) as address:
        answers = answers_of(address, arrays(100))
    assert_each_once(answers, 100)
    assert all(result.ok for _, result in answers)


def test_a_server_that_comes_back_is_asked_again() -> None:
    answers: list[Answer] = []
    slow = Troubled(lambda *_: time.sleep(0.05))
    with serving(add_inference, slow) as address:
        port = int(address.rpartition(":")[2])
        thread = threading.Thread(target=lambda: answers.extend(answers_of(address, arrays(600))))
        thread.start()
        time.sleep(0.5)
    assert 0 < len(slow.seen) < 600
    time.sleep(0.5)
    with serving(add_inference, Inference(), port):
        thread.join(60)
    assert_each_once(answers, 600)
    assert all(result.ok for _, result in answers)


def test_patience_ends_and_says_why() -> None:
    started = time.monotonic()
    with pytest.raises(errors.UnavailableError, match=r"no Limner server answers at 127.0.0.1:1"):
        answers_of("127.0.0.1:1", arrays(100), patience_s=1)
    assert 1 <= time.monotonic() - started < 15


@pytest.mark.parametrize("code", [code_pb2.INTERNAL, code_pb2.UNKNOWN])
def test_an_image_that_breaks_its_call_is_found_and_fails_alone(code: int) -> None:
    def trouble(number: int, request: inference_pb2.PredictRequest, context: Any) -> None:
        if any(image.id == "37" for image in request.images):
            refuse(context, code, "forward pass failed")

    with serving(add_inference, Troubled(trouble)) as address:
        answers = answers_of(address, arrays(100))
    assert_each_once(answers, 100)
    (failed,) = [(item, result) for item, result in answers if not result.ok]
    assert failed[0].position == 37
    assert failed[1].error is not None
    assert (failed[1].error.code, failed[1].error.message) == (code_pb2.Code.Name(code), "forward pass failed")


def test_an_image_without_an_answer_in_time_fails_alone() -> None:
    def trouble(number: int, request: inference_pb2.PredictRequest, context: Any) -> None:
        if any(image.id == "5" for image in request.images):
            time.sleep(2)

    with serving(add_inference, Troubled(trouble)) as address:
        answers = answers_of(address, arrays(40), timeout=0.5)
    assert_each_once(answers, 40)
    assert [(item.position, result.error.code) for item, result in answers if result.error] == [
        (5, "DEADLINE_EXCEEDED")
    ]


def test_single_images_that_could_not_be_taken_are_sent_again() -> None:
    class Picky(Inference):
        """Turns every third image away once."""

        def __init__(self) -> None:
            super().__init__()
            self._turned_away: Counter[str] = Counter()

        def _result(self, image: common_pb2.Image) -> inference_pb2.ImageResult:
            self._turned_away[image.id] += 1
            if int(image.id) % 3 == 0 and self._turned_away[image.id] == 1:
                status = {"code": code_pb2.UNAVAILABLE, "message": "going away"}
                return inference_pb2.ImageResult(id=image.id, status=status)  # type: ignore[arg-type]
            return super()._result(image)

    with serving(add_inference, Picky()) as address:
        answers = answers_of(address, arrays(50))
    assert_each_once(answers, 50)
    assert all(result.ok for _, result in answers)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (code_pb2.NOT_FOUND, errors.NotFoundError),
        (code_pb2.FAILED_PRECONDITION, errors.WrongStateError),
        (code_pb2.INVALID_ARGUMENT, errors.InvalidInputError),
        (code_pb2.UNAUTHENTICATED, errors.UnauthenticatedError),
        (code_pb2.PERMISSION_DENIED, errors.ForbiddenError),
    ],
)
def test_what_concerns_all_images_ends_the_run(code: int, kind: type[errors.LimnerError]) -> None:
    trouble = lambda _number, _request, context: refuse(context, code, "not for this one")  # noqa: E731
    with serving(add_inference, Troubled(trouble)) as address, pytest.raises(kind, match="not for this one"):
        answers_of(address, arrays(2))


def test_another_model_than_the_one_asked_for_ends_the_run() -> None:
    class Replaced(Inference):
        def Predict(self, request: inference_pb2.PredictRequest, context: Any) -> inference_pb2.PredictResponse:
            reply = super().Predict(request, context)
            reply.model.digest = "e" * 64
            return reply

    with serving(add_inference, Replaced()) as address, pytest.raises(errors.WrongStateError, match="m:3 was replaced"):
        answers_of(address, arrays(10))


def test_what_the_source_raises_comes_through() -> None:
    def broken() -> Iterator[Item]:
        yield from arrays(20)
        raise RuntimeError("the caller's disk is gone")

    inference = Inference()
    with serving(add_inference, inference) as address, pytest.raises(RuntimeError, match="disk is gone"):
        answers_of(address, broken())
    assert len(inference.seen) == 20, "what came before is answered"


def test_a_message_larger_than_the_server_takes_is_split_and_then_fails() -> None:
    # The fake server takes gRPC's default of 4 MiB: parcels fit, a single image of 9 MB does not.
    items = given([np.zeros((3000, 3000), np.uint8), *[np.zeros((4, 4), np.uint8)] * 3])
    with serving(add_inference, Inference()) as address:
        answers = answers_of(address, items)
    assert_each_once(answers, 4)
    (failed,) = [result.error for _, result in answers if result.error]
    assert failed.code == "RESOURCE_EXHAUSTED"
    assert "larger than max" in failed.message


def test_a_message_larger_than_its_sender_may_send_fails_at_once() -> None:
    def trouble(number: int, request: inference_pb2.PredictRequest, context: Any) -> None:
        if any(image.id == "5" for image in request.images):
            asked.append(len(request.images))
            context.set_trailing_metadata((("limner-request-id", "r-1"), ("grpc-retry-pushback-ms", "-1")))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "yours may have 1 MiB")

    asked: list[int] = []
    with serving(add_inference, Troubled(trouble)) as address:
        answers = answers_of(address, arrays(40))
    assert_each_once(answers, 40)
    (failed,) = [(item, result) for item, result in answers if not result.ok]
    assert failed[0].position == 5
    assert failed[1].error is not None
    assert (failed[1].error.code, failed[1].error.message) == ("RESOURCE_EXHAUSTED", "yours may have 1 MiB")
    assert [1 for images in asked if images == 1] == [1]


def test_patience_ends_where_no_image_is_answered_either() -> None:
    class Closing(Inference):
        def _result(self, image: common_pb2.Image) -> inference_pb2.ImageResult:
            status = {"code": code_pb2.UNAVAILABLE, "message": "closing"}
            return inference_pb2.ImageResult(id=image.id, status=status)  # type: ignore[arg-type]

    with serving(add_inference, Closing()) as address, pytest.raises(errors.UnavailableError, match="answers no image"):
        answers_of(address, arrays(10), patience_s=0.5)


def test_patience_counts_from_the_first_failure_and_not_from_a_slow_source() -> None:
    def slow() -> Iterator[Item]:
        for item in arrays(30):
            if item.position == 20:
                time.sleep(1.2)
            yield item

    def trouble(number: int, request: inference_pb2.PredictRequest, context: Any) -> None:
        if any(image.id == "25" for image in request.images) and number < troubled[0] + 3:
            refuse(context, code_pb2.UNAVAILABLE, "not now")
        else:
            troubled[0] = number

    troubled = [0]
    with serving(add_inference, Troubled(trouble)) as address:
        assert_each_once(answers_of(address, slow(), patience_s=1), 30)


def test_less_is_sent_to_a_server_that_does_not_answer_in_time() -> None:
    turn = threading.Lock()

    def trouble(number: int, request: inference_pb2.PredictRequest, context: Any) -> None:
        with turn:  # one image after another
            if context.is_active():
                time.sleep(0.01 * len(request.images))

    with serving(add_inference, Troubled(trouble)) as address:
        answers = answers_of(address, arrays(200), timeout=0.6, in_flight=256)
    assert_each_once(answers, 200)
    assert all(result.ok for _, result in answers)


def lagging(seconds: float) -> Troubled:
    return Troubled(lambda *_: time.sleep(seconds))


def test_a_fast_server_gets_more_than_a_slow_one() -> None:
    fast, slow = lagging(0.0), lagging(0.2)
    with serving(add_inference, fast) as one, serving(add_inference, slow) as other:
        answers = answers_of(f"{one},{other}", arrays(800), in_flight=32)
    assert_each_once(answers, 800)
    assert len(fast.seen) > 2 * len(slow.seen) > 0


def test_what_a_lost_server_owes_goes_to_the_others() -> None:
    slow, other = lagging(0.1), lagging(0.02)
    answers: list[Answer] = []
    with serving(add_inference, other) as two:
        with serving(add_inference, slow) as one:
            thread = threading.Thread(target=lambda: answers.extend(answers_of(f"{one},{two}", arrays(1500))))
            thread.start()
            while not slow.seen:
                time.sleep(0.001)
        thread.join(60)
    assert_each_once(answers, 1500)
    assert all(result.ok for _, result in answers)
    assert len(slow.seen) < len(other.seen)


def test_a_server_that_hangs_costs_no_image() -> None:
    def hang(number: int, request: Any, context: Any) -> None:
        gone = threading.Event()
        context.add_callback(gone.set)
        gone.wait(30)

    hanging = Troubled(hang)
    with serving(add_inference, hanging) as one, serving(add_inference, Inference()) as two:
        answers = answers_of(f"{one},{two}", arrays(200), timeout=0.5)
    assert_each_once(answers, 200)
    assert all(result.ok for _, result in answers)
    assert hanging.most


def test_the_server_is_named_that_lacks_the_model() -> None:
    trouble = lambda _number, _request, context: refuse(context, code_pb2.NOT_FOUND, "no model 'm'")  # noqa: E731
    with (
        serving(add_inference, Troubled(trouble)) as one,
        serving(add_inference, lagging(0.05)) as two,
        pytest.raises(errors.NotFoundError, match=f"^{one}: no model 'm'$"),
    ):
        answers_of(f"{one},{two}", arrays(500))


def test_a_fleet_that_is_closed_ends_the_run() -> None:
    with serving(add_inference, lagging(0.05)) as address:
        fleet = Fleet(Servers(address, None), kind_of(ScoreOptions()), 20, 64)

        def closing() -> Iterator[Item]:
            for item in arrays(1000):
                if item.position == 300:
                    threading.Thread(target=fleet.close).start()
                yield item

        with ThreadPoolExecutor(1) as reader:
            flow = Flow(MODEL, fleet, reader, ahead=4, patience_s=20)
            with pytest.raises(errors.CancelledError, match="the run was stopped"):
                list(flow.answers(closing()))


def test_the_addresses_of_a_name_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a headless service, where servers that are replaced come back under other addresses."""
    hosts = ["127.0.0.1"]

    def look_up(_host: str, port: int, **_how: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]

    monkeypatch.setattr("limner.scoring.fleet.LOOK_UP_S", 0.05)
    monkeypatch.setattr("limner.servers.socket.getaddrinfo", look_up)
    first, second = Inference(), Inference()
    with serving(add_inference, first) as address:
        port = int(address.rpartition(":")[2])
        with serving(add_inference, second, port, host="127.0.0.2"):

            def moved() -> Iterator[Item]:
                for item in arrays(10_000):
                    if item.position == 200:
                        hosts[:] = ["127.0.0.2"]
                    if second.seen:
                        return
                    yield item

            answers = answers_of(f"dns:///limner-headless:{port}", moved())
    assert_each_once(answers, len(answers))
    assert all(result.ok for _, result in answers)
    assert first.seen
    assert second.seen


def test_a_name_that_stands_for_nothing_is_told() -> None:
    with pytest.raises(errors.UnavailableError, match=r"nowhere\.invalid cannot be looked up"):
        answers_of("dns:///nowhere.invalid:8500", arrays(1))
