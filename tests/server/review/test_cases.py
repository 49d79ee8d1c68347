"""A reader's way to an image is the same, whatever the image is: nothing can be told from how long it takes."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import event

from limner.v1 import review_pb2
from limner_server.review.gather import ItemKind
from limner_server.rpc.review import ReviewService
from limner_server.state.database import open_database
from limner_server.state.reviews import Definition, ReadingItem, ReviewStore

LABELS = ("no", "yes")


def definition(size: int) -> Definition:
    return Definition(
        title="t",
        question="q",
        label="yes",
        labels=LABELS,
        lexicon=(),
        model="m",
        version=1,
        digest="d",
        cohort="c",
        cohort_digest="e",
        seed=1,
        fov_mm=160,
        size=size,
        secret="",
    )


def item(kind: ItemKind) -> ReadingItem:
    real = kind is ItemKind.REAL
    names = ("subject", "instance", None, None) if real else ("", "", 0, "SOUND")
    return ReadingItem(kind, "yes", *names, probabilities=(0.25, 0.75), out_of_fold=real)


def test_the_same_statements_fetch_every_image(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'limner.sqlite'}")
    store = ReviewStore(engine, tmp_path)
    images = np.zeros((len(ItemKind), 8, 8), "<u2")
    _, (token,) = store.create(definition(8), list(map(item, ItemKind)), images, ["ann"])
    nothing: Any = None  # what no case is asked of
    service = ReviewService(store, nothing, nothing, nothing)
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda _connection, _cursor, sql, *_: statements.append(sql))
    ways = set()
    for position in range(1, len(ItemKind) + 1):
        statements.clear()
        reply = asyncio.run(service.NextCase(review_pb2.NextCaseRequest(token=token, position=position), nothing))
        ways.add((tuple(statements), reply.ByteSize()))
    ((found, size),) = ways
    assert len(found) > 1
    assert size > 2 * 8 * 8
