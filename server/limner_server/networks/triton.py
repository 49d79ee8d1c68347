"""Triton's `config.pbtxt` for an artifact: the real server serves the same file through its LibTorch backend.

Names follow that backend's convention NAME__INDEX
(https://github.com/triton-inference-server/pytorch_backend, 'Model configuration').
"""

from limner_server.networks.card import ModelCard

INPUT = "images__0"
OUTPUTS = ("logits__0", "probabilities__1", "embedding__2")

MAX_BATCH_SIZE = 64
MAX_QUEUE_DELAY_US = 5000


def config_text(name: str, card: ModelCard) -> str:
    """Text of the model configuration: one input `(s, s)`, the three outputs of `forward`, dynamic batching."""
    labels = len(card.labels)
    outputs = zip(OUTPUTS, (labels, labels, card.channels[-1]), strict=True)
    return "\n".join(
        [
            f'name: "{name}"',
            'backend: "pytorch"',
            f"max_batch_size: {MAX_BATCH_SIZE}",
            f"input {_tensor(INPUT, card.grid.size, card.grid.size)}",
            *(f"output {_tensor(output, width)}" for output, width in outputs),
            f"dynamic_batching {{ max_queue_delay_microseconds: {MAX_QUEUE_DELAY_US} }}",
            "",
        ]
    )


def _tensor(name: str, *dims: int) -> str:
    return f'{{ name: "{name}" data_type: TYPE_FP32 dims: [ {", ".join(map(str, dims))} ] }}'
