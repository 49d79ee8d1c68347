"""The search for Triton's best settings, and how they reach its configuration."""

import operator
from dataclasses import astuple
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from benchmarks.triton import TritonSettings, best_settings


def test_the_search_finds_the_best_and_measures_nothing_twice() -> None:
    best = TritonSettings(instances=2, threads=1, queue_delay_us=1000, preferred_batch_size=16)
    measured: list[TritonSettings] = []

    def throughput(settings: TritonSettings) -> float:
        measured.append(settings)
        return float(sum(map(operator.eq, astuple(settings), astuple(best))))

    assert best_settings(throughput) == best
    assert len(measured) == len(set(measured)) == 8


def test_settings_reach_the_configuration_and_leave_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "python.pbtxt"
    before = model_config_pb2.ModelConfig(name="m", max_batch_size=64)
    before.parameters["digest.1"].string_value = "f" * 64
    file.write_text(text_format.MessageToString(before))

    TritonSettings(instances=1, threads=2, queue_delay_us=0, preferred_batch_size=8).write_to(file)
    TritonSettings(instances=2, threads=1, queue_delay_us=5000).write_to(file)

    expected = """
        name: "m"
        max_batch_size: 64
        instance_group { count: 2 kind: KIND_CPU }
        dynamic_batching { max_queue_delay_microseconds: 5000 }
        parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "1" } }
    """
    after = text_format.Parse(expected, model_config_pb2.ModelConfig())
    after.parameters["digest.1"].string_value = "f" * 64
    assert text_format.Parse(file.read_text(), model_config_pb2.ModelConfig()) == after
